"""A layer from codes to codes equals its two steps, bit for bit, for every rounding rule."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.kernels import fixed_point
from workbench.kernels import linear_codes as module
from workbench.kernels.fixed_point import DOUBLE, FLOAT32, FLOAT64, RIGHT_DOUBLE, RIGHT_SINGLE, SINGLE, WIDE
from workbench.kernels.integer_gemm import integer_matmul_batched
from workbench.kernels.linear_codes import linear_codes
from workbench.kernels.requantize import requantize_rows

SHAPES = [(1, 1, 1), (1, 70, 64), (2, 2, 0), (13, 17, 129), (100, 66, 40), (0, 3, 4), (3, 0, 4)]


def numbers(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape, dtype=dtype)


def factors(rng, rule, count):
    if rule == FLOAT32:
        return (rng.random(count) * 1e-3).astype(np.float32), np.zeros(count, dtype=np.int64)
    if rule == FLOAT64:
        return rng.random(count) * 1e-3, np.zeros(count, dtype=np.int64)
    right = rule in {RIGHT_SINGLE, RIGHT_DOUBLE}
    return rng.integers(2**30, 2**31, count), rng.integers(36, 46, count) if right else rng.integers(-14, 3, count)


def two_steps(x, weight, offset, multiplier, shift, rule, zero_point, low, high, dtype, weight_zero):  # noqa: PLR0917
    wide = x.dtype.itemsize > 1 or weight.dtype.itemsize > 1
    sums = integer_matmul_batched(x, weight).astype(np.int64) + np.atleast_2d(offset)[:, None]
    sums = (sums - x.sum(-1, dtype=np.int64)[..., None] * weight_zero).astype(np.int64 if wide else np.int32)
    codes, *counts = requantize_rows(
        sums.reshape(sums.shape[0] * sums.shape[1], sums.shape[2]),
        multiplier,
        shift,
        rule,
        zero_point,
        low,
        high,
        dtype,
    )
    return codes.reshape(sums.shape), *counts


def assert_exact(rng, rule, shape, kinds, dtype, single, path=None):  # noqa: PLR0917
    batches, (rows, columns, depth) = 3, shape
    x, weight = numbers(rng, (batches, rows, depth), kinds[0]), numbers(rng, (batches, columns, depth), kinds[1])
    multiplier, shift = factors(rng, rule, 1 if single else columns)
    weight_zero = rng.integers(-5, 6, columns) if single else np.zeros(columns, dtype=np.int64)
    limits = np.iinfo(dtype)
    rest = (multiplier, shift, rule, 3, int(limits.min) + 9, int(limits.max), np.dtype(dtype))
    for offset in (rng.integers(-(2**18), 2**18, columns), rng.integers(-(2**18), 2**18, (batches, columns))):
        codes, *counts = linear_codes(x, weight, offset, *rest, weight_zero=weight_zero, path=path)
        expected, *expected_counts = two_steps(x, weight, offset, *rest, weight_zero)
        assert codes.dtype == dtype
        np.testing.assert_array_equal(codes, expected)
        assert counts == expected_counts
    if rows and columns:
        one, *counts = linear_codes(x[0], weight[0], offset[0], *rest, weight_zero=weight_zero)
        expected, *expected_counts = two_steps(x[:1], weight[:1], offset[0], *rest, weight_zero)
        np.testing.assert_array_equal(one, expected[0])
        assert counts == expected_counts


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("rule", [DOUBLE, SINGLE, FLOAT32, RIGHT_SINGLE, RIGHT_DOUBLE, FLOAT64])
def test_every_rule(rule, single):
    rng = np.random.default_rng(rule)
    for shape in SHAPES:
        assert_exact(rng, rule, shape, (np.int8, np.int8), np.int8, single)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32])
def test_every_type_of_codes(dtype):
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        assert_exact(rng, SINGLE, shape, (np.uint8, np.int8), dtype, single=True)


@pytest.mark.parametrize("kinds", [(np.int16, np.int8), pytest.param((np.int16, np.int16), marks=pytest.mark.slow)])
def test_wide_sums(kinds):
    rng = np.random.default_rng(2)
    for shape in SHAPES:
        assert_exact(rng, WIDE, shape, kinds, np.int16, single=False)


def test_all_threads_give_the_same(monkeypatch):
    monkeypatch.setattr(module, "FEW", 0)
    rng = np.random.default_rng(3)
    for shape in ((1, 300, 70), (210, 150, 40)):
        assert_exact(rng, SINGLE, shape, (np.int8, np.int8), np.int8, single=False)


def test_an_offset_of_another_length_is_refused():
    x = np.ones((2, 3), np.int8)
    with pytest.raises(ValueError, match="one number per column"):
        linear_codes(x, x, np.zeros(3), np.ones(1), np.zeros(1), fixed_point.SINGLE, 0, -128, 127, np.dtype(np.int8))
