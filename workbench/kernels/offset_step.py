"""One signed-gradient step of rounding offsets on equal steps, in one pass over memory: what AutoRound does to a layer.

The same arithmetic as ``workbench.methods.gradient.variables.Offset`` with signed gradients, fused; in torch it is some
twenty passes over tensors of the weight's size.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numba import prange

from workbench.kernels.runtime import SUMS, exclusive, kernel


@kernel(inline=True)
def _normalised(weight, s, o):
    return weight / (s if s != np.float32(0.0) else np.float32(1.0)) + o


@kernel(parallel=True)
def _soft(codes, weight, lower, whole, first, gap, last, scale, offset, size, weights):
    rows, columns = codes.shape
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    shared = scale.shape[0] == 1
    for row in prange(rows):
        at = 0 if shared else np.int64(row)
        for group in range(scale.shape[1]):
            s, o = scale[at, group], offset[at, group]
            for j in range(group * size, min(columns, (group + 1) * size)):
                place = (_normalised(weight[row, j], s, o) - first) / gap
                below = min(max(np.floor(place), zero), last - one)
                code = below + min(max(place - below, zero), one) + codes[row, j]
                code = min(max(code, zero), last)
                floor = np.float32(lower[row, j])
                code = code if whole else min(max(code, floor), floor + one)
                weights[row, j] = s * (first + np.floor(code + half) * gap - o)


@kernel(parallel=True, fastmath=SUMS)
def _step(codes, weight, gradient, weights, unit, bound, first, end, scale, offset, size, rate, at_scale):
    rows, columns = codes.shape
    zero, one = np.float32(0.0), np.float32(1.0)
    shared = scale.shape[0] == 1
    for row in prange(rows):
        at = 0 if shared else np.int64(row)
        for group in range(scale.shape[1]):
            s, o = scale[at, group], offset[at, group]
            total = zero
            for j in range(group * size, min(columns, (group + 1) * size)):
                given = gradient[row, j]
                pull = given * s
                up = one if pull < zero else zero
                down = one if pull > zero else zero
                codes[row, j] = min(max(codes[row, j] + rate * (up - down), -bound), bound)
                u = _normalised(weight[row, j], s, o)
                passed = weight[row, j] if (u >= first) and (u <= end) else zero
                total += given * (weights[row, j] - passed)
            at_scale[row, group] = unit * total


@dataclass(eq=False)
class Offsets:
    """Offsets that share memory with a layer's tensors; arrays float32 unless said otherwise.

    Args:
        codes: the offsets on the code axis (rows, columns); moved in place.
        weight: the true weights.
        lower: index of the lower neighbour of the true weight at the start, int32.
        whole: whether codes may leave the two neighbours.
        levels: equally spaced, ascending.
        offset: of the scales, their shape (rows or 1, groups).
        size: columns that share a scale.
    """

    codes: Float[np.ndarray, "rows columns"]
    weight: Float[np.ndarray, "rows columns"]
    lower: Int[np.ndarray, "rows columns"]
    whole: bool
    levels: Float[np.ndarray, " levels"]
    offset: Float[np.ndarray, "rows groups"]
    size: int

    def __post_init__(self) -> None:
        self.weights = np.empty_like(self.codes)
        self._last = np.float32(len(self.levels) - 1)
        self._gap = np.float32((self.levels[-1] - self.levels[0]) / (len(self.levels) - 1))

    @exclusive
    def soft(self, scale: Float[np.ndarray, "rows groups"]) -> Float[np.ndarray, "rows columns"]:
        """Return the rounded weights under some scales; the array is written anew by the next call."""
        _soft(
            self.codes, self.weight, self.lower, self.whole, self.levels[0], self._gap, self._last, scale, self.offset,
            self.size, self.weights,
        )  # fmt: skip
        return self.weights

    @exclusive
    def step(
        self,
        gradient: Float[np.ndarray, "rows columns"],
        unit: float,
        scale: Float[np.ndarray, "rows groups"],
        rate: float,
    ) -> Float[np.ndarray, "rows groups"]:
        """Move the offsets once; return the gradients of each row's log scales.

        Args:
            gradient: d loss / d weights at the last ``soft``.
            unit: factor of the gradient.
            scale: as in the last ``soft``.
            rate: learning rate.
        """
        at_scale = np.empty((len(self.codes), scale.shape[1]), dtype=np.float32)
        bound = self._last if self.whole else np.float32(0.5)
        _step(
            self.codes, self.weight, gradient, self.weights, np.float32(unit), bound, self.levels[0], self.levels[-1],
            scale, self.offset, self.size, np.float32(rate), at_scale,
        )  # fmt: skip
        return at_scale
