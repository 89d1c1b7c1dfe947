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

from workbench.calibration.statistics import InputGap, LayerStatistics


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

    Where the statistics know of the gap between both streams, these are moments over all rows that calibration saw. Else
    everything is taken from the kept rows, the Gram matrix too: moments of different rows do not belong to any inputs, and
    learning would fit what is noise between them.

    Args:
        statistics: of the layer's inputs, with ``gram`` or ``inputs``.
        share_of_float: probability P in [0, 1] that an element is the float model's.
    """
    kept, floating, gap = statistics.inputs, statistics.float_inputs, statistics.gap
    if gap is None and kept is not None and floating is not None and not np.array_equal(kept, floating):
        gap = InputGap.of(kept, floating)
        gram, mean = _moments(kept)
    elif statistics.gram is not None:
        gram, mean = statistics.gram.astype(np.float64), statistics.mean
    else:
        assert kept is not None
        gram, mean = _moments(kept)
    if gap is None:
        return Moments(gram, None, None, mean, np.zeros_like(statistics.mean))
    share = share_of_float
    diagonal = gap.among * np.eye(gap.among.shape[1])
    turned = gap.across.transpose(0, 2, 1)
    mixed = gram + share * (gap.across + turned) + share**2 * gap.among + share * (1.0 - share) * diagonal
    if share == 1.0:
        return Moments(mixed, None, None, mean + gap.mean, np.zeros_like(gap.mean))
    cross = (1.0 - share) * gap.across + share * (1.0 - share) * (gap.among - diagonal)
    among = (1.0 - share) ** 2 * gap.among + share * (1.0 - share) * diagonal
    return Moments(mixed, cross, among, mean + share * gap.mean, (1.0 - share) * gap.mean)


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return E[x x^T] and E[x] of rows (groups, rows, depth)."""
    wide = rows.astype(np.float64)
    return wide.transpose(0, 2, 1) @ wide / wide.shape[1], wide.mean(axis=1)
