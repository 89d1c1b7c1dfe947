"""What each runtime gives for every input code of an element-wise function: its own recipe, once, as a table.

TensorFlow Lite (``litert-reference``, ``tflite-single``) fills 256-entry tables in single precision; TensorFlow Lite Micro (``tflm``)
computes in gemmlowp's fixed point; both interpolate one sigmoid table for int16; onnxruntime dequantizes, computes and
quantizes in single precision (its QLinear activations, and what a DequantizeLinear - function - QuantizeLinear chain
means). A function of 8 or 16 bits has 256 or 65,536 results: they are computed here beforehand, and the run looks them up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.semantics import as_semantics, outside_linear
from workbench.integer.watch import watch
from workbench.kernels.gemmlowp import logistic_codes, tanh_codes

_FLOAT = np.float32
_HALF_ROOT = _FLOAT(-math.sqrt(0.5))
_GELU_FACTOR = _FLOAT(math.sqrt(2 / math.pi))


@dataclass(frozen=True)
class Mapping:
    """An element-wise function between two quantized tensors of one type, as a runtime's node describes it.

    Attributes:
        operator: ``logistic``, ``tanh``, ``gelu``, ``gelu-tanh``, ``hard-swish``, ``relu``, ``relu6``, ``leaky-relu``.
        dtype: type of input and output: ``int8``, ``uint8`` or ``int16``.
        input_scale: float32 number.
        input_zero_point: the input's code of 0.
        output_scale: float32 number.
        output_zero_point: the output's code of 0.
        slope: of a leaky ReLU's negative side.
    """

    operator: str
    dtype: str
    input_scale: float
    input_zero_point: int
    output_scale: float
    output_zero_point: int
    slope: float = 0.0


@functools.lru_cache(maxsize=256)
def recipe(mapping: Mapping, semantics: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the runtime's output code for every input code, and which of them it had to clamp.

    Raises:
        SemanticsError: the runtime has no such operator, or not with these types, scales or zero points.
    """
    kind = np.dtype(mapping.dtype)
    limits = np.iinfo(kind)
    codes = np.arange(limits.min, limits.max + 1, dtype=np.int64)
    name = as_semantics(semantics).name
    have = _RECIPES.get(name, {})
    if mapping.operator not in have:
        text = f"it has {', '.join(sorted(have))}" if have else "its operators end at a TABLE that the compiler fills"
        message = f"{name} has no {mapping.operator} of its own ({text}): use kind='table' or kind='polynomial'"
        raise SemanticsError(message)
    with watch():  # filling the table is preparation: no run of 256 outputs that a watcher should see
        exact = have[mapping.operator](codes, mapping, name)
    clamped = (exact < limits.min) | (exact > limits.max)
    entries = np.clip(exact, limits.min, limits.max).astype(kind)
    entries.flags.writeable = False
    return entries, clamped


def _refuse(mapping: Mapping, semantics: str, what: str) -> SemanticsError:
    return SemanticsError(
        f"{semantics}'s {mapping.operator} takes {what}; kind='table' and kind='polynomial' take what you have"
    )


def _away(x: np.ndarray) -> np.ndarray:
    """Round half away from zero, as C's round does."""
    wide = x.astype(np.float64)
    return np.sign(wide) * np.floor(np.abs(wide) + 0.5)


def _whole(steps: np.ndarray, mapping: Mapping) -> np.ndarray:
    """Return float32 steps as integers; what lies far outside any type of codes stays outside on its own side.

    Raises:
        IntegerError: scales so large that single precision gives no number.
    """
    if np.any(np.isnan(steps)):
        message = f"{mapping.operator} at an input scale of {mapping.input_scale:g} leaves single precision: take a smaller scale"
        raise IntegerError(message)
    return np.clip(steps.astype(np.float64), -(2.0**40), 2.0**40).astype(np.int64)


