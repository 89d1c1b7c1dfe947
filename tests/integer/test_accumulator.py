from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.accumulator import Accumulator, as_accumulator, needed_bits, worst_case
from workbench.integer.linear import accumulate, linear, matmul
from workbench.integer.watch import watch


def stepwise(terms, start, bits, overflow):
    """One addition after another in an accumulator of some bits: the total, the events, the extreme totals kept."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    total, events, kept = 0, 0, [0]
    for each in (start, *terms):
        total += each
        if not low <= total <= high:
            events += 1
            total = min(max(total, low), high) if overflow == "saturate" else (total - low) % 2**bits + low
        kept.append(total)
    return total, events, min(kept[2:], default=0), max(kept[2:], default=0)


@given(st.data(), st.integers(2, 40), st.sampled_from(["wrap", "saturate"]), st.sampled_from([np.int8, np.int16]))
def test_every_addition_overflows_as_said(data, bits, overflow, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows, depth, outputs = int(rng.integers(0, 4)), int(rng.integers(0, 12)), int(rng.integers(0, 4))
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max, (rows, depth), dtype=dtype, endpoint=True)
    weight = rng.integers(-128, 128, (outputs, depth), dtype=np.int8)
    bias = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    zeros = int(rng.integers(-100, 100)), rng.integers(-100, 100, outputs or 1)
    with watch() as seen:
        result = accumulate(
            x,
            weight,
            bias,
            input_zero_point=zeros[0],
            weight_zero_point=zeros[1],
            accumulator=f"int{bits}:{overflow}",
        )
    events = 0
    for row, n in itertools.product(range(rows), range(outputs)):
        terms = [
            (a - zeros[0]) * (b - int(zeros[1][n])) for a, b in zip(x[row].tolist(), weight[n].tolist(), strict=True)
        ]
        total, happened, _, _ = stepwise(terms, int(bias[n]), bits, overflow)
        assert int(result[row, n]) == total
        events += happened
    assert result.shape == (rows, outputs)
    assert seen.overflows == events
    (each,) = seen.observations
    assert each.accumulator_bits == bits
    if rows and outputs:
        assert each.observed_bits <= max(bits, each.worst_case_bits)


def test_a_wrapped_total_that_comes_back_is_right_and_a_saturated_one_is_not():
    x, weight = np.array([[100, 100, -100, -100]], np.int8), np.full((1, 4), 100, np.int8)
    assert accumulate(x, weight, accumulator="int14:wrap").tolist() == [[0]]
    assert accumulate(x, weight, accumulator="int14:saturate").tolist() == [[8191 - 20000 + 3617]]


def test_without_a_word_a_sum_that_does_not_fit_is_refused():
    x, weight = np.full((1, 4), 127, np.int8), np.full((2, 4), 127, np.int8)
    with pytest.raises(AccumulatorOverflowError, match="a sum of accumulate needs 17 bits and the accumulator has 16"):
        accumulate(x, weight, accumulator="int16")
    with pytest.raises(AccumulatorOverflowError, match="'int16:wrap'"):
        linear(x, weight, input_scale=1.0, weight_scale=1.0, output_scale=9.0, accumulator="int16")
    with pytest.raises(AccumulatorOverflowError, match="a sum of matmul"):
        matmul(x, weight.T, a_scale=1.0, b_scale=1.0, output_scale=9.0, accumulator="int16")
    # What this input needs counts, not what another might.
    assert accumulate(x // 8, weight, accumulator="int16").tolist() == [[15 * 127 * 4] * 2]


@given(
    st.integers(0, 4),
    st.integers(0, 6),
    st.integers(-128, 127),
    st.integers(-128, 127),
    st.integers(0, 1000),
)
def test_the_worst_case_bounds_every_partial_sum_and_is_reached(outputs, depth, input_zero, weight_zero, seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (outputs, depth), dtype=np.int8)
    bias = rng.integers(-5000, 5000, outputs).astype(np.int32)
    low, high = worst_case(weight, -128 - input_zero, 127 - input_zero, weight_zero_point=weight_zero, bias=bias)
    reached = [0]
    for n in range(outputs):
        terms = [
            [(code - input_zero) * (int(w) - weight_zero) for code in (-128, 127)] + [0] for w in weight[n].tolist()
        ]
        reached.append(int(bias[n]) + sum(max(each) for each in terms))
        reached.append(int(bias[n]) + sum(min(each) for each in terms))
    assert (low, high) == (min(reached), max(reached))


@example(-128, -128)
@example(-1, -1)
@example(0, 0)
@given(st.integers(-(2**61), 2**61), st.integers(-(2**61), 2**61))
def test_needed_bits_are_the_fewest(one, other):
    low, high = min(one, other), max(one, other)
    bits = needed_bits(low, high)
    assert -(2 ** (bits - 1)) <= low
    assert high < 2 ** (bits - 1)
    if bits > 1:
        assert low < -(2 ** (bits - 2)) or high >= 2 ** (bits - 2)


def test_observed_bits_never_exceed_the_worst_case():
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (30, 50), dtype=np.int8)
    weight = rng.integers(-128, 128, (20, 50), dtype=np.int8)
    with watch() as seen:
        sums = accumulate(x, weight)
    (each,) = seen.observations
    assert each.observed_bits == needed_bits(int(sums.min()), int(sums.max()))
    assert each.observed_bits <= each.worst_case_bits <= 32
    assert (each.accumulator_bits, each.outputs, each.overflows) == (32, 600, 0)


@pytest.mark.parametrize("overflow", ["error", "wrap", "saturate"])
@pytest.mark.parametrize("bits", [2, 16, 32, 62])
def test_text_forms_come_back(bits, overflow):
    each = Accumulator(bits, overflow)
    assert as_accumulator(str(each)) == each
    assert as_accumulator(each) is each
    assert pickle.loads(pickle.dumps(each)) == each
    assert as_accumulator(None, bits) == Accumulator(bits)


@pytest.mark.parametrize(
    "text", ["int", "16", "int16:explode", "int1", "int63", "int16:", "uint8", "int-4", "int1.5", 16]
)
def test_text_that_names_no_accumulator_is_refused(text):
    with pytest.raises(IntegerError, match="an accumulator"):
        as_accumulator(text)


@pytest.mark.parametrize("bits", [True, 1, 63, 16.0, "16"])
def test_widths_that_do_not_exist_are_refused(bits):
    with pytest.raises(IntegerError, match="an accumulator has 2 to 62 bits"):
        Accumulator(bits)
