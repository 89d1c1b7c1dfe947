"""Exact integer roots by Newton's iteration, element by element, with the number of steps that each took."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel


@kernel(inline=True)
def bit_length(value):
    """Return how many bits a number of 0 or above has."""
    bits = 0
    for half in (32, 16, 8, 4, 2, 1):
        if value >> half:
            value >>= half
            bits += half
    return bits + (1 if value else 0)


@kernel(inline=True)
def square_root(value):
    """Return floor(sqrt(value)) of a number of 0 or above, and the Newton steps, the last that changes nothing too."""
    if value == 0:
        return np.int64(0), 0
    root = np.int64(1) << ((bit_length(value) + 1) >> 1)
    steps = 0
    while True:
        following = (root + value // root) >> 1
        steps += 1
        if following >= root:
            return root, steps
        root = following


@kernel(inline=True)
def _power_up_to(base, exponent, limit):
    """Return base**exponent, or limit + 1 where it is larger."""
    result = np.int64(1)
    for _ in range(exponent):
        if result > limit // base:
            return limit + 1
        result *= base
    return result


@kernel(inline=True)
def root_of(value, degree):
    """Return floor(value**(1 / degree)) of a number of 0 or above, and the Newton steps."""
    if value == 0 or degree == 1:
        return value, 0
    root = np.int64(1) << ((bit_length(value) + degree - 1) // degree)
    steps = 0
    while True:
        # Above the limit the quotient is 0 in any case.
        following = ((degree - 1) * root + value // _power_up_to(root, degree - 1, value)) // degree
        steps += 1
        if following >= root:
            return root, steps
        root = following


@kernel(parallel=True)
def _roots(values, degree, out, steps):
    for index in prange(values.shape[0]):
        size = abs(values[index])
        root, taken = square_root(size) if degree == 2 else root_of(size, degree)
        out[index] = root if values[index] >= 0 else -root
        steps[index] = taken


@exclusive
def roots(values: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``sign(v) * floor(|v|**(1 / degree))`` and each element's Newton steps.

    Args:
        values: int64, one axis, above -2**63.
        degree: 1 or above.
    """
    out = np.empty_like(values)
    steps = np.empty(values.shape, dtype=np.int32)
    _roots(values, degree, out, steps)
    return out, steps
