"""Integer roots and rational powers: exact floors against Python's big integers, and the published step counts."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer import i_sqrt, integer_power, integer_sqrt

HARD = [0, 1, 2, 3, 4, 8, 15, 16, 17, 2**31 - 1, 2**31, 2**32 - 1, 2**52, 2**53 + 1, 2**62 - 1, 2**62, 2**63 - 1]
HARD += [k * k + d for k in (10**3, 10**6, 3 * 10**9, 3037000499) for d in (-1, 0, 1) if k * k + d < 2**63]


def floor_root(value: int, degree: int) -> int:
    """Return floor(value**(1/degree)) by bisection in big integers."""
    low, high = 0, 1
    while high**degree <= value:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle)
    return low


def test_square_roots_are_exact_floors():
    got = integer_sqrt(np.array(HARD))
    assert got.dtype == np.int64 and got.tolist() == [math.isqrt(value) for value in HARD]
    assert i_sqrt(np.array(HARD)).tolist() == got.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_square_roots_of_anything(values):
    assert integer_sqrt(np.array(values, dtype=np.int64)).tolist() == [math.isqrt(value) for value in values]


@pytest.mark.parametrize(("bits", "most", "mean"), [(4, 3, 2.1), (8, 4, 2.4), (16, 5, 3.1)])
def test_step_counts_of_narrow_inputs(bits, most, mean):
    """The largest and mean counts, over every input above 0 (0 takes no step)."""
    roots, steps = integer_sqrt(np.arange(1, 2**bits), return_steps=True)
    assert steps.dtype == np.int32 and steps.max() == most and roots.shape == steps.shape
    assert steps.mean() == pytest.approx(mean, abs=0.06)


def test_step_counts_of_32_bit_inputs():
    generator = np.random.default_rng(0)
    _, steps = integer_sqrt(generator.integers(0, 2**32, 200_000), return_steps=True)
    assert steps.max() == 6 and steps.mean() == pytest.approx(4.0, abs=0.1)
    assert integer_sqrt(np.array([2**32 - 1, 2**31 + 1]), return_steps=True)[1].max() <= 6


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(st.integers(-(2**15), 2**15), max_size=8),
    p=st.integers(1, 7),
    r=st.integers(1, 9),
    fraction=st.integers(0, 8),
)
def test_powers_are_exact_floors(values, p, r, fraction):
    ratio = Fraction(p, r)
    top = max((abs(value) for value in values), default=0)
    if top.bit_length() * ratio.numerator > ratio.denominator * (62 - fraction):
        return
    got = integer_power(np.array(values, dtype=np.int64), (p, r), fraction_bits=fraction)
    for value, result in zip(values, got.tolist(), strict=True):
        exact = floor_root(abs(value) ** ratio.numerator * 2 ** (fraction * ratio.denominator), ratio.denominator)
        assert result == (exact if value >= 0 else -exact)


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 17, 40, 62, 63, 100])
def test_roots_of_every_size_near_their_powers(degree):
    values = sorted(
        {
            min(max(base**degree + d, 0), 2**62)
            for base in (1, 2, 3, 5, 10, 1000)
            for d in (-1, 0, 1)
            if base**degree < 2**63
        }
        | {2**62, 2**62 - 1, 12345}
    )
    got = integer_power(np.array(values), Fraction(1, degree))
    assert got.tolist() == [floor_root(value, degree) for value in values]


def test_both_ways_of_computing_agree():
    """0.55 of 8-bit inputs needs powers of 88 bits (big integers), of 4-bit ones 44 (the machine's)."""
    codes = np.arange(-15, 16)
    small, steps = integer_power(codes, "0.55", fraction_bits=0, return_steps=True)
    wide, wide_steps = integer_power(np.append(codes, 255), "0.55", return_steps=True)
    assert small.tolist() == wide[:-1].tolist() and steps.tolist() == wide_steps[:-1].tolist()
    assert wide[-1] == floor_root(255**11, 20)
    assert integer_power(np.array([127]), "0.55", fraction_bits=10)[0] == math.floor(127**0.55 * 1024)


def test_power_and_its_reciprocal_undo_each_other():
    codes = np.arange(0, 500)
    squared = integer_power(codes, 2)
    assert np.array_equal(integer_power(squared, Fraction(1, 2)), codes)
    assert np.array_equal(integer_power(integer_power(codes, (3, 1)), (1, 3)), codes)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 4)])
def test_shapes(shape):
    values = np.full(shape, 30, dtype=np.int16)
    root, steps = integer_sqrt(values, return_steps=True)
    assert root.shape == steps.shape == shape and np.all(root == 5)
    assert integer_power(values, "1/3").shape == shape
    assert integer_power(values, "11/20", fraction_bits=3).shape == shape


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: integer_sqrt([-1]), "0 and above, not -1"),
        (lambda: integer_sqrt([1.5]), "integers of at most 64 bits"),
        (lambda: integer_sqrt(np.array([2**63], dtype=np.uint64)), "at most 64 bits"),
        (lambda: integer_power([2], 0.5), "an exponent is a fraction"),
        (lambda: integer_power([2], "x"), "an exponent is a fraction"),
        (lambda: integer_power([2], (1, 0)), "an exponent is a fraction"),
        (lambda: integer_power([2], "-1/2"), "above 0"),
        (lambda: integer_power([2**40], 2), "more than 62 bits"),
        (lambda: integer_power([2], "1/2", fraction_bits=-1), "the number of fraction bits is a whole number from 0"),
        (lambda: integer_power([-(2**63)], 1), "no absolute value"),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(IntegerError, match=match):
        call()
