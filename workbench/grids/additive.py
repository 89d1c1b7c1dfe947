"""Sums of powers of two (APoT): finer than powers of two near 1, still shifts and adds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from workbench.grids.checks import whole
from workbench.grids.grid import Grid, read_only
from workbench.grids.thresholds import midway_thresholds, mirrored_levels, mirrored_thresholds


@dataclass(frozen=True)
class AdditivePowerGrid(Grid):
    """A sign and a sum of terms, each zero or one of three powers of two (APoT with base bit-width k = 2).

    The magnitude's bits - 1 bits are cut into two-bit terms {0, 2^-i, 2^-(i+m), ...} whose exponents interleave, and a
    one-bit term {0, 2^-i} when bits - 1 is odd; each exponent belongs to one term, so all sums differ. The levels are
    divided by the largest sum. A code is the sign times the terms' indices, first term in the highest bits, so that
    shifts and adds decode it.

    The nearest level wins; a tie goes towards zero. Source: Li, Dong, Wang, "Additive Powers-of-Two Quantization",
    ICLR 2020 (arXiv 1909.13144), equation (5); the odd widths follow the authors' code (yhhhli/APoT_Quantization,
    ``build_power_value``), continued in the same way to 8 bits.

    >>> AdditivePowerGrid(bits=4).terms
    ((1, 2, 4), (3,))

    Args:
        bits: 2 to 8, the sign included.

    Raises:
        GridError: bits is out of range.
    """

    family: ClassVar[str] = "apot"

    bits: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", whole(self.bits, "bits", "apot", 2, 8))

    @property
    def label(self) -> str:
        """A short name for people."""
        return f"APoT {self.bits}-bit"

    @property
    def terms(self) -> tuple[tuple[int, ...], ...]:
        """The exponents of each term: ((1, 2, 4), (3,)) means {0, 1/2, 1/4, 1/16} + {0, 1/8}."""
        pairs, single = divmod(self.bits - 1, 2)
        two_bit = tuple((1 + i, 1 + i + pairs, 1 + i + 2 * pairs + single) for i in range(pairs))
        return (*two_bit, (2 * pairs + 1,)) if single else two_bit

    @cached_property
    def _magnitudes(self) -> tuple[np.ndarray, np.ndarray]:
        """The positive levels in ascending order, and the term indices that make each."""
        choices = [[0.0, *(2.0**-exponent for exponent in term)] for term in self.terms]
        sums = np.array([sum(picked) for picked in product(*choices)])
        order = np.argsort(sums)[1:]
        return sums[order] / sums[order[-1]], order

    @cached_property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """Sums of powers of two over the largest sum, float64."""
        return read_only(mirrored_levels(self._magnitudes[0]))

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Midpoints, float64."""
        positive = np.concatenate([[0.0], self._magnitudes[0]])
        return read_only(mirrored_thresholds(midway_thresholds(positive, np.zeros(len(positive) - 1, dtype=bool))))

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """Sign times the terms' indices, int32 (not ascending)."""
        positive = self._magnitudes[1]
        return read_only(np.concatenate([-positive[::-1], [0], positive]).astype(np.int32))
