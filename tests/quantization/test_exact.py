"""exact_error against quantize-and-compare, for every rule, granularity and grid."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import Cancelled, QuantizationError
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.quantization import best_group_clips, error, exact_error, quantize

GRIDS = [
    "uniform:bits=2",
    "uniform:bits=4,range=full",
    "uniform:bits=8",
    "uniform:bits=8,range=asymmetric",
    "power:bits=4,exponent=0.55",
    "power:bits=8,exponent=0.5",
    "power:bits=4,exponent=0.5,shifted=true",
    "nf4",
    "mxfp4",
    "nvfp4",
    "e4m3",
    "apot:bits=4",
]
DTYPES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]


def oracle(w, quantized):
    """Plain float64 numpy."""
    wide, back = w.astype(np.float64), quantized.dequantize().astype(np.float64)
    difference = wide - back
    return difference, wide, back


@settings(max_examples=50)
@given(
    st.sampled_from(GRIDS),
    st.sampled_from(["tensor", "channel", "group:32", "group:50"]),
    st.sampled_from(["absmax", "percentile:97", "mse"]),
    st.sampled_from(DTYPES),
    st.integers(1, 20),
    st.integers(1, 130),
    st.sampled_from([1.0, 0.7]),
)
def test_agrees_with_the_oracle_to_1e_9(text, granularity, scale, dtype, rows, columns, clip):  # noqa: PLR0917
    w = (np.random.default_rng(rows * 131 + columns).standard_t(4, size=(rows, columns)) * 0.02).astype(dtype)
    grid = parse_grid(text)
    report = exact_error(w, grid, granularity, scale=scale, clip=clip, per_channel=True)
    quantized = quantize(w, grid, granularity, scale=scale, clip=clip)
    difference, wide, back = oracle(w, quantized)
    assert report.mse == pytest.approx((difference**2).mean(), rel=1e-9)
    np.testing.assert_allclose(report.per_channel, (difference**2).mean(axis=1), rtol=1e-9)
    assert report.max_abs == np.abs(difference).max()
    norms = np.sqrt((wide**2).sum() * (back**2).sum())
    if norms > 0:
        assert report.cosine == pytest.approx((wide * back).sum() / norms, abs=1e-9)
    other = error(w, quantized)
    assert report.max_steps == pytest.approx(other.max_steps, rel=1e-9)
    assert report.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-8)
    assert not report.approximate
    assert report.bound == 0.0


@pytest.mark.parametrize("scale_format", ["float16", "bfloat16", "e8m0", "e4m3"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
def test_rounded_scales(scale_format, granularity):
    w = np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32)
    grid = PowerGrid(bits=4, exponent=0.5)
    report = exact_error(w, grid, granularity, scale_format=scale_format)
    quantized = quantize(w, grid, granularity, scale_format=scale_format)
    difference, _, _ = oracle(w, quantized)
    assert report.mse == pytest.approx((difference**2).mean(), rel=1e-9)


def test_many_row_blocks_make_one_answer(monkeypatch):
    w = np.random.default_rng(0).standard_normal((67, 96)).astype(ml_dtypes.bfloat16)
    grid = UniformGrid(bits=4)
    whole = exact_error(w, grid, "channel", per_channel=True)
    monkeypatch.setattr("workbench.quantization.sketching.STEP_BYTES_IN_MEMORY", 96 * 2 * 5)
    told = []
    parts = exact_error(w, grid, "channel", per_channel=True, progress=told.append)
    np.testing.assert_array_equal(parts.per_channel, whole.per_channel)
    assert parts.mse == pytest.approx(whole.mse, rel=1e-14)
    assert len(told) > 10
    assert told == sorted(told)

    def stop(fraction):
        if fraction > 0.5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        exact_error(w, grid, "channel", progress=stop)


def test_zero_tensors_and_conv_shapes():
    report = exact_error(np.zeros((4, 9), np.float32), PowerGrid(bits=4, exponent=0.5))
    assert report.mse == 0.0
    assert report.sqnr_db == np.inf
    w = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    assert exact_error(w, UniformGrid(bits=4)).count == w.size
    assert exact_error(w[0, 0, 0], UniformGrid(bits=4)).count == 3


@pytest.mark.parametrize(
    "text", ["uniform:bits=3", "uniform:bits=4,range=full", "nf4", "uniform:bits=4,range=asymmetric"]
)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:32"])
def test_best_group_clips_are_the_best_of_the_candidates(text, granularity):
    w = np.random.default_rng(1).standard_t(4, size=(9, 80)).astype(np.float32)
    grid = parse_grid(text)
    candidates = (1.0, 0.8, 0.6, 0.4)
    chosen = best_group_clips(w, grid, granularity, candidates)
    size = 80 if granularity != "group:32" else 32
    starts = np.arange(0, 80, size)
    sums = np.stack(
        [
            np.add.reduceat(oracle(w, quantize(w, grid, granularity, clip=clip))[0] ** 2, starts, axis=1)
            for clip in candidates
        ]
    )
    if granularity == "tensor":
        sums = sums.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(chosen, np.array(candidates)[np.argmin(sums, axis=0)])


def test_bad_questions():
    w = np.ones((2, 4), np.float32)
    with pytest.raises(QuantizationError, match="clip"):
        exact_error(w, UniformGrid(bits=4), clip=1.5)
    with pytest.raises(QuantizationError, match="scale rule"):
        exact_error(w, UniformGrid(bits=4), scale="best")
    with pytest.raises(QuantizationError, match="granularity"):
        exact_error(w, UniformGrid(bits=4), "rows")
