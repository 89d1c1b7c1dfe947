"""Softmax over the last axis on integer codes, with masks: as runtimes compute it, by tables, or by I-BERT's i-exp."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.activations import check_kind
from workbench.integer.arguments import TENSOR_TYPES, as_array, check_zero_point, code_type, real_numbers, shown
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.polynomials import CONSTANTS, argument_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.tables import check_scale, tflite_anchors
from workbench.integer.watch import Observation, note, watch
from workbench.kernels import fixed_point as rules
from workbench.kernels import softmax as loops
from workbench.kernels.gemmlowp import exp_codes
from workbench.kernels.nonlinear import exp_codes as polynomial_codes

#: Longest last axis: sums of that many powers of 30 bits stay far below 63 bits.
LONGEST = 1 << 20

_POWER_BITS = 30


def softmax(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    beta: float = 1.0,
    output_scale: Any = None,
    output_zero_point: int | None = None,
    dtype: Any = None,
    mask: Any = None,
    valid_length: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return exp(beta x) / sum exp(beta x) over the last axis (the input's zero point cancels).

    With ``E_i`` = exp(-beta * input_scale * (max x - x_i)) in fixed point, all in int64:

    * ``table``: E from 256 entries with 30 bits, for int16 the product of two such entries;
      ``code = floor((E_i * K + sum / 2) / sum) + zero_point``, K = 1 / output_scale with 12 further bits.
    * ``polynomial``: E by I-BERT's i-exp (arXiv 2101.01321), 14 binary places; the same division.
    * ``runtime``: ``tflm`` and ``litert-reference``, 8 bits: gemmlowp's exp and Newton reciprocal (both runtimes abort
      where a row's sum of powers reaches 512 for 8-bit outputs; here the recipe goes on); int16: two interpolated
      tables and an integer reciprocal. ``onnxruntime``: its own table, sum and division in single precision, inside
      the loop.

    Args:
        x: int8, uint8 or int16 (..., depth), depth up to 2**20.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0 (it cancels).
        beta: factor on the input, above 0.
        output_scale: real scale of the output; by default 1/256 for 8 bits, for int16 1/32768 (from 8-bit inputs
            1/65536, as TensorFlow Lite has it).
        output_zero_point: the output's code of 0; by default the type's smallest code (int16 from int16: 0).
        dtype: int8, uint8 or int16; the input's type by default.
        mask: booleans that broadcast to the input's shape: False where a code takes no part. Its result is the code
            of 0, and so is a row's in which nothing takes part.
        valid_length: integers that broadcast to the input's leading axes: only so many first codes take part.
        kind: ``runtime``, ``table`` or ``polynomial``.
        semantics: whose recipe ``runtime`` is.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        SemanticsError: the runtime has no softmax, or not with these types, scales or zero points.

    >>> softmax(np.array([[0, 10, 20]], dtype=np.int8), input_scale=0.1, kind="table")
    array([[-105,  -65,   42]], dtype=int8)
    """
    codes = as_array(x, "the input")
    given = code_type(codes.dtype, TENSOR_TYPES, "a softmax takes")
    wanted = given if dtype is None else code_type(dtype, TENSOR_TYPES, "a softmax gives")
    if codes.ndim < 1 or codes.shape[-1] > LONGEST:
        message = f"a softmax goes over a last axis of at most 2**20 codes, not {codes.shape}"
        raise IntegerError(message)
    check_zero_point(input_zero_point, given)
    check_kind(kind)
    named = outside_linear(semantics)
    beta = _single(beta)
    step, zero = _output(codes.dtype, wanted, output_scale, output_zero_point)
    scale = check_scale(input_scale, "input")
    mask_rows, lengths = _mask(codes.shape, mask), _lengths(codes.shape, valid_length)
    if codes.size == 0:
        return np.empty(codes.shape, dtype=wanted)
    rows = np.ascontiguousarray(codes).reshape(-1, codes.shape[-1])
    if kind == "runtime":
        out, saturated = _runtime(rows, mask_rows, lengths, scale, float(beta), step, zero, wanted, named)
    else:
        factor = _steps(step)
        if codes.dtype.itemsize == 1:
            powers = _powers8(scale * beta, kind)
            out, saturated = loops.softmax_by_table(
                rows, mask_rows, lengths, powers, powers, _NO_FLOATS, loops.DIVIDE, factor, 1.0, zero, wanted
            )
        else:
            method = loops.PRODUCT if kind == "table" else loops.POLYNOMIAL
            coarse, fine = _powers16(scale * beta)
            out, saturated = loops.softmax_by_division(
                rows,
                mask_rows,
                lengths,
                method,
                coarse,
                fine,
                argument_multiplier(scale * beta),
                CONSTANTS,
                factor,
                zero,
                wanted,
            )
    # A share of 1 in steps of 1/256 is one code beyond the type by design; only what lies further is counted.
    note(Observation("softmax", outputs=int(out.size), saturated=saturated))
    return out.reshape(codes.shape)