def _single(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a single-precision function that is correctly rounded (the C library's is within one unit of it)."""
    return lambda x: function(x.astype(np.float64)).astype(_FLOAT)


_exp, _tanh, _erfc = _single(np.exp), _single(np.tanh), _single(np.vectorize(math.erfc, otypes=[np.float64]))


def _logistic(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return _FLOAT(1) / (_FLOAT(1) + _exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return _FLOAT(0.5) * x * _erfc(x * _HALF_ROOT)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return _FLOAT(0.5) * x * (_FLOAT(1) + _tanh(_GELU_FACTOR * (x + _FLOAT(0.044715) * x * x * x)))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    # ONNX HardSwish: x * max(0, min(1, x / 6 + 1 / 2)).
    return x * np.clip(x * _FLOAT(1 / 6) + _FLOAT(0.5), _FLOAT(0), _FLOAT(1))


_SINGLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "logistic": _logistic,
    "tanh": _tanh,
    "gelu": _gelu,
    "gelu-tanh": _gelu_tanh,
    "hard-swish": _hard_swish,
    "relu": lambda x: np.maximum(x, _FLOAT(0)),
    "relu6": lambda x: np.clip(x, _FLOAT(0), _FLOAT(6)),
}


def _dequantized(codes: np.ndarray, mapping: Mapping) -> np.ndarray:
    return _FLOAT(mapping.input_scale) * (codes - mapping.input_zero_point).astype(_FLOAT)


def _filled_table(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    """LUTPopulateInt8 of kernels/internal/common.h: single precision, rounded half away from zero."""
    if mapping.dtype == "int16":
        raise _refuse(mapping, semantics, "8-bit tensors")
    if mapping.operator == "logistic" and mapping.output_scale != 1 / 256:
        raise _refuse(mapping, semantics, "an output scale of 1/256")
    with np.errstate(over="ignore", invalid="ignore"):
        inverse = _FLOAT(1) / _FLOAT(mapping.output_scale)
        transformed = _SINGLE[mapping.operator](_dequantized(codes, mapping))
    return _whole(_away(transformed * inverse).astype(_FLOAT) + _FLOAT(mapping.output_zero_point), mapping)


def _gemmlowp(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    """reference/integer_ops/{logistic,tanh}.h, int8: 4 integer bits in, double-rounding multiplier."""
    wanted = (1 / 256, -128) if mapping.operator == "logistic" else (1 / 128, 0)
    if mapping.dtype != "int8" or (mapping.output_scale, mapping.output_zero_point) != wanted:
        raise _refuse(mapping, semantics, f"int8 with output scale 1/{round(1 / wanted[0])} and zero point {wanted[1]}")
    values = (codes - mapping.input_zero_point).astype(np.int32)
    real = mapping.input_scale * 2.0**27
    # Inputs from 15 on are cut off; beyond a scale of 15 that is every input, 0 too.
    radius = math.floor(15 * 2.0**27 / 2.0 ** math.frexp(real)[1])
    inside = np.abs(values) < radius
    multiplier, shift = quantize_multiplier(real if radius else 0.0, semantics)
    argument = requantize(
        np.where(inside, values, 0).astype(np.int32), multiplier, shift, dtype=np.int32, semantics=semantics
    ).astype(np.int64)
    function = logistic_codes if mapping.operator == "logistic" else tanh_codes
    places = 23 if mapping.operator == "logistic" else 24
    # gemmlowp's RoundingDivideByPOT: half away from zero.
    result = function(argument, 4)
    rounded = np.sign(result) * ((np.abs(result) + (1 << (places - 1))) >> places)
    rounded = np.clip(rounded + mapping.output_zero_point, -128, 127)
    return np.where(inside, rounded, np.where(values > 0, 127, -128))


def sigmoid_anchors() -> np.ndarray:
    """Return TensorFlow Lite's 256 sigmoid anchors, sigmoid(i / 24) in 1 / 65536, half the midpoint's error given back."""
    place = np.arange(257) / 24
    values = 65536 / (1 + np.exp(-place))
    middles = 65536 / (1 + np.exp(-(place[:-1] + 1 / 48)))
    anchors = np.floor(values[:-1] + (middles - (values[:-1] + values[1:]) / 2) / 2 + 0.5).astype(np.int64)
    anchors[255] = 65535
    return anchors


def _interpolated(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    """reference/integer_ops/{logistic,tanh}.h, int16: one sigmoid table, tanh(x) = 2 sigmoid(2x) - 1."""
    if (mapping.output_scale, mapping.input_zero_point, mapping.output_zero_point) != (2.0**-15, 0, 0):
        raise _refuse(mapping, semantics, "int16 with output scale 1/32768 and zero points 0")
    logistic = mapping.operator == "logistic"
    power = math.log2(mapping.input_scale)
    shift = 12 + round(power)
    if abs(power - round(power)) < 1e-3 and shift in ({0} if logistic else {0, 1}):
        factor, shift = 3 << shift, 0
    else:
        real, shift = mapping.input_scale * 4096.0 * 3.0, 0
        while real <= 32767 / 2 and shift <= 30:
            real, shift = real * 2, shift + 1
        factor = int(real)
    scaled = (codes * factor + ((1 << shift) >> 1)) >> shift
    size, low = np.abs(scaled), 9 if logistic else 8
    anchors = sigmoid_anchors()
    place = np.minimum(size >> low, 254)
    base = anchors[place]
    value = (base << low) + (size & ((1 << low) - 1)) * (anchors[place + 1] - base)
    if logistic:
        value = np.where(size >> low >= 255, 0x7FFF << 10, value)
        return np.where(scaled >= 0, value + (1 << 9), (1 << 25) - value + (1 << 9) - 1) >> 10
    value = np.where(size >> low >= 255, 0xFFFF << 8, value)
    return np.where(scaled >= 0, value - (1 << 23) + (1 << 7), -value + (1 << 23) + (1 << 7) - 1) >> 8


def _table_or_interpolation(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    return (_interpolated if mapping.dtype == "int16" else _filled_table)(codes, mapping, semantics)


def _gemmlowp_or_interpolation(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    return (_interpolated if mapping.dtype == "int16" else _gemmlowp)(codes, mapping, semantics)


def _fixed_hard_swish(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    """reference/hard_swish.h: 16-bit fixed point with saturating shifts."""
    if mapping.dtype == "int16":
        raise _refuse(mapping, semantics, "8-bit tensors")
    fine = _FLOAT(1 / 128) * _FLOAT(mapping.input_scale)
    # TensorFlow Lite Micro divides in double precision, LiteRT in single.
    kind = np.float64 if semantics == "tflm" else _FLOAT
    output, output_shift = _short_multiplier(float(kind(fine) / kind(_FLOAT(mapping.output_scale))))
    relu, relu_shift = _short_multiplier(float(kind(fine) / kind(_FLOAT(3 / 32768))))
    if output_shift > 0:
        raise _refuse(mapping, semantics, "an output scale of at least 1/128 of the input scale")
    value = (codes - mapping.input_zero_point) * 128
    preshift = _high_multiply(value, output)
    gate = value
    if relu_shift > 0:
        gate = np.clip(gate << (relu_shift - 1), -32768, 32767)
    gate = _high_multiply(gate, relu)
    if relu_shift > 0:
        gate = np.clip(gate << 1, -32768, 32767)
    if relu_shift < 0:
        gate = _divide_by_power(gate, -relu_shift)
    gate = (gate + (1 << 15)) >> 1
    # Here the high multiply truncates: it cancels the bias of the roundings above.
    product = gate * preshift
    result = np.sign(product) * (np.abs(product) >> 15)
    return _divide_by_power(result, -output_shift) + mapping.output_zero_point


def _short_multiplier(real: float) -> tuple[int, int]:
    multiplier, shift = quantize_multiplier(real, "tflm")
    return min((int(multiplier) + (1 << 15)) >> 16, 32767), int(shift)


def _high_multiply(a: np.ndarray, b: int) -> np.ndarray:
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return np.sign(nudged) * (np.abs(nudged) >> 15)


def _divide_by_power(value: np.ndarray, exponent: int) -> np.ndarray:
    half = (1 << exponent) >> 1
    return np.sign(value) * ((np.abs(value) + half) >> exponent)


def _factor(input_scale: float, output_scale: float, *, wide: bool) -> float:
    """Return a factor as TensorFlow Lite Micro divides (float64) or as TensorFlow Lite does (float32)."""
    if wide:
        return input_scale / output_scale
    return float(_FLOAT(input_scale) / _FLOAT(output_scale))


def _six(mapping: Mapping, scale: float) -> int:
    with np.errstate(over="ignore"):
        return int(_whole(_away(np.asarray(_FLOAT(6) / _FLOAT(scale))), mapping))


def _rectified(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    """ReluX of kernels/activations.cc and micro/kernels/activations.cc: requantize, clamp."""
    micro, zero = semantics == "tflm", mapping.output_zero_point
    if micro and mapping.dtype == "uint8":
        raise _refuse(mapping, semantics, "int8 and int16 tensors")
    if micro and mapping.operator == "relu6":
        # It clamps the input's codes and rescales nothing: only right where both tensors share one quantization.
        six = mapping.input_zero_point + _six(mapping, mapping.input_scale)
        return np.clip(codes, mapping.input_zero_point, min(six, int(np.iinfo(mapping.dtype).max)))
    # relu's upper end is the type's: ``recipe`` clamps, and counts.
    high = 1 << 40
    if mapping.operator == "relu6":
        high = zero + _six(mapping, mapping.output_scale)
    factor = _factor(mapping.input_scale, mapping.output_scale, wide=micro)
    return np.minimum(np.maximum(_moved(codes, mapping, factor, semantics), zero), high)


def _leaky(codes: np.ndarray, mapping: Mapping, semantics: str) -> np.ndarray:
    """QuantizeLeakyRelu of reference/leaky_relu.h: two multipliers."""
    if semantics == "tflm" and mapping.dtype == "uint8":
        raise _refuse(mapping, semantics, "int8 and int16 tensors")
    wide = semantics == "tflm"
    identity = _factor(mapping.input_scale, mapping.output_scale, wide=wide)
    if wide:
        slope = mapping.input_scale * mapping.slope / mapping.output_scale
    else:
        slope = _factor(float(_FLOAT(mapping.input_scale) * _FLOAT(mapping.slope)), mapping.output_scale, wide=False)
    below = _moved(codes, mapping, abs(slope), semantics, sign=-1 if slope < 0 else 1)
    return np.where(codes >= mapping.input_zero_point, _moved(codes, mapping, identity, semantics), below)


def _moved(codes: np.ndarray, mapping: Mapping, factor: float, semantics: str, sign: int = 1) -> np.ndarray:
    named = outside_linear(semantics)
    multiplier, shift = quantize_multiplier(factor, named)
    values = (sign * (codes - mapping.input_zero_point)).astype(np.int32)
    moved = requantize(values, multiplier, shift, dtype=np.int32, semantics=named)
    return moved.astype(np.int64) + mapping.output_zero_point


def _quantized(codes: np.ndarray, mapping: Mapping, _semantics: str) -> np.ndarray:
    """DequantizeLinear, the function, QuantizeLinear: single precision, half to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = _dequantized(codes, mapping)
        if mapping.operator == "leaky-relu":
            real = np.where(x >= 0, x, _FLOAT(mapping.slope) * x)
        else:
            real = _SINGLE[mapping.operator](x)
        steps = np.rint(real / _FLOAT(mapping.output_scale))
    return _whole(steps, mapping) + mapping.output_zero_point


_LITE: dict[str, Callable[[np.ndarray, Mapping, str], np.ndarray]] = {
    "logistic": _table_or_interpolation,
    "tanh": _table_or_interpolation,
    "gelu": _filled_table,
    "gelu-tanh": _filled_table,
    "hard-swish": _fixed_hard_swish,
    "relu": _rectified,
    "relu6": _rectified,
    "leaky-relu": _leaky,
}
_MICRO = {
    "logistic": _gemmlowp_or_interpolation,
    "tanh": _gemmlowp_or_interpolation,
    "hard-swish": _fixed_hard_swish,
    "relu": _rectified,
    "relu6": _rectified,
    "leaky-relu": _leaky,
}
_RECIPES: dict[str, dict[str, Callable[[np.ndarray, Mapping, str], np.ndarray]]] = {
    "litert-reference": _LITE,
    "tflite-single": _LITE,
    "tflm": _MICRO,
    "onnxruntime": dict.fromkeys((*_SINGLE, "leaky-relu"), _quantized),
}
