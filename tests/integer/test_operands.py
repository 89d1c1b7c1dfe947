"""Layers that keep no sums give what the two steps give: a watch makes them keep the sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError, WorkbenchError
from workbench.integer import SEMANTICS, linear, matmul, watch
from workbench.integer.operands import check_layer


def numbers(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape, dtype=dtype)


def outcome(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except WorkbenchError as error:
        return type(error), str(error)


def same(one, other):
    if isinstance(one, tuple) or isinstance(other, tuple):
        assert one == other
        return
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


PAIRS = st.sampled_from([(np.int8, np.int8), (np.uint8, np.int8), (np.int16, np.int8)])


@settings(max_examples=80)
@given(
    PAIRS,
    st.sampled_from(sorted(SEMANTICS)),
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 70)),
    st.integers(0, 2**32 - 1),
)
def test_linear_is_the_same_watched_and_not(pair, semantics, shape, seed):
    rng = np.random.default_rng(seed)
    first, rows, columns, depth = shape
    x, weight = numbers(rng, (first, rows, depth), pair[0]), numbers(rng, (columns, depth), pair[1])
    wide = pair[0] == np.int16
    options = {
        "bias": rng.integers(-1000, 1000, columns, dtype=np.int64 if wide else np.int32),
        "input_scale": 0.02,
        "weight_scale": rng.random(columns) + 0.01 if rng.random() < 0.5 and columns else 0.03,
        "output_scale": 0.7,
        "input_zero_point": 0 if wide else int(numbers(rng, (), pair[0])),
        "weight_zero_point": rng.integers(-3, 4, columns) if rng.random() < 0.5 else 0,
        "output_zero_point": -4,
        "dtype": np.int16 if wide else np.int8,
        "semantics": semantics,
    }
    with watch():
        expected = outcome(linear, x, weight, **options)
    same(outcome(linear, x, weight, **options), expected)


@settings(max_examples=80)
@given(PAIRS, st.sampled_from(sorted(SEMANTICS)), st.booleans(), st.integers(0, 2**32 - 1))
def test_matmul_is_the_same_watched_and_not(pair, semantics, transpose, seed):
    rng = np.random.default_rng(seed)
    lead, rows, columns, depth = rng.integers(0, 4, 1), *rng.integers(0, 12, 2), rng.integers(0, 80)
    a = numbers(rng, (2, *lead, rows, depth), pair[0])
    b = numbers(
        rng, (*(lead if rng.random() < 0.5 else [1]), *((columns, depth) if transpose else (depth, columns))), pair[1]
    )
    options = {
        "a_scale": 0.02,
        "b_scale": 0.01,
        "output_scale": 0.3,
        "a_zero_point": int(numbers(rng, (), pair[0]) // 2),
        "b_zero_point": int(numbers(rng, (), pair[1])),
        "output_zero_point": 5,
        "transpose_b": transpose,
        "semantics": semantics,
    }
    with watch():
        expected = outcome(matmul, a, b, **options)
    same(outcome(matmul, a, b, **options), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"multiplier": np.full(3, 2**30), "shift": np.zeros(3, np.int32)}, "3 multipliers for 4 channels"),
        ({"multiplier": 2**30, "shift": 0, "low": 5, "high": 4}, "clamp"),
        ({"multiplier": 2**30, "shift": 0, "dtype": np.float32}, "codes are"),
        ({"multiplier": 2**30, "shift": 0, "output_zero_point": 300}, "zero point"),
        ({"multiplier": 2**30, "shift": 99}, "shift"),
        ({"input_scale": 1.0}, "scales of input"),
    ],
)
def test_errors_are_the_same_watched_and_not(options, said):
    x, weight = np.ones((2, 5), np.int8), np.ones((4, 5), np.int8)
    with pytest.raises(WorkbenchError, match=said) as plain:
        linear(x, weight, **options)
    with watch(), pytest.raises(WorkbenchError, match=said) as watched:
        linear(x, weight, **options)
    assert str(plain.value) == str(watched.value)
    assert type(plain.value) is type(watched.value)


def test_sums_that_may_overflow_are_kept():
    x, weight = np.ones((1, 5), np.int8), np.ones((4, 5), np.int8)
    assert check_layer(x, weight, None, 0, 0, None).fits
    assert not check_layer(x, weight, None, 0, 0, "int16:wrap").fits
    assert not check_layer(x, weight, None, 0, 0, "int12").fits
    assert not check_layer(x, weight, np.full(4, 2**31 - 1, np.int32), 0, 0, None).fits
    with watch():
        assert not check_layer(x, weight, None, 0, 0, None).fits
    with pytest.raises(IntegerError, match="meets"):
        check_layer(x, weight[:, :4], None, 0, 0, None)