def _single(beta: Any) -> float:
    number = real_numbers(beta, "beta")
    with np.errstate(over="ignore"):
        stored = number.astype(np.float32)
    if number.size != 1 or not np.all(np.isfinite(stored) & (stored > 0)):
        message = f"beta is a finite number above 0, not {shown(beta)}"
        raise IntegerError(message)
    return float(number.reshape(()))


_NO_FLOATS = np.zeros(256, dtype=np.float32)


def _output(given: np.dtype, wanted: np.dtype, scale: Any, zero_point: int | None) -> tuple[float, int]:
    lowest = int(np.iinfo(wanted).min)
    if wanted.itemsize == 1:
        usual = 2.0**-8, lowest
    else:
        usual = (2.0**-15, 0) if given.itemsize == 2 else (2.0**-16, lowest)
    if scale is not None or zero_point is not None:
        usual = (usual[0] if scale is None else scale), (usual[1] if zero_point is None else zero_point)
    check_zero_point(usual[1], wanted)
    return check_scale(usual[0], "output"), int(usual[1])


def _steps(step: float) -> int:
    if step < 2.0**-20 or step > 1:
        message = f"a softmax's output scale lies between 2**-20 and 1, not {step:g}"
        raise IntegerError(message)
    return round(2.0**12 / step)


