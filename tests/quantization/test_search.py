"""Exponent and clip searches against the known values for Gauss, Laplace and Student-t, and against brute force."""

import ml_dtypes
import numpy as np
import pytest

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid, UniformGrid
from workbench.quantization import best_clip, exact_error, landscape, search_exponent, sketch, sketch_error
from workbench.quantization.minimum import golden_section, nelder_mead
from workbench.quantization.search import CLIPS, EXPONENTS

SAMPLES = (512, 512)

#: Distribution, bits, best exponent, its SQNR, uniform's SQNR at absmax, at exponent 0.5, uniform's at its best clip, that clip
TABLE = [
    ("gauss", 3, 0.65, 8.81, 6.84, 8.34, 13.27, 0.41),
    ("gauss", 4, 0.62, 16.15, 14.20, 15.89, 18.87, 0.52),
    ("gauss", 6, 0.62, 29.10, 27.12, 28.83, 29.71, 0.69),
    ("gauss", 8, 0.61, 41.34, 39.37, 41.07, 40.57, 0.83),
    ("laplace", 3, 0.50, 6.59, 3.72, 6.59, 10.74, 0.30),
    ("laplace", 4, 0.49, 14.05, 9.80, 14.05, 15.57, 0.42),
    ("laplace", 8, 0.50, 39.26, 34.65, 39.26, 35.65, 0.85),
    ("student", 4, 0.37, 9.33, 1.45, 8.25, 13.78, 0.12),
    ("student", 8, 0.32, 34.72, 23.53, 33.53, 26.69, 0.56),
]

#: Distribution, bits, best exponent and clip together, SQNR.
JOINT = [
    ("gauss", 3, 0.86, 0.42, 13.42),
    ("gauss", 4, 0.80, 0.54, 19.22),
    ("laplace", 4, 0.64, 0.40, 16.72),
    ("student", 4, 0.64, 0.27, 14.90),
]


def draw(name, seed=0):
    # The absmax of heavy tails, and with it every SQNR at absmax, differs from draw to draw; these draws are typical.
    rng = np.random.default_rng(seed)
    if name == "gauss":
        return rng.standard_normal(SAMPLES).astype(np.float32)
    rng.standard_normal(SAMPLES)
    if name == "laplace":
        return rng.laplace(size=SAMPLES).astype(np.float32)
    rng.laplace(size=SAMPLES)
    return rng.standard_t(5, size=SAMPLES).astype(np.float32)


@pytest.fixture(scope="module")
def sketches():
    return {name: sketch(draw(name), "tensor") for name in ("gauss", "laplace", "student")}


@pytest.mark.parametrize(("name", "bits", "exponent", "power", "uniform", "half", "clipped", "clip"), TABLE)
def test_the_exponents_of_known_distributions(sketches, name, bits, exponent, power, uniform, half, clipped, clip):  # noqa: PLR0917
    made = sketches[name]
    found = search_exponent(made, bits)
    assert found.exponent == pytest.approx(exponent, abs=0.03)
    assert found.sqnr_db == pytest.approx(power, abs=0.15)
    assert sketch_error(made, UniformGrid(bits=bits)).sqnr_db == pytest.approx(uniform, abs=0.15)
    assert sketch_error(made, PowerGrid(bits=bits, exponent=0.5)).sqnr_db == pytest.approx(half, abs=0.15)
    best = best_clip(made, UniformGrid(bits=bits))
    assert best.sqnr_db == pytest.approx(clipped, abs=0.15)
    assert best.clip == pytest.approx(clip, abs=0.03)


@pytest.mark.parametrize(("name", "bits", "exponent", "clip", "sqnr"), JOINT)
def test_exponent_and_clip_together(sketches, name, bits, exponent, clip, sqnr):  # noqa: PLR0917
    found = search_exponent(sketches[name], bits, clip="joint")
    assert found.exponent == pytest.approx(exponent, abs=0.04)
    assert found.sqnr_db == pytest.approx(sqnr, abs=0.15)
    if name == "gauss":  # a heavier tail has another absmax in every draw, and the clip is a fraction of it
        assert found.clip == pytest.approx(clip, abs=0.04)
    assert found.value <= found.coarse.min()


def test_uniform_weights_want_exponent_one_and_two_bits_do_not_care():
    w = np.random.default_rng(0).uniform(-1, 1, (256, 256)).astype(np.float32)
    assert search_exponent(w, 4, "tensor").exponent == pytest.approx(1.0, abs=0.02)
    assert search_exponent(w, 2, "tensor").exponent == 1.0


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:64"])
@pytest.mark.parametrize("bits", [3, 5])
@pytest.mark.parametrize("clip", [1.0, 0.7, "joint"])
def test_never_worse_than_the_grid(granularity, bits, clip):
    w = np.random.default_rng(bits).standard_t(5, size=(64, 256)).astype(ml_dtypes.bfloat16)
    made = sketch(w, granularity)
    found = search_exponent(made, bits, clip=clip)
    assert found.value <= found.coarse.min()
    exact = exact_error(w, found.grid, granularity, clip=found.clip)
    assert abs(found.mse / exact.mse - 1) <= found.bound + 1e-11
    for exponent in (0.2, 0.44, 0.7, 1.0, 1.2):
        grid = PowerGrid(bits=bits, exponent=exponent)
        other = sketch_error(made, grid, found.clip).mse
        assert found.mse <= other * (1 + 1e-12)
    assert 1.0 in found.exponents
    assert found.coarse.shape == (len(EXPONENTS), len(CLIPS) if clip == "joint" else 1)


