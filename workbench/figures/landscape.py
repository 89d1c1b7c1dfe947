"""The exponent x clip landscape, made ready for the canvas map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from workbench.quantization import Landscape


@dataclass(frozen=True)
class LandscapeMap:
    """Cells of a landscape with the borders of its axes."""

    values: Float[np.ndarray, "clips exponents"]
    """SQNR in dB; a row for each clip, ascending."""
    exponent_edges: Float[np.ndarray, " exponents+1"]
    clip_edges: Float[np.ndarray, " clips+1"]
    low: float
    """dB of the darkest colour: the worst cells share it, so that the ridge is told apart."""
    high: float
    """dB of the best cell."""
    best: tuple[float, float]
    """(exponent, clip) of the best cell."""
    badge: str
    """``≈`` or ``=``."""


def landscape_map(found: Landscape, span_db: float = 15.0) -> LandscapeMap:
    """Lay a landscape out with the exponent to the right and the clip upwards.

    Args:
        found: the landscape, its exponents and clips ascending.
        span_db: how far below the best cell colours still differ.
    """
    values = np.asarray(found.sqnr_db, dtype=np.float64).T
    finite = values[np.isfinite(values)]
    high = float(finite.max()) if finite.size else 0.0
    low = max(float(finite.min()), high - span_db) if finite.size else -1.0
    return LandscapeMap(
        values,
        borders(found.exponents),
        borders(found.clips),
        low if low < high else high - 1.0,
        high,
        found.best,
        "≈" if found.approximate else "=",
    )


def borders(centres: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n+1"]:
    """Return the borders between cells whose centres are given: midway, and as far beyond the ends.

    >>> borders(np.array([1.0, 2.0, 4.0]))
    array([0.5, 1.5, 3. , 5. ])
    """
    at = np.asarray(centres, dtype=np.float64)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
