"""Lloyd-Max codebooks, and how weights spread over codes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.quantization import best_clip, kmeans, lloyd_max, occupancy, quantize, sketch, sketch_error, sketch_for


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["gauss", "student", "few"]), st.booleans())
def test_the_error_never_rises_and_the_fit_is_deterministic(bits, seed, kind, coarse):
    rng = np.random.default_rng(seed)
    w = {
        "gauss": lambda: rng.standard_normal((20, 50)),
        "student": lambda: rng.standard_t(3, size=(20, 50)),
        "few": lambda: rng.integers(-2, 3, (20, 50)) + rng.random((20, 1)),
    }[kind]()
    made = sketch(w.astype(ml_dtypes.bfloat16 if coarse else np.float32), "tensor" if coarse else "channel")
    fit = lloyd_max(made, bits)
    assert (np.diff(fit.trace) <= 1e-12 * fit.trace[:-1]).all()
    assert len(fit.grid.levels) <= 2**bits
    again = lloyd_max(made, bits)
    np.testing.assert_array_equal(fit.grid.levels, again.grid.levels)
    # The trace is the error that the sketch gives for the codebook, but for bins cut by a threshold.
    report = sketch_error(made, fit.grid)
    assert report.mse == pytest.approx(fit.trace[-1], rel=0.02, abs=1e-12)


def test_a_fitted_codebook_is_a_fixed_point_and_beats_grids_of_its_bits():
    w = np.random.default_rng(0).standard_normal((128, 512)).astype(np.float32)
    made = sketch(w, "channel")
    fit = lloyd_max(made, 4)
    assert fit.converged
    mse = sketch_error(made, fit.grid).mse
    for grid in (parse_grid("nf4"), UniformGrid(bits=4), PowerGrid(bits=4, exponent=0.6)):
        assert mse < sketch_error(made, grid, best_clip(made, grid).clip).mse
    # The Gaussian's 4-bit Lloyd-Max quantizer reaches 20.22 dB (Max 1960, table I: normalised error 0.009497).
    assert sketch_error(made, fit.grid).sqnr_db == pytest.approx(20.22, abs=0.1)
    index = np.searchsorted(fit.grid.thresholds, made.m1 / made.m0, side="right")
    for level in range(16):
        cell = index == level
        assert made.m1[cell].sum() / made.m0[cell].sum() == pytest.approx(fit.grid.levels[level], abs=1e-4)


def test_a_codebook_of_few_weights_is_those_weights():
    w = np.array([[-1.0, -0.5, 0.25, 1.0] * 8], dtype=ml_dtypes.bfloat16)
    made = sketch(w, "tensor")
    np.testing.assert_array_equal(kmeans(made, 3).levels, [-1.0, -0.5, 0.25, 1.0])
    assert sketch_error(made, kmeans(made, 2)).mse == 0.0


def test_codebook_refusals():
    made = sketch(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32), "channel")
    with pytest.raises(QuantizationError, match="1 to 8 bits"):
        kmeans(made, 9)
    with pytest.raises(QuantizationError, match="too few different weights"):
        kmeans(sketch(np.zeros((2, 2), np.float32)), 2)
    with pytest.raises(QuantizationError, match="absmax"):
        kmeans(sketch(np.ones((2, 2), np.float32), "channel", "range"), 2)


@pytest.mark.parametrize(
    "text", ["uniform:bits=4", "uniform:bits=3,range=full", "nf4", "uniform:bits=4,range=asymmetric", "mxfp4"]
)
@pytest.mark.parametrize(("granularity", "dtype"), [("tensor", ml_dtypes.bfloat16), ("channel", np.float32)])
def test_occupancy_counts_codes(text, granularity, dtype):
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(dtype)
    grid = parse_grid(text)
    made = sketch_for(w, grid, granularity)
    clip = 0.7 if made.exact or made.clips_freely else 1.0
    found = occupancy(made, grid, clip)
    codes = quantize(w, grid, granularity, clip=clip).codes
    expected = np.array([(codes == code).sum() for code in grid.codes], dtype=float)
    assert found.counts.sum() == pytest.approx(w.size, rel=1e-12)
    if made.exact:
        np.testing.assert_array_equal(found.counts, expected)
        assert not found.approximate
    else:
        assert np.abs(found.counts - expected).max() <= 1e-3 * w.size
    share = expected[expected > 0] / w.size
    assert found.entropy == pytest.approx(-(share * np.log2(share)).sum(), abs=2e-3)
    assert found.entropy <= grid.bits
    assert list(found.to_frame()["code"]) == list(grid.codes)


def test_one_code_has_no_entropy():
    found = occupancy(sketch(np.zeros((4, 4), ml_dtypes.bfloat16), "tensor"), UniformGrid(bits=4))
    assert found.entropy == 0.0
    assert found.used == 1
