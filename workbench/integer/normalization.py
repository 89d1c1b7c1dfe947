"""LayerNorm and RMSNorm in integers. No runtime's recipe is accepted as a reference: ``docs/integer_operators.md`` is ours.

All of a row's arithmetic is int64 and exact up to one reciprocal root with 30 bits; the rounding to output steps is the
only one that shows.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.activations import check_kind
from workbench.integer.arguments import (
    TENSOR_TYPES,
    as_array,
    check_zero_point,
    clamp_limits,
    code_type,
    one_integer,
    real_numbers,
    shown,
)
from workbench.integer.tables import check_scale
from workbench.integer.watch import Observation, note
from workbench.kernels.normalization import INTERVALS, normalize_rows

_GAIN_BITS = 30


@dataclass(frozen=True, eq=False)
class NormalizationConstants:
    """What a normalization's run needs, all integers.

    Attributes:
        gain: int64 (depth,) or (1,): weight / output scale, times ``2**(shift - places)``.
        offset: int64 (depth,) or (1,): bias / output scale, times ``2**shift``.
        shift: right shift to output steps.
        epsilon: ``epsilon * depth**2 / input_scale**2 * 2**fraction``.
        fraction: fractional bits of the variance, even.
        places: binary places of a normalized number: as many as leave it below 2**30.
        depth: length of a row.
        input_dtype: type of the input.
        input_zero_point: the input's code of 0.
        centred: whether it is a LayerNorm.
    """

    gain: np.ndarray
    offset: np.ndarray
    shift: int
    epsilon: int
    fraction: int
    places: int
    depth: int
    input_dtype: np.dtype
    input_zero_point: int
    centred: bool


def normalization_constants(
    depth: int,
    weight: Any = None,
    bias: Any = None,
    *,
    centred: bool,
    input_scale: Any,
    output_scale: Any,
    input_zero_point: int = 0,
    epsilon: float = 1e-5,
    input_dtype: Any = np.int8,
) -> NormalizationConstants:
    """Return the integers of a LayerNorm (``centred``) or RMSNorm from its real weights and scales.

    Args:
        depth: length of a row.
        weight: real numbers (depth,); ones by default.
        bias: real numbers (depth,); zeros by default.
        centred: True for LayerNorm, False for RMSNorm.
        input_scale: real scale of the input.
        output_scale: real scale of the output.
        input_zero_point: the input's code of 0.
        epsilon: added to the variance, 0 or above.
        input_dtype: int8, uint8 or int16.

    Raises:
        IntegerError: shapes, scales or sizes that do not fit 64 bits.
    """
    kind = code_type(input_dtype, TENSOR_TYPES, "a normalization takes")
    depth = one_integer(depth, "the depth", 0, 1 << 40)
    check_zero_point(input_zero_point, kind)
    input_zero_point = int(input_zero_point)
    scale, step = check_scale(input_scale, "input"), check_scale(output_scale, "output")
    added = real_numbers(epsilon, "epsilon")
    if added.size != 1 or not np.all(np.isfinite(added) & (added >= 0)):
        message = f"epsilon is a finite number, 0 or above, not {shown(epsilon)}"
        raise IntegerError(message)
    epsilon = float(added.reshape(()))
    limits = np.iinfo(kind)
    reach = max(int(limits.max) - input_zero_point, input_zero_point - int(limits.min))
    widest = int(limits.max) - int(limits.min) if centred else reach
    largest = (depth * widest) ** 2 // (4 if centred else 1)
    real = epsilon * depth**2 / scale**2
    room = 62 - max(largest.bit_length(), 1 if real == 0 else math.frexp(real)[1]) - 1
    # depth * sum of squares is formed before the mean's share leaves it.
    if depth < 1 or room < 0 or depth * widest >= 1 << 31 or (depth * reach) ** 2 >= 1 << 63:
        message = (
            f"a row of {depth} {kind} codes with epsilon {epsilon:g} at scale {scale:g} does not fit 64-bit sums: "
            "take shorter rows, narrower codes or a larger scale"
        )
        raise IntegerError(message)
    fraction = min(room, 40) & ~1
    # No normalized number is larger than sqrt(depth), nor than the largest input over sqrt(epsilon).
    top = min(math.sqrt(depth), widest * scale / math.sqrt(epsilon) if epsilon else math.inf)
    places = min(30, 30 - math.frexp(top)[1])
    gains, offsets = _channels(weight, depth, "weight", 1.0) / step, _channels(bias, depth, "bias", 0.0) / step
    shift, gain, offset = _steps(gains, offsets, places)
    return NormalizationConstants(
        gain,
        offset,
        shift,
        round(real * 2.0**fraction),
        fraction,
        places,
        depth,
        kind,
        int(input_zero_point),
        centred,
    )


def _channels(values: Any, depth: int, name: str, default: float) -> np.ndarray:
    if values is None:
        return np.array([default])
    array = real_numbers(values, f"the {name}")
    if array.shape != (depth,) or not np.all(np.isfinite(array)):
        message = f"the {name} is finite and ({depth},), not {array.shape}"
        raise IntegerError(message)
    return array


def _steps(gains: np.ndarray, offsets: np.ndarray, normal: int) -> tuple[int, np.ndarray, np.ndarray]:
    top, lift = float(np.abs(gains).max()), float(np.abs(offsets).max())
    places = min(
        _GAIN_BITS - math.frexp(top)[1] if top else _GAIN_BITS,
        61 - normal - math.frexp(lift)[1] if lift else _GAIN_BITS,
        62 - normal,
    )
    if places < 1 - normal:
        message = "weight and bias are too large for the output scale: nothing but clamped codes would come out"
        raise IntegerError(message)
    gain = np.rint(gains * 2.0**places).astype(np.int64)
    shift = places + normal
    return shift, gain, np.rint(offsets * 2.0**shift).astype(np.int64)


@functools.lru_cache(maxsize=1)
def _table() -> np.ndarray:
    values = 2.0**60 + np.arange(INTERVALS + 1) * 2.0**51
    return np.rint(2.0**61 / np.sqrt(values)).astype(np.int64)


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    input_scale: Any = None,
    weight_scale: Any = None,
    bias_scale: Any = None,
    output_scale: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    epsilon: float = 1e-5,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    kind: str = "polynomial",
    constants: NormalizationConstants | None = None,
) -> np.ndarray:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis.

    With q the codes less their zero point and n their number, in int64:

    * ``d = n q - sum q``, ``V = n sum q**2 - (sum q)**2``, both exact;
    * ``W = V * 2**f + E``, E = epsilon n**2 / input_scale**2 * 2**f, shifted left by an even e into [2**60, 2**62);
    * ``r = 2**61 / sqrt(W 2**e)`` by Newton's integer root and one division (``polynomial``) or by a table of 1,537
      entries with interpolation (``table``);
    * ``y = d r`` rounded to as many binary places as leave it below 2**30, ``code = (y gain + offset) / 2**shift``, rounded half up, + zero point.

    Args:
        x: int8, uint8 or int16 (..., depth).
        weight: integer codes (depth,), zero point 0; ones by default.
        bias: integer codes (depth,), zero point 0; zeros by default.
        input_scale: real scale of the input.
        weight_scale: real scale of the weight's codes.
        bias_scale: real scale of the bias's codes.
        output_scale: real scale of the output.
        input_zero_point: the input's code of 0 (it cancels).
        output_zero_point: the output's code of 0.
        epsilon: added to the variance.
        dtype: type of the output; the input's by default.
        low: smallest output code (a fused clamp).
        high: largest output code.
        kind: ``polynomial`` (Newton) or ``table``.
        constants: ready integers from ``normalization_constants`` instead of weights and scales.

    Raises:
        IntegerError: types, shapes, scales or sizes do not fit.
        SemanticsError: ``kind="runtime"``: no runtime has this operator in integers.
    """
    given = as_array(x, "the input")
    if constants is None:
        constants = normalization_constants(
            given.shape[-1] if given.ndim else 0,
            _real(weight, weight_scale, "weight"),
            _real(bias, bias_scale, "bias"),
            centred=True,
            input_scale=input_scale,
            output_scale=output_scale,
            input_zero_point=input_zero_point,
            epsilon=epsilon,
            input_dtype=given.dtype,
        )
    return _normalized(given, constants, output_zero_point, dtype, low, high, kind, "layer_norm")


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    weight_offset: float = 0.0,
    input_scale: Any = None,
    weight_scale: Any = None,
    output_scale: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    epsilon: float = 1e-6,
    dtype: Any = None,
    low: int | None = None,
    high: int | None = None,
    kind: str = "polynomial",
    constants: NormalizationConstants | None = None,
) -> np.ndarray:
    """Return x / sqrt(mean(x**2) + epsilon) * (weight_offset + weight) over the last axis.

    The recipe is ``layer_norm``'s with ``d = n q`` and ``V = n sum q**2``.

    Args:
        x: int8, uint8 or int16 (..., depth).
        weight: integer codes (depth,), zero point 0; by default every weight is 1 (the offset is not used then).
        weight_offset: added to every real weight: 1 for Gemma, whose checkpoints store weight - 1.
        input_scale: real scale of the input.
        weight_scale: real scale of the weight's codes.
        output_scale: real scale of the output.
        input_zero_point: the input's code of 0.
        output_zero_point: the output's code of 0.
        epsilon: added to the mean square.
        dtype: type of the output; the input's by default.
        low: smallest output code (a fused clamp).
        high: largest output code.
        kind: ``polynomial`` (Newton) or ``table``.
        constants: ready integers from ``normalization_constants`` instead of weights and scales.

    Raises:
        IntegerError: types, shapes, scales or sizes do not fit.
        SemanticsError: ``kind="runtime"``: no runtime has this operator in integers.
    """
    given = as_array(x, "the input")
    if constants is None:
        real, added = _real(weight, weight_scale, "weight"), real_numbers(weight_offset, "the weight's offset")
        if added.size != 1:
            message = f"a weight's offset is one number, not {shown(weight_offset)}"
            raise IntegerError(message)
        constants = normalization_constants(
            given.shape[-1] if given.ndim else 0,
            None if real is None else real + float(added.reshape(())),
            centred=False,
            input_scale=input_scale,
            output_scale=output_scale,
            input_zero_point=input_zero_point,
            epsilon=epsilon,
            input_dtype=given.dtype,
        )
    return _normalized(given, constants, output_zero_point, dtype, low, high, kind, "rms_norm")


