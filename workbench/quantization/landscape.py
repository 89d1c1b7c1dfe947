"""The error of power grids over exponent and clip: a whole picture of questions to one sketch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.quantization.asking import ask_many
from workbench.quantization.granularity import Granularity
from workbench.quantization.sketch import Progress, Sketch, sketch

if TYPE_CHECKING:
    import pandas as pd

    from workbench.grids.power import Rounding

EXPONENTS = np.linspace(0.2, 1.2, 64)
CLIPS = np.linspace(1.0 / 64.0, 1.0, 64)


@dataclass(frozen=True, repr=False, eq=False)
class Landscape:
    """Reconstruction error of a layer over exponents (rows) and clips (columns)."""

    name: str
    bits: int
    rounding: str
    granularity: str
    exponents: Float[np.ndarray, " exponents"]
    clips: Float[np.ndarray, " clips"]
    mse: Float[np.ndarray, "exponents clips"]
    """Mean squared error, in the square of the weights' unit."""
    bound: Float[np.ndarray, "exponents clips"]
    """Largest relative error that each ``mse`` can have; 0 when the sketch is exact."""
    energy: float = field(repr=False)
    """Mean of w^2."""

    @property
    def sqnr_db(self) -> Float[np.ndarray, "exponents clips"]:
        """Signal to quantization noise in dB; infinite where the error is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = 10.0 * (np.log10(self.energy) - np.log10(self.mse))
        return np.where(self.mse == 0.0, np.inf, ratio)

    @property
    def best_index(self) -> tuple[int, int]:
        """Row and column of the smallest error; of equal ones the largest clip, then the largest exponent."""
        flipped = int(np.argmin(self.mse[::-1, ::-1].T))
        column, row = divmod(flipped, len(self.exponents))
        return len(self.exponents) - 1 - row, len(self.clips) - 1 - column

    @property
    def best(self) -> tuple[float, float]:
        """Exponent and clip of the smallest error."""
        row, column = self.best_index
        return float(self.exponents[row]), float(self.clips[column])

    @property
    def approximate(self) -> bool:
        """Whether the numbers come from bins (``≈``) instead of every distinct weight (``=``)."""
        return bool(np.any(self.bound > 0.0))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each exponent and clip: mse, sqnr_db, bound."""
        import pandas as pd

        index = pd.MultiIndex.from_product([self.exponents, self.clips], names=["exponent", "clip"])
        columns = {"mse": self.mse.ravel(), "sqnr_db": self.sqnr_db.ravel(), "bound": self.bound.ravel()}
        return pd.DataFrame(columns, index=index)

    def __repr__(self) -> str:
        exponent, clip = self.best
        shape = f"{len(self.exponents)}x{len(self.clips)}"
        best = f"best exponent {exponent:.3g}, clip {clip:.3g}, {self.sqnr_db[self.best_index]:.2f} dB"
        return f"Landscape({self.name!r}, {self.bits} bits, {self.granularity}, {shape}, {best})"


def landscape(  # noqa: PLR0917 - the words of the call, in the order they are spoken
    layer: Any,
    bits: int,
    exponents: Float[np.ndarray, " exponents"] | None = None,
    clips: Float[np.ndarray, " clips"] | None = None,
    rounding: Rounding = "power",
    granularity: str | Granularity = "channel",
    progress: Progress | None = None,
) -> Landscape:
    """Measure the error of the power grid at every exponent and clip, from a sketch.

    Args:
        layer: a ``Sketch``, or anything that ``sketch`` takes.
        bits: of the power grid, 2 to 16.
        exponents: in (0, 2]; None for 64 from 0.2 to 1.2.
        clips: fractions of absmax, in (0, 1]; None for 64 up to 1.
        rounding: ``power`` or ``nearest``.
        granularity: what shares a scale, where ``layer`` is not a sketch already.
        progress: told the finished fraction while a sketch is made.

    Raises:
        QuantizationError: an empty axis, a clip out of range, or a sketch that is not normalised by ``absmax``.
        GridError: bits or exponents out of range.
    """
    made = layer if isinstance(layer, Sketch) else sketch(layer, granularity, "absmax", progress)
    chosen = _axis(EXPONENTS if exponents is None else exponents, "exponents")
    kept = _axis(CLIPS if clips is None else clips, "clips")
    grids = [PowerGrid(bits=bits, exponent=float(exponent), rounding=rounding) for exponent in chosen]
    error, slack = ask_many(made, grids, kept)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.where(slack == 0.0, 0.0, np.where(error > slack, slack / (error - slack), np.inf))
    return Landscape(
        name=made.name,
        bits=bits,
        rounding=rounding,
        granularity=made.granularity,
        exponents=chosen,
        clips=kept,
        mse=error / made.count,
        bound=bound,
        energy=made.energy / made.count,
    )


def _axis(values: Any, name: str) -> Float[np.ndarray, " values"]:
    """Return an axis as float64."""
    try:
        axis = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        message = f"{name} are a list of at least one number, not {values!r}"
        raise QuantizationError(message) from None
    if axis.ndim != 1 or axis.size == 0:
        message = f"{name} are a list of at least one number, not an array of shape {axis.shape}"
        raise QuantizationError(message)
    return axis
