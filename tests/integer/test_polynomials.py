"""I-BERT's polynomials in integers: stated bounds over the reals, and the paper's formulas with fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer import i_erf, i_exp, i_gelu, i_softmax
from workbench.integer.polynomials import ERF_BOUND, EXP_BOUND, EXP_RELATIVE_BOUND, GELU_BOUND, fixed_multiplier

SCALES = [2.0**-10, 2.0**-14, 0.37e-4, 2.0**-18]


def test_published_bounds_are_those_of_the_real_polynomials():
    p = np.linspace(0, math.log(2), 200_001)
    exp_error = np.abs(0.3585 * (1.353 - p) ** 2 + 0.344 - np.exp(-p)).max()
    assert EXP_BOUND * 0.97 < exp_error <= EXP_BOUND
    relative = np.abs((0.3585 * (1.353 - p) ** 2 + 0.344) * np.exp(p) - 1).max()
    assert EXP_RELATIVE_BOUND * 0.97 < relative <= EXP_RELATIVE_BOUND
    x = np.linspace(0, 5, 200_001)
    real = np.vectorize(math.erf)(x)
    ours = 1 - 0.2888 * (np.minimum(x, 1.769) - 1.769) ** 2
    erf_error = np.abs(ours - real).max()
    assert ERF_BOUND * 0.97 < erf_error <= ERF_BOUND
    t = np.linspace(-8, 8, 400_001)
    u = np.abs(t) / math.sqrt(2)
    value = np.sign(t) * (1 - 0.2888 * (np.minimum(u, 1.769) - 1.769) ** 2)
    gelu_error = np.abs(t * (value - np.vectorize(math.erf)(t / math.sqrt(2))) / 2).max()
    assert GELU_BOUND * 0.97 < gelu_error <= GELU_BOUND


@pytest.mark.parametrize("scale", SCALES)
def test_exp_within_its_bound(scale):
    q = -np.unique(np.round(np.linspace(0, 40, 60_001) / scale).astype(np.int64))
    codes, unit = i_exp(q, scale)
    assert codes.dtype == np.int64
    assert np.abs(codes * unit - np.exp(q * scale)).max() <= EXP_BOUND + 2 * scale


@pytest.mark.parametrize("scale", SCALES)
def test_erf_and_gelu_within_their_bounds(scale):
    q = np.unique(np.round(np.linspace(-7, 7, 40_001) / scale).astype(np.int64))
    codes, unit = i_erf(q, scale)
    assert np.abs(codes * unit - np.vectorize(math.erf)(q * scale)).max() <= ERF_BOUND + 2 * scale
    codes, unit = i_gelu(q, scale)
    x = q * scale
    real = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert np.all(np.abs(codes * unit - real) <= GELU_BOUND + 4 * scale * (1 + np.abs(x)))


@settings(max_examples=80, deadline=None)
@given(q=st.lists(st.integers(-(2**40), 0), max_size=10), places=st.integers(5, 28))
def test_exp_is_the_formula_in_plain_integers(q, places):
    scale = 2.0**-places
    codes, unit = i_exp(np.array(q, dtype=np.int64), scale)
    ln2, b = round(math.log(2) * 2**places), round(1.353 * 2**places)
    c = round(0.344 / 0.3585 * 4.0**places)
    wanted = []
    for value in q:
        z, rest = divmod(-value, ln2)
        wanted.append(((b - rest) ** 2 + c) >> min(z, 62))
    assert codes.tolist() == wanted and unit == 0.3585 * scale**2


@settings(max_examples=60, deadline=None)
@given(q=st.lists(st.integers(-(2**20), 2**20), max_size=10), places=st.integers(5, 18))
def test_erf_and_gelu_are_the_formulas_in_plain_integers(q, places):
    scale = 2.0**-places
    array = np.array(q, dtype=np.int64)
    b, one = round(1.769 * 2**places), round(4.0**places / 0.2888)
    sign = [1 if value >= 0 else -1 for value in q]
    assert i_erf(array, scale)[0].tolist() == [
        s * (one - (min(abs(value), b) - b) ** 2) for s, value in zip(sign, q, strict=True)
    ]
    inner = scale / math.sqrt(2)
    b, one = round(1.769 / inner), round(1 / 0.2888 / inner**2)
    assert i_gelu(array, scale)[0].tolist() == [
        value * (one + s * (one - (min(abs(value), b) - b) ** 2)) for s, value in zip(sign, q, strict=True)
    ]


@pytest.mark.parametrize("bits", [8, 16])
def test_softmax_shares_within_the_bound(bits):
    """A share is off by its power's relative error and by its sum's, and half a step."""
    generator = np.random.default_rng(0)
    for depth in (1, 2, 7, 300):
        q = generator.normal(0, 3 / 2**-12, (20, depth)).astype(np.int64)
        codes, unit = i_softmax(q, 2.0**-12, bits=bits)
        x = q * 2.0**-12
        real = np.exp(x - x.max(-1, keepdims=True))
        real /= real.sum(-1, keepdims=True)
        assert np.all(np.abs(codes * unit - real) <= (2.02 * EXP_RELATIVE_BOUND + 2**-11) * real + 0.501 * unit)


def test_softmax_of_plain_integers():
    q = np.array([[0, -500, 700], [3, 3, 3]])
    powers, _ = i_exp(q - q.max(-1, keepdims=True), 2.0**-9)
    for row, result in zip(powers.tolist(), i_softmax(q, 2.0**-9)[0].tolist(), strict=True):
        assert result == [math.floor(Fraction(value * 256, sum(row)) + Fraction(1, 2)) for value in row] or all(
            abs(Fraction(value * 256, sum(row)) - got) <= Fraction(1, 2) + Fraction(1, sum(row))
            for value, got in zip(row, result, strict=True)
        )


@settings(max_examples=200, deadline=None)
@given(real=st.floats(0, 1e6), bits=st.integers(8, 31))
def test_multipliers_are_as_near_as_their_bits_allow(real, bits):
    if bits - math.frexp(real)[1] < 0:
        return
    multiplier, shift = (int(each) for each in fixed_multiplier(real, bits))
    assert 0 <= multiplier <= 1 << bits and 0 <= shift <= 62
    assert abs(Fraction(multiplier, 1 << shift) - Fraction(real)) <= max(Fraction(real) / 2**bits, Fraction(1, 1 << 63))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: i_exp([1], 2.0**-10), "codes of 0 and below"),
        (lambda: i_exp([0.5], 2.0**-10), "integer codes"),
        (lambda: i_exp([-1], 0.5), "scales from"),
        (lambda: i_erf([-1], 2.0**-40), "scales from"),
        (lambda: i_gelu([2**22], 2.0**-10), "codes below 2"),
        (lambda: i_softmax(np.zeros((2, 0), dtype=int), 2.0**-10), "last axis"),
        (lambda: i_softmax(np.zeros(2, dtype=int), 2.0**-20), "scales of 2"),
        (lambda: fixed_multiplier(2.0**30), "too large"),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(IntegerError, match=match):
        call()
