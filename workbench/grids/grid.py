"""What every grid is: sorted levels, the thresholds between them, and a code for each level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import GridError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Normalization = Literal["absmax", "signed", "range"]
ScaleFormat = Literal["e8m0", "e4m3"]


class Grid(ABC):
    """A finite set of real numbers that codes can stand for, on the axis where the scale is 1.

    A weight ``w`` with scale ``s`` and offset ``o`` (0 unless ``normalization == "range"``) is encoded from
    ``u = w / s + o`` and read back as ``s * (level - o)``. The largest ``abs(level)`` of a grid is 1, so that the scale
    is the group's absmax times the clip. (A ``CodebookGrid`` fitted on that axis may stop short of 1.)

    Subclasses are frozen dataclasses and give ``bits``, ``levels``, ``thresholds`` and ``codes``; they are hashable,
    picklable, and ``str(grid)`` is the text that ``parse_grid`` reads back to an equal grid. Levels, thresholds and
    codes are computed when first asked for, kept, and read-only.
    """

    #: ``uniform``, ``power``, ``log``, ``apot``, ``float``, ``nf4``, ``codebook`` or ``bcq``: the first word of the text form
    #: (formats with a name of their own, such as ``mxfp4``, are of the family ``float``).
    family: ClassVar[str]
    #: Parameters that the text form always shows; the others only where they differ from their default.
    always_written: ClassVar[tuple[str, ...]] = ("bits",)

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
    def scale_format(self) -> ScaleFormat | None:
        """Format that the grid's definition stores a scale in; None where the grid leaves it open (float32)."""
        return None

    @property
    def fitted(self) -> bool:
        """Whether levels are fitted to each group of weights: ``levels`` and ``thresholds`` then raise ``GridError``."""
        return False

    @property
    def scales_per_group(self) -> int:
        """Scales that one group of weights stores."""
        return 1

    @property
    def block(self) -> int | None:
        """Weights that share one scale by the grid's definition (32 for MX, 16 for NVFP4); None where it is open."""
        return None

    @property
    def peak(self) -> float:
        """Largest level before it was normalised to 1, e.g. 6.0 for e2m1: a stored scale is ``s / peak``."""
        return 1.0

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name for people, e.g. ``power 4-bit, a = 0.55``."""

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

    @property
    def steps(self) -> Float[np.ndarray, " levels-1"]:
        """Gaps between neighbouring levels, float64, in units of the scale."""
        return np.diff(self.levels)

    def __len__(self) -> int:
        """Return the number of levels."""
        return len(self.levels)

    def index(self, u: ArrayLike) -> Int[np.ndarray, "..."]:
        """Return the index of the level for each normalised weight; NaN is refused by ``quantize``, not here."""
        return np.searchsorted(self.thresholds, np.asarray(u, dtype=np.float64), side="right")

    def encode(self, u: ArrayLike) -> Int[np.ndarray, "..."]:
        """Return the code of each normalised weight ``u`` (any shape), int32."""
        return self.codes[self.index(u)]

    def decode(self, codes: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return the level of each code (any shape), float64.

        Raises:
            GridError: a number in ``codes`` is no code of this grid.
        """
        given = np.asarray(codes)
        if given.dtype.kind not in "iu":
            message = f"codes are integers, not {given.dtype}; encode gives them"
            raise GridError(message)
        ordered, order = self._code_order
        found = np.minimum(np.searchsorted(ordered, given), len(order) - 1)
        stray = ordered[found] != given
        if np.any(stray):
            message = f"{self} has no code {given[stray].ravel()[0]}; its codes run from {ordered[0]} to {ordered[-1]}"
            raise GridError(message)
        return self.levels[order[found]]

    @cached_property
    def _code_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes in ascending order, and the index of the level that each stands for."""
        order = np.argsort(self.codes, kind="stable")
        return self.codes[order], order

    def __str__(self) -> str:
        """Return the text form, which ``parse_grid`` reads back to an equal grid."""
        written = [f"{name}={_text(value)}" for name, value in self._parameters()]
        return ":".join([self.family, ",".join(written)]) if written else self.family

    def _parameters(self) -> list[tuple[str, Any]]:
        """Parameters of the text form, in the order of the fields."""
        listed = []
        for field in fields(self):  # pyright: ignore[reportArgumentType] - every subclass is a dataclass
            value = getattr(self, field.name)
            if field.name in self.always_written or field.default is MISSING or value != field.default:
                listed.append((field.name, value))
        return listed

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickle the parameters only: arrays are computed again, and the constructor checks what a pickle says."""
        given = fields(self)  # pyright: ignore[reportArgumentType] - every subclass is a dataclass
        return type(self), tuple(getattr(self, field.name) for field in given)

    def _repr_html_(self) -> str:
        """Draw the levels in a notebook."""
        from workbench.grids.markup import grid_html

        return grid_html(self)


def _text(value: Any) -> str:
    """Write one parameter so that reading it back gives the same value (floats with all their digits)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def read_only(array: np.ndarray) -> np.ndarray:
    """Forbid writes: a cached array is shared by everyone who asks."""
    array.setflags(write=False)
    return array
