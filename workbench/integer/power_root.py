"""The integer root of the power-domain approximation: what brings a sum of code products back.

See ``workbench.integer.power_domain`` for what it approximates.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from workbench.errors import IntegerError
from workbench.grids import Grid, PowerGrid
from workbench.quantization.quantize import QuantizedTensor

#: The exponent's inverse is taken as the nearest fraction with at most this denominator.
LARGEST_DENOMINATOR = 20


@dataclass(frozen=True)
class PowerRoot:
    """The map from a sum of code products to the layer's output: sign(A) * |A|^(numerator / denominator).

    Attributes:
        numerator: of the inverse exponent 1 / a.
        denominator: of 1 / a.
        unit: what one unit of the result stands for on the axis where both grids' largest level is 1.
        exponent_error: |numerator / denominator - 1 / a|: what the fraction misses of the exponent.
    """

    numerator: int
    denominator: int
    unit: float
    exponent_error: float

    def apply(self, sums: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the signed power of each sum, int64, integers only."""
        from workbench.integer.roots import integer_power

        return integer_power(np.asarray(sums, dtype=np.int64), (self.numerator, self.denominator))

    def steps(self, sums: Int[np.ndarray, "..."]) -> int:
        """Return how many Newton steps the roots of these sums take in all."""
        from workbench.integer.roots import integer_power

        if self.denominator == 1:
            return 0  # a whole power: multiplies only
        wide = np.asarray(sums, dtype=np.int64)
        return int(integer_power(wide, (self.numerator, self.denominator), return_steps=True)[1].sum())

    def value(self, total: int) -> int:
        """Return the power of one sum of any size as a plain integer, rounded down."""
        return integer_root(abs(total) ** self.numerator, self.denominator)


def integer_root(value: int, degree: int) -> int:
    """Return floor(value^(1 / degree)) of a non-negative integer of any size, by Newton's method.

    >>> integer_root(10**30, 3), integer_root(26, 3)
    (10000000000, 2)
    """
    if value < 2 or degree == 1:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def power_root(weight: QuantizedTensor, input_grid: Grid) -> PowerRoot:
    """Return the root that brings sums of code products back.

    Raises:
        IntegerError: weight or input is on no power grid, their exponents differ, or scales vary within a row.
    """
    grid = weight.grid
    if not isinstance(grid, PowerGrid) or not isinstance(input_grid, PowerGrid):
        message = f"power-domain needs weights and inputs on power grids, not {grid} and {input_grid}"
        raise IntegerError(message)
    if grid.exponent != input_grid.exponent:
        message = (
            f"power-domain needs one exponent for weights and inputs, not {grid.exponent} and {input_grid.exponent}"
        )
        raise IntegerError(message)
    if weight.scale.shape[1] > 1 or grid.shifted:
        message = "power-domain needs one positive scale for a tensor or channel: sums of code products have no other"
        raise IntegerError(message)
    inverse = Fraction(1) / Fraction(grid.exponent)
    near = inverse.limit_denominator(LARGEST_DENOMINATOR)
    power = near.numerator / near.denominator
    return PowerRoot(
        near.numerator,
        near.denominator,
        unit=float(grid.n * input_grid.n) ** -power,
        exponent_error=abs(float(near - inverse)),
    )
