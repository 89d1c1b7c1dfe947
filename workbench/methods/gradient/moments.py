"""Second moments of a layer's inputs for the full-batch loss: quantized, float, or QDrop's mixture in expectation.

With q the inputs as the quantized model gives them, f those of the float model, d = f - q, and x = q + m * d with
independent m in {0, 1}, E[m] = P, element by element, the mean loss over everything is

    E |W f - W_hat x - b|^2 = tr(D G D^T) + 2 tr(D C^T) + K - 2 b.(D mean + shift) + |b|^2,     D = W - W_hat
    G = E[x x^T],  C = W E[(f - x) x^T],  K = tr(W E[(f - x) (f - x)^T] W^T),  shift = W E[f - x]

so QDrop's random mixing (Wei et al., ICLR 2022) needs no drawing where a whole layer is learned at once (derived).
P = 0 are quantized inputs, P = 1 float inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.calibration.statistics import LayerStatistics


@dataclass(frozen=True, eq=False)
class Moments:
    """Expectations of one layer's inputs, float64, with a leading axis of groups."""

    gram: Float[np.ndarray, "groups depth depth"]
    """E[x x^T]."""
    cross: Float[np.ndarray, "groups depth depth"] | None
    """E[(f - x) x^T]; None where x = f."""
    gap: Float[np.ndarray, "groups depth depth"] | None
    """E[(f - x) (f - x)^T]; None where x = f."""
    mean: Float[np.ndarray, "groups depth"]
    """E[x]."""
    mean_gap: Float[np.ndarray, "groups depth"]
    """E[f - x]."""


def mixed_moments(statistics: LayerStatistics, share_of_float: float) -> Moments:
    """Return the moments of inputs that are the float model's with a given probability, element by element.

    The Gram matrix is that of all rows calibration saw; what differs between the two streams is measured on the kept rows.

    Args:
        statistics: of the layer's inputs, with ``gram`` or ``inputs``.
        share_of_float: probability P in [0, 1] that an element is the float model's.
    """
    quantized, floating = statistics.inputs, statistics.float_inputs
    if statistics.gram is not None:
        gram, mean = statistics.gram.astype(np.float64), statistics.mean
    else:
        assert quantized is not None
        wide = quantized.astype(np.float64)
        gram, mean = _product(wide, wide), wide.mean(axis=1)
    none = np.zeros_like(statistics.mean)
    if floating is None or quantized is None or floating is quantized:
        return Moments(gram, None, None, mean, none)
    rows = quantized.astype(np.float64)
    gaps = floating.astype(np.float64) - rows
    if not gaps.any():
        return Moments(gram, None, None, mean, none)
    share = share_of_float
    across, among, mean_gap = _product(gaps, rows), _product(gaps, gaps), gaps.mean(axis=1)
    diagonal = among * np.eye(among.shape[1])
    mixed = gram + share * (across + across.transpose(0, 2, 1)) + share**2 * among + share * (1.0 - share) * diagonal
    if share == 1.0:
        return Moments(mixed, None, None, mean + mean_gap, none)
    cross = (1.0 - share) * across + share * (1.0 - share) * (among - diagonal)
    gap = (1.0 - share) ** 2 * among + share * (1.0 - share) * diagonal
    return Moments(mixed, cross, gap, mean + share * mean_gap, (1.0 - share) * mean_gap)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the mean over rows of left right^T, slice by slice."""
    return left.transpose(0, 2, 1) @ right / left.shape[1]
