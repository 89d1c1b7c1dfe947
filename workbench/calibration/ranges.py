"""Ranges of values seen while real inputs run through a model, in memory that does not grow with the inputs.

An observer keeps the extremes and one histogram, whose bins double their width whenever a larger magnitude comes: counts
move to the bin that covers theirs, so nothing is lost but the place inside a bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid

#: Bins of the histogram, half of them on either side of zero.
BINS = 8192
#: Fractions of the whole range that the rule ``mse`` tries.
_CLIPS = np.geomspace(1.0, 0.02, 120)
#: Exponents that ``best_exponent`` tries.
EXPONENTS = np.round(np.arange(0.2, 1.2001, 0.02), 2)


@dataclass(frozen=True)
class RangeRule:
    """How a value's range is taken from what was seen.

    Attributes:
        kind: ``minmax`` keeps everything, ``percentile`` cuts the same fraction off either end, ``mse`` shrinks the range
            to where the squared error of uniform codes is smallest.
        percent: of ``percentile``: how much of the values lies inside.
    """

    kind: str
    percent: float = 100.0

    def __str__(self) -> str:
        return f"percentile:{self.percent:g}" if self.kind == "percentile" else self.kind


def parse_range_rule(text: str | RangeRule) -> RangeRule:
    """Read ``minmax``, ``percentile:99.99`` or ``mse``; a rule passes through.

    Raises:
        QuantizationError: the text is none of the three, or the percentile lies outside (50, 100].

    >>> parse_range_rule("percentile:99.9")
    RangeRule(kind='percentile', percent=99.9)
    """
    if isinstance(text, RangeRule):
        return text
    word, _, number = str(text).strip().lower().partition(":")
    if word in {"minmax", "mse"} and not number:
        return RangeRule(word)
    if word == "percentile":
        try:
            percent = float(number)
        except ValueError:
            percent = math.nan
        if 50.0 < percent <= 100.0:
            return RangeRule(word, percent)
    message = f"a range rule is minmax, percentile:99.99 (above 50, at most 100) or mse, not {text!r}"
    raise QuantizationError(message)


class RangeObserver:
    """What was seen of one value: how many numbers, their extremes, and a histogram.

    >>> observer = RangeObserver()
    >>> observer.update(np.array([-1.0, 0.0, 3.0]))
    >>> observer.range()
    (-1.0, 3.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.low = math.inf
        self.high = -math.inf
        self._reach = 0.0
        self._counts = np.zeros(BINS, dtype=np.int64)

    def update(self, values: Float[np.ndarray, "..."]) -> None:
        """Take in some numbers.

        Args:
            values: any shape; an empty array changes nothing.

        Raises:
            QuantizationError: NaN or infinite numbers.
        """
        flat = np.asarray(values).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int(np.count_nonzero(~np.isfinite(flat)))
            message = f"calibration met {bad:,} numbers that are NaN or infinite; the float model must be finite first"
            raise QuantizationError(message)
        self.count += flat.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self._reach > 0.0:
            # Bins are half open, the last one closed.
            # Scaling by powers of two is exact, so that a number keeps its bin when bins are joined later.
            place = np.floor(flat.astype(np.float64) / self._reach * (BINS / 2)).astype(np.int64) + BINS // 2
            self._counts += np.bincount(place, minlength=BINS)
        else:
            self._counts[BINS // 2] += flat.size

    def merge(self, other: RangeObserver) -> None:
        """Take in everything that another observer saw."""
        if other.count == 0:
            return
        self.count += other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        twin = RangeObserver()
        twin._reach, twin._counts = other._reach, other._counts.copy()
        self._stretch(twin._reach)
        twin._stretch(self._reach)
        self._counts += twin._counts

    def range(self, rule: RangeRule | str = "minmax", levels: int = 256) -> tuple[float, float]:
        """Return the smallest and largest real number that the codes should reach; zero always lies within.

        Args:
            rule: see ``RangeRule``.
            levels: how many codes there are; ``mse`` needs it.

        Raises:
            QuantizationError: nothing was seen yet, or the rule is not known.
        """
        chosen = parse_range_rule(rule)
        if self.count == 0:
            message = "nothing was seen of this value yet: run calibration inputs first"
            raise QuantizationError(message)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if chosen.kind == "minmax" or low == high:
            return low, high
        if chosen.kind == "percentile":
            tail = (100.0 - chosen.percent) / 200.0 * self.count
            edges = self._edges
            below = np.concatenate([[0], np.cumsum(self._counts)])
            first = int(np.searchsorted(below, tail, side="right")) - 1
            last = int(np.searchsorted(below, self.count - tail, side="left"))
            return min(max(low, float(edges[first])), 0.0), max(min(high, float(edges[last])), 0.0)
        return self._least_squares(low, high, levels)

    def mirrored(self) -> RangeObserver:
        """Return what would be known if every number had come with its negative: ranges of it suit symmetric codes."""
        twin = RangeObserver()
        twin.count, twin._reach = 2 * self.count, self._reach
        twin.low, twin.high = min(self.low, -self.high), max(self.high, -self.low)
        twin._counts = self._counts + self._counts[::-1]
        return twin

    def best_exponent(self, bits: int, *, signed: bool = False) -> float:
        """Return the exponent of the power grid over [min, max] with the smallest squared error.

        Negative values are shifted as a shifted grid would, unless it is a signed one. Each bin counts with its centre; 51
        exponents from 0.2 to 1.2 are tried.

        Args:
            bits: of the grid.
            signed: whether the grid has levels of both signs, over [-reach, reach].

        Raises:
            QuantizationError: nothing was seen yet.
        """
        low, high = self.range()
        if low == high:
            return 1.0
        seen = self._counts > 0
        centres = np.clip(self._edges[:-1][seen] + self._reach / BINS, low, high)
        u, counts = (centres - low) / (high - low), self._counts[seen].astype(np.float64)
        if signed:
            u = centres / max(-low, high)
        errors = []
        for exponent in EXPONENTS:
            grid = PowerGrid(bits=bits, exponent=float(exponent), signed=signed)
            errors.append(float((counts * (u - grid.levels[grid.index(u)]) ** 2).sum()))
        # Of equal errors the exponent nearest 1: the plainest grid.
        least = min(errors)
        ties = [float(each) for each, error in zip(EXPONENTS, errors, strict=True) if error <= least * (1 + 1e-12)]
        return min(ties, key=lambda exponent: abs(exponent - 1.0))

    def _least_squares(self, low: float, high: float, levels: int) -> tuple[float, float]:
        """Return the shrunk range with the smallest error: rounding noise inside, distance to the end outside."""
        width = 2.0 * self._reach / BINS
        centres = self._edges[:-1] + width / 2
        seen = self._counts > 0
        centres, counts = np.clip(centres[seen], low, high), self._counts[seen].astype(np.float64)
        total = np.empty(len(_CLIPS))
        for number, clip in enumerate(_CLIPS):
            ends = clip * low, clip * high
            step = (ends[1] - ends[0]) / (levels - 1)
            outside = centres - np.clip(centres, *ends)
            # A bin narrower than a step rounds to one code: its true distance; wider ones spread over all of a step.
            inside = (centres - ends[0]) / step
            rounding = np.where(width < step, ((inside - np.rint(inside)) * step) ** 2, step**2 / 12.0)
            total[number] = float((counts * np.where(outside == 0.0, rounding, outside**2)).sum())
        best = float(_CLIPS[int(np.argmin(total))])
        return best * low, best * high

    @property
    def _edges(self) -> np.ndarray:
        return (np.arange(BINS + 1) / (BINS / 2) - 1.0) * self._reach

    def _widen(self, magnitude: float) -> None:
        if magnitude < self._reach or magnitude == 0.0:
            return
        # A power of two strictly above: a number on the outer edge would share its bin with smaller ones for ever.
        self._stretch(max(math.ldexp(1.0, math.frexp(magnitude)[1]), 2.0**-1000))

    def _stretch(self, target: float) -> None:
        """Bring the reach to a power of two, if that is wider."""
        if self._reach == 0.0:
            self._reach = target
            return
        while self._reach < target:
            # Two bins become one; both halves of the axis stay centred on zero.
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[BINS // 4 : 3 * BINS // 4] = pairs
            self._reach *= 2.0

    def __repr__(self) -> str:
        return f"RangeObserver({self.count:,} numbers, {self.low:.6g} to {self.high:.6g})"
