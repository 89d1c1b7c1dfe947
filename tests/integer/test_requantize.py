from __future__ import annotations

import numpy as np
import pytest
import rounding_oracles as oracles
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import AccumulatorOverflowError, IntegerError, SemanticsError
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.semantics import SEMANTICS, outside_linear
from workbench.integer.watch import watch

INT32 = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-300, 300),
    st.sampled_from([-(2**31), -(2**31) + 1, 2**31 - 1, -(2**30), 2**30, 2**24, 2**24 + 1, -(2**24) - 1]),
)
INT48 = st.one_of(st.integers(-(2**47), 2**47 - 1), INT32, st.sampled_from([-(2**47), 2**47 - 1]))
POWERS = [2**30, 2**31 - 1, 0, 0x7FFF0000, 0x7FFEFFFF, 2**30 + 2**15, 3 * 2**29]


@st.composite
def factors(draw, semantics, *, wide=False):
    """A ready multiplier and shift that the semantics allows: any, and often powers of two, which make ties."""
    if semantics == "onnxruntime":
        number = st.one_of(st.floats(0, 4, width=32), st.integers(-30, 3).map(lambda e: 2.0**e))
        return np.float32(draw(number)), 0
    top = 2**15 - 1 if wide and semantics.startswith("tosa") else 2**31 - 1
    multiplier = draw(st.one_of(st.integers(0, top), st.sampled_from([each for each in POWERS if each <= top])))
    low, high = (2, 62) if semantics.startswith("tosa") else (-31, 7 if wide else 30)
    return multiplier, draw(st.one_of(st.integers(low, high), st.integers(max(low, -12), min(high, 40))))


def clamp(value, zero_point, low, high):
    return min(max(value + zero_point, low), high)


@given(st.data(), st.sampled_from(list(SEMANTICS)), st.sampled_from([np.int8, np.uint8, np.int16, np.int32]))
def test_int32_accumulators_round_as_specified(data, semantics, dtype):
    values = data.draw(st.lists(INT32, min_size=1, max_size=20))
    multiplier, shift = data.draw(factors(semantics))
    limits = np.iinfo(dtype)
    zero_point = data.draw(st.integers(int(limits.min), int(limits.max)))
    low = data.draw(st.integers(int(limits.min), int(limits.max)))
    high = data.draw(st.integers(low, int(limits.max)))
    result = requantize(
        np.array(values, np.int32),
        multiplier,
        shift,
        zero_point=zero_point,
        dtype=dtype,
        low=low,
        high=high,
        semantics=semantics,
    )
    wanted = [oracles.requantize_one(each, multiplier, shift, semantics, wide=False) for each in values]
    assert result.dtype == dtype
    assert result.tolist() == [clamp(each, zero_point, low, high) for each in wanted]


@given(st.data(), st.sampled_from(list(SEMANTICS)), st.sampled_from([np.int8, np.int16, np.int32]))
def test_int64_accumulators_round_as_specified(data, semantics, dtype):
    values = data.draw(st.lists(INT48, min_size=1, max_size=20))
    multiplier, shift = data.draw(factors(semantics, wide=True))
    result = requantize(np.array(values, np.int64), multiplier, shift, dtype=dtype, semantics=semantics)
    wanted = [oracles.requantize_one(each, multiplier, shift, semantics, wide=True) for each in values]
    limits = np.iinfo(dtype)
    assert result.tolist() == [clamp(each, 0, int(limits.min), int(limits.max)) for each in wanted]


@given(st.data())
def test_litert_outside_fully_connected_layers_rounds_twice(data):
    values = data.draw(st.lists(INT32, min_size=1, max_size=20))
    multiplier, shift = data.draw(factors("tflm"))
    named = outside_linear("litert-reference")
    result = requantize(np.array(values, np.int32), multiplier, shift, dtype=np.int32, semantics=named)
    assert result.tolist() == [oracles.double_rounding(each, multiplier, shift) for each in values]


@given(st.lists(INT32, min_size=1, max_size=20), st.floats(2.0**-40, 4.0))
def test_litert_multiplies_a_real_scale_in_float64(values, scale):
    result = requantize(np.array(values, np.int32), scale=scale, dtype=np.int32, semantics="litert-reference")
    assert result.tolist() == [oracles.float64_rounding(each, scale) for each in values]


def test_ties_tell_the_families_apart():
    halves = np.array([-7, -5, -3, -1, 1, 3, 5, 7], np.int32)
    found = {name: requantize(halves, scale=0.5, semantics=name).tolist() for name in SEMANTICS}
    away, up, even = [-4, -3, -2, -1, 1, 2, 3, 4], [-3, -2, -1, 0, 1, 2, 3, 4], [-4, -2, -2, 0, 0, 2, 2, 4]
    assert found["litert-reference"] == away
    # The first of two roundings takes halves up, the second away from zero.
    assert requantize(2 * halves, scale=0.25, semantics="tflm").tolist() == away
    assert found["tflm"] == found["tflite-single"] == found["tosa-single"] == found["tosa-double"] == up
    assert found["onnxruntime"] == even


