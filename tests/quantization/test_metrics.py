from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.errors import QuantizationError
from workbench.grids import UniformGrid, parse_grid
from workbench.quantization import error, quantize

quick = settings(max_examples=40, deadline=None)


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.floats(-9, 9, width=16)),
    st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]),
    st.sampled_from(["uniform:bits=4", "power:bits=3,exponent=0.5", "nf4", "uniform:bits=4,range=asymmetric"]),
    st.sampled_from(["tensor", "channel", "group:4"]),
    st.sampled_from([1.0, 0.5]),
)
@quick
def test_every_number_equals_plain_float64_numpy(w, dtype, grid, granularity, clip):
    w = w.astype(dtype)
    q = quantize(w, parse_grid(grid), granularity, clip=clip)
    report = error(w, q)
    a, b = w.astype(np.float64), q.dequantize().astype(np.float64)
    gap = a - b
    assert report.mse == pytest.approx(np.mean(gap**2), rel=1e-12, abs=0)
    assert report.max_abs == np.abs(gap).max()
    assert report.count == w.size
    assert (report.approximate, report.bound) == (False, 0.0)
    np.testing.assert_allclose(report.per_channel, (gap.reshape(len(w), -1) ** 2).mean(axis=1), rtol=1e-12)
    assert report.per_channel.mean() == pytest.approx(report.mse)
    if gap.any() and a.any():
        assert report.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / (gap**2).sum()), rel=1e-10, abs=1e-10)
    if a.any() and b.any():
        assert report.cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-12)
    scale = np.repeat(np.abs(q.scale.astype(np.float64)), q.group_size, axis=1)[:, : q.codes.shape[1]]
    step = np.broadcast_to(scale * np.diff(q.grid.levels).max(), q.codes.shape)
    steps = np.abs(gap.reshape(q.codes.shape))[step > 0] / step[step > 0]
    assert report.max_steps == pytest.approx(steps.max(initial=0.0), rel=1e-12)


def test_importance_weighs_the_columns():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 3, 2, 2)).astype(np.float32)
    q = quantize(w, UniformGrid(bits=3))
    h = rng.uniform(0, 5, 12)
    report = error(w, q, h)
    a, gap = w.reshape(6, 12).astype(np.float64), (w - q.dequantize()).reshape(6, 12).astype(np.float64)
    gap = a - q.dequantize().reshape(6, 12)
    assert report.mse == pytest.approx((h * gap**2).sum() / (6 * h.sum()), rel=1e-12)
    assert report.sqnr_db == pytest.approx(10 * np.log10((h * a**2).sum() / (h * gap**2).sum()))
    np.testing.assert_allclose(report.per_channel, (h * gap**2).sum(axis=1) / h.sum(), rtol=1e-12)
    plain = error(w, q)
    assert error(w, q, np.full(12, 7.0)).mse == pytest.approx(plain.mse, rel=1e-12)
    assert (report.max_abs, report.max_steps, report.count) == (plain.max_abs, plain.max_steps, plain.count)
    torch = pytest.importorskip("torch")
    assert error(w, q, torch.from_numpy(h)) == report


def test_importance_is_the_output_error_of_uncorrelated_inputs():
    """With E[x x^T] = diag(h), the mean squared output error is the weighted mse times sum h, row by row."""
    rng = np.random.default_rng(1)
    w, h = rng.standard_normal((4, 16)).astype(np.float32), rng.uniform(0.1, 3, 16)
    q = quantize(w, UniformGrid(bits=4))
    x = np.concatenate([np.diag(np.sqrt(h)), -np.diag(np.sqrt(h))]) * 4.0  # 32 inputs, uncorrelated by construction
    outputs = x @ (w.astype(np.float64) - q.dequantize()).T
    np.testing.assert_allclose((outputs**2).mean(axis=0), error(w, q, h).per_channel * h.sum(), rtol=1e-10)


@pytest.mark.parametrize(
    "importance", [np.ones(5), np.ones((4, 4)), -np.ones(4), np.zeros(4), np.array([1, np.nan, 1, 1])]
)
def test_bad_importance_is_refused(importance):
    w = np.ones((4, 4), dtype=np.float32)
    with pytest.raises(QuantizationError, match="input_weights"):
        error(w, quantize(w, UniformGrid()), importance)


def test_weights_dequantized_elsewhere_are_compared_too():
    w = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    q = quantize(w, UniformGrid(bits=4))
    ours, plain = error(w, q), error(w, q.dequantize())
    assert plain.mse == ours.mse
    assert plain.cosine == ours.cosine
    assert math.isnan(plain.max_steps)
    assert error(w, w).sqnr_db == math.inf
    assert error(w, q, per_channel=False).per_channel is None


def test_shapes_and_values_must_agree():
    w = np.ones((4, 6), dtype=np.float32)
    with pytest.raises(QuantizationError, match=r"shape \(4, 6\).*\(6, 4\)"):
        error(w, quantize(w.T, UniformGrid()))
    with pytest.raises(QuantizationError, match="shape"):
        error(w, w.ravel())
    bad = w.copy()
    bad[1, 2] = np.nan
    with pytest.raises(QuantizationError, match="finite"):
        error(w, bad)
    with pytest.raises(QuantizationError, match="finite"):
        error(bad, quantize(w, UniformGrid()))


def test_clipping_shows_in_steps():
    w = np.array([[-1.0, 0.3, 1.0]], dtype=np.float32)
    assert error(w, quantize(w, UniformGrid(bits=4))).max_steps <= 0.5
    half = error(w, quantize(w, UniformGrid(bits=4), clip=0.5))
    assert half.max_steps == pytest.approx(7.0)  # 0.5 is lost, a step is 0.5 / 7
    gone = error(
        np.full((1, 2), 1e-9, np.float32),
        quantize(np.full((1, 2), 1e-9, np.float32), "uniform:bits=8", scale_format="float16"),
    )
    assert (gone.max_steps, gone.sqnr_db, gone.cosine) == (math.inf, 0.0, 0.0)


def test_a_zero_weight_has_no_error():
    report = error(np.zeros((3, 4), np.float16), quantize(np.zeros((3, 4), np.float16), UniformGrid()))
    assert (report.mse, report.sqnr_db, report.cosine, report.max_steps) == (0.0, math.inf, 1.0, 0.0)
