"""Equally spaced levels: the integer grids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.grids.checks import choice, whole
from workbench.grids.grid import Grid, Normalization, read_only
from workbench.grids.thresholds import mirrored_levels, mirrored_thresholds, rounding_thresholds

Range = Literal["narrow", "full", "asymmetric"]
RANGES: tuple[Range, ...] = ("narrow", "full", "asymmetric")


@dataclass(frozen=True)
class UniformGrid(Grid):
    """Integers, half to even.

    - ``narrow``: codes -n ... n with n = 2^(bits-1) - 1; level = code / n. Needs 2 bits: {-1, 0, 1}.
    - ``full``: codes -n ... n - 1 with n = 2^(bits-1); level = code / n. -1 has no positive partner, so the scale takes
      the sign that puts the weight of largest magnitude there (as ggml's Q4_0 does).
    - ``asymmetric``: codes 0 ... n with n = 2^bits - 1; level = code / n on [0, 1], and an integer zero point, so that a
      weight of 0 is kept exactly.

    ``encode(u)`` equals ``clip(rint(n * u))`` in float64 for every float64 ``u``. Source: Jacob et al. 2018
    (arXiv 1712.05877), section 2.1, for the zero point; Wu et al. 2020 (arXiv 2004.09602), section 3.1, for the ranges.

    >>> grid = UniformGrid(bits=3)
    >>> grid.encode([-1.0, 0.1, 0.5, 0.9]), grid.decode([-3, 0, 3])
    (array([-3,  0,  2,  3], dtype=int32), array([-1.,  0.,  1.]))

    Args:
        bits: 1 to 16 (``narrow``: 2 to 16).
        range: ``narrow``, ``full`` or ``asymmetric``.

    Raises:
        GridError: a parameter is out of range.
    """

    family: ClassVar[str] = "uniform"

    bits: int = 4
    range: Range = "narrow"

    def __post_init__(self) -> None:
        choice(self.range, "range", "uniform", RANGES)
        lowest = 2 if self.range == "narrow" else 1
        object.__setattr__(self, "bits", whole(self.bits, "bits", f"uniform ({self.range})", lowest, 16))

    @property
    def n(self) -> int:
        """Codes from 0 to the level of magnitude 1."""
        if self.range == "asymmetric":
            return 2**self.bits - 1
        return 2 ** (self.bits - 1) - (self.range == "narrow")

    @property
    def label(self) -> str:
        """A short name for people."""
        return f"uniform {self.bits}-bit" + ("" if self.range == "narrow" else f", {self.range}")

    @property
    def normalization(self) -> Normalization:
        """``absmax`` for narrow, ``signed`` for full, ``range`` for asymmetric."""
        return {"narrow": "absmax", "full": "signed", "asymmetric": "range"}[self.range]  # pyright: ignore[reportReturnType]

    @property
    def integer_zero_point(self) -> bool:
        """True for asymmetric."""
        return self.range == "asymmetric"

    @cached_property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """Code / n, float64."""
        positive = np.arange(1, self.n + 1) / self.n
        if self.range == "asymmetric":
            return read_only(np.concatenate([[0.0], positive]))
        return read_only(mirrored_levels(positive)[: None if self.range == "narrow" else -1])

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Borders of ``rint(n * u)``, float64."""
        positive = rounding_thresholds(self.n)
        if self.range == "asymmetric":
            return read_only(positive)
        return read_only(mirrored_thresholds(positive)[: None if self.range == "narrow" else -1])

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """The integers themselves, int32."""
        first = 0 if self.range == "asymmetric" else -self.n
        last = self.n - (self.range == "full")
        return read_only(np.arange(first, last + 1, dtype=np.int32))
