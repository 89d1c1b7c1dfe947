"""Standard errors of what is measured on dependent samples: clusters, not tokens, are what could have come out otherwise.

Tokens of one window, and windows of one document, are not independent. So a figure over tokens is a ratio of two sums over
clusters, and its standard error the usual one of a ratio estimator (linearised; Cochran 1977, *Sampling Techniques*,
section 6.4, without the finite population's correction). Quantiles have no such formula: whole clusters are drawn again with
replacement (cluster bootstrap). A largest value has no standard error that a sample could tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

#: Where there are so many documents or more, they are the clusters; with fewer, windows are, and the error may be too small.
LEAST_DOCUMENTS = 10
#: Draws of a bootstrap.
DRAWS = 200


def clusters_of(documents: Int[np.ndarray, " windows"]) -> tuple[Int[np.ndarray, " windows"], str]:
    """Return which cluster each window belongs to, and in words what the clusters are.

    Args:
        documents: number of the document that each window comes from.
    """
    _, found = np.unique(documents, return_inverse=True)
    count = int(found.max()) + 1 if len(found) else 0
    if count >= LEAST_DOCUMENTS:
        return found, f"{count} documents"
    return np.arange(len(documents)), f"{len(documents)} window{'s' if len(documents) != 1 else ''}"


def ratio_error(
    sums: Float[np.ndarray, " parts"],
    counts: Int[np.ndarray, " parts"],
    clusters: Int[np.ndarray, " parts"] | None = None,
) -> float:
    """Return the standard error of sum(sums) / sum(counts); NaN for fewer than two clusters.

    Args:
        sums: of each part.
        counts: of each part.
        clusters: which cluster each part belongs to, from 0; each part its own by default.
    """
    if clusters is not None:
        sums, counts = np.bincount(clusters, sums), np.bincount(clusters, counts)
    if len(sums) < 2:
        return math.nan
    residuals = sums - sums.sum() / counts.sum() * counts
    return math.sqrt(len(sums) / (len(sums) - 1) * float((residuals**2).sum())) / float(counts.sum())


def change_of_share(new: Bool[np.ndarray, " inputs"], old: Bool[np.ndarray, " inputs"]) -> tuple[float, float]:
    """Return the difference of two shares of the same inputs, new minus old, and its standard error.

    Both are of the same inputs: only those count on which one is right and the other wrong. Where there is none, the error
    is that of one such input more.
    """
    difference = new.astype(np.float64) - old
    count = len(difference)
    spread = max(float(((difference - difference.mean()) ** 2).sum()), 1.0)
    return float(difference.mean()), math.sqrt(spread / max(count - 1, 1) / count)


def share_error(right: int, total: int) -> float:
    """Return root of p (1 - p) / n; where all or none were right, of the share that one more or one fewer would give."""
    share = right / total
    if share in {0.0, 1.0}:
        share = 1.0 / (total + 1)
    return math.sqrt(share * (1.0 - share) / total)


def quantiles(
    values: Float[np.ndarray, " n"], shares: Sequence[float], clusters: Int[np.ndarray, " n"], seed: int
) -> list[tuple[float, float]]:
    """Return quantiles and their standard errors by a cluster bootstrap (NaN for fewer than two clusters).

    A quantile is the smallest value that so large a share of all values does not exceed.

    Args:
        values: without NaN.
        shares: e.g. 0.5 for the median.
        clusters: which cluster each value belongs to, from 0.
        seed: of the draws.
    """
    order = np.argsort(values, kind="stable")
    rising, owner = values[order], clusters[order]
    count = int(clusters.max()) + 1
    found = [rising[_place(np.arange(1.0, len(rising) + 1), share)] for share in shares]
    if count < 2:
        return [(float(value), math.nan) for value in found]
    draw = np.random.default_rng(seed)
    drawn = np.empty((DRAWS, len(shares)))
    for turn in range(DRAWS):
        weight = np.bincount(draw.integers(0, count, count), minlength=count)
        reached = np.cumsum(weight[owner], dtype=np.float64)
        drawn[turn] = [rising[_place(reached, share)] for share in shares]
    # A quantile that is infinite in some draws has no standard deviation.
    spread = [float(each.std(ddof=1)) if np.isfinite(each).all() else math.nan for each in drawn.T]
    return [(float(value), error) for value, error in zip(found, spread, strict=True)]


def bootstrap_error(count: int, measure: Callable[[Int[np.ndarray, " draw"]], float], seed: int) -> float:
    """Return the standard deviation of a figure over samples drawn again with replacement; NaN for fewer than two.

    Args:
        count: of samples.
        measure: from places of samples (with repetitions) to the figure; NaN is left out.
        seed: of the draws.
    """
    if count < 2:
        return math.nan
    draw = np.random.default_rng(seed)
    found = np.asarray([measure(draw.integers(0, count, count)) for _ in range(DRAWS)])
    found = found[np.isfinite(found)]
    return float(found.std(ddof=1)) if len(found) > 1 else math.nan


def _place(reached: np.ndarray, share: float) -> int:
    return min(int(np.searchsorted(reached, share * reached[-1], side="left")), len(reached) - 1)
