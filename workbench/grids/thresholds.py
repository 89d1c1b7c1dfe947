"""Where one level ends and the next begins, to the last bit: ties are decided here, for every family of grids.

A threshold is the smallest float64 that belongs to the upper of two levels. So a tie that goes up has its threshold at
the tie itself, and a tie that goes down has it at the next float64 above.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def rounding_thresholds(n: int) -> Float[np.ndarray, " n"]:
    """Return the thresholds of ``rint(n * u)`` for u >= 0: the smallest float64 that gives 1, 2, ... n.

    ``rint`` takes ties to the even number. The product is float64's own: two neighbouring ``u`` can share a product
    that is a tie, so the quotient (k + 1/2) / n is only a first guess and the floats around it are tried.
    """
    border = np.arange(n, dtype=np.float64) + 0.5
    guess = border / n
    below = np.nextafter(guess, 0.0)
    tried = np.stack([np.nextafter(below, 0.0), below, guess, np.nextafter(guess, np.inf)])
    tried = np.concatenate([tried, np.nextafter(tried[-1:], np.inf)])
    upper = np.rint(n * tried) > border
    return tried[np.argmax(upper, axis=0), np.arange(n)]


def midway_thresholds(
    levels: Float[np.ndarray, " levels"], tie_up: Bool[np.ndarray, " levels-1"]
) -> Float[np.ndarray, " levels-1"]:
    """Return the thresholds of rounding to the nearest level; ``tie_up[i]``: a tie between i and i + 1 goes up.

    The midpoint of two float64 is seldom a float64: the rounding error of their sum (Knuth's TwoSum, exact) says on
    which side of the rounded midpoint the true one lies.
    """
    low, high = levels[:-1], levels[1:]
    total = low + high
    part = total - low
    rest = (low - (total - part)) + (high - part)
    middle = total / 2
    return np.where((rest > 0) | ((rest == 0) & ~tie_up), np.nextafter(middle, np.inf), middle)


def quotient_thresholds(
    borders: Float[np.ndarray, " n"], peak: float, tie_up: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return thresholds so that ``u = x / peak`` (float64) falls where ``x`` falls among ``borders``.

    Exact for every ``x`` with at most 50 significant bits, so for every float32: no other such ``x`` shares a quotient
    with a border. That is why a weight that lies on a tie of a block format is rounded as the format says.
    """
    middle = borders / peak
    return np.where(tie_up, middle, np.nextafter(middle, np.inf))


def mirrored_levels(positive: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 2n+1"]:
    """Return the levels -positive, 0, positive in ascending order."""
    return np.concatenate([-positive[::-1], [0.0], positive])


def mirrored_thresholds(positive: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 2n"]:
    """Return the thresholds of an odd grid (code(-u) = -code(u)) from those of its positive half.

    ``u`` in (-t, 0] belongs to zero when [0, t) does, so the smallest float64 of zero's cell is the one above -t.
    """
    return np.concatenate([-np.nextafter(positive[::-1], 0.0), positive])