def _mask(shape: tuple[int, ...], mask: Any) -> np.ndarray:
    if mask is None:
        return np.zeros((0, 0), dtype=np.uint8)
    values = as_array(mask, "a mask")
    if values.dtype != np.bool_:
        message = f"a mask holds booleans, True where a code takes part, not {values.dtype}"
        raise IntegerError(message)
    try:
        np.broadcast_shapes(values.shape, shape)
        fits = np.broadcast_shapes(values.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        message = f"a mask {values.shape} does not broadcast to {shape}"
        raise IntegerError(message)
    if values.ndim == 0:
        values = np.broadcast_to(values, shape[-1:])
    while values.ndim > 1 and values.shape[0] == 1:
        values = values[0]
    # A mask of the last axes is used in turns; any other is written out.
    if values.shape != shape[len(shape) - values.ndim :]:
        values = np.broadcast_to(values, shape)
    return np.ascontiguousarray(values).reshape(-1, shape[-1]).view(np.uint8)


def _lengths(shape: tuple[int, ...], valid_length: Any) -> np.ndarray:
    if valid_length is None:
        return np.array([shape[-1]], dtype=np.int64)
    values = as_array(valid_length, "a valid length")
    if values.dtype.kind not in "iu" or np.any(values < 0) or np.any(values > shape[-1]):
        message = f"valid lengths are integers from 0 to {shape[-1]}"
        raise IntegerError(message)
    try:
        spread = np.broadcast_to(values, shape[:-1])
    except ValueError:
        message = f"valid lengths {values.shape} do not broadcast to {shape[:-1]}"
        raise IntegerError(message) from None
    return np.ascontiguousarray(spread).reshape(-1).astype(np.int64)


@functools.lru_cache(maxsize=256)
def _powers8(scale: float, kind: str) -> np.ndarray:
    distances = np.arange(256)
    if kind == "table":
        return np.rint(np.exp(-scale * distances) * 2.0**_POWER_BITS).astype(np.int64)
    multiplier, shift = argument_multiplier(scale)
    half = (1 << int(shift)) >> 1
    arguments = (distances.astype(np.int64) * multiplier + half) >> shift
    return polynomial_codes(arguments, *(int(each) for each in CONSTANTS[:3]))


@functools.lru_cache(maxsize=256)
def _powers16(scale: float) -> tuple[np.ndarray, np.ndarray]:
    places = np.arange(256)
    coarse = np.rint(np.exp(-scale * 256 * places) * 2.0**_POWER_BITS).astype(np.int64)
    fine = np.rint(np.exp(-scale * places) * 2.0**_POWER_BITS).astype(np.int64)
    return coarse, fine


def _runtime(  # noqa: PLR0917
    rows: np.ndarray,
    mask: np.ndarray,
    lengths: np.ndarray,
    scale: float,
    beta: float,
    step: float,
    zero: int,
    wanted: np.dtype,
    named: Semantics,
) -> tuple[np.ndarray, int]:
    given = rows.dtype
    if named.shift_is_right:
        message = f"{named} has no softmax operator: use kind='table' or kind='polynomial'"
        raise SemanticsError(message)
    beta = float(np.float32(beta))
    onnx = named.rounding == "float32"
    lowest = int(np.iinfo(wanted).min)
    if given == np.int16:
        if onnx or wanted != np.int16 or (step, zero) != (2.0**-15, 0):
            raise _refuse(named, given, wanted)
        multiplier, shift = quantize_multiplier(scale * beta / (10.0 / 65535.0), named)
        rule = rules.DOUBLE if named.rounding == "double" else rules.SINGLE
        exps, reciprocals = _anchors16("float32" if named.name == "tflm" else "float64")
        return loops.softmax_tflite16(rows, mask, lengths, int(multiplier), int(shift), rule, exps, reciprocals), 0
    if onnx:
        if wanted != given:
            raise _refuse(named, given, wanted)
        floats = _onnx_powers(scale, rows.shape[1])
        return loops.softmax_by_table(
            rows,
            mask,
            lengths,
            _NO_POWERS,
            _NO_POWERS,
            floats,
            loops.ONNXRUNTIME,
            1,
            math.floor(np.float32(1) / np.float32(step)),
            zero,
            wanted,
        )
    usual = 2.0**-8 if wanted.itemsize == 1 else 2.0**-16
    micro = named.name == "tflm"
    if (micro and given == np.uint8) or wanted not in {given, np.dtype(np.int16)} or (step, zero) != (usual, lowest):
        raise _refuse(named, given, wanted)
    powers = _gemmlowp_powers(scale * beta, named)
    sums = (powers + (1 << 11)) >> 12
    return loops.softmax_by_table(rows, mask, lengths, powers, sums, _NO_FLOATS, loops.GEMMLOWP, 1, 1.0, zero, wanted)


_NO_POWERS = np.zeros(256, dtype=np.int64)


def _refuse(named: Semantics, given: np.dtype, wanted: np.dtype) -> SemanticsError:
    return SemanticsError(
        f"{named} has no softmax from {given} to {wanted} with this output scale and zero point: take its defaults, "
        "or kind='table' or kind='polynomial'"
    )


@functools.lru_cache(maxsize=256)
def _gemmlowp_powers(scale: float, semantics: Semantics) -> np.ndarray:
    """Exp of minus each difference, 0 integer bits; 0 from where the runtime skips (reference/softmax.h)."""
    single = semantics.rounding == "single"
    distances = np.arange(256, dtype=np.int32)
    real = min(scale * 2.0**26, 2.0 ** (30 if single else 31) - 1)
    if real >= 2.0**30:
        # From a step of 16 on only the largest codes themselves count (the runtimes' shift is then 31).
        return np.where(distances == 0, exp_codes(np.zeros(256, dtype=np.int64), 5), 0)
    multiplier, shift = quantize_multiplier(real, semantics)
    furthest = math.floor(31 * 2.0**26 / 2.0 ** int(shift))
    near = distances <= furthest
    with watch():  # filling the table is preparation, not a run that a watcher should see
        moved = requantize(np.where(near, -distances, 0), multiplier, shift, dtype=np.int32, semantics=semantics)
    return np.where(near, exp_codes(moved.astype(np.int64), 5), 0)


@functools.lru_cache(maxsize=2)
def _anchors16(precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Return both tables: TensorFlow Lite Micro fills them in single precision, TensorFlow Lite in double."""
    exps = tflite_anchors(np.exp, -10.0, 0.0, 2.0, precision)
    reciprocals = tflite_anchors(lambda x: 1.0 / (1.0 + x), 0.0, 1.0, 2.0, precision)
    return exps.astype(np.int64), reciprocals.astype(np.int64)


@functools.lru_cache(maxsize=256)
def _onnx_powers(scale: float, depth: int) -> np.ndarray:
    """Exp scaled up so that a row's sum fits float32 (QlinearBuildLookupTable of qlinear_softmax.cc)."""
    largest = np.finfo(np.float32).max
    room = max(0.0, math.log(float(np.float32(largest) / np.float32(depth))) - 5.0) / float(np.float32(scale))
    with np.errstate(over="ignore", under="ignore"):
        return np.exp((room - np.arange(256)) * scale).astype(np.float32)
