"""How wide an accumulator must be, and what happens in one that is narrower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import as_array, check_word, one_integer, shown


@dataclass(frozen=True)
class Accumulator:
    """A two's complement accumulator.

    Attributes:
        bits: width, 2 to 62.
        overflow: ``error`` refuses a sum that does not fit, ``wrap`` and ``saturate`` do so at every single addition,
            in the order of the inputs.

    Raises:
        IntegerError: a width or a word that does not exist.
    """

    bits: int = 32
    overflow: Literal["error", "wrap", "saturate"] = "error"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 62:
            message = f"an accumulator has 2 to 62 bits, not {shown(self.bits)}"
            raise IntegerError(message)
        check_word(self.overflow, ("error", "wrap", "saturate"), "an accumulator's overflow")

    def __str__(self) -> str:
        """Return the text form, e.g. ``int16:wrap``."""
        return f"int{self.bits}" + ("" if self.overflow == "error" else f":{self.overflow}")


def as_accumulator(value: Accumulator | str | None, default_bits: int = 32) -> Accumulator:
    """Return an accumulator from its text form; None is the default one.

    Raises:
        IntegerError: the text names none.

    >>> as_accumulator("int16:saturate")
    Accumulator(bits=16, overflow='saturate')
    """
    if isinstance(value, Accumulator):
        return value
    if value is None:
        return Accumulator(default_bits)
    kind, colon, overflow = str(value).partition(":")
    if not kind.startswith("int") or not kind[3:].isdigit() or not kind.isascii() or (colon and not overflow):
        message = f"an accumulator is written 'int32', 'int16:wrap' or 'int16:saturate', not {shown(value)}"
        raise IntegerError(message)
    return Accumulator(int(kind[3:]), overflow or "error")  # pyright: ignore[reportArgumentType]


def needed_bits(low: int, high: int) -> int:
    """Return the two's complement bits that hold every integer from low to high.

    Raises:
        IntegerError: bounds that are no integers.

    >>> needed_bits(-128, 127), needed_bits(0, 128), needed_bits(-128, -128)
    (8, 9, 8)
    """
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | np.integer):
            message = f"bounds are integers, not {shown(bound)}"
            raise IntegerError(message)
    return max(max(int(high), 0).bit_length(), (-int(low) - 1).bit_length() if low < 0 else 0) + 1


def worst_case(
    weight: np.ndarray, input_low: int, input_high: int, *, weight_zero_point: Any = 0, bias: np.ndarray | None = None
) -> tuple[int, int]:
    """Return bounds on every partial sum of ``bias + sum (x * w)`` for inputs between two integers, in any order.

    Args:
        weight: integers (outputs, depth).
        input_low: smallest input minus its zero point.
        input_high: largest input minus its zero point.
        weight_zero_point: one, or one per output.
        bias: integers (outputs,).

    Raises:
        IntegerError: no integers, or shapes that do not fit.
    """
    weight, points = as_array(weight, "the weight"), as_array(weight_zero_point, "a zero point")
    biases = np.zeros(weight.shape[:1], dtype=np.int64) if bias is None else as_array(bias, "a bias")
    if any(each.dtype.kind not in "iu" for each in (weight, points, biases)):
        message = "a worst case is that of integers: weight, zero points and bias"
        raise IntegerError(message)
    if weight.ndim != 2 or points.size not in {1, len(weight)} or biases.shape != (len(weight),):
        message = f"a weight is (outputs, depth), zero points and bias one per output, not {weight.shape}, {points.shape}, {biases.shape}"
        raise IntegerError(message)
    input_low, input_high = (one_integer(end, "an input", -(1 << 32), 1 << 32) for end in (input_low, input_high))
    zeros, start = points.astype(np.int64).reshape(-1, 1), biases.astype(np.int64)
    positive, negative = np.zeros(len(weight), dtype=np.int64), np.zeros(len(weight), dtype=np.int64)
    step = max(1, (1 << 16) // max(weight.shape[1], 1))  # temporaries that stay in the cache
    for first in range(0, len(weight), step):
        block = slice(first, first + step)
        wide = weight[block].astype(np.int64) - (zeros if len(zeros) == 1 else zeros[block])
        negative[block] = np.minimum(wide, 0).sum(axis=1)
        positive[block] = wide.sum(axis=1) - negative[block]
    # A weight above 0 adds most with the largest input, one below 0 with the smallest; nothing is added at least.
    most, least = max(input_high, 0), min(input_low, 0)
    high = start + positive * most + negative * least
    low = start + positive * least + negative * most
    return int(min(low.min(initial=0), 0)), int(max(high.max(initial=0), 0))
