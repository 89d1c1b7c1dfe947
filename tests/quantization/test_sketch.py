"""Sketches: their own numbers, and every answer within its own bound of the exact one."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import Cancelled, QuantizationError
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.quantization import exact_error, sketch, sketch_error, sketch_for
from workbench.quantization.asking import relative_bound

BF16 = np.dtype(ml_dtypes.bfloat16)


def layer(kind="gauss", shape=(192, 640), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    draw = {
        "gauss": lambda: rng.standard_normal(shape),
        "laplace": lambda: rng.laplace(size=shape),
        "student": lambda: rng.standard_t(5, size=shape),
        "rows": lambda: rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1))),
        "few": lambda: rng.integers(-3, 4, shape) / 4.0,
        "positive": lambda: rng.random(shape) + 1.0,
        "zero": lambda: np.zeros(shape),
    }[kind]
    return (draw() * 0.02).astype(dtype)


def within(report, exact):
    """The law of a sketch: the exact error lies within the bound, and the rounding of two sums in different orders.

    A float64 sum of ``count`` terms of one sign is off by at most count * 2^-53 of itself (Higham 2002, section 4.2).
    """
    if report.bound == np.inf:
        return True
    rounding = 2 * exact.count * 2.0**-53
    return abs(report.mse - exact.mse) <= (report.bound * (1 + 1e-9) + rounding) * exact.mse + 1e-300


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:128", "group:32"])
@pytest.mark.parametrize("kind", ["gauss", "laplace", "student", "rows"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_bound_holds_and_is_below_two_per_mille(granularity, kind, bits):
    w = layer(kind)
    made = sketch(w, granularity)
    for grid in (
        UniformGrid(bits=bits),
        PowerGrid(bits=bits, exponent=0.5),
        PowerGrid(bits=bits, exponent=0.3),
        PowerGrid(bits=bits, exponent=0.8, rounding="nearest"),
    ):
        for clip in (1.0, 0.6):
            report = sketch_error(made, grid, clip)
            exact = exact_error(w, grid, granularity, clip=clip)
            assert within(report, exact), (grid, clip)
            assert report.bound < 0.002, (grid, clip)
            assert report.approximate
            assert report.cosine == pytest.approx(exact.cosine, abs=2e-3 * (1 - exact.cosine) + 1e-6)
            assert report.sqnr_db == pytest.approx(exact.sqnr_db, abs=0.01)
            assert report.count == w.size


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:32"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_piles_of_bfloat16_weights_on_a_border_cost_no_bound(granularity, bits):
    w = layer("gauss", shape=(256, 768), dtype=BF16)
    made = sketch(w, granularity)
    for grid in (PowerGrid(bits=bits, exponent=0.5), UniformGrid(bits=bits), PowerGrid(bits=bits, exponent=0.25)):
        exact = exact_error(w, grid, granularity)
        report = sketch_error(made, grid)
        assert within(report, exact), grid
        assert report.bound < 0.002, grid
    low, high = made.sharp_borders
    assert np.all(np.diff(low) > 0)
    assert np.all(np.diff(high) > 0)
    scale = np.abs(w.astype(np.float64)).max(axis=1, keepdims=True)
    if granularity == "channel":
        u = w.astype(np.float64) / scale
        for pile in np.flatnonzero(low == high):
            assert made.n[pile] == np.count_nonzero(u == low[pile])


@settings(max_examples=50)
@given(
    st.sampled_from(["gauss", "student", "rows", "few", "positive", "zero"]),
    st.integers(1, 40),
    st.integers(1, 200),
    st.sampled_from([BF16, np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]),
    st.sampled_from(["tensor", "channel", "group:16", "group:100"]),
    st.sampled_from(
        [
            "uniform:bits=4",
            "uniform:bits=4,range=full",
            "uniform:bits=4,range=asymmetric",
            "uniform:bits=8,range=asymmetric",
            "power:bits=4,exponent=0.5,shifted=true",
            "power:bits=3,exponent=0.2",
            "log:bits=8",
            "nf4",
            "mxfp4",
            "nvfp4",
            "uniform:bits=12",
        ]
    ),
    st.sampled_from([1.0, 0.9, 0.3]),
)
def test_the_bound_is_honest_for_odd_layers_and_every_grid(kind, rows, columns, dtype, granularity, text, clip):  # noqa: PLR0917
    w = layer(kind, (rows, columns), seed=rows * columns, dtype=dtype)
    grid = parse_grid(text)
    made = sketch_for(w, grid, granularity)
    if not made.exact and not made.clips_freely:
        clip = 1.0
    exact = exact_error(w, grid, granularity, clip=clip)
    report = sketch_error(made, grid, clip)
    assert within(report, exact)
    if made.exact:
        assert report.bound == 0.0
        assert not report.approximate
        assert report.mse == pytest.approx(exact.mse, rel=1e-11)
        assert report.max_abs == exact.max_abs


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)])
def test_a_tensor_sketch_of_16_bit_weights_is_exact_for_any_grid(dtype):
    w = layer("student", dtype=dtype)
    made = sketch(w, "tensor")
    assert made.exact
    assert made.bins == len(np.unique(w.astype(np.float64)))
    np.testing.assert_array_equal(made.value_min, made.value_max)
    for text in (
        "uniform:bits=8",
        "uniform:bits=8,range=full",
        "uniform:bits=8,range=asymmetric",
        "mxfp4",
        "log:bits=4",
    ):
        grid = parse_grid(text)
        for clip in (1.0, 0.4):
            exact = exact_error(w, grid, "tensor", clip=clip)
            report = sketch_error(made, grid, clip)
            assert report.bound == 0.0
            assert report.mse == pytest.approx(exact.mse, rel=1e-11)
            assert report.max_steps == pytest.approx(exact.max_steps, rel=1e-12)


def test_the_sums_are_those_of_the_weights():
    w = layer("rows")
    made = sketch(w, "channel")
    wide = w.astype(np.float64)
    scale = np.abs(wide).max(axis=1, keepdims=True)
    assert made.n.sum() == made.count == w.size
    assert made.m0.sum() == pytest.approx((scale**2).sum() * w.shape[1], rel=1e-12)
    assert made.m1.sum() == pytest.approx((scale * wide).sum(), rel=1e-9)
    assert made.m2.sum() == pytest.approx((wide**2).sum(), rel=1e-12)
    assert made.energy == pytest.approx((wide**2).sum(), rel=1e-12)
    assert made.absmax == np.abs(wide).max()
    assert (made.n > 0).all()
    assert (np.diff(made.value_min) > 0).all()


def test_rebin_keeps_sums_borders_and_honesty():
    w = layer("laplace")
    made = sketch(w, "channel")
    grid = PowerGrid(bits=4, exponent=0.5)
    exact = exact_error(w, grid, "channel")
    for most in (2, 100, 2048):
        coarse = made.rebin(most)
        assert coarse.bins <= most
        for name in ("n", "m0", "m1", "m2"):
            assert getattr(coarse, name).sum() == pytest.approx(getattr(made, name).sum(), rel=1e-12)
        assert coarse.value_min[0] == made.value_min[0]
        assert coarse.value_max[-1] == made.value_max[-1]
        assert within(sketch_error(coarse, grid), exact)
    assert sketch_error(made.rebin(2048), grid).bound < 0.01
    assert made.rebin(10**6) is made
    with pytest.raises(QuantizationError, match="at least 2 bins"):
        made.rebin(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16), np.dtype(np.float32)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:32"])
def test_non_finite_weights_are_counted(bad, dtype, granularity):
    w = layer(shape=(8, 100), dtype=dtype)
    w[2, 3] = w[7, 99] = bad
    with pytest.raises(QuantizationError, match=r"holds 2 non-finite weights"):
        sketch(w, granularity)
    with pytest.raises(QuantizationError, match=r"holds 2 non-finite weights"):
        exact_error(w, UniformGrid(bits=4), granularity)


def test_questions_that_a_sketch_cannot_answer_are_refused():
    w = layer(shape=(8, 64))
    made = sketch(w, "channel")
    with pytest.raises(QuantizationError, match="normalised by range"):
        sketch_error(made, UniformGrid(bits=4, range="asymmetric"))
    with pytest.raises(QuantizationError, match="e8m0"):
        sketch_error(made, parse_grid("mxfp4"))
    with pytest.raises(QuantizationError, match="above 0 and at most 1"):
        sketch_error(made, UniformGrid(bits=4), clip=0.0)
    with pytest.raises(QuantizationError, match="at clip 1"):
        sketch_error(sketch_for(w, parse_grid("mxfp4"), "group:32"), parse_grid("mxfp4"), clip=0.5)
    with pytest.raises(QuantizationError, match="normalization"):
        sketch(w, "channel", "rms")
    with pytest.raises(QuantizationError, match="empty"):
        sketch(np.empty((0, 4), dtype=np.float32))


def test_integer_zero_points_on_free_offsets_have_no_bound():
    w = layer("positive", shape=(16, 256))
    grid = UniformGrid(bits=4, range="asymmetric")
    assert sketch_error(sketch(w, "channel", "range"), grid).bound == np.inf
    assert sketch_error(sketch_for(w, grid, "channel"), grid).bound < 0.002


def test_progress_is_told_and_may_cancel():
    w = layer(shape=(64, 64))
    told = []
    sketch(w, "channel", progress=told.append)
    assert told[0] == 0.0
    assert told[-1] == 1.0
    assert told == sorted(told)

    def stop(fraction):
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        sketch(w, "channel", progress=stop)


def test_relative_bound():
    assert relative_bound(1.0, 0.0) == 0.0
    assert relative_bound(1.0, 0.5) == 1.0
    assert relative_bound(1.0, 1.0) == np.inf


@pytest.mark.slow
def test_a_large_layer_is_sketched_without_a_float_copy(fresh_python):
    # 8192 x 16384 bf16 weights: 256 MB as stored, 512 MB as float32. Rows are made when read, as a file's would be.
    program = """
import resource, sys
import ml_dtypes, numpy as np
from workbench.checkpoints.layer import Layer, Weights
from workbench.grids import PowerGrid
from workbench.quantization import exact_error, sketch
class Rows(Weights):
    def __init__(self, rows):
        self.shape, self.dtype = (rows, 16384), np.dtype(ml_dtypes.bfloat16)
    def rows(self, start, stop):
        rng = np.random.default_rng(start)
        return (rng.integers(0, 200, (stop - start, 16384), dtype=np.uint8).astype(np.int16) + 15000).view(self.dtype)
def run(rows):
    layer = Layer("big", Rows(rows), (rows, 16384), "bfloat16", "linear", "", "")
    sketch(layer, "channel"); exact_error(layer, PowerGrid(4, 0.5), "channel"); sketch(layer, "tensor")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = run(512)
print(run(8192) - small)
"""
    assert int(fresh_python(program)) < 60 * 1024  # kilobytes more than the same on a sixteenth of the rows