def _real(codes: Any, scale: Any, name: str) -> np.ndarray | None:
    if codes is None:
        return None
    array = as_array(codes, f"the {name}")
    if array.dtype.kind not in "iu":
        message = f"the {name} holds integer codes, not {array.dtype}: real weights go to normalization_constants"
        raise IntegerError(message)
    return array.astype(np.float64) * check_scale(scale, name)


def _normalized(  # noqa: PLR0917
    codes: np.ndarray,
    constants: NormalizationConstants,
    zero_point: int,
    dtype: Any,
    low: int | None,
    high: int | None,
    kind: str,
    operator: str,
) -> np.ndarray:
    check_kind(kind)
    if kind == "runtime":
        message = f"no runtime has {operator} in integers: use kind='polynomial' (Newton) or kind='table'"
        raise SemanticsError(message)
    if not isinstance(constants, NormalizationConstants):
        message = f"constants come from normalization_constants, not {shown(constants)}"
        raise IntegerError(message)
    wanted = code_type(codes.dtype if dtype is None else dtype, TENSOR_TYPES, "a normalization gives")
    check_zero_point(zero_point, wanted)
    if codes.dtype != constants.input_dtype or codes.ndim < 1 or codes.shape[-1] != constants.depth:
        message = (
            f"these constants are for {constants.input_dtype} rows of {constants.depth}, "
            f"not {codes.dtype} {codes.shape}"
        )
        raise IntegerError(message)
    if constants.centred != (operator == "layer_norm"):
        message = f"these constants are for {'LayerNorm' if constants.centred else 'RMSNorm'}"
        raise IntegerError(message)
    low, high = clamp_limits(low, high, wanted)
    rows = np.ascontiguousarray(codes).reshape(-1, constants.depth)
    out, saturated = normalize_rows(
        rows,
        constants.input_zero_point,
        constants.epsilon,
        constants.fraction,
        constants.places,
        _table() if kind == "table" else np.empty(0, dtype=np.int64),
        constants.gain,
        constants.offset,
        constants.shift,
        int(zero_point),
        low,
        high,
        wanted,
        centred=constants.centred,
    )
    note(Observation(operator, outputs=int(out.size), saturated=saturated, accumulator_bits=64))
    return out.reshape(codes.shape)
