"""One optimiser step of soft codes in one pass over memory: sigmoid, regularizer, optimizer, and the sums for scales.

The same arithmetic as ``workbench.methods.gradient.variables`` with torch's Adam or signed gradients, fused: a step of
those is some thirty passes over tensors of the weight's size.

- ``tanh`` is Lambert's continued fraction to seven terms: the sigmoid is only open for arguments within ln 11, where that
  is exact to 1e-8; beyond, h is clipped and has no slope.
- ``|2 h - 1|^(beta - 1)`` is read from a table of the step's beta with linear interpolation, within
  (beta - 1) * (beta - 2) / (8 * TABLE^2) of the power: below 3e-6 for beta up to 20.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numba import prange

from workbench.kernels.exact import BLOCK, PARTS
from workbench.kernels.runtime import SUMS, exclusive, kernel

#: Cells of the table of powers.
TABLE = 4096
#: Half of the largest argument that the kernels give the sigmoid: beyond ln 11 it is clipped.
_REACH = np.float32(1.3)
#: Adam's decay rates and its smallest denominator, as torch has them.
_FIRST, _SECOND, _LEAST = 0.9, 0.999, 1e-8


@kernel(fastmath=SUMS, inline=True)
def _sigmoid(x):
    """Return 1 / (1 + exp(-x)) for abs(x) up to 2.6; beyond, a number on the same side of 1/12 and 11/12."""
    half = min(max(np.float32(0.5) * x, -_REACH), _REACH)
    square = half * half
    above = np.float32(135135.0) + square * (np.float32(17325.0) + square * (np.float32(378.0) + square))
    below = np.float32(135135.0) + square * (
        np.float32(62370.0) + square * (np.float32(3150.0) + np.float32(28.0) * square)
    )
    return np.float32(0.5) + np.float32(0.5) * half * above / below


@kernel(parallel=True, fastmath=SUMS)
def _soft(codes, lower, free, sharp, levels, scale, offset, size, weights):
    rows, columns = codes.shape
    last = np.float32(levels.shape[0] - 2)
    shared = scale.shape[0] == 1
    for row in prange(rows):
        at = 0 if shared else np.int64(row)
        for group in range(scale.shape[1]):
            s, o = scale[at, group], offset[at, group]
            for j in range(group * size, min(columns, (group + 1) * size)):
                if free:
                    floor = min(max(np.floor(codes[row, j]), np.float32(0.0)), last)
                    k = np.int32(floor)
                    x = sharp * (codes[row, j] - floor - np.float32(0.5))
                else:
                    k = lower[row, j]
                    x = codes[row, j]
                raw = np.float32(1.2) * _sigmoid(x) - np.float32(0.1)
                h = min(max(raw, np.float32(0.0)), np.float32(1.0))
                left = levels[k]
                weights[row, j] = s * (left + h * (levels[k + 1] - left) - o)


@kernel(fastmath=SUMS, inline=True)
def _open(codes, lower, inside, free, sharp, last, index, h, slope):
    """Find the lower index, h and d h / d code of a run of codes."""
    zero, one = np.float32(0.0), np.float32(1.0)
    if free:
        for j in range(len(h)):
            floor = min(max(np.floor(codes[j]), zero), last)
            index[j] = np.int32(floor)
            h[j] = _sigmoid(sharp * (codes[j] - floor - np.float32(0.5)))
            slope[j] = sharp
    else:
        for j in range(len(h)):
            index[j] = lower[j]
            h[j] = _sigmoid(codes[j])
            slope[j] = inside[j]
    for j in range(len(h)):
        raw = np.float32(1.2) * h[j] - np.float32(0.1)
        steep = np.float32(1.2) * slope[j] * h[j] * (one - h[j])
        slope[j] = steep if (raw > np.float32(-1e-6)) and (raw < np.float32(1.0 + 1e-6)) else zero
        h[j] = min(max(raw, zero), one)


@kernel(fastmath=SUMS, inline=True)
def _push(h, regularizer, powers, pull):
    """Write the regularizer's negative slope at each h."""
    cells = np.float32(powers.shape[0] - 2)
    for j in range(len(h)):
        centred = h[j] + h[j] - np.float32(1.0)
        place = abs(centred) * cells
        cell = np.int32(place)
        power = regularizer * (powers[cell] + (place - np.float32(cell)) * (powers[cell + 1] - powers[cell]))
        pull[j] = -power if centred > np.float32(0.0) else power
        pull[j] = np.float32(0.0) if centred == np.float32(0.0) else pull[j]


