"""How many weights each code gets, and how many bits the codes really carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from workbench.grids.grid import Grid
from workbench.quantization.asking import code_counts
from workbench.quantization.sketch import Sketch

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class Occupancy:
    """How a layer's weights are spread over a grid's codes."""

    grid: Grid
    counts: Float[np.ndarray, " levels"]
    """Weights on each level, in the order of ``grid.levels``."""
    approximate: bool
    """Whether bins that a threshold cuts were shared out between its two levels (``≈``)."""

    @property
    def fraction(self) -> Float[np.ndarray, " levels"]:
        """Share of all weights on each level; they add up to 1."""
        return self.counts / self.counts.sum()

    @property
    def entropy(self) -> float:
        """Shannon entropy of the codes, in bits per weight: what an ideal entropy coder would store."""
        share = self.fraction[self.counts > 0.0]
        return float(max(-(share * np.log2(share)).sum(), 0.0))

    @property
    def used(self) -> int:
        """How many levels at least one weight falls to (half a weight, where counts are approximate)."""
        return int((self.counts >= 0.5).sum())

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each level: code, level, count, fraction."""
        import pandas as pd

        columns = {"code": self.grid.codes, "level": self.grid.levels, "count": self.counts, "fraction": self.fraction}
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return (
            f"Occupancy({self.grid}, {self.used} of {len(self.counts)} levels used, {self.entropy:.3f} bits of entropy)"
        )


def occupancy(sketch: Sketch, grid: Grid, clip: float = 1.0) -> Occupancy:
    """Count the weights of each code, from a sketch.

    Args:
        sketch: of the grid's normalization.
        grid: any scalar grid.
        clip: fraction of absmax that the scale keeps.

    Raises:
        QuantizationError: see ``sketch_error``.
    """
    return Occupancy(grid, code_counts(sketch, grid, clip), approximate=not sketch.exact)
