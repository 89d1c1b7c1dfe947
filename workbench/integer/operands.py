"""Operands of linear layers and matrix products: checked, with a cheap bound on every sum that they can give."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.accumulator import Accumulator, as_accumulator, needed_bits
from workbench.integer.arguments import TENSOR_TYPES, as_array, check_zero_point
from workbench.integer.watch import is_watched


class LinearOperands(NamedTuple):
    """Checked operands of a linear layer."""

    rows: np.ndarray
    lead: tuple[int, ...]
    weight: np.ndarray
    input_zero: int
    zeros: np.ndarray
    start: np.ndarray
    wide: bool
    chosen: Accumulator
    reach: tuple[int, int]
    rough: int

    @property
    def fits(self) -> bool:
        """Whether no input can overflow, by the cheap bound alone, and nobody wants to see sums: no need to keep them.

        Sums of 16-bit operands are rescaled from 48 bits at most.
        """
        widest = min(self.chosen.bits, 48) if self.wide else self.chosen.bits
        usual = self.wide or self.chosen.bits <= 32
        return usual and self.rough <= widest and self.chosen.overflow == "error" and not is_watched()


def check_layer(  # noqa: PLR0917
    x: Any, weight: Any, bias: Any, input_zero_point: Any, weight_zero_point: Any, accumulator: Any
) -> LinearOperands:
    """Check the operands of a linear layer, in the order in which its errors are promised.

    Args:
        x: int8, uint8 or int16 (..., depth).
        weight: the same types (outputs, depth).
        bias: int32 (int64 for int16 operands) (outputs,), or None.
        input_zero_point: code of 0 in ``x``.
        weight_zero_point: code of 0 in ``weight``: one, or one per output.
        accumulator: see ``workbench.integer.linear.accumulate``.

    Raises:
        IntegerError: types, shapes or zero points do not fit.
    """
    x, weight = check_operand(x, "the input"), check_operand(weight, "the weight")
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        message = f"an input (..., depth) meets a weight (outputs, depth), not {x.shape} and {weight.shape}"
        raise IntegerError(message)
    outputs = weight.shape[0]
    check_zero_point(input_zero_point, x.dtype)
    check_zero_point(weight_zero_point, weight.dtype, several=True)
    zeros = np.atleast_1d(np.asarray(weight_zero_point, dtype=np.int64))
    if zeros.shape not in {(1,), (outputs,)}:
        message = f"one weight zero point or one per output ({outputs}), not {zeros.shape}"
        raise IntegerError(message)
    wide = x.dtype.itemsize > 1 or weight.dtype.itemsize > 1
    start = check_bias(bias, outputs, wide=wide)
    chosen = as_accumulator(accumulator, 62 if wide else 32)
    rows = np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    limits = np.iinfo(x.dtype)
    reach = (int(limits.min) - int(input_zero_point), int(limits.max) - int(input_zero_point))
    rough = _rough_bits(weight, zeros, reach, start)
    lead = x.shape[:-1]
    return LinearOperands(rows, lead, weight, int(input_zero_point), zeros, start, wide, chosen, reach, rough)


def check_operand(values: Any, name: str) -> np.ndarray:
    """Return an array of a type that integer products take.

    Raises:
        IntegerError: another type.
    """
    array = as_array(values, name)
    if array.dtype not in TENSOR_TYPES:
        message = f"{name} is int8, uint8 or int16, not {array.dtype}"
        raise IntegerError(message)
    return array


def check_bias(bias: Any, outputs: int, *, wide: bool) -> np.ndarray:
    """Return a bias as int64; zeros where there is none.

    Args:
        bias: int32 (outputs,), or None; int64 too where the operands are wide.
        outputs: how many outputs the layer has.
        wide: whether an operand has 16 bits.

    Raises:
        IntegerError: another type or shape.
    """
    if bias is None:
        return np.zeros(outputs, dtype=np.int64)
    values = as_array(bias, "a bias")
    allowed = {np.dtype(np.int32), np.dtype(np.int64)} if wide else {np.dtype(np.int32)}
    if values.dtype not in allowed or values.shape != (outputs,):
        message = f"a bias is {'int32 or int64' if wide else 'int32'} ({outputs},), not {values.dtype} {values.shape}"
        raise IntegerError(message)
    return values.astype(np.int64)


def _rough_bits(weight: np.ndarray, zeros: np.ndarray, reach: tuple[int, int], start: np.ndarray) -> int:
    if not zeros.size:
        return 1
    limits = np.iinfo(weight.dtype)
    largest = max(abs(int(limits.min) - int(zeros.max())), abs(int(limits.max) - int(zeros.min())))
    top = weight.shape[1] * largest * max(abs(reach[0]), abs(reach[1])) + int(np.abs(start).max(initial=0))
    return needed_bits(-top, top)