@kernel(fastmath=SUMS, inline=True)
def _adam(codes, first, second, pull, rate, root):
    """Move a run of codes by Adam."""
    for j in range(len(pull)):
        mean = np.float32(_FIRST) * first[j] + np.float32(1.0 - _FIRST) * pull[j]
        square = np.float32(_SECOND) * second[j] + np.float32(1.0 - _SECOND) * pull[j] * pull[j]
        first[j] = mean
        second[j] = square
        codes[j] -= rate * mean / (np.sqrt(square) * root + np.float32(_LEAST))


@kernel(fastmath=SUMS, inline=True)
def _descend(codes, pull, rate):
    """Move a run of codes by one rate against the sign of what pulls them; what nothing pulls stays."""
    for j in range(len(pull)):
        up = np.float32(1.0) if pull[j] < np.float32(0.0) else np.float32(0.0)
        down = np.float32(1.0) if pull[j] > np.float32(0.0) else np.float32(0.0)
        codes[j] += rate * (up - down)


@kernel(parallel=True, fastmath=SUMS)
def _step(
    codes, signed, first, second, gradient, unit, lower, inside, free, whole, sharp, levels, slopes, scale, offset, size,
    regularizer, powers, rate, root, at_scale, at_exponent,
):  # fmt: skip
    rows, columns = codes.shape
    last = np.float32(levels.shape[0] - 2)
    top = np.float32(levels.shape[0] - 1)
    shared = scale.shape[0] == 1
    parts = min(rows, PARTS)
    for part in prange(parts):
        # Short runs in buffers of their own: each loop then has few arrays, which the compiler can tell apart.
        index = np.empty(BLOCK, dtype=np.int32)
        buffers = np.empty((3, BLOCK), dtype=np.float32)
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            at = 0 if shared else row
            exponent = np.float32(0.0)
            for group in range(scale.shape[1]):
                s, o = scale[at, group], offset[at, group]
                total = np.float32(0.0)
                stop = min(columns, (group + 1) * size)
                for begin in range(group * size, stop, BLOCK):
                    end = min(begin + BLOCK, stop)
                    count = end - begin
                    h, slope, pull = buffers[0, :count], buffers[1, :count], buffers[2, :count]
                    run = codes[row, begin:end]
                    _open(run, lower[row, begin:end], inside[row, begin:end], free, sharp, last, index, h, slope)
                    if regularizer != np.float32(0.0):
                        _push(h, regularizer, powers, pull)
                    else:
                        pull[:] = np.float32(0.0)
                    given = gradient[row, begin:end]
                    for j in range(count):
                        k = index[j]
                        left, bend = levels[k], slopes[k]
                        gap = levels[k + 1] - left
                        strength = unit * given[j] * s
                        total += strength * (left + h[j] * gap - o)
                        exponent += strength * (bend + h[j] * (slopes[k + 1] - bend))
                        pull[j] = (strength * gap + pull[j]) * slope[j]
                    if signed:
                        _descend(run, pull, rate)
                    else:
                        _adam(run, first[row, begin:end], second[row, begin:end], pull, rate, root)
                    if free and whole:
                        for j in range(count):
                            run[j] = min(max(run[j], np.float32(0.0)), top)
                    elif free:
                        for j in range(count):
                            floor = np.float32(lower[row, begin + j])
                            run[j] = min(max(run[j], floor), floor + np.float32(1.0))
                at_scale[row, group] = total
            at_exponent[row] = exponent