@given(st.data(), st.sampled_from(list(SEMANTICS)), st.integers(0, 2), st.integers(0, 5), st.integers(0, 4))
def test_channels_lie_along_any_axis(data, semantics, axis, channels, others):
    shape = [others, 2, 3]
    shape[axis] = channels
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.integers(-(2**20), 2**20, shape, dtype=np.int32)
    scale = rng.uniform(1e-5, 1e-2, channels)
    result = requantize(values, scale=scale, axis=axis, zero_point=3, semantics=semantics)
    assert result.shape == values.shape
    assert requantize(values, scale=scale, axis=axis - 3, zero_point=3, semantics=semantics).tolist() == result.tolist()
    for channel in range(channels):
        alone = requantize(np.take(values, channel, axis), scale=scale[channel], zero_point=3, semantics=semantics)
        np.testing.assert_array_equal(np.take(result, channel, axis), alone)


def test_strided_and_scalar_accumulators():
    values = np.arange(-40, 40, dtype=np.int32).reshape(8, 10)
    whole = requantize(values, scale=0.3)
    np.testing.assert_array_equal(requantize(values[::2, ::-3], scale=0.3), whole[::2, ::-3])
    np.testing.assert_array_equal(requantize(values.T, scale=0.3), whole.T)
    alone = requantize(np.int32(-7), scale=0.5, semantics="onnxruntime")
    assert (alone.shape, int(alone)) == ((), -4)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_empty_accumulators(shape, semantics):
    result = requantize(np.empty(shape, np.int32), scale=0.5, semantics=semantics)
    assert (result.shape, result.dtype) == (shape, np.int8)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_scale_is_the_ready_multiplier_it_becomes(semantics):
    values = np.random.default_rng(0).integers(-(2**22), 2**22, (50, 4), dtype=np.int32)
    scale = np.array([1e-4, 2e-5, 0.0, 3.3e-5])
    multiplier, shift = quantize_multiplier(scale, semantics)
    ready = requantize(values, multiplier, shift, semantics=semantics)
    np.testing.assert_array_equal(requantize(values, scale=scale, semantics=semantics), ready)


def test_the_watch_counts_clamped_and_wrapped_results():
    values = np.array([100, 200, -300, 5], np.int32)
    with watch() as seen:
        requantize(values, scale=1.0, low=0, high=50, operator="mine")
    (each,) = seen.observations
    # 100 is cut by the activation's own clamp: only what int8 cannot hold is saturated.
    assert (each.operator, each.outputs, each.saturated, each.overflows) == ("mine", 4, 2, 0)
    big = np.array([2**30, -(2**30), 1], np.int32)
    for semantics, wanted in (("tflm", 2), ("tflite-single", 2), ("litert-reference", 2), ("onnxruntime", 0)):
        with watch() as seen:
            requantize(big, scale=8.5, semantics=semantics)
        assert seen.overflows == wanted, semantics


def test_a_wide_accumulator_is_refused_where_its_product_would_not_fit():
    for semantics in ("tflm", "tflite-single", "tosa-single"):
        for value in (2**47, -(2**47) - 1):
            with pytest.raises(AccumulatorOverflowError, match="holds 48 bits"):
                requantize(np.array([value]), scale=1e-9, semantics=semantics)
    assert requantize(np.array([2**47]), scale=2.0**-46).tolist() == [2]


VALUES = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize(
    ("values", "options", "error", "sentence"),
    [
        (VALUES.astype(np.int8), {"scale": 1.0}, IntegerError, "an accumulator is int32 or int64, not int8"),
        (VALUES.astype(np.float32), {"scale": 1.0}, IntegerError, "not float32"),
        (VALUES, {}, IntegerError, "give either ready multipliers"),
        (VALUES, {"scale": 1.0, "multiplier": 1}, IntegerError, "ready multipliers and shifts, not both"),
        (VALUES, {"scale": [1.0, 2.0]}, IntegerError, "2 multipliers for 3 channels along axis -1"),
        (VALUES, {"scale": np.ones((1, 3))}, IntegerError, "one, or one per channel"),
        (VALUES, {"multiplier": [1, 2, 3], "shift": [0]}, IntegerError, "as many shifts as multipliers"),
        (VALUES, {"scale": 1.0, "dtype": np.float32}, IntegerError, "codes are int8, uint8, int16 or int32"),
        (VALUES, {"scale": 1.0, "dtype": "nonsense"}, IntegerError, "codes are int8"),
        (VALUES, {"scale": 1.0, "dtype": np.int64}, IntegerError, "codes are int8"),
        (VALUES, {"scale": 1.0, "zero_point": 128}, IntegerError, "from -128 to 127, not 128"),
        (VALUES, {"scale": 1.0, "zero_point": -1, "dtype": np.uint8}, IntegerError, "from 0 to 255"),
        (VALUES, {"scale": 1.0, "zero_point": 0.5}, IntegerError, "an integer from"),
        (VALUES, {"scale": 1.0, "low": 5, "high": 4}, IntegerError, "the clamp 5 to 4 does not lie within int8"),
        (VALUES, {"scale": 1.0, "low": -129}, IntegerError, "does not lie within int8"),
        (VALUES, {"scale": -1.0}, SemanticsError, "0 or above, not -1"),
        (VALUES, {"scale": 1.0, "semantics": "mine"}, SemanticsError, "no semantics is called 'mine'"),
        (VALUES, {"multiplier": 2**31}, SemanticsError, "between 0 and 2147483647"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(values, options, error, sentence):
    with pytest.raises(error, match=sentence):
        requantize(values, **options)


def test_an_axis_that_is_not_there_is_refused():
    with pytest.raises(IntegerError, match=r"an axis of an accumulator .* not 2"):
        requantize(VALUES, scale=1.0, axis=2)
