"""Asking a sketch for a grid's error: a binary search and two differences of running sums for each threshold.

The error of a grid telescopes over its thresholds. If every weight decoded to one level p, the error would be
``sum s^2 (u - p)^2``. Moving the weights beyond a threshold from level a to its neighbour b changes it by

    -2 (b - a) * sum over those weights of s^2 (u - (a + b) / 2),

two running sums. Only the bins that the threshold cuts hold weights on either side. For these, mean and variance
inside the bin bound what lies beyond the threshold (Markov and Cantelli for the mass; Jensen, the chord, and Scarf 1958
for the first moment), a straight density through the mean gives the estimate, and the bounds' distance from it adds up
to the answer's own bound.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numba import prange

from workbench.kernels.runtime import exclusive, kernel


@kernel(inline=True)
def _beyond(low, high, m0, m1, m2, threshold):
    """Estimate what of a cut bin lies at or above a threshold.

    Returns:
        mass = sum s^2, first = sum s^2 (u - threshold), both over u >= threshold, and how far each may be off.
    """
    if m0 <= 0.0:
        return 0.0, 0.0, 0.0, 0.0
    mean = m1 / m0
    variance = max(m2 / m0 - mean * mean, 0.0) + 1e-13 * mean * mean
    width = high - low
    from_low = min(max(mean - low, 0.0), width)
    distance = threshold - mean
    # Bounds on the fraction of mass at or above the threshold.
    if distance > 0.0:
        most = min(1.0, variance / (variance + distance * distance))
        if threshold > low:
            most = min(most, from_low / (threshold - low))
        least = 0.0
    else:
        most = 1.0
        least = distance * distance / (variance + distance * distance)
        if high > threshold:
            least = max(least, min(1.0, -distance / (high - threshold)))
    # Bounds on the mean of max(u - threshold, 0).
    least_first = max(0.0, -distance)
    most_first = 0.5 * (math.sqrt(variance + distance * distance) - distance)
    if width < math.inf and width > 0.0:
        most_first = min(most_first, (high - threshold) * from_low / width)
    most_first = max(most_first, least_first)
    if width < math.inf and width > 0.0:
        x = (threshold - low) / width
        tilt = 12.0 * (from_low / width - 0.5)
        rest = 1.0 - x
        mass = rest + 0.5 * tilt * x * rest
        first = width * (0.5 * rest * rest + tilt * (rest * rest * rest / 3.0 + 0.5 * (x - 0.5) * rest * rest))
    else:
        mass = 0.5 * (least + most)
        first = 0.5 * (least_first + most_first)
    mass = min(max(mass, least), most)
    first = min(max(first, least_first), most_first)
    return (
        m0 * mass,
        m0 * first,
        m0 * max(mass - least, most - mass),
        m0 * max(first - least_first, most_first - first),
    )


@kernel()
def _query(low, high, moments, running, thresholds, levels, clip, answer, counts):
    """Fill error, slack, decoded energy (or, with offsets, sum s^2 L^2), sum s^2 o L, largest distance; count codes.

    ``running`` holds, for each bin border, the sums of n, m0, m1, z below it, of n, m0, m1, z above it, and of m2 below it. ``counts``
    is filled where it has a place for every level.
    """
    bins = low.shape[0]
    last = thresholds.shape[0]
    # Telescope from the level that zero belongs to: the sums of what lies further out are the small ones.
    middle = 0
    while middle < last and thresholds[middle] <= 0.0:
        middle += 1
    home = levels[middle] * clip
    t0, t1, t2 = running[0, 5], running[0, 6], running[bins, 8]
    error = t2 - 2.0 * home * t1 + home * home * t0
    power = home * home * t0
    shifted = home * running[0, 7]
    slack = 0.0
    largest = 0.0
    if bins > 0:
        # The outermost weights, each against the level it falls to.
        i = 0
        while i < last and thresholds[i] * clip <= low[0]:
            i += 1
        if low[0] > -math.inf:
            largest = abs(low[0] - levels[i] * clip)
        while i < last and thresholds[i] * clip <= high[bins - 1]:
            i += 1
        if high[bins - 1] < math.inf:
            largest = max(largest, abs(high[bins - 1] - levels[i] * clip))
    before = 0.0
    for i in range(last):
        threshold = thresholds[i] * clip
        a = levels[i] * clip
        b = levels[i + 1] * clip
        # First bin whose upper border reaches the threshold.
        start = 0
        stop = bins
        while start < stop:
            half = (start + stop) >> 1
            if high[half] < threshold:
                start = half + 1
            else:
                stop = half
        cut = start
        mass, first, mass_off, first_off, whole0, whole1, share, offsets = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        while cut < bins and low[cut] < threshold:
            m0, m1 = moments[cut, 1], moments[cut, 2]
            found = _beyond(low[cut], high[cut], m0, m1, moments[cut, 3], threshold)
            mass += found[0]
            first += found[1]
            mass_off += found[2]
            first_off += found[3]
            whole0 += m0
            whole1 += m1
            fraction = found[0] / m0 if m0 > 0.0 else 0.5
            share += fraction * moments[cut, 0]
            offsets += fraction * moments[cut, 4]
            cut += 1
        gap = b - a
        off_middle = threshold - 0.5 * (a + b)
        if i >= middle:
            above0 = running[cut, 5] + mass
            # sum s^2 (u - middle of a and b) over what lies above
            lever = running[cut, 6] - 0.5 * (a + b) * running[cut, 5] + first + off_middle * mass
            error -= 2.0 * gap * lever
            power += (b * b - a * a) * above0
            shifted += gap * (running[cut, 7] + offsets)
        else:
            below0 = running[start, 1] + whole0 - mass
            lever = running[start, 2] - 0.5 * (a + b) * running[start, 1]
            lever += whole1 - threshold * whole0 - first + off_middle * (whole0 - mass)
            error += 2.0 * gap * lever
            power += (a * a - b * b) * below0
            held = 0.0
            for k in range(start, cut):
                held += moments[k, 4]
            shifted -= gap * (running[start, 3] + held - offsets)
        slack += 2.0 * gap * (first_off + abs(off_middle) * mass_off)
        # The weights nearest the threshold on either side are the worst of their levels, apart from the outermost.
        if cut > 0:
            top = min(threshold, high[cut - 1])
            if top > (thresholds[i - 1] * clip if i > 0 else -math.inf):
                largest = max(largest, abs(top - a))
        if start < bins:
            bottom = max(threshold, low[start])
            if bottom < (thresholds[i + 1] * clip if i + 1 < last else math.inf):
                largest = max(largest, abs(b - bottom))
        if counts.shape[0] > last:
            below = running[start, 0]
            for k in range(start, cut):
                below += moments[k, 0]
            below -= share
            counts[i] = max(below - before, 0.0)
            before = max(below, before)
    if counts.shape[0] > last:
        counts[last] = max(running[0, 4] - before, 0.0)
    answer[0] = error
    answer[1] = slack
    answer[2] = power
    answer[3] = shifted
    answer[4] = largest


@kernel()
def _query_one(low, high, moments, running, thresholds, levels, clip, counts):
    answer = np.empty(5)
    _query(low, high, moments, running, thresholds, levels, clip, answer, counts)
    return answer


@kernel(parallel=True)
def _query_many(low, high, moments, running, thresholds, levels, clips, answers):
    cells = thresholds.shape[0] * clips.shape[0]
    for cell in prange(cells):
        e = cell // clips.shape[0]
        c = cell % clips.shape[0]
        _query(low, high, moments, running, thresholds[e], levels[e], clips[c], answers[e, c], np.empty(0))


def running_sums(moments: Float[np.ndarray, "bins 5"]) -> Float[np.ndarray, "borders 9"]:
    """Return sums of n, m0, m1, z below each bin border, above it (each added up from its own end), and of m2 below."""
    picked = moments[:, [0, 1, 2, 4]]
    zero = np.zeros((1, 4))
    below = np.concatenate([zero, np.cumsum(picked, axis=0)])
    above = np.concatenate([np.cumsum(picked[::-1], axis=0)[::-1], zero])
    energy = np.concatenate([[0.0], np.cumsum(moments[:, 3])])[:, None]
    return np.ascontiguousarray(np.concatenate([below, above, energy], axis=1))


def query(
    low: Float[np.ndarray, " bins"],
    high: Float[np.ndarray, " bins"],
    moments: Float[np.ndarray, "bins 5"],
    running: Float[np.ndarray, "borders 9"],
    thresholds: Float[np.ndarray, " levels-1"],
    levels: Float[np.ndarray, " levels"],
    clip: float,
    *,
    counts: Float[np.ndarray, " levels"] | None = None,
) -> Float[np.ndarray, "5"]:
    """Return error, slack, sum s^2 L^2, sum s^2 o L and the largest |u - L| for one grid (all on the unclipped axis).

    Args:
        low: least u of each bin.
        high: largest u of each bin.
        moments: n, m0, m1, m2 and z = sum s^2 o of each bin.
        running: ``running_sums(moments)``.
        thresholds: of the grid.
        levels: of the grid.
        clip: levels and thresholds are multiplied by it.
        counts: filled with the weights of each level, where given.
    """
    return _query_one(low, high, moments, running, thresholds, levels, clip, np.empty(0) if counts is None else counts)


@exclusive
def query_many(
    low: Float[np.ndarray, " bins"],
    high: Float[np.ndarray, " bins"],
    moments: Float[np.ndarray, "bins 5"],
    running: Float[np.ndarray, "borders 9"],
    thresholds: Float[np.ndarray, "grids levels-1"],
    levels: Float[np.ndarray, "grids levels"],
    clips: Float[np.ndarray, " clips"],
) -> Float[np.ndarray, "grids clips 5"]:
    """Answer ``query`` for every grid and clip, in parallel."""
    answers = np.empty((len(thresholds), len(clips), 5))
    _query_many(low, high, moments, running, thresholds, levels, clips, answers)
    return answers


@kernel()
def _distinct(weights, counts, scale, offset, thresholds, levels, answer, occupancy):
    """Fill error, weight energy, decoded energy, largest error from distinct weights in ascending order."""
    bins = weights.shape[0]
    last = thresholds.shape[0]
    index = 0
    error = 0.0
    energy = 0.0
    power = 0.0
    largest = 0.0
    for k in range(bins):
        i = k if scale > 0.0 else bins - 1 - k
        w = weights[i]
        n = counts[i]
        decoded = 0.0
        if scale != 0.0:
            u = w / scale + offset
            while index < last and u >= thresholds[index]:
                index += 1
            decoded = np.float64(np.float32(scale * (levels[index] - offset)))
            if occupancy.shape[0] > last:
                occupancy[index] += n
        difference = w - decoded
        error += n * difference * difference
        energy += n * w * w
        power += n * decoded * decoded
        largest = max(largest, abs(difference))
    answer[0] = error
    answer[1] = energy
    answer[2] = power
    answer[3] = largest


@kernel()
def _distinct_one(weights, counts, scale, offset, thresholds, levels, occupancy):
    answer = np.empty(4)
    _distinct(weights, counts, scale, offset, thresholds, levels, answer, occupancy)
    return answer


@kernel(parallel=True)
def _distinct_many(weights, counts, scales, offsets, thresholds, levels, answers):
    for cell in prange(thresholds.shape[0] * scales.shape[0]):
        e = cell // scales.shape[0]
        c = cell % scales.shape[0]
        _distinct(weights, counts, scales[c], offsets[c], thresholds[e], levels[e], answers[e, c], np.empty(0))


def query_distinct(
    weights: Float[np.ndarray, " distinct"],
    counts: Float[np.ndarray, " distinct"],
    scale: float,
    offset: float,
    thresholds: Float[np.ndarray, " levels-1"],
    levels: Float[np.ndarray, " levels"],
    *,
    occupancy: Float[np.ndarray, " levels"] | None = None,
) -> Float[np.ndarray, "4"]:
    """Return error, weight energy, decoded energy and largest error of weights under one scale, exactly.

    Args:
        weights: distinct weights, float64, ascending.
        counts: how often each occurs, float64.
        scale: a float32 number, maybe negative.
        offset: of a ``range`` grid.
        thresholds: of the grid.
        levels: of the grid.
        occupancy: zeros, filled with the weights of each level, where given.
    """
    occupancy = np.empty(0) if occupancy is None else occupancy
    return _distinct_one(weights, counts, float(scale), float(offset), thresholds, levels, occupancy)


@exclusive
def query_distinct_many(
    weights: Float[np.ndarray, " distinct"],
    counts: Float[np.ndarray, " distinct"],
    scales: Float[np.ndarray, " clips"],
    offsets: Float[np.ndarray, " clips"],
    thresholds: Float[np.ndarray, "grids levels-1"],
    levels: Float[np.ndarray, "grids levels"],
) -> Float[np.ndarray, "grids clips 4"]:
    """Answer ``query_distinct`` for every grid and scale, in parallel."""
    answers = np.empty((len(thresholds), len(scales), 4))
    _distinct_many(weights, counts, scales, offsets, thresholds, levels, answers)
    return answers