@dataclass(eq=False)
class SoftCodes:
    """Soft codes in arrays of their own memory, with the optimizer's; arrays float32 unless said otherwise.

    Args:
        codes: the variable (rows, columns); moved in place.
        lower: index of the lower neighbour of the true weight, int32.
        inside: 1 where the true weight lies within the grid, else 0.
        free: whether codes walk over the grid (``free``) or stay on ``lower`` (``sigmoid``).
        whole: whether free codes may leave the two neighbours.
        offset: of the scales, their shape (rows or 1, groups).
        size: columns that share a scale.
        signed: whether codes move by signed gradients instead of Adam.
    """

    codes: Float[np.ndarray, "rows columns"]
    lower: Int[np.ndarray, "rows columns"]
    inside: Float[np.ndarray, "rows columns"]
    free: bool
    whole: bool
    offset: Float[np.ndarray, "rows groups"]
    size: int
    signed: bool = False

    def __post_init__(self) -> None:
        moments = (len(self.codes), 0 if self.signed else self.codes.shape[1])
        self.first = np.zeros(moments, dtype=np.float32)
        self.second = np.zeros(moments, dtype=np.float32)
        self.weights = np.empty_like(self.codes)
        self.count = 0
        self._powers: tuple[float, np.ndarray] = (0.0, np.zeros(TABLE + 2, dtype=np.float32))

    @exclusive
    def soft(
        self, sharp: float, levels: Float[np.ndarray, " levels"], scale: Float[np.ndarray, "rows groups"]
    ) -> Float[np.ndarray, "rows columns"]:
        """Return the soft weights; the array is written anew by the next call.

        Args:
            sharp: temperature of free codes.
            levels: of this moment.
            scale: of this moment (rows or 1, groups).
        """
        _soft(self.codes, self.lower, self.free, np.float32(sharp), levels, scale, self.offset, self.size, self.weights)
        return self.weights

    @exclusive
    def step(
        self,
        gradient: Float[np.ndarray, "rows columns"],
        unit: float,
        *,
        sharp: float,
        levels: Float[np.ndarray, " levels"],
        slopes: Float[np.ndarray, " levels"],
        scale: Float[np.ndarray, "rows groups"],
        regularizer: float,
        sharpness: float,
        rate: float,
    ) -> tuple[Float[np.ndarray, "rows groups"], float]:
        """Move the codes once; return the gradients of each row's log scales and of the exponent's parameter.

        Args:
            gradient: d loss / d weights at the last ``soft``.
            unit: factor of the gradient.
            sharp: temperature of free codes, as in the last ``soft``.
            levels: as in the last ``soft``.
            slopes: d levels / d parameter of the exponent; zeros where none is learned.
            scale: as in the last ``soft``.
            regularizer: factor of sum(1 - abs(2 h - 1)^sharpness), 0 for none.
            sharpness: its exponent, at least 1.
            rate: learning rate.
        """
        self.count += 1
        if regularizer and self._powers[0] != sharpness:
            table = np.linspace(0.0, 1.0, TABLE + 1) ** (sharpness - 1.0)
            self._powers = (sharpness, np.append(table, 1.0).astype(np.float32))
        rows = len(self.codes)
        at_scale = np.empty((rows, scale.shape[1]), dtype=np.float32)
        at_exponent = np.empty(rows, dtype=np.float32)
        corrected = rate if self.signed else rate / (1.0 - _FIRST**self.count)
        _step(
            self.codes, self.signed, self.first, self.second, gradient, np.float32(unit), self.lower, self.inside,
            self.free, self.whole, np.float32(sharp), levels, slopes, scale, self.offset, self.size,
            np.float32(2.0 * regularizer * sharpness), self._powers[1],
            np.float32(corrected), np.float32(1.0 / math.sqrt(1.0 - _SECOND**self.count)),
            at_scale, at_exponent,
        )  # fmt: skip
        return at_scale, float(at_exponent.sum(dtype=np.float64))
