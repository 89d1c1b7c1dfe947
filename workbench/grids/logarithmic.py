"""Powers of two: a product with a level is a shift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.grids.checks import choice, whole
from workbench.grids.grid import Grid, read_only
from workbench.grids.thresholds import midway_thresholds, mirrored_levels, mirrored_thresholds

LogRounding = Literal["nearest", "log"]
LOG_ROUNDINGS: tuple[LogRounding, ...] = ("nearest", "log")


@dataclass(frozen=True)
class LogGrid(Grid):
    """Zero and the signed powers of two 2^0, 2^-1, ... 2^(1-n), n = 2^(bits-1) - 1.

    Code q stands for sign(q) * 2^(|q| - n), and code 0 for zero.

    - ``rounding="nearest"``: the nearest level; a tie takes the even code.
    - ``rounding="log"``: the nearest exponent, rint(log2|u|); what would round below the smallest exponent is zero.

    Source: Miyashita et al. 2016 (arXiv 1603.01025), section 3, for rounding in the log domain; Zhou et al., INQ, ICLR
    2017 (arXiv 1702.03044), for powers of two with a zero.

    >>> LogGrid(bits=3).levels
    array([-1.  , -0.5 , -0.25,  0.  ,  0.25,  0.5 ,  1.  ])

    Args:
        bits: 2 to 8.
        rounding: ``nearest`` or ``log``.

    Raises:
        GridError: a parameter is out of range.
    """

    family: ClassVar[str] = "log"

    bits: int = 4
    rounding: LogRounding = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", whole(self.bits, "bits", "log", 2, 8))
        choice(self.rounding, "rounding", "log", LOG_ROUNDINGS)

    @property
    def n(self) -> int:
        """The largest code: so many magnitudes beside zero."""
        return 2 ** (self.bits - 1) - 1

    @property
    def label(self) -> str:
        """A short name for people."""
        return f"powers of two {self.bits}-bit" + ("" if self.rounding == "nearest" else ", log rounding")

    @cached_property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """0 and +-2^-k, float64 (exact)."""
        return read_only(mirrored_levels(np.ldexp(1.0, np.arange(1 - self.n, 1))))

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Midpoints, or the odd powers of sqrt(2), float64."""
        if self.rounding == "log":
            # sqrt(1/2) is irrational: no tie. Its float64 lies above it, so it is the first of the upper octave
            root = math.sqrt(0.5)
            positive = np.ldexp(root, np.arange(1 - self.n, 1))
        else:
            tie_up = np.arange(self.n) % 2 == 1
            positive = midway_thresholds(self.levels[self.n :], tie_up)
        return read_only(mirrored_thresholds(positive))

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """-n ... n, int32."""
        return read_only(np.arange(-self.n, self.n + 1, dtype=np.int32))
