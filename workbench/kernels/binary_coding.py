"""Binary coding of groups of weights: greedy, refined greedy and alternating solvers, group by group in float64."""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

import math

import numpy as np
from numba import prange

from workbench.kernels.runtime import exclusive, kernel

#: Solvers, as the loops know them.
SOLVERS = {"greedy": 0, "refined": 1, "alternating": 2}

#: Groups are dealt to the threads in this many pieces, so that each piece allocates its buffers once.
PARTS = 64

#: A direction whose part outside the others is smaller than this fraction of the group's mass decides nothing.
_SINGULAR = 1e-10


@kernel()
def _least_squares(codes, weights, importance, first, bits, with_bias, alphas, counts, sums, matrix):
    """Fit alphas of planes ``first`` to ``bits - 1`` and the bias to given codes; return the bias.

    The normal equations need only sums by code: with N and S the importance and the weighted sum of the weights of each
    code, their Walsh-Hadamard transforms hold every entry (products of signs are characters of the group of codes).
    """
    many = 1 << bits
    counts[:many] = 0.0
    sums[:many] = 0.0
    for k in range(len(codes)):
        counts[codes[k]] += importance[k]
        sums[codes[k]] += importance[k] * weights[k]
    half = 1
    while half < many:
        for start in range(0, many, 2 * half):
            for k in range(start, start + half):
                low, high = counts[k], counts[k + half]
                counts[k], counts[k + half] = low + high, high - low
                low, high = sums[k], sums[k + half]
                sums[k], sums[k + half] = low + high, high - low
        half *= 2
    # Unknowns from the most important one down: the bias, the highest plane, ... so that of dependent ones the lower
    # are left out. Column ``size`` is the right-hand side.
    offset = 1 if with_bias else 0
    size = bits - first + offset
    for i in range(size):
        left = 0 if i < offset else 1 << (bits - 1 - (i - offset))
        matrix[i, size] = sums[left]
        for j in range(size):
            right = 0 if j < offset else 1 << (bits - 1 - (j - offset))
            matrix[i, j] = counts[left ^ right]
    smallest = _SINGULAR * counts[0]
    for i in range(size):
        pivot = matrix[i, i]
        if pivot <= smallest:
            matrix[i, i] = 0.0  # this unknown stays 0
            continue
        for row in range(i + 1, size):
            factor = matrix[row, i] / pivot
            for j in range(i, size + 1):
                matrix[row, j] -= factor * matrix[i, j]
    for i in range(size - 1, -1, -1):
        value = 0.0
        if matrix[i, i] > 0.0:
            value = matrix[i, size]
            for j in range(i + 1, size):
                value -= matrix[i, j] * matrix[j, size]
            value /= matrix[i, i]
        matrix[i, size] = value
    for i in range(offset, size):
        alphas[bits - 1 - (i - offset)] = matrix[i, size]
    return matrix[0, size] if with_bias else 0.0


@kernel()
def _sort_planes(codes, bits, alphas):
    """Make alphas non-negative and ascending, and permute and flip the bits of the codes to match."""
    flips = 0
    for i in range(bits):
        if alphas[i] < 0.0:
            alphas[i] = -alphas[i]
            flips |= 1 << i
    order = np.argsort(alphas[:bits], kind="mergesort")
    same = flips == 0
    for i in range(bits):
        same = same and order[i] == i
    if same:
        return
    alphas[:bits] = alphas[:bits][order]
    for k in range(len(codes)):
        code = codes[k] ^ flips
        moved = 0
        for i in range(bits):
            moved |= ((code >> order[i]) & 1) << i
        codes[k] = moved


@kernel()
def _sorted_sums(bits, alphas, bias, levels, order, levels_too, order_too):
    """Fill ``levels`` with all sums in ascending order and ``order`` with their codes, by merging plane after plane."""
    levels[0] = bias
    order[0] = 0
    many = 1
    for i in range(bits):
        step = abs(alphas[i])
        low, high = 0, 0
        for k in range(2 * many):
            if high >= many or (low < many and levels[low] - step <= levels[high] + step):
                levels_too[k], order_too[k] = levels[low] - step, order[low]
                low += 1
            else:
                levels_too[k], order_too[k] = levels[high] + step, order[high] | (1 << i)
                high += 1
        many *= 2
        levels[:many] = levels_too[:many]
        order[:many] = order_too[:many]


