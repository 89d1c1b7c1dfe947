"""What every grid is: sorted levels, the thresholds between them, and a code for each level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import GridError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Normalization = Literal["absmax", "signed", "range"]


class Grid(ABC):
    """A finite set of real numbers that codes can stand for, on the axis where the scale is 1.

    A weight ``w`` with scale ``s`` and offset ``o`` (0 unless ``normalization == "range"``) is encoded from
    ``u = w / s + o`` and read back as ``s * (level - o)``. The largest ``abs(level)`` of a grid is 1, so that the scale
    is the group's absmax times the clip.

    Subclasses are frozen dataclasses and give ``bits``, ``levels``, ``thresholds`` and ``codes``; they are hashable,
    picklable, and ``str(grid)`` is the text that ``parse_grid`` reads back to an equal grid.
    """

    #: First word of the text form: ``uniform``, ``power``, ``log``, ``apot``, ``float``, ``nf4``, ``codebook``.
    family: ClassVar[str]

    bits: int
    """Bits that one stored code takes."""

    @property
    def normalization(self) -> Normalization:
        """How a group's weights are brought onto the grid's axis.

        ``absmax``: scale = clip * max|w|. ``signed``: the scale carries the sign that maps the weight of largest
        magnitude onto ``levels[0] = -1`` (full-range integer grids: -2^(b-1) has no positive partner).
        ``range``: scale = clip * (max(w, 0) - min(w, 0)), and an offset puts zero on the axis [0, 1].
        """
        return "absmax"

    @property
    def integer_zero_point(self) -> bool:
        """Whether the offset of a ``range`` grid is rounded to a whole code (an integer zero point)."""
        return False

    @property
    @abstractmethod
    def levels(self) -> Float[np.ndarray, " levels"]:
        """The numbers that codes stand for, float64, strictly ascending, largest magnitude 1."""

    @property
    @abstractmethod
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Borders, float64, ascending: ``thresholds[i]`` is the smallest float64 ``u`` that encodes to ``levels[i + 1]``.

        A rounding rule's ties are decided here: where a tie goes down, the threshold is the next float64 above the
        midpoint. So ``searchsorted(thresholds, u, side="right")`` is the index of the level, for every grid.
        """

    @property
    @abstractmethod
    def codes(self) -> Int[np.ndarray, " levels"]:
        """The integer stored for each level, int32, in the order of ``levels``."""


    def index(self, u: ArrayLike) -> Int[np.ndarray, "..."]:
        """Return the index of the level for each normalised weight; NaN is refused by ``quantize``, not here."""
        return np.searchsorted(self.thresholds, np.asarray(u, dtype=np.float64), side="right")

    def encode(self, u: ArrayLike) -> Int[np.ndarray, "..."]:
        """Return the code of each normalised weight ``u`` (any shape), int32."""
        return self.codes[self.index(u)]

    def decode(self, codes: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return the level of each code (any shape), float64."""
        flat = np.asarray(codes)
        order = np.argsort(self.codes, kind="stable")
        position = np.searchsorted(self.codes[order], flat)
        position = np.minimum(position, len(order) - 1)
        found = order[position]
        if flat.size and not np.array_equal(self.codes[found], flat):
            stray = flat[self.codes[found] != flat].ravel()[0]
            message = f"{self} has no code {stray}; its codes run from {self.codes.min()} to {self.codes.max()}"
            raise GridError(message)
        return self.levels[found]
