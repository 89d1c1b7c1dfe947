"""What operators are given, checked: one sentence says what is wrong with it and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import IntegerError

#: Integer types of tensors; int32 codes come out of accumulators only.
TENSOR_TYPES = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))
#: Integer types that codes have.
CODE_TYPES = (*TENSOR_TYPES, np.dtype(np.int32))


def shown(value: Any) -> str:
    """Return a value as it stands in a message: on one line, and not longer than that line.

    >>> shown(np.zeros((2, 2)))
    '[[0. 0.] [0. 0.]]'
    """
    text = value.__name__ if isinstance(value, type) else repr(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_array(values: Any, name: str) -> np.ndarray:
    """Return an array.

    Args:
        values: whatever numpy makes one of.
        name: what a message calls it, e.g. ``"the input"``.

    Raises:
        IntegerError: rows of several lengths.
    """
    try:
        return np.asarray(values)
    except ValueError:
        message = f"{name} is an array whose rows all have one length, not {shown(values)}"
        raise IntegerError(message) from None


def real_numbers(values: Any, name: str) -> np.ndarray:
    """Return real numbers as float64.

    Args:
        values: a number or an array.
        name: what a message calls it, e.g. ``"the input scale"``.

    Raises:
        IntegerError: no real numbers; NaN and infinity are left to the caller.
    """
    array = as_array(values, name)
    if array.dtype.kind not in "biuf":
        try:
            # Python's integers beyond 64 bits are real numbers too.
            array = np.vectorize(float, otypes=[np.float64])(array) if array.dtype == object and array.size else None
        except (TypeError, ValueError, OverflowError):
            array = None
    if array is None:
        message = f"{name} is a real number, or an array of them, not {shown(values)}"
        raise IntegerError(message)
    return array.astype(np.float64)


def one_integer(value: Any, name: str, low: int, high: int) -> int:
    """Return a whole number between two others.

    Args:
        value: Python's or numpy's integer.
        name: what a message calls it, e.g. ``"an axis"``.
        low: smallest that is allowed.
        high: largest that is allowed.

    Raises:
        IntegerError: no whole number, or outside.
    """
    array = as_array(value, name)
    if array.dtype.kind not in "iu" or array.ndim or not low <= int(array) <= high:
        message = f"{name} is a whole number from {low} to {high}, not {shown(value)}"
        raise IntegerError(message)
    return int(array)


def check_word(value: Any, words: Sequence[str], name: str) -> None:
    """Refuse a word that is none of those that exist.

    Args:
        value: the word.
        words: those that exist.
        name: what a message calls it, e.g. ``"a layout"``.

    Raises:
        IntegerError: see above.
    """
    if not isinstance(value, str) or value not in words:
        *others, last = (repr(each) for each in words)
        message = f"{name} is {', '.join(others)} or {last}, not {shown(value)}"
        raise IntegerError(message)


def code_type(dtype: Any, allowed: Sequence[np.dtype] = CODE_TYPES, name: str = "codes are") -> np.dtype:
    """Return the integer type of codes.

    Args:
        dtype: numpy's type, or its name.
        allowed: the types that there may be.
        name: how a message begins.

    Raises:
        IntegerError: no type, or none of these.
    """
    try:
        kind = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError):
        kind = None
    if kind is None or kind not in allowed:
        *others, last = (each.name for each in allowed)
        message = f"{name} {', '.join(others)} or {last}, not {shown(dtype)}"
        raise IntegerError(message)
    return kind


def check_zero_point(zero_point: Any, kind: np.dtype, *, several: bool = False) -> None:
    """Refuse a zero point that the type cannot hold.

    Args:
        zero_point: one integer.
        kind: type of the codes.
        several: whether it may be an array: one for each channel.

    Raises:
        IntegerError: see above.
    """
    limits = np.iinfo(kind)
    points = as_array(zero_point, "a zero point")
    outside = points.dtype.kind not in "iu" or np.any(points < limits.min) or np.any(points > limits.max)
    if outside or (points.ndim and not several):
        message = f"a zero point of {kind} is an integer from {limits.min} to {limits.max}, not {shown(zero_point)}"
        raise IntegerError(message)


def clamp_limits(low: Any, high: Any, kind: np.dtype) -> tuple[int, int]:
    """Return the smallest and the largest code to give: the type's own where None.

    Raises:
        IntegerError: no integers, the low one above the high one, or one outside the type.
    """
    limits = np.iinfo(kind)
    bounds = (
        as_array(limits.min if low is None else low, "a clamp"),
        as_array(limits.max if high is None else high, "a clamp"),
    )
    if any(each.dtype.kind not in "iu" or each.ndim for each in bounds):
        message = f"a clamp is two integers, not {shown(low)} and {shown(high)}"
        raise IntegerError(message)
    floor, ceiling = (int(each) for each in bounds)
    if not limits.min <= floor <= ceiling <= limits.max:
        message = f"the clamp {floor} to {ceiling} does not lie within {kind}"
        raise IntegerError(message)
    return floor, ceiling


def check_factors(multiplier: Any, shift: Any, *scales: Any) -> bool:
    """Return whether ready multipliers were given; real scales or they, and a shift only beside a multiplier.

    Args:
        multiplier: ready multipliers, or None.
        shift: their shifts, or None.
        *scales: real scales, each possibly None.

    Raises:
        IntegerError: scales and multipliers both, or shifts of nothing.
    """
    given = any(scale is not None for scale in scales)
    if given and (multiplier is not None or shift is not None):
        message = "give either real scales or ready multipliers and shifts, not both"
        raise IntegerError(message)
    if multiplier is None and shift is not None:
        message = "a shift belongs to a ready multiplier: give both, or real scales"
        raise IntegerError(message)
    return multiplier is not None
