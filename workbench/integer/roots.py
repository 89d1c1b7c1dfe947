"""Integer square roots and rational powers by Newton's iteration: exact floors, with the steps counted."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, overload

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import as_array, one_integer, shown
from workbench.integer.watch import Observation, note
from workbench.kernels.roots import roots

#: Powers up to this many bits are taken in the machine's own integers, larger ones in Python's.
MACHINE_BITS, LARGEST_BITS = 63, 4096


@overload
def integer_sqrt(x: Any, *, return_steps: Literal[False] = False) -> np.ndarray: ...
@overload
def integer_sqrt(x: Any, *, return_steps: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...
def integer_sqrt(x: Any, *, return_steps: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return floor(sqrt(x)), exactly.

    Newton from above: ``y0 = 2**ceil(bits(x) / 2)``, ``y <- (y + x // y) // 2`` until y no longer falls (I-BERT,
    arXiv 2101.01321, algorithm 4). Steps, the last that changes nothing counted: at most 3 for 4-bit inputs, 4 for
    8-bit, 5 for 16-bit, 6 for 32-bit.

    Args:
        x: integers, 0 or above, any shape.
        return_steps: whether to give each element's steps too.

    Returns:
        int64 roots of the input's shape; with ``return_steps`` also int32 steps.

    Raises:
        IntegerError: not integers, or a negative one.

    >>> integer_sqrt([0, 15, 16, 2**62])
    array([         0,          3,          4, 2147483648])
    """
    values = _integers(x)
    if np.any(values < 0):
        message = f"a square root takes integers of 0 and above, not {values[values < 0].flat[0]}"
        raise IntegerError(message)
    out, steps = roots(np.ascontiguousarray(values).reshape(-1), 2)
    note(Observation("integer_sqrt", outputs=int(out.size)))
    out = out.reshape(values.shape)
    return (out, steps.reshape(values.shape)) if return_steps else out


@overload
def integer_power(
    x: Any, exponent: Any, *, fraction_bits: int = 0, return_steps: Literal[False] = False
) -> np.ndarray: ...
@overload
def integer_power(
    x: Any, exponent: Any, *, fraction_bits: int = 0, return_steps: Literal[True]
) -> tuple[np.ndarray, np.ndarray]: ...
def integer_power(
    x: Any, exponent: Any, *, fraction_bits: int = 0, return_steps: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return ``sign(x) * floor(2**f * |x|**(p / r))``, exactly, for a rational exponent p / r above 0.

    The power is taken first (``v = |x|**p * 2**(f r)``), then one integer root by Newton from above: ``y0 = 2**ceil(bits(v) / r)``, ``y <- ((r - 1) y + v // y**(r - 1)) // r`` until y no longer falls.
    The sign is kept, as power-exponent grids keep it (PowerQuant, arXiv 2301.09858). The inverse of a power is the
    reciprocal exponent: ``Fraction(1, 1) / exponent``. Where v may pass 63 bits, the same iteration runs in Python's
    big integers, once per distinct input: exact as well, and slow for many distinct ones.

    Args:
        x: integers, any shape.
        exponent: a ``Fraction``, an integer, a text such as ``"2/3"`` or ``"0.55"``, or a pair (p, r).
        fraction_bits: f: binary places of the result.
        return_steps: whether to give each element's Newton steps too (the last that changes nothing counted).

    Returns:
        int64 codes of the input's shape (with f binary places); with ``return_steps`` also int32 steps.

    Raises:
        IntegerError: not integers, an exponent that is not rational and above 0, or a result beyond 62 bits.

    >>> integer_power([8, -27, 100], "2/3")
    array([ 4, -9, 21])
    """
    values = _integers(x)
    ratio = _ratio(exponent)
    fraction_bits = one_integer(fraction_bits, "the number of fraction bits", 0, LARGEST_BITS)
    top = int(np.abs(values).max(initial=0))
    shift = fraction_bits * ratio.denominator
    needed = max(top.bit_length() * ratio.numerator + shift, 0)
    if needed <= MACHINE_BITS:
        powered = np.sign(values) * (np.abs(values) ** ratio.numerator << shift)
        out, steps = roots(np.ascontiguousarray(powered).reshape(-1), ratio.denominator)
    else:
        if needed > LARGEST_BITS or top.bit_length() * ratio.numerator > ratio.denominator * (62 - fraction_bits):
            message = (
                f"|x|**({ratio}) with {fraction_bits} fraction bits needs more than 62 bits, or a power of more than "
                f"{LARGEST_BITS}: take fewer fraction bits, a simpler exponent or narrower inputs"
            )
            raise IntegerError(message)
        out, steps = _large_powers(values.reshape(-1), ratio, shift)
    note(Observation("integer_power", outputs=int(out.size)))
    out = out.reshape(values.shape)
    return (out, steps.reshape(values.shape)) if return_steps else out


def _large_powers(values: np.ndarray, ratio: Fraction, shift: int) -> tuple[np.ndarray, np.ndarray]:
    distinct, places = np.unique(np.abs(values), return_inverse=True)
    found = [_large_root(int(value) ** ratio.numerator << shift, ratio.denominator) for value in distinct]
    out = np.array([root for root, _ in found], dtype=np.int64)[places]
    return np.sign(values) * out, np.array([steps for _, steps in found], dtype=np.int32)[places]


def _large_root(value: int, degree: int) -> tuple[int, int]:
    if value == 0 or degree == 1:
        return value, 0
    root, steps = 1 << -(-value.bit_length() // degree), 0
    while True:
        following = ((degree - 1) * root + value // root ** (degree - 1)) // degree
        steps += 1
        if following >= root:
            return root, steps
        root = following


def _integers(x: Any) -> np.ndarray:
    array = as_array(x, "the input")
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and np.any(array > np.iinfo(np.int64).max)):
        message = f"integers of at most 64 bits, signed, are needed, not {array.dtype}"
        raise IntegerError(message)
    values = array.astype(np.int64)
    if np.any(values == np.iinfo(np.int64).min):
        message = "-2**63 has no absolute value in 64 bits"
        raise IntegerError(message)
    return values


def _ratio(exponent: Any) -> Fraction:
    try:
        if isinstance(exponent, tuple):
            ratio = Fraction(*exponent)
        elif isinstance(exponent, float):
            raise ValueError
        else:
            ratio = Fraction(exponent)
    except (TypeError, ValueError, ZeroDivisionError):
        message = f"an exponent is a fraction: Fraction(2, 3), '2/3', '0.55' or (2, 3), not {shown(exponent)}"
        raise IntegerError(message) from None
    if ratio <= 0:
        message = f"an exponent is above 0, not {ratio}"
        raise IntegerError(message)
    return ratio
