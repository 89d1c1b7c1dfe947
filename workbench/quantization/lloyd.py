"""Codebooks fitted to a layer: the k levels with the smallest squared error, by Lloyd's and Max's iteration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids import CodebookGrid
from workbench.quantization.sketch import Sketch


@dataclass(frozen=True, repr=False, eq=False)
class CodebookFit:
    """A fitted codebook and how the fit went."""

    grid: CodebookGrid
    trace: Float[np.ndarray, " iterations"] = field(repr=False)
    """Mean squared error after each iteration; never rises."""
    converged: bool
    """Whether the levels stopped moving before the iterations ran out."""

    def __repr__(self) -> str:
        end = "converged" if self.converged else "stopped"
        return f"CodebookFit({self.grid!r}, mse={self.trace[-1]:.6g}, {end} after {len(self.trace)} iterations)"


def kmeans(sketch: Sketch, bits: int, iterations: int = 1000) -> CodebookGrid:
    """Return the codebook that ``lloyd_max`` fits (arguments and errors as there)."""
    return lloyd_max(sketch, bits, iterations).grid


def lloyd_max(sketch: Sketch, bits: int, iterations: int = 1000) -> CodebookFit:
    """Fit 2^bits levels to a layer's normalised weights: k-means on the sketch's bins, weighted by s^2.

    The start is deterministic: levels at equal shares of (mass density)^(1/3), the best point density for many levels
    (Panter and Dite 1951). Then thresholds move midway between levels and levels to their cell's mean, until nothing
    moves (Lloyd 1982, method I; Max 1960). A bin counts as a whole, at its mean, which costs at most the spread inside
    one bin. A level without weights goes to the bin that is decoded worst.

    Args:
        sketch: normalised by ``absmax``, so that levels stay within [-1, 1].
        bits: 1 to 8.
        iterations: at most this many.

    Raises:
        QuantizationError: bits out of range, another normalization, or fewer different weights than two.
    """
    if sketch.normalization != "absmax":
        message = f"a codebook is fitted on a sketch normalised by absmax, not by {sketch.normalization}"
        raise QuantizationError(message)
    return fit_levels(
        sketch.m0, sketch.m1, bits, energy=sketch.energy, count=sketch.count, iterations=iterations, name=sketch.name
    )


def fit_levels(
    mass: Float[np.ndarray, " bins"],
    first: Float[np.ndarray, " bins"],
    bits: int,
    *,
    energy: float,
    count: int,
    iterations: int = 1000,
    name: str = "the weight",
) -> CodebookFit:
    """Fit 2^bits levels to weighted points on a line (see ``lloyd_max``).

    Args:
        mass: what each bin weighs, at least 0; bins ascend.
        first: mass times place, summed over each bin.
        bits: 1 to 8.
        energy: sum of mass times place^2 over all weights, so that the trace holds true errors.
        count: how many weights, which the trace is divided by.
        iterations: at most this many.
        name: whose weights they are, for the message.

    Raises:
        QuantizationError: bits out of range, or fewer different weights than two.
    """
    if not 1 <= bits <= 8:
        message = f"a codebook is fitted for 1 to 8 bits, not {bits}"
        raise QuantizationError(message)
    filled = mass > 0.0
    mass, first = mass[filled], first[filled]
    place = first / mass if len(mass) else mass
    spread = energy - float((first * place).sum())  # what stays inside the bins, whatever the levels
    if len(place) < 2:
        message = f"{name} has too few different weights for a codebook; two are the least"
        raise QuantizationError(message)
    levels = _start(place, mass, min(2**bits, len(place)))
    trace: list[float] = []
    converged = False
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (mass, first)]
    ends = np.empty(0)
    for _ in range(iterations):
        borders = np.searchsorted(place, (levels[:-1] + levels[1:]) / 2.0, side="right")
        edges = np.concatenate([[0], borders, [len(place)]])
        weight, moment = (np.diff(part[edges]) for part in sums)
        occupied = np.diff(edges) > 0
        levels = np.where(occupied, moment / np.where(occupied, weight, 1.0), levels)
        cell = np.repeat(np.arange(len(levels)), np.diff(edges))
        cost = mass * (place - levels[cell]) ** 2
        trace.append((float(cost.sum()) + max(spread, 0.0)) / count)
        if not occupied.all():
            empty = np.flatnonzero(~occupied)
            levels[empty] = place[np.argsort(cost)[::-1][: len(empty)]]
            levels.sort()
        elif np.array_equal(edges, ends):
            converged = True
            break
        ends = edges
    return CodebookFit(CodebookGrid(tuple(np.unique(levels).tolist())), np.array(trace), converged)


def _start(place: np.ndarray, mass: np.ndarray, count: int) -> np.ndarray:
    """Return starting levels: quantiles of the point density."""
    width = np.gradient(place) if len(place) > 1 else np.ones(1)
    width = np.maximum(width, np.finfo(np.float64).tiny)
    density = np.cumsum(np.cbrt(mass * width * width))
    targets = (np.arange(count) + 0.5) / count * density[-1]
    picked = np.searchsorted(density, targets)
    # Different bins, so that levels differ: where quantiles fall together, take the bins beside.
    picked = np.maximum.accumulate(picked - np.arange(count)) + np.arange(count)
    overflow = picked[-1] - (len(place) - 1)
    if overflow > 0:
        picked = np.minimum(picked, len(place) - count + np.arange(count))
    return place[picked]
