"""ONNX's quantization operators against onnx's own cases, the reference evaluator, and plain definitions."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench.errors import IntegerError
from workbench.integer import onnx_operators as ours

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_all_cases_of_the_onnx_package():
    pytest.importorskip("onnx")
    from workbench.integer.judges.onnx_nodes import OPERATORS, node_cases, plain, run_case

    count = Counter()
    for case in node_cases():
        count[case.operator] += 1
        for found, wanted in zip(run_case(case), case.outputs, strict=True):
            expected = plain(wanted)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), case.name
            np.testing.assert_array_equal(found, expected, err_msg=case.name)
    assert count == OPERATORS
    assert count.total() == 45


@given(
    arrays.arrays(np.float32, st.integers(0, 20), elements=FLOAT32),
    st.floats(min_value=2.0**-100, max_value=2.0**100, width=32),
    st.sampled_from(list(ours.INTEGERS)),
    st.data(),
)
def test_integers_are_rounded_half_to_even_and_saturate(values, scale, element, data):
    low, high, kind = ours.INTEGERS[element]
    zero = data.draw(st.integers(low, high))
    codes = ours.quantize_linear(values, np.float32(scale), zero, element=element)
    assert codes.dtype == kind
    for code, value in zip(codes.tolist(), values.tolist(), strict=True):
        with np.errstate(over="ignore"):
            quotient = float(np.float32(value) / np.float32(scale))
        wanted = high if quotient == float("inf") else low if quotient == -float("inf") else round(quotient) + zero
        assert code == min(max(wanted, low), high)
    back = ours.dequantize_linear(codes, np.float32(scale), zero, element=element)
    assert back.dtype == np.float32
    with np.errstate(over="ignore"):
        wanted = [np.float32(np.float32(code - zero) * np.float32(scale)) for code in codes.tolist()]
    assert back.tolist() == [float(each) for each in wanted]


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("float4e2m1", ml_dtypes.float4_e2m1fn),
    ],
)
def test_small_floats_are_cast_with_saturation(element, dtype):
    peak = float(ml_dtypes.finfo(dtype).max)
    values = np.random.default_rng(4).standard_normal(5000).astype(np.float32) * np.float32(peak)
    codes = ours.quantize_linear(values, np.float32(1), element=element)
    casts = np.clip(values, -peak, peak).astype(dtype)
    # A negative number that rounds to zero keeps its sign in the cast; the grid has one zero.
    wanted = np.where(casts.astype(np.float32) == 0, 0, casts.view(np.uint8))
    np.testing.assert_array_equal(codes, wanted)
    back = ours.dequantize_linear(codes, np.float16(0.5), element=element)
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, casts.astype(np.float16) * np.float16(0.5))


@given(st.integers(0, 2), st.integers(1, 4), st.integers(0, 99))
def test_blocks_and_slices_are_tensors_of_their_own(axis, block, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(each) for each in rng.integers(1, 6, 3))
    values = rng.standard_normal(shape).astype(np.float32) * 20
    blocks = list(shape)
    blocks[axis] = -(-shape[axis] // block)
    scale = rng.uniform(0.1, 1, blocks).astype(np.float32)
    zero = rng.integers(-8, 8, blocks)
    codes = ours.quantize_linear(values, scale, zero, element="int4", axis=axis, block_size=block)
    real = ours.dequantize_linear(codes, scale, zero, element="int4", axis=axis - 3, block_size=block)
    for place in np.ndindex(*shape):
        where = list(place)
        where[axis] //= block
        one, point = scale[tuple(where)], int(zero[tuple(where)])
        assert codes[place] == min(max(round(float(values[place] / one)) + point, -8), 7)
        assert real[place] == np.float32(int(codes[place]) - point) * one
    per_slice = rng.uniform(0.1, 1, shape[axis]).astype(np.float32)
    whole = ours.quantize_linear(values, per_slice, element="uint8", axis=axis)
    for index, one in enumerate(per_slice):
        alone = ours.quantize_linear(np.take(values, index, axis), one, element="uint8")
        np.testing.assert_array_equal(np.take(whole, index, axis), alone)


@given(arrays.arrays(np.float32, st.integers(0, 12), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_dynamic_ranges_hold_zero_and_the_extremes(values):
    codes, scale, zero = ours.dynamic_quantize_linear(values)
    assert (codes.dtype, scale.dtype, zero.dtype) == (np.uint8, np.float32, np.uint8)
    if not np.any(values):
        assert (float(scale), int(zero), codes.tolist()) == (1.0, 0, [0] * len(values))
        return
    real = ours.dequantize_linear(codes, scale, zero)
    # Half a step of the value's own rounding, and half a step of the zero point's.
    assert np.all(np.abs(real.astype(np.float64) - values) <= float(scale) * 1.001)


def test_dynamic_codes_equal_onnx_runtime_s():
    pytest.importorskip("onnxruntime")
    from workbench.integer.judges.runners import onnx_model, run_onnx

    rng = np.random.default_rng(1)
    for values in (rng.standard_normal(1000), rng.uniform(3, 9, 50), -rng.uniform(3, 9, 50), np.zeros(5)):
        x = values.astype(np.float32)
        outputs = {"y": np.uint8, "scale": np.float32, "zero": np.uint8}
        for found, wanted in zip(
            ours.dynamic_quantize_linear(x),
            run_onnx(onnx_model("DynamicQuantizeLinear", {"x": x}, outputs), {"x": x}),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)


X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ours.quantize_linear(X.astype(np.int32), 1.0), "takes floats, not int32"),
        (lambda: ours.quantize_linear(X, 1.0, element="int3"), "an element type is int2, uint2"),
        (lambda: ours.quantize_linear(X, [1.0, 2.0]), r"one scale, or one per slice of axis 1 \(3\)"),
        (lambda: ours.quantize_linear(X, [1.0, 2.0], axis=2), "has no axis 2"),
        (lambda: ours.quantize_linear(X, np.ones((2, 2)), axis=1, block_size=3), r"need scales of shape \(2, 1\)"),
        (lambda: ours.quantize_linear(X, 1.0, 300), "a zero point of uint8 lies between 0 and 255"),
        (lambda: ours.quantize_linear(X, 1.0, 0.5), "zero points are integers"),
        (lambda: ours.quantize_linear(X, 1.0, 1, element="float4e2m1"), "the zero point of float4e2m1 is 0"),
        (lambda: ours.dequantize_linear(X, 1.0), "takes integer codes, not float32"),
        (lambda: ours.dequantize_linear(np.array([9]), 1.0, element="int4"), "codes of int4 lie between -8 and 7"),
        (lambda: ours.dynamic_quantize_linear(np.array([np.inf], np.float32)), "takes finite floats"),
        (lambda: ours.conv_integer(np.ones((1, 1, 3, 3), np.int8), np.ones((1, 1, 1, 1), np.int8), auto="x"), "'auto'"),
        (
            lambda: ours.conv_integer(
                np.ones((1, 1, 3, 3), np.int8), np.ones((1, 1, 2, 2), np.int8), auto_pad=b"SAME_LOWER"
            ),
            "SAME_LOWER",
        ),
        (
            lambda: ours.matmul_integer(np.ones((2, 2), np.int8), np.ones((2, 2), np.int8), [0, 1]),
            r"a_zero_point is one number, not \(2,\)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(IntegerError, match=sentence):
        call()