@kernel()
def _encode(weights, importance, bits, levels, order, thresholds, codes):
    """Give each weight the code of its nearest sum (a tie goes up); return the weighted error and how many changed."""
    many = 1 << bits
    for k in range(many - 1):
        thresholds[k] = 0.5 * (levels[k] + levels[k + 1])
    error, changed = 0.0, 0
    for k in range(len(weights)):
        place = 0
        half = many >> 1
        while half > 0:
            if weights[k] >= thresholds[place + half - 1]:
                place += half
            half >>= 1
        gap = weights[k] - levels[place]
        error += importance[k] * gap * gap
        changed += codes[k] != order[place]
        codes[k] = order[place]
    return error, changed


@kernel()
def _greedy(weights, importance, bits, with_bias, refine, codes, alphas, left, counts, sums, matrix):
    """Take the planes one after another, the highest first; return the bias."""
    mass, bias = 0.0, 0.0
    for k in range(len(weights)):
        mass += importance[k]
        bias += importance[k] * weights[k]
    bias = bias / mass if with_bias else 0.0
    for k in range(len(weights)):
        codes[k] = 0
        left[k] = weights[k] - bias
    alphas[:bits] = 0.0
    for plane in range(bits - 1, -1, -1):
        total = 0.0
        for k in range(len(weights)):
            total += importance[k] * abs(left[k])
            if left[k] >= 0.0:
                codes[k] |= 1 << plane
        alphas[plane] = total / mass
        if refine:
            bias = _least_squares(codes, weights, importance, plane, bits, with_bias, alphas, counts, sums, matrix)
            for k in range(len(weights)):
                value = bias
                for i in range(plane, bits):
                    value += alphas[i] if (codes[k] >> i) & 1 else -alphas[i]
                left[k] = weights[k] - value
        else:
            for k in range(len(weights)):
                left[k] -= alphas[plane] if (codes[k] >> plane) & 1 else -alphas[plane]
    return bias


@kernel()
def _uniform_start(weights, bits, with_bias, alphas):
    """Set the alphas of the uniform grid over the group's range, as ``from_uniform`` converts it; return the bias."""
    low, high, last = 0.0, 0.0, float((1 << bits) - 1)
    for k in range(len(weights)):
        low, high = min(low, weights[k]), max(high, weights[k])
    if not with_bias:
        high = max(high, -low)
        low = -high
    width = np.float64(np.float32(high - low)) if with_bias else high - low
    if width == 0.0 or not math.isfinite(width):
        width = high - low
    step = width / last
    for i in range(bits):
        alphas[i] = step * 2.0 ** (i - 1)
    if not with_bias or width == 0.0:
        return 0.0
    return step * (last / 2.0 - np.rint(-low / (high - low) * last))