@pytest.mark.parametrize("bits", [3, 4, 7])
@pytest.mark.parametrize("seed", range(6))
def test_joint_search_is_never_worse_than_the_choices_it_contains(bits, seed):
    rng = np.random.default_rng(seed)
    made = sketch((rng.standard_t(3 + seed, size=(32, 96)) * 0.05).astype(np.float32), "channel")
    joint = search_exponent(made, bits, clip="joint")
    assert joint.mse <= search_exponent(made, bits).mse
    assert joint.mse <= best_clip(made, UniformGrid(bits=bits)).mse


def test_one_exponent_for_several_layers_minimises_the_named_objective():
    rng = np.random.default_rng(0)
    layers = {"a": rng.standard_normal((64, 128)) * 5, "b": rng.laplace(size=(32, 256)) * 0.1}
    layers = {name: w.astype(np.float32) for name, w in layers.items()}
    values = {}
    for objective in ("norm", "mse", "relative"):
        found = search_exponent(layers, 4, objective=objective)
        assert len(found.layers) == 2
        energy = {name: float((w.astype(np.float64) ** 2).sum()) for name, w in layers.items()}
        sums = {name: exact_error(w, found.grid).mse * w.size for name, w in layers.items()}
        expected = {
            "norm": sum(np.sqrt(error) for error in sums.values()),
            "mse": sum(sums.values()),
            "relative": sum(sums[name] / energy[name] for name in sums),
        }[objective]
        assert found.value == pytest.approx(expected, rel=1e-3)
        assert found.value <= found.coarse.min()
        values[objective] = found.exponent
    # The large Gaussian layer rules the squared error, the small heavy-tailed one counts alike in the relative error.
    assert values["relative"] < values["mse"]


def test_layers_of_a_model_are_its_linear_and_convolution_layers():
    class Item:
        def __init__(self, kind, seed):
            self.kind = kind
            self.array = np.random.default_rng(seed).standard_normal((16, 32)).astype(np.float32)

        def __array__(self, dtype=None, copy=None):
            return self.array

    class Model:
        layers = {"a": Item("linear", 0), "n": Item("norm", 1), "c": Item("conv", 2)}  # noqa: RUF012

    assert len(search_exponent(Model(), 4).layers) == 2
    Model.layers = {"n": Item("norm", 1)}
    with pytest.raises(QuantizationError, match="no linear or convolution layer"):
        search_exponent(Model(), 4)


def test_best_clip_beats_every_clip_asked_and_traces_them():
    made = sketch(np.random.default_rng(0).standard_t(4, size=(64, 256)).astype(np.float32), "channel")
    grid = UniformGrid(bits=4)
    found = best_clip(made, grid)
    assert found.mse == found.trace.min()
    for clip in np.linspace(0.02, 1.0, 197):
        assert found.mse <= sketch_error(made, grid, float(clip)).mse * (1 + 1e-3)
    assert (np.diff(found.clips) >= 0).all()


def test_landscape_is_sketch_error_everywhere():
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for weights, granularity in ((w, "channel"), (w.astype(ml_dtypes.bfloat16), "tensor")):
        made = sketch(weights, granularity)
        exponents, clips = np.array([0.3, 0.62, 1.0]), np.array([0.25, 0.6, 1.0])
        picture = landscape(made, 4, exponents, clips, rounding="nearest")
        for i, exponent in enumerate(exponents):
            for j, clip in enumerate(clips):
                report = sketch_error(made, PowerGrid(bits=4, exponent=exponent, rounding="nearest"), clip)
                assert picture.mse[i, j] == pytest.approx(report.mse, rel=1e-12)
                assert picture.bound[i, j] == pytest.approx(report.bound, rel=1e-9)
                assert picture.sqnr_db[i, j] == pytest.approx(report.sqnr_db, abs=1e-9)
        row, column = picture.best_index
        assert picture.mse[row, column] == picture.mse.min()
        assert picture.best == (exponents[row], clips[column])
        assert picture.approximate == (granularity == "channel")
        assert len(picture.to_frame()) == 9
    assert landscape(w, 4, granularity="channel").mse.shape == (64, 64)
    with pytest.raises(QuantizationError, match="at least one number"):
        landscape(w, 4, exponents=[])
    with pytest.raises(QuantizationError, match="clip"):
        landscape(w, 4, clips=[0.0, 1.0])


def test_bad_questions():
    w = np.ones((2, 4), np.float32)
    with pytest.raises(QuantizationError, match="objective"):
        search_exponent(w, 4, objective="max")
    with pytest.raises(QuantizationError, match="'joint'"):
        search_exponent(w, 4, clip=2.0)


def test_minimisers_find_smooth_minima():
    assert golden_section(lambda x: (x - 0.3) ** 2, 0.0, 1.0, 1e-7) == pytest.approx(0.3, abs=1e-6)
    best = nelder_mead(lambda p: (p[0] - 0.3) ** 2 + 3 * (p[1] + p[0]) ** 2, (0.0, 0.0), (0.1, 0.1), width=1e-6)
    assert best == pytest.approx((0.3, -0.3), abs=1e-4)
