"""Rescaling kernels against plain Python integers, number by number."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.kernels import fixed_point
from workbench.kernels.fixed_point import (
    DOUBLE,
    FLOAT32,
    FLOAT64,
    RIGHT_DOUBLE,
    RIGHT_SINGLE,
    SINGLE,
    WIDE,
    rescale,
)
from workbench.kernels.requantize import requantize_rows

LOW, HIGH = -(2**31), 2**31 - 1
INTEGER_RULES = [DOUBLE, SINGLE, WIDE, RIGHT_SINGLE, RIGHT_DOUBLE]


def truncated(numerator: int, denominator: int) -> int:
    """C's division."""
    return -(-numerator // denominator) if numerator < 0 else numerator // denominator


def wrap(value: int) -> int:
    return (value - LOW) % 2**32 + LOW


def slow_code(value: int, factor, shift: int, rule: int) -> tuple[int, bool]:
    """Return the rescaled number before the zero point, and whether it wrapped on the way: Python integers only."""
    if rule == FLOAT32:
        product = float(np.float32(value) * np.float32(factor))
        return max(min(round(product), 2**40), -(2**40)) if math.isfinite(product) else int(
            math.copysign(2**40, product)
        ), False
    if rule == FLOAT64:
        product = float(value) * float(factor)
        # Exactly half away from zero: a Fraction has no rounding of its own.
        size = abs(Fraction(product)) + Fraction(1, 2)
        code = size.numerator // size.denominator
        code = code if product >= 0 else -code
        return (code, False) if LOW <= code <= HIGH else (LOW, True)
    if rule == DOUBLE:
        moved = value << max(shift, 0)
        wrapped, moved = not LOW <= moved <= HIGH, wrap(moved)
        product = moved * factor
        high = truncated(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)
        right = max(-shift, 0)
        remainder, threshold = high & (2**right - 1), ((2**right - 1) >> 1) + (high < 0)
        return (high >> right) + (remainder > threshold), wrapped
    if rule == SINGLE:
        total = 31 - shift
    elif rule == WIDE:
        factor, total = (factor + 2**15) >> 16 if factor < 0x7FFF0000 else 0x7FFF, 15 - shift
    else:
        total = shift
    half = 2 ** (total - 1)
    if rule == RIGHT_DOUBLE and total > 31:
        half += 2**30 if value >= 0 else -(2**30)
    code = (value * factor + half) >> total
    return wrap(code) if rule in {SINGLE, WIDE} else code, not LOW <= code <= HIGH


def slow_rows(values, factors, shifts, rule, zero_point, low, high, dtype):  # noqa: PLR0917
    limits = np.iinfo(dtype)
    out, saturated, wrapped = np.empty(values.shape, dtype=dtype), 0, 0
    for place, value in np.ndenumerate(values):
        channel = place[1] if len(factors) > 1 else 0
        factor = factors[channel].item()
        code, happened = slow_code(int(value), factor, int(shifts[channel]), rule)
        code += zero_point
        saturated += not limits.min <= code <= limits.max
        wrapped += happened
        out[place] = min(max(code, low), high)
    return out, saturated, wrapped


@st.composite
def problems(draw):
    rule = draw(st.sampled_from([*INTEGER_RULES, FLOAT32, FLOAT64]))
    rows, channels = draw(st.integers(0, 5)), draw(st.integers(1, 40))
    wide = rule == WIDE or (rule in {RIGHT_SINGLE, FLOAT32, FLOAT64} and draw(st.booleans()))
    bits = 47 if wide else 31
    extremes = [0, 1, -1, 2**bits - 1, -(2**bits), 2**23 + 1, -(2**24) - 1]
    numbers = st.one_of(st.sampled_from(extremes), st.integers(-(2**bits), 2**bits - 1), st.integers(-300, 300))
    cells = draw(st.lists(numbers, min_size=rows * channels, max_size=rows * channels))
    values = np.array(cells, dtype=np.int64 if wide else np.int32).reshape(rows, channels)
    count = draw(st.sampled_from([1, channels]))
    shifts = np.zeros(count, dtype=np.int64)
    if rule in {FLOAT32, FLOAT64}:
        width = 32 if rule == FLOAT32 else 64
        chosen = st.floats(0, 2.0**20, width=width) | st.sampled_from([0.5, 0.25, 1.0, 1.5, 2.0**-20, 0.0])
        kind = np.float32 if rule == FLOAT32 else np.float64
        factors = np.array(draw(st.lists(chosen, min_size=count, max_size=count)), dtype=kind)
    else:
        top = 2**15 - 1 if wide and rule != WIDE else HIGH
        each = st.one_of(st.integers(0, top), st.sampled_from([0, 1, top, top // 2 + 1]))
        factors = np.array(draw(st.lists(each, min_size=count, max_size=count)), dtype=np.int64)
        ranges = {DOUBLE: (-31, 30), SINGLE: (-31, 30), WIDE: (-31, 7)}
        shifts = np.array(draw(st.lists(st.integers(*ranges.get(rule, (2, 62))), min_size=count, max_size=count)))
    dtype = np.dtype(draw(st.sampled_from([np.int8, np.uint8, np.int16, np.int32])))
    limits = np.iinfo(dtype)
    zero_point = draw(st.integers(int(limits.min), int(limits.max)))
    low, high = sorted(draw(st.tuples(*[st.integers(int(limits.min), int(limits.max))] * 2)))
    return values, factors, shifts, rule, zero_point, low, high, dtype


@given(problems())
def test_rows_equal_plain_integers(problem):
    codes, saturated, wrapped = requantize_rows(*problem)
    expected, slow_saturated, slow_wrapped = slow_rows(*problem)
    assert codes.dtype == problem[-1]
    np.testing.assert_array_equal(codes, expected)
    assert (saturated, wrapped) == (slow_saturated, slow_wrapped)


@pytest.mark.parametrize("rule", INTEGER_RULES)
def test_scalar_rules_equal_plain_integers(rule):
    rng = np.random.default_rng(rule)
    bits = 47 if rule == WIDE else 31
    for _ in range(500):
        value = int(rng.integers(-(2**bits), 2**bits))
        factor = int(rng.integers(2**30, 2**31))
        shift = int(rng.integers(2, 63) if rule in {RIGHT_SINGLE, RIGHT_DOUBLE} else rng.integers(-31, 8))
        assert rescale(value, factor, shift, rule) == slow_code(value, factor, shift, rule)[0]


def test_halves_of_the_float_rules():
    for value, factor in [
        (1, 0.5),
        (-1, 0.5),
        (3, 0.5),
        (-3, 0.5),
        (5, 0.5),
        (2**24 + 1, 1.0),
        (1, 0.49999999999999994),
    ]:
        for rule, kind in ((FLOAT32, np.float32), (FLOAT64, np.float64)):
            rows = np.full((3, 20), value, dtype=np.int64)
            codes, *_ = requantize_rows(
                rows, np.array([factor], kind), np.zeros(1, np.int64), rule, 0, LOW, HIGH, np.dtype(np.int32)
            )
            assert (codes == slow_code(value, factor, 0, rule)[0]).all()


@pytest.mark.parametrize(("rows", "channels"), [(1, 5000), (5000, 1), (700, 300), (3, 100_000)])
@pytest.mark.parametrize("single", [True, False])
def test_large_arrays_take_every_route(rows, channels, single):
    rng = np.random.default_rng(7)
    values = rng.integers(-(2**20), 2**20, (rows, channels), dtype=np.int32)
    count = 1 if single else channels
    factors, shifts = rng.integers(2**30, 2**31, count), rng.integers(-15, -8, count)
    codes, saturated, wrapped = requantize_rows(values, factors, shifts, SINGLE, 3, -100, 127, np.dtype(np.int8))
    exact = ((values.astype(np.int64) * factors + (1 << (30 - shifts))) >> (31 - shifts)) + 3
    np.testing.assert_array_equal(codes, np.clip(exact, -100, 127))
    assert saturated == np.count_nonzero((exact < -128) | (exact > 127))
    assert wrapped == 0


def test_the_rules_have_distinct_numbers():
    names = ["DOUBLE", "SINGLE", "WIDE", "FLOAT32", "RIGHT_SINGLE", "RIGHT_DOUBLE", "FLOAT64"]
    assert sorted(getattr(fixed_point, name) for name in names) == list(range(len(names)))
