"""Levels spaced by a power: the grids of PowerQuant and NUPES."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import GridError
from workbench.grids.checks import choice, real, truth, whole
from workbench.grids.grid import Grid, Normalization, read_only
from workbench.grids.thresholds import (
    midway_thresholds,
    mirrored_levels,
    mirrored_thresholds,
    rounding_thresholds,
)

Rounding = Literal["power", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = ("power", "nearest")
LOWEST_DECIMAL = 290
"""The smallest level and threshold stay above 1e-290, so that float64 can tell them apart."""


@dataclass(frozen=True)
class PowerGrid(Grid):
    """Signed powers: level = sign(q) * (|q| / n)^(1 / exponent), n = 2^(bits-1) - 1.

    An exponent below 1 puts finer steps near zero; 1 is the narrow uniform grid, bit for bit. With 2 bits, signed, the
    levels are {-1, 0, 1} whatever the exponent.

    - ``rounding="power"`` (PowerQuant): q = rint(n * |u|^exponent), half to even in the power domain. ``encode``
      equals this float64 expression except within 8 / exponent float64 steps of a border, where ``u^exponent`` itself
      is not known better; a border that float64 holds exactly (such as u = 1/4 with 2 bits and exponent 1/2) is
      decided half to even.
    - ``rounding="nearest"``: the nearest level; a tie takes the even code.
    - ``signed=False``: codes 0 ... n with n = 2^bits - 1 and levels on [0, 1], for activations after a ReLU.
    - ``shifted=True``: the unsigned grid behind a real offset that moves the smallest value to 0, for activations that
      go below zero (SiLU, GELU). Zero itself is then, in general, no level.

    Source: Yvinec et al., PowerQuant, ICLR 2023 (arXiv 2301.09858); NUPES (arXiv 2308.05600).

    >>> grid = PowerGrid(bits=3, exponent=0.5)
    >>> grid.levels * 9  # q * |q|
    array([-9., -4., -1.,  0.,  1.,  4.,  9.])

    Args:
        bits: 2 to 16; 1 to 16 when unsigned or shifted.
        exponent: the ``a`` of |u|^a, above 0 and up to 2.
        rounding: ``power`` or ``nearest``.
        signed: False for values that are never negative.
        shifted: True for a real offset; implies ``signed=False``.

    Raises:
        GridError: a parameter is out of range.
    """

    family: ClassVar[str] = "power"
    always_written: ClassVar[tuple[str, ...]] = ("bits", "exponent")

    bits: int = 4
    exponent: float = 0.5
    rounding: Rounding = "power"
    signed: bool = True
    shifted: bool = False

    def __post_init__(self) -> None:
        shifted = truth(self.shifted, "shifted", "power")
        signed = truth(self.signed, "signed", "power") and not shifted
        bits = whole(self.bits, "bits", "power (signed)" if signed else "power (unsigned)", 2 if signed else 1, 16)
        exponent = real(self.exponent, "exponent", "power")
        if not 0 < exponent <= 2:
            message = f"exponent of power is above 0 and at most 2, not {exponent!r}"
            raise GridError(message)
        choice(self.rounding, "rounding", "power", ROUNDINGS)
        for name, value in (("bits", bits), ("exponent", exponent), ("signed", signed), ("shifted", shifted)):
            object.__setattr__(self, name, value)
        lowest = math.log10(2 * self.n) / LOWEST_DECIMAL
        if exponent < lowest:
            message = (
                f"exponent {exponent!r} puts the smallest level of a {bits}-bit power grid below 1e-{LOWEST_DECIMAL}, "
                f"where float64 ends; use at least {math.ceil(lowest * 1e4) / 1e4}"
            )
            raise GridError(message)

    def _parameters(self) -> list[tuple[str, Any]]:
        """Leave out ``signed=false`` where ``shifted=true`` says it already."""
        return [(name, value) for name, value in super()._parameters() if name != "signed" or not self.shifted]

    @property
    def n(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def label(self) -> str:
        """A short name for people."""
        kind = "" if self.signed else ", shifted" if self.shifted else ", unsigned"
        rounding = "" if self.rounding == "power" else ", nearest"
        return f"power {self.bits}-bit, a = {self.exponent:.4g}{kind}{rounding}"

    @property
    def normalization(self) -> Normalization:
        """``range`` when shifted, else ``absmax``."""
        return "range" if self.shifted else "absmax"

    @cached_property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """(|q| / n)^(1 / exponent) with the sign of q, float64."""
        positive = self._powers(np.arange(1, self.n + 1) / self.n)
        return read_only(mirrored_levels(positive) if self.signed else np.concatenate([[0.0], positive]))

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Borders of the rounding rule, float64."""
        if self.rounding == "nearest":
            positive = midway_thresholds(self.levels[-self.n - 1 :], self._odd)
        elif self.exponent == 1:
            positive = rounding_thresholds(self.n)
        else:
            border = self._powers((np.arange(self.n) + 0.5) / self.n)
            positive = np.where(self._odd, border, np.nextafter(border, np.inf))
        return read_only(mirrored_thresholds(positive) if self.signed else positive)

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """-n ... n, or 0 ... n when unsigned, int32."""
        return read_only(np.arange(-self.n if self.signed else 0, self.n + 1, dtype=np.int32))

    @property
    def _odd(self) -> np.ndarray:
        """Where the tie between codes k and k + 1 goes up to an even code."""
        return np.arange(self.n) % 2 == 1

    def _powers(self, values: np.ndarray) -> np.ndarray:
        """Return values^(1 / exponent) by the C library: numpy's vector units differ in the last bit between machines."""
        inverse = 1 / self.exponent
        return np.array([math.pow(value, inverse) for value in values.tolist()])
