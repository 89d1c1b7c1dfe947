"""HQQ against the authors' package where it is installed, and always against its definition in plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid, parse_grid
from workbench.methods import LayerTask, parse_method
from workbench.methods.hqq import HQQ
from workbench.quantization import quantize

FAITHFUL = HQQ(kappa=1.0, best=False)


def heavy(seed=0, shape=(8, 64), size=0.05):
    return (np.random.default_rng(seed).standard_t(4, shape) * size + 0.01).astype(np.float32)


def plain_hqq(weight, bits, group, *, beta=10.0, kappa=1.0, norm=0.7, iterations=20):
    """Return the dequantized weight after the authors' loop, in float64."""
    top = 2**bits - 1
    w = weight.astype(np.float64).reshape(-1, group)
    low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
    steep = top / (high - low)
    zero = -low * steep
    best = np.inf
    for _ in range(iterations):
        q = np.clip(np.rint(w * steep + zero), 0, top)
        x = w - (q - zero) / steep
        size = np.abs(x)
        with np.errstate(divide="ignore"):
            kept = np.sign(x) * np.maximum(size - size ** (norm - 1) / beta, 0.0)
        zero = (q - (w - np.where(size > 0, kept, 0.0)) * steep).mean(axis=1, keepdims=True)
        beta *= kappa
        if size.mean() >= best:
            break
        best = size.mean()
    q = np.clip(np.rint(w * steep + zero), 0, top)
    return ((q - zero) / steep).reshape(weight.shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("size", [0.05, 3.0])
def test_the_loop_is_the_authors(bits, group, size):
    weight = heavy(bits, size=size)
    task = LayerTask.of(weight, f"uniform:bits={bits},range=asymmetric", granularity=f"group:{group}")
    for method, kappa in ((FAITHFUL, 1.0), (replace(FAITHFUL, kappa=1.05), 1.05)):
        found = method.quantize_layer(task).quantized
        expected = plain_hqq(weight, bits, group, kappa=kappa)
        np.testing.assert_allclose(found.dequantize(), expected, atol=3e-6 * size / 0.05)
        assert found.grid == PowerGrid(bits, 1.0, shifted=True)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_package_agrees(bits):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("hqq.core.quantize")
    weight = heavy(bits, (32, 128))
    given = torch.from_numpy(weight)
    codes, meta = package.Quantizer.quantize(given, nbits=bits, group_size=64, axis=1, device="cpu", bitpack=False)
    expected = package.Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32}).numpy()
    task = LayerTask.of(weight, f"uniform:bits={bits},range=asymmetric", granularity="group:64")
    found = FAITHFUL.quantize_layer(task).quantized.dequantize()
    off = np.abs(found - expected) > 1e-4
    assert off.mean() < 1e-3  # float32 ties


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(
        ["uniform:bits=3,range=asymmetric", "uniform:bits=3", "uniform:bits=4,range=full", "power:bits=4,exponent=0.6"]
    ),
    st.sampled_from(["tensor", "channel", "group:16", "group:24"]),
    st.sampled_from(["absmax", "mse"]),
    st.sampled_from([0.05, 5.0]),
    st.integers(0, 10**6),
)
def test_no_group_is_worse_than_where_it_started(text, granularity, rule, size, seed):
    weight = heavy(seed, size=size)
    task = LayerTask.of(weight, text, granularity=granularity, scale=rule)
    found = HQQ().quantize_layer(task)
    start = HQQ(iterations=0).quantize_layer(task).quantized
    gaps = [np.abs(weight.astype(np.float64) - each.dequantize()) ** 0.7 for each in (found.quantized, start)]
    width = task.granularity.group_size(64)
    places = np.arange(0, 64, width)
    sums = [np.add.reduceat(gap, places, axis=1) for gap in gaps]
    if granularity == "tensor":
        sums = [each.sum() for each in sums]
    assert (sums[0] <= sums[1] * (1 + 1e-4) + 1e-6).all()
    if "asymmetric" not in text:
        np.testing.assert_array_equal(start.codes, task.start.codes)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
