"""gemmlowp's fixed-point functions: near the real ones, and line by line the same in Python's own integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.kernels.gemmlowp import exp_codes, logistic_codes, tanh_codes

ONE = 2**31 - 1


def nearest(value: float) -> int:
    return math.floor(value + 0.5)


def truncated(a: int, b: int) -> int:
    """Divide as C does."""
    return abs(a) // b * (1 if a >= 0 else -1)


def multiply(a: int, b: int) -> int:
    product = a * b
    return truncated(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)


def divide(a: int, exponent: int) -> int:
    return (abs(a) + (1 << exponent >> 1) >> exponent) * (1 if a >= 0 else -1)


def saturated(a: int, exponent: int) -> int:
    limit = 2 ** (31 - exponent) - 1
    return ONE if a > limit else -(2**31) if a < -limit else a << exponent


def plain_exp(a: int, bits: int) -> int:
    if a == 0:
        return ONE
    quarter = 1 << (29 - bits)
    low = a % quarter - quarter
    x = saturated(low, bits) + 2**28
    x2 = multiply(x, x)
    x3, x4 = multiply(x2, x), multiply(x2, x2)
    inner = multiply(divide(x4, 2) + x3, nearest(2**31 / 3)) + x2
    term = nearest(math.exp(-1 / 8) * 2**31)
    result = term + multiply(term, x + divide(inner, 1))
    for k in range(-2, bits):
        if (low - a) >> (31 - bits + k) & 1:
            result = multiply(result, nearest(math.exp(-(2.0**k)) * 2**31))
    return result


def plain_reciprocal(a: int) -> int:
    half = truncated(a + ONE + 1, 2)
    x = nearest(48 / 17 * 2**29) + multiply(half, -nearest(32 / 17 * 2**29))
    for _ in range(3):
        x += saturated(multiply(x, 2**29 - multiply(half, x)), 2)
    return x


def plain_logistic(a: int) -> int:
    if a == 0:
        return 2**30
    positive = saturated(plain_reciprocal(plain_exp(-abs(a), 4)), 1)
    return positive if a > 0 else ONE - positive


def plain_tanh(a: int) -> int:
    if a == 0:
        return 0
    result = saturated(plain_reciprocal(plain_exp(-abs(a), 5)) - 2**29, 2)
    return result if a > 0 else -result


EDGES = [0, -1, -(2**24), -(2**25), -(2**27), -(2**31), 1 - 2**31]


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.integers(-(2**31), 0), max_size=10), bits=st.sampled_from([4, 5]))
def test_exp_in_plain_integers(values, bits):
    array = np.array(values + EDGES, dtype=np.int64)
    assert exp_codes(array, bits).tolist() == [plain_exp(value, bits) for value in values + EDGES]


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.integers(1 - 2**31, 2**31 - 1), max_size=10))
def test_logistic_and_tanh_in_plain_integers(values):
    array = np.array([*values, 0, 1, -1, 2**31 - 1, 1 - 2**31], dtype=np.int64)
    assert logistic_codes(array, 4).tolist() == [plain_logistic(value) for value in array.tolist()]
    assert tanh_codes(array, 4).tolist() == [plain_tanh(value) for value in array.tolist()]


@pytest.mark.parametrize(
    ("function", "real", "bound"),
    [(logistic_codes, lambda x: 1 / (1 + np.exp(-x)), 2e-7), (tanh_codes, np.tanh, 4e-7)],
)
def test_they_are_near_the_real_functions(function, real, bound):
    values = np.arange(-(2**31) + 1, 2**31, 99_991, dtype=np.int64)
    assert np.abs(function(values, 4) / 2**31 - real(values / 2**27)).max() < bound
    exponents = values[values <= 0]
    assert np.abs(exp_codes(exponents, 5) / 2**31 - np.exp(exponents / 2**26)).max() < 3e-7