@kernel()
def _fit_part(
    part, parts, weights, importance, size, bits, with_bias, solver, rounds, starts, codes, alphas, biases, errors
):
    """Fit one part of all groups; apart from the parallel loop, which would try to make loops of its own inside."""
    rows, columns = weights.shape
    groups = alphas.shape[1]
    tasks = rows * groups
    many = 1 << bits
    counts, sums, levels, levels_too = np.empty(many), np.empty(many), np.empty(many), np.empty(many)
    order, order_too = np.empty(many, np.int64), np.empty(many, np.int64)
    thresholds, matrix = np.empty(many), np.empty((bits + 1, bits + 2))
    found, other, kept = np.empty(bits), np.empty(bits), np.empty(bits)
    values, mass, left = np.empty(size), np.empty(size), np.empty(size)
    trial = np.empty(size, np.uint8)
    for task in range(tasks * part // parts, tasks * (part + 1) // parts):
        row, group = task // groups, task % groups
        begin, end = group * size, min((group + 1) * size, columns)
        own = codes[row, begin:end]
        many_weights = end - begin
        w, f, r = values[:many_weights], mass[:many_weights], left[:many_weights]
        tried = trial[:many_weights]
        total, equal = 0.0, importance.shape[0] == 0
        for k in range(many_weights):
            w[k] = weights[row, begin + k]
            f[k] = 1.0 if equal else importance[row if importance.shape[0] > 1 else 0, begin + k]
            total += f[k]
        if total == 0.0:  # nothing in this group matters: then everything does alike
            f[:] = 1.0
        if solver < 2:
            bias = _greedy(w, f, bits, with_bias, solver > 0, own, found, r, counts, sums, matrix)
            _sort_planes(own, bits, found)
        else:
            bias, least = 0.0, np.inf
            for start in range(2):
                if not (starts >> start) & 1:
                    continue
                if start == 0:
                    offset = _greedy(w, f, bits, with_bias, True, tried, other, r, counts, sums, matrix)
                else:
                    offset = _uniform_start(w, bits, with_bias, other)
                _sorted_sums(bits, other, offset, levels, order, levels_too, order_too)
                before, _ = _encode(w, f, bits, levels, order, thresholds, tried)
                for _ in range(rounds):
                    kept[:], kept_offset = other, offset
                    offset = _least_squares(tried, w, f, 0, bits, with_bias, other, counts, sums, matrix)
                    for i in range(bits):
                        other[i] = abs(other[i])
                    other.sort()
                    _sorted_sums(bits, other, offset, levels, order, levels_too, order_too)
                    error, changed = _encode(w, f, bits, levels, order, thresholds, tried)
                    if not error <= before:  # only rounding can do that
                        other[:], offset = kept, kept_offset
                        _sorted_sums(bits, other, offset, levels, order, levels_too, order_too)
                        _encode(w, f, bits, levels, order, thresholds, tried)
                        break
                    before = error
                    if changed == 0:
                        break
                if before < least:
                    least, bias = before, offset
                    found[:] = other
                    own[:] = tried
            found[:] = np.abs(found)
            if (np.diff(found) < 0.0).any():
                _sort_planes(own, bits, found)
        error = 0.0
        for k in range(many_weights):
            value = bias
            for i in range(bits):
                value += found[i] if (own[k] >> i) & 1 else -found[i]
            error += f[k] * (w[k] - value) ** 2
        alphas[row, group] = found
        biases[row, group] = bias
        errors[row, group] = error


@kernel(parallel=True)
def _fit(weights, importance, size, bits, with_bias, solver, rounds, starts, codes, alphas, biases, errors):
    parts = min(alphas.shape[0] * alphas.shape[1], PARTS)
    for part in prange(parts):
        _fit_part(
            part,
            parts,
            weights,
            importance,
            size,
            bits,
            with_bias,
            solver,
            rounds,
            starts,
            codes,
            alphas,
            biases,
            errors,
        )


@kernel(parallel=True)
def _nearest(weights, size, alphas, biases, codes):
    rows, columns = weights.shape
    groups, bits = alphas.shape[1:]
    many = 1 << bits
    for row in prange(rows):
        levels, levels_too, thresholds = np.empty(many), np.empty(many), np.empty(many)
        order, order_too = np.empty(many, np.int64), np.empty(many, np.int64)
        values, ones = np.empty(size), np.ones(size)
        for group in range(groups):
            begin, end = group * size, min((group + 1) * size, columns)
            for k in range(end - begin):
                values[k] = weights[row, begin + k]
            _sorted_sums(
                bits,
                alphas[row, group],
                biases[row, group],
                levels,
                order,
                levels_too,
                order_too,
            )
            many_weights = end - begin
            _encode(values[:many_weights], ones[:many_weights], bits, levels, order, thresholds, codes[row, begin:end])


@kernel(parallel=True)
def _decode(codes, size, alphas, biases, out):
    rows, columns = codes.shape
    bits = alphas.shape[2]
    each = 0 if alphas.shape[0] == 1 else 1
    for row in prange(rows):
        levels = np.empty(1 << bits, np.float32)
        for group in range(alphas.shape[1]):
            for code in range(1 << bits):
                value = np.float64(biases[each * row, group])
                for i in range(bits):
                    alpha = np.float64(alphas[each * row, group, i])
                    value += alpha if (code >> i) & 1 else -alpha
                levels[code] = np.float32(value)
            begin, end = group * size, min((group + 1) * size, columns)
            own, place = codes[row, begin:end], out[row, begin:end]
            for k in range(end - begin):
                place[k] = levels[own[k]]


@kernel(parallel=True)
def _widest_gaps(alphas, out):
    rows, groups, bits = alphas.shape
    many = 1 << bits
    for row in prange(rows):
        levels, levels_too = np.empty(many), np.empty(many)
        order, order_too = np.empty(many, np.int64), np.empty(many, np.int64)
        for group in range(groups):
            _sorted_sums(bits, alphas[row, group], 0.0, levels, order, levels_too, order_too)
            widest = 0.0
            for k in range(many - 1):
                widest = max(widest, levels[k + 1] - levels[k])
            out[row, group] = widest


@exclusive
def fit_groups(
    weights: np.ndarray,
    importance: np.ndarray | None,
    size: int,
    bits: int,
    *,
    bias: bool,
    solver: str,
    rounds: int,
    start: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit alphas and biases to every group of every row.

    Args:
        weights: floats (rows, columns), finite; widened to float64 here, so that one compilation serves all types.
        importance: float64 (rows or 1, columns), at least 0; None where all weights count alike.
        size: weights of a group; the last group of a row may be shorter.
        bits: planes, 1 to 8.
        bias: whether groups have one.
        solver: a key of ``SOLVERS``.
        rounds: at most so many alternations.
        start: where alternations begin: ``greedy`` (refined) or ``uniform``; None tries both in each group and keeps the
            better end (1 bit: greedy alone).

    Returns:
        codes uint8 (rows, columns); alphas float64 (rows, groups, bits), ascending, at least 0; biases float64
        (rows, groups), 0 where there are none; the weighted squared error of each group.
    """
    weights = np.ascontiguousarray(weights, dtype=np.float64)
    rows, columns = weights.shape
    groups = -(-columns // size)
    codes = np.zeros((rows, columns), dtype=np.uint8)
    alphas, biases, errors = (np.empty(shape) for shape in ((rows, groups, bits), (rows, groups), (rows, groups)))
    starts = {None: 3 if bits > 1 else 1, "greedy": 1, "uniform": 2}[start]
    mass = np.empty((0, 0)) if importance is None else importance
    _fit(weights, mass, size, bits, bias, SOLVERS[solver], rounds, starts, codes, alphas, biases, errors)
    return codes, alphas, biases, errors


@exclusive
def nearest_codes(weights: np.ndarray, size: int, alphas: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Return the code of the nearest sum for every weight, uint8 (arguments as ``fit_groups`` takes and gives them)."""
    codes = np.zeros(weights.shape, dtype=np.uint8)
    _nearest(np.ascontiguousarray(weights, dtype=np.float64), size, alphas, biases, codes)
    return codes


@exclusive
def decode_groups(codes: np.ndarray, size: int, alphas: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Return the float32 weights of codes: sums in float64, rounded once.

    Args:
        codes: uint8 (rows, columns).
        size: weights of a group.
        alphas: float32 (rows or 1, groups, bits).
        biases: float32 (rows or 1, groups).
    """
    out = np.empty(codes.shape, dtype=np.float32)
    _decode(codes, size, alphas, biases, out)
    return out


@exclusive
def widest_gaps(alphas: np.ndarray) -> np.ndarray:
    """Return the widest gap between neighbouring sums of each group, float64; ``alphas`` float64 (rows, groups, bits)."""
    out = np.empty(alphas.shape[:2])
    _widest_gaps(alphas, out)
    return out
