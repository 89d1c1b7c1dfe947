"""Levels from a table: NF4, fitted codebooks, any list of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import GridError
from workbench.grids.checks import nearest, real, shown
from workbench.grids.grid import Grid, read_only
from workbench.grids.thresholds import midway_thresholds

MAX_LEVELS = 65536

CODEBOOKS: dict[str, tuple[float, ...]] = {
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    )
}
"""Tables by name. ``nf4``: the quantiles of a Gaussian, two half tables that share zero; Dettmers et al., QLoRA, 2023
(arXiv 2305.14314), appendix E, the float32 values that bitsandbytes uses."""


@dataclass(frozen=True, repr=False)
class CodebookGrid(Grid):
    """The levels of a table; code i is the i-th level in ascending order.

    The nearest level wins; a tie goes to the lower one (as bitsandbytes' NF4 encoder has it). Levels beyond [-1, 1] are
    divided by their largest magnitude; levels within are kept as they are: a codebook fitted on the normalised axis may
    stop short of 1. The text form carries every digit, so that it reads back to the same levels.

    A table known by name is a family of its own (``family == "nf4"``): it need not be stored beside the codes.

    >>> str(CodebookGrid([-7, 0, 3.5]))
    'codebook:levels=-1.0/0.0/0.5'

    Args:
        table: ``nf4``, or 2 to 65536 different finite numbers, not all zero, in any order.

    Raises:
        GridError: the name is not known, or the numbers cannot serve as levels.
    """

    family: ClassVar[str] = "codebook"

    table: str | tuple[float, ...] = "nf4"

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _checked(self.table))
        if isinstance(self.table, str):
            object.__setattr__(self, "family", self.table)  # only a table without a name must be stored with the codes

    @property
    def bits(self) -> int:
        """Bits of a code: ceil(log2(number of levels))."""
        return (len(self.levels) - 1).bit_length()

    @property
    def label(self) -> str:
        """A short name for people."""
        return self.table.upper() if isinstance(self.table, str) else f"codebook of {len(self.table)}"

    @cached_property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """The table in ascending order, float64."""
        return read_only(np.array(CODEBOOKS[self.table] if isinstance(self.table, str) else self.table))

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Midpoints, float64."""
        return read_only(midway_thresholds(self.levels, np.zeros(len(self.levels) - 1, dtype=bool)))

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """0, 1, 2, ... int32."""
        return read_only(np.arange(len(self.levels), dtype=np.int32))

    def __str__(self) -> str:
        """Return the table's name, or its levels with all their digits."""
        if isinstance(self.table, str):
            return self.table
        return f"codebook:levels={'/'.join(map(repr, self.table))}"

    def __repr__(self) -> str:
        if isinstance(self.table, str) or len(self.table) <= 16:
            return f"CodebookGrid({self.table!r})"
        return f"<CodebookGrid: {len(self.table)} levels from {self.table[0]:.4g} to {self.table[-1]:.4g}>"


def _checked(table: Any) -> str | tuple[float, ...]:
    """Return the table's name where it has one, else its sorted levels."""
    if isinstance(table, str):
        name = table.strip().lower()
        if name not in CODEBOOKS:
            known = list(CODEBOOKS)
            message = f"there is no codebook named {shown(table)}{nearest(name, known)}; known: {', '.join(known)}"
            raise GridError(message)
        return name
    if isinstance(table, np.ndarray):
        table = table.ravel().tolist()
    if not isinstance(table, Iterable):
        message = f"a codebook is a name or a list of numbers, not {shown(table)}"
        raise GridError(message)
    levels = sorted(real(value, "a level", "codebook") + 0.0 for value in table)  # + 0.0: minus zero is zero
    if not 2 <= len(levels) <= MAX_LEVELS:
        message = f"a codebook has 2 to {MAX_LEVELS} levels, not {len(levels)}"
        raise GridError(message)
    largest = max(abs(levels[0]), abs(levels[-1]))
    if largest > 1:
        levels = [level / largest for level in levels]
    for low, high in pairwise(levels):
        if low == high:
            message = f"the levels of a codebook differ from each other, but {low!r} is there twice"
            raise GridError(message)
    levels = tuple(levels)
    return next((name for name, known in CODEBOOKS.items() if known == levels), levels)
