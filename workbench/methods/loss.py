"""The error of a layer's output under its calibration inputs: what methods on one layer minimise, and are compared by."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from workbench.calibration.statistics import LayerStatistics


def output_error(
    weight: Float[np.ndarray, "rows depth"],
    approximate: Float[np.ndarray, "rows depth"],
    statistics: LayerStatistics | None,
) -> float:
    """Return the mean squared error of a layer's outputs, float64.

    ``mean over outputs of (w - w_hat)^T E[x x^T] (w - w_hat)``: exact over all calibration rows where the Gram matrix is
    known; with only its diagonal the cross terms are left out; without statistics E[x x^T] is the identity (the squared
    error of the weights).

    Args:
        weight: the true weight on the matrix view.
        approximate: what stands for it.
        statistics: of the layer's inputs.
    """
    return _mean_square(weight.astype(np.float64) - approximate, statistics)


def output_energy(weight: Float[np.ndarray, "rows depth"], statistics: LayerStatistics | None) -> float:
    """Return the mean square of a layer's outputs: ``output_error`` against a weight of zeros."""
    return _mean_square(weight.astype(np.float64), statistics)


def _mean_square(gap: Float[np.ndarray, "rows depth"], statistics: LayerStatistics | None) -> float:
    if statistics is None:
        return float(np.einsum("ij,ij->", gap, gap)) / len(gap)
    groups = np.split(gap, statistics.groups)
    total = 0.0
    for number, part in enumerate(groups):
        if statistics.gram is not None:
            total += float(np.einsum("ij,ij->", part @ statistics.gram[number], part, optimize=True))
        else:
            total += float((part**2 @ statistics.second[number]).sum())
    return max(total, 0.0) / len(gap)
