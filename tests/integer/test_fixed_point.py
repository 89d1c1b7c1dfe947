from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import rounding_oracles as oracles
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import SemanticsError
from workbench.integer.fixed_point import check_multiplier, effective_scale, quantize_multiplier

TFLITE = ("tflm", "litert-reference", "tflite-single")
TOSA = ("tosa-single", "tosa-double")
ANY_FACTOR = st.one_of(
    st.floats(min_value=0.0, max_value=2.0**30 - 1),
    st.builds(math.ldexp, st.integers(0, 2**53 - 1), st.integers(-1074, -24)),
    st.sampled_from([0.0, 5e-324, 2.0**-31, 2.0**-32, 2.0**-33, 0.5, 1.0, 1 - 2.0**-53, 1 - 2.0**-32, 1 - 2.0**-33]),
)


@given(ANY_FACTOR, st.sampled_from(TFLITE))
def test_tensorflow_lite_s_multipliers(real, semantics):
    multiplier, shift = quantize_multiplier(real, semantics)
    assert (multiplier.dtype, shift.dtype) == (np.int32, np.int32)
    assert (multiplier.shape, shift.shape) == ((), ())
    wanted = oracles.quantize_multiplier(real)
    assert (int(multiplier), int(shift)) == wanted
    check_multiplier(multiplier, shift, semantics)


@given(ANY_FACTOR.filter(lambda real: real < 2.0**28), st.sampled_from(TOSA), st.sampled_from([32, 48]))
def test_tosa_s_multipliers_are_the_nearest_of_their_shift(real, semantics, bits):
    if bits == 48 and real >= 2.0**12:
        real /= 2.0**16
    multiplier, shift = quantize_multiplier(real, semantics, accumulator_bits=bits)
    check_multiplier(multiplier, shift, semantics, accumulator_bits=bits)
    digits = 31 if bits == 32 else 15
    exact = Fraction(real) * 2 ** int(shift)
    # Below 2**-62 the mantissa is rounded twice: once to its digits, once to the last shift.
    assert abs(int(multiplier) - exact) <= (Fraction(1, 2) if int(shift) < 62 else 1)
    assert int(multiplier) >= 2 ** (digits - 1) or int(shift) in {2, 62}
    assert (int(multiplier) == 0) <= (exact < 1)


@given(st.floats(min_value=0.0, max_value=float(np.finfo(np.float32).max)))
def test_onnx_runtime_s_multiplier_is_a_float32_number(real):
    multiplier, shift = quantize_multiplier(real, "onnxruntime")
    assert multiplier.dtype == np.float32
    assert int(shift) == 0
    assert multiplier == np.float32(real)


def test_arrays_keep_their_shape_and_are_channel_by_channel():
    real = np.array([[0.1, 0.25], [3.0, 0.0]])
    for semantics in (*TFLITE, *TOSA):
        multiplier, shift = quantize_multiplier(real, semantics)
        alone = [quantize_multiplier(each, semantics) for each in real.ravel()]
        assert multiplier.ravel().tolist() == [int(m) for m, _ in alone]
        assert shift.ravel().tolist() == [int(s) for _, s in alone]
    multiplier, shift = quantize_multiplier(np.empty(0))
    assert multiplier.shape == shift.shape == (0,)


@pytest.mark.parametrize("semantics", [*TFLITE, *TOSA, "onnxruntime"])
@pytest.mark.parametrize("real", [-0.5, float("nan"), float("inf"), [0.5, -1e-9]])
def test_factors_that_are_no_factors_are_refused(semantics, real):
    with pytest.raises(SemanticsError, match="a rescaling factor is a finite number, 0 or above, not"):
        quantize_multiplier(real, semantics)


@pytest.mark.parametrize(
    ("real", "semantics", "bits", "sentence"),
    [
        (2.0**30, "tflm", 32, "a shift of tflm lies between -31 and 30, not 31"),
        (2.0**7, "tflite-single", 48, "between -31 and 7, not 8"),
        (2.0**30, "tosa-single", 32, "too large for tosa-single"),
        (2.0**13, "tosa-double", 48, "too large for tosa-double"),
        (1e39, "onnxruntime", 32, "beyond float32"),
    ],
)
def test_factors_beyond_the_specification_are_refused(real, semantics, bits, sentence):
    with pytest.raises(SemanticsError, match=sentence):
        quantize_multiplier(real, semantics, accumulator_bits=bits)


@pytest.mark.parametrize(
    ("multiplier", "shift", "semantics", "bits", "sentence"),
    [
        (-1, 0, "tflm", 32, "between 0 and 2147483647, not -1"),
        (2**31, 0, "tflm", 32, "not 2147483648"),
        (2**15, 2, "tosa-single", 48, "between 0 and 32767, not 32768"),
        (1, -32, "tflm", 32, "between -31 and 30, not -32"),
        ([1, 1], [0, 31], "litert-reference", 32, "not 31"),
        (1, 8, "tflm", 48, "between -31 and 7, not 8"),
        (1, 1, "tosa-single", 32, "between 2 and 62, not 1"),
        (1, 63, "tosa-double", 32, "not 63"),
        (0.5, 0, "tflm", 32, "multiplies by integers"),
        (float("inf"), 0, "onnxruntime", 32, "a finite float32 number"),
        (0.5, 1, "onnxruntime", 32, "has no shift"),
    ],
)
def test_ready_multipliers_are_checked(multiplier, shift, semantics, bits, sentence):
    with pytest.raises(SemanticsError, match=sentence):
        check_multiplier(multiplier, shift, semantics, accumulator_bits=bits)


SCALE = st.floats(min_value=2.0**-20, max_value=1e3, width=32)


@given(SCALE, st.lists(SCALE, min_size=1, max_size=4), SCALE)
def test_effective_scales_in_each_runtime_s_arithmetic(first, weights, third):
    one, many, last = np.float32(first), np.array(weights, dtype=np.float32), np.float32(third)
    wide = [float(one) * float(each) / float(last) for each in many]
    assert effective_scale(one, many, last, "tflm").tolist() == wide
    assert effective_scale(one, many, last, "litert-reference", product="float32").tolist() == wide
    narrow = [float(np.float32(one * each)) / float(last) for each in many]
    assert effective_scale(one, many, last, "tflm", product="float32").tolist() == narrow
    found = effective_scale(one, many, last, "onnxruntime")
    assert found.tolist() == [float(np.float32(np.float32(one * each) / last)) for each in many]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60, []])
@pytest.mark.parametrize("place", ["input", "weight", "output"])
def test_scales_that_are_no_scales_are_refused(bad, place):
    scales = {"input": 0.5, "weight": 0.5, "output": 0.5, place: bad}
    with pytest.raises(SemanticsError, match=f"the {place} scale is a finite float32 number above 0"):
        effective_scale(scales["input"], scales["weight"], scales["output"], "tflm")