def test_whole_zero_points_keep_the_grid(granularity):
    weight = heavy(2)
    task = LayerTask.of(weight, "uniform:bits=3,range=asymmetric", granularity=granularity)
    found = HQQ(zero="whole").quantize_layer(task).quantized
    assert found.grid == parse_grid("uniform:bits=3,range=asymmetric")
    np.testing.assert_allclose(found.offset * 7, np.rint(found.offset * 7), atol=1e-12)
    real = HQQ().quantize_layer(task)
    assert real.bits_per_weight > found.bits_per_weight
    before = quantize(weight, "uniform:bits=3,range=asymmetric", granularity).dequantize()
    gaps = [np.abs(weight - each) ** 0.7 for each in (found.dequantize(), before)]
    assert gaps[0].sum() <= gaps[1].sum() * (1 + 1e-5)


def test_poor_groups_and_no_iterations():
    weight = heavy(3)
    weight[1], weight[2], weight[3, :16] = 0.0, 0.25, -0.125
    for text in ("uniform:bits=4,range=asymmetric", "uniform:bits=4"):
        for method in (HQQ(), HQQ(iterations=0), FAITHFUL):
            task = LayerTask.of(weight, text, granularity="group:16")
            first, second = (method.quantize_layer(task).quantized for _ in range(2))
            values = first.dequantize()
            np.testing.assert_array_equal(values, second.dequantize())
            np.testing.assert_array_equal(values[1], 0.0)
            np.testing.assert_allclose(values[2], 0.25, rtol=1e-6)
            np.testing.assert_allclose(values[3, :16], -0.125, rtol=1e-6)


def test_weights_on_the_grid_stay_as_they_are():
    for text in ("uniform:bits=3,range=asymmetric", "uniform:bits=4", "power:bits=4,exponent=0.5"):
        before = quantize(heavy(5), text).dequantize()
        after = HQQ().quantize_layer(LayerTask.of(before, text)).quantized.dequantize()
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_its_curve_is_its_loss():
    weight = heavy(6)
    found = HQQ().quantize_layer(LayerTask.of(weight, "uniform:bits=2", granularity="group:16"))
    start = quantize(weight, "uniform:bits=2", "group:16").dequantize()
    assert found.trace.loss[0] == pytest.approx((np.abs(weight - start) ** 0.7).mean(), rel=1e-5)
    assert min(found.trace.loss) < found.trace.loss[0]


def test_what_cannot_be_done_is_refused():
    weight = heavy(shape=(4, 32))
    for text in ("mxfp4", "bcq:bits=2"):
        with pytest.raises(QuantizationError, match="range=asymmetric"):
            HQQ().quantize_layer(LayerTask.of(weight, text, granularity="group:32"))
    for text, words in (
        ("hqq:lp_norm=1.5", "at most at 1"),
        ("hqq:beta=0", "beta above 0"),
        ("hqq:kappa=0.5", "beta above 0"),
        ("hqq:zero=maybe", "real or whole"),
    ):
        with pytest.raises(QuantizationError, match=words):
            parse_method(text)


@pytest.mark.parametrize("norm", [0.1, 0.5, 0.7, 1.0])
def test_the_kernels_power_is_the_power(norm):
    import numba

    from workbench.kernels.hqq import _power

    @numba.njit
    def powers(sizes, norm):
        found = np.empty(len(sizes))
        for place in range(len(sizes)):
            found[place] = _power(np.float64(sizes[place]), norm)
        return found

    generator = np.random.default_rng(0)
    sizes = np.exp(generator.uniform(-87.0, 88.0, 20_000)).astype(np.float32)
    sizes = np.concatenate([sizes, np.float32([1.0, 2.0, 2.0**-126, 1.4142135, 1.4142137, 2.0**127])])
    np.testing.assert_allclose(powers(sizes, norm), sizes.astype(np.float64) ** norm, rtol=3e-7)
    np.testing.assert_array_equal(powers(np.float32([0.0, 1e-40]), norm), [0.0, 0.0])
