"""Linear layers with binary-coded weights in integers: look-ups add up exactly, fixed-point alphas weigh the sums.

A layer is three steps, each in integers:

1. per group of inputs and plane of signs, ``S = sum ± (x - input_zero_point)`` by look-ups (``kernels.lut_gemm``);
2. ``accumulator = bias + sum_groups (sum_i A_i * S_i + Z * sum (x - input_zero_point))`` with A = round(alpha / unit),
   Z = round(bias of the group / unit) and one unit for each output row;
3. requantize with ``input_scale * unit / output_scale``, one factor per row, as the named runtime rounds.

The only error against the binary coding itself is the rounding of its alphas in step 2, which is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.accumulator import needed_bits
from workbench.integer.arguments import check_zero_point
from workbench.integer.linear import rescaling
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics, as_semantics
from workbench.integer.watch import Observation, is_watched, note

if TYPE_CHECKING:
    from workbench.kernels.lut_gemm import LutWeight, Path
    from workbench.quantization.binary_coding import BinaryCodedTensor

#: Bits of the largest coefficient, sign not counted.
MOST_BITS = 15

#: A 32-bit accumulator is filled to this by the largest inputs; the other half is left to the layer's bias.
_REACH = 1 << 30

#: Largest magnitude of an 8-bit code minus its zero point.
_WIDEST = 255

#: Weights decoded at a time while a weight is prepared.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class LutLinearWeight:
    """A binary-coded weight with its alphas and biases in fixed point."""

    coefficients: Int[np.ndarray, "rows groups bits"]
    """int16: A, alphas in units of their row."""
    offsets: Int[np.ndarray, "rows groups"]
    """int16: Z, biases of the groups in units of their row."""
    unit: Float[np.ndarray, " rows"]
    """float32: the real number that coefficient 1 stands for; with the input scale, the scale of the accumulator."""
    accumulator_bits: int
    """32 or 64."""
    relative_error: float
    """Norm of (fixed-point weights - coded weights) over the norm of the coded weights."""
    largest_sum: int
    """Largest sum of the magnitudes of a row's integer weights: times the largest input it bounds every sum."""
    packed: LutWeight = field(repr=False)
    tiled_coefficients: np.ndarray = field(repr=False)
    tiled_offsets: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, depth)."""
        return self.packed.rows, self.packed.columns

    def __repr__(self) -> str:
        largest = int(max(np.abs(self.coefficients).max(initial=0), np.abs(self.offsets).max(initial=0)))
        return (
            f"LutLinearWeight({self.shape[0]}x{self.shape[1]}, {self.packed.bits} planes, groups of "
            f"{self.packed.size}, coefficients to {largest}, int{self.accumulator_bits} sums, "
            f"fixed point {self.relative_error:.2g} off)"
        )


def prepare_lut_weight(
    coded: BinaryCodedTensor, *, accumulator_bits: int = 32, scale_bits: int | None = None
) -> LutLinearWeight:
    """Bring the alphas and biases of a binary coding to fixed point.

    The unit of a row is its largest alpha or bias over ``2^scale_bits - 1``; everything is rounded to it, half to even.

    Args:
        coded: what ``quantize(weight, "bcq:bits=3", ...)`` or ``from_uniform`` gives; (outputs, depth).
        accumulator_bits: 32, or 64 (whose requantization multiplies by 15 bits in the TensorFlow Lite semantics).
        scale_bits: 1 to 15; None takes the most with which sums of any 8-bit inputs stay below 2^30 in a 32-bit
            accumulator (15 with 64 bits).

    Raises:
        IntegerError: another width, or scale bits out of range.
    """
    from workbench.kernels.lut_gemm import pack, tiled

    if accumulator_bits not in {32, 64}:
        message = f"look-up sums are accumulated in 32 or 64 bits, not {accumulator_bits}"
        raise IntegerError(message)
    if scale_bits is not None and (isinstance(scale_bits, bool) or scale_bits not in range(1, MOST_BITS + 1)):
        message = f"coefficients have 1 to {MOST_BITS} bits, not {scale_bits}"
        raise IntegerError(message)
    rows = coded.codes.shape[0]
    alphas, bias = coded.alphas, coded.bias
    if len(alphas) != rows:  # one set for the whole tensor
        alphas, bias = np.repeat(alphas, rows, axis=0), np.repeat(bias, rows, axis=0)
    bits = scale_bits or MOST_BITS
    coefficients, offsets, unit = _fixed_point(alphas, bias, bits)
    largest, error = _compare(coded, coefficients, offsets, unit, alphas, bias)
    if scale_bits is None and accumulator_bits == 32:
        while largest * _WIDEST > _REACH and bits > 1:
            bits -= max(1, (largest * _WIDEST // _REACH).bit_length() - 1)
            bits = max(bits, 1)
            coefficients, offsets, unit = _fixed_point(alphas, bias, bits)
            largest, error = _compare(coded, coefficients, offsets, unit, alphas, bias)
    return LutLinearWeight(
        coefficients=coefficients,
        offsets=offsets,
        unit=unit,
        accumulator_bits=accumulator_bits,
        relative_error=error,
        largest_sum=largest,
        packed=pack(coded.codes, alphas, bias, coded.group_size),
        tiled_coefficients=tiled(coefficients),
        tiled_offsets=tiled(offsets),
    )


def lut_linear(
    x: np.ndarray,
    weight: LutLinearWeight | BinaryCodedTensor,
    bias: np.ndarray | None = None,
    *,
    input_scale: Any = None,
    output_scale: Any = None,
    multiplier: Any = None,
    shift: Any = None,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    dtype: Any = np.int8,
    low: int | None = None,
    high: int | None = None,
    semantics: Semantics | str = "litert-reference",
    path: Path | None = None,
) -> np.ndarray:
    """Return a fully-connected layer of binary-coded weights: look-ups, fixed-point alphas, one requantization.

    No runtime has this operator: rounding and clamping of the last step are the named runtime's for its fully-connected
    layer, the steps before are exact.

    Args:
        x: int8 or uint8 (..., depth).
        weight: what ``prepare_lut_weight`` gives; a binary coding is prepared on the way (do it once for many calls).
        bias: int32 (outputs,) with scale ``input_scale * weight.unit``, zero point 0.
        input_scale: real scale of the input; with ``output_scale``, or give ``multiplier``.
        output_scale: real scale of the output.
        multiplier: ready multipliers in the runtime's convention, one per output, instead of scales.
        shift: their shifts.
        input_zero_point: code of 0 in ``x``.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output.
        low: smallest output code (an activation fused into the layer).
        high: largest output code.
        semantics: whose rounding.
        path: ``avx512``, ``avx2`` or ``memory`` (``kernels.lut_gemm``); all give the same integers. None: the fastest.

    Raises:
        IntegerError: types, shapes, scales or zero points do not fit.
        AccumulatorOverflowError: a sum does not fit 32 bits.
    """
    from workbench.kernels.lut_gemm import lut_integer_matmul

    if not isinstance(weight, LutLinearWeight):
        weight = prepare_lut_weight(weight)
    rows, columns = weight.shape
    x = np.asarray(x)
    if x.dtype not in {np.dtype(np.int8), np.dtype(np.uint8)}:
        message = f"look-up tables are built of int8 or uint8 inputs, not {x.dtype}"
        raise IntegerError(message)
    if x.ndim < 1 or x.shape[-1] != columns:
        message = f"an input (..., {columns}) meets this weight ({rows}, {columns}), not {x.shape}"
        raise IntegerError(message)
    check_zero_point(input_zero_point, x.dtype)
    start = _check_bias(bias, rows)
    named = as_semantics(semantics)
    unit_factor = None if multiplier is not None else weight.unit
    scale = rescaling(input_scale, unit_factor, output_scale, multiplier, rows, named, product="float64")
    limits = np.iinfo(x.dtype)
    reach = max(int(limits.max) - int(input_zero_point), int(input_zero_point) - int(limits.min))
    bound = weight.largest_sum * reach + int(np.abs(start).max(initial=0))
    worst = needed_bits(-bound, bound)
    wide = weight.accumulator_bits == 64 or worst > 32
    kind = np.dtype(np.int64 if wide else np.int32)
    centred = x.reshape(-1, columns).astype(np.int16) - np.int16(input_zero_point)
    sums = lut_integer_matmul(
        np.ascontiguousarray(centred), weight.packed, weight.tiled_coefficients, weight.tiled_offsets, kind, path
    )
    sums += start.astype(kind)
    observed = 0
    if is_watched() or worst > weight.accumulator_bits:
        observed = needed_bits(int(sums.min(initial=0)), int(sums.max(initial=0)))
    if observed > weight.accumulator_bits:
        message = (
            f"a sum of lut_linear needs {observed} bits and the accumulator has 32: prepare the weight with fewer "
            "scale_bits or accumulator_bits=64"
        )
        raise AccumulatorOverflowError(message)
    if is_watched():
        note(
            Observation(
                "lut_linear",
                outputs=int(sums.size),
                accumulator_bits=weight.accumulator_bits,
                worst_case_bits=worst,
                observed_bits=observed,
            )
        )
    if weight.accumulator_bits == 32:
        sums = sums.astype(np.int32, copy=False)
    codes = requantize(
        sums,
        multiplier,
        shift,
        scale=scale,
        zero_point=output_zero_point,
        dtype=dtype,
        low=low,
        high=high,
        semantics=named,
        operator="lut_linear",
    )
    return codes.reshape(*x.shape[:-1], rows)


def _fixed_point(
    alphas: np.ndarray, bias: np.ndarray, bits: int
) -> tuple[Int[np.ndarray, "rows groups bits"], Int[np.ndarray, "rows groups"], Float[np.ndarray, " rows"]]:
    """Return coefficients, offsets, and the real unit of each row (float32, so that it is the scale a file would hold)."""
    reach = np.maximum(alphas.max(axis=(1, 2)), np.abs(bias).max(axis=1)).astype(np.float64)
    unit = (reach / (2**bits - 1)).astype(np.float32)
    unit[unit == 0.0] = 1.0  # a row of zeros: any unit does
    wide = unit.astype(np.float64)[:, None]
    top = 2**bits - 1  # a unit rounded down may carry the largest one step past it
    coefficients = np.clip(np.rint(alphas / wide[..., None]), -top, top).astype(np.int16)
    return coefficients, np.clip(np.rint(bias / wide), -top, top).astype(np.int16), unit


def _compare(  # noqa: PLR0917
    coded: BinaryCodedTensor,
    coefficients: np.ndarray,
    offsets: np.ndarray,
    unit: np.ndarray,
    alphas: np.ndarray,
    bias: np.ndarray,
) -> tuple[int, float]:
    """Return the largest sum of integer weights' magnitudes in a row, and the relative error of the fixed point."""
    from workbench.kernels.binary_coding import decode_groups

    rows, columns = coded.codes.shape
    size = min(coded.group_size, columns)
    largest, off, energy = 0, 0.0, 0.0
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        codes = coded.codes[part]
        # Sums of integers below 2^19 are exact in float32.
        whole = decode_groups(codes, size, coefficients[part].astype(np.float32), offsets[part].astype(np.float32))
        largest = max(largest, int(np.abs(whole).sum(axis=1, dtype=np.float64).max()))
        real = decode_groups(codes, size, alphas[part], bias[part]).astype(np.float64)
        gap = whole * unit[part].astype(np.float64)[:, None] - real
        off += float(np.einsum("rc,rc->", gap, gap))
        energy += float(np.einsum("rc,rc->", real, real))
    return largest, float(np.sqrt(off / energy)) if energy > 0.0 else 0.0


def _check_bias(bias: np.ndarray | None, rows: int) -> np.ndarray:
    if bias is None:
        return np.zeros(rows, dtype=np.int64)
    values = np.asarray(bias)
    if values.dtype != np.int32 or values.shape != (rows,):
        message = f"a bias is int32 ({rows},), not {values.dtype} {values.shape}"
        raise IntegerError(message)
    return values.astype(np.int64)
