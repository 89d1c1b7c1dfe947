"""Codes stand for the numbers that ml_dtypes and numpy say they stand for, and rank as these do."""

import ml_dtypes
import numba
import numpy as np
import pytest

from workbench.kernels.codes import as_codes, code_of_rank, rank, value


@numba.njit
def _read(codes, values, ranks, back):
    for i in range(codes.shape[0]):
        values[i] = value(codes[i])
        ranks[i] = rank(codes[i])
        back[i] = code_of_rank(rank(codes[i]), codes[i])


def _pass_through(weights):
    codes = as_codes(weights)
    wide = np.float64 if weights.dtype == np.float64 else np.float32
    values, ranks, back = np.empty(len(codes), wide), np.empty(len(codes), np.int64), np.empty_like(codes)
    _read(codes, values, ranks, back)
    return codes, values, ranks, back


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_every_16_bit_code_is_the_number_that_its_type_says(dtype):
    weights = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    codes, values, ranks, back = _pass_through(weights)
    expected = weights.astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(back, codes)
    finite = ~np.isnan(expected)
    order = np.argsort(ranks[finite])
    assert (np.diff(expected[finite][order]) >= 0).all()
    assert len(np.unique(ranks)) == 1 << 16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wide_floats_rank_as_they_compare(dtype):
    info = np.finfo(dtype)
    rng = np.random.default_rng(1)
    weights = np.concatenate(
        [rng.standard_normal(500), [0.0, -0.0, np.inf, -np.inf, info.max, -info.max, info.smallest_subnormal]]
    ).astype(dtype)
    codes, values, ranks, back = _pass_through(weights)
    np.testing.assert_array_equal(values, weights)
    np.testing.assert_array_equal(back.view(np.uint8), codes.view(np.uint8))
    assert (np.diff(weights[np.argsort(ranks, kind="stable")]) >= 0)[:-1].all()


def test_16_and_32_bit_weights_are_not_copied():
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64):
        weights = np.ones((3, 5), dtype=dtype)
        assert np.shares_memory(as_codes(weights), weights)


def test_eight_bit_floats_are_widened():
    weights = np.array([[0.5, -448.0]], dtype=ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(as_codes(weights), np.array([[0.5, -448.0]], dtype=np.float32))
