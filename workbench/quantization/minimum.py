"""Two small minimisers for functions of one and of two numbers that cost microseconds and are not quite smooth."""

from __future__ import annotations

from collections.abc import Callable

_GOLDEN = (5**0.5 - 1.0) / 2.0


def golden_section(function: Callable[[float], float], low: float, high: float, width: float) -> float:
    """Return the best point that golden-section search meets between ``low`` and ``high``.

    Args:
        function: of one number; unimodal for the exact minimum, anything for a good one.
        low: left end.
        high: right end.
        width: the search ends when the bracket is no wider.
    """
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    best = min((at_left, left), (at_right, right))
    while high - low > width:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
            best = min(best, (at_left, left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
            best = min(best, (at_right, right))
    return best[1]


def nelder_mead(
    function: Callable[[tuple[float, float]], float],
    start: tuple[float, float],
    step: tuple[float, float],
    *,
    evaluations: int = 160,
    width: float = 1e-4,
) -> tuple[float, float]:
    """Return the best point that the simplex method of Nelder and Mead (1965) meets in the plane.

    Args:
        function: of a point.
        start: first corner of the simplex.
        step: how far the other two corners lie along each axis.
        evaluations: at most about this many questions.
        width: the search ends when the simplex is no wider along both axes.
    """
    corners = [start, (start[0] + step[0], start[1]), (start[0], start[1] + step[1])]
    simplex = sorted((function(corner), corner) for corner in corners)
    asked = 3

    def along(
        worst: tuple[float, float], centre: tuple[float, float], factor: float
    ) -> tuple[float, tuple[float, float]]:
        point = (centre[0] + factor * (worst[0] - centre[0]), centre[1] + factor * (worst[1] - centre[1]))
        return function(point), point

    while asked < evaluations:
        (best, first), (middle, second), (worst, third) = simplex
        if max(abs(first[i] - corner[i]) for corner in (second, third) for i in range(2)) <= width:
            break
        centre = ((first[0] + second[0]) / 2.0, (first[1] + second[1]) / 2.0)
        reflected = along(third, centre, -1.0)
        asked += 1
        if reflected[0] < best:
            expanded = along(third, centre, -2.0)
            asked += 1
            simplex[2] = min(reflected, expanded)
        elif reflected[0] < middle:
            simplex[2] = reflected
        else:
            contracted = along(third, centre, -0.5 if reflected[0] < worst else 0.5)
            asked += 1
            if contracted[0] < min(worst, reflected[0]):
                simplex[2] = contracted
            else:
                shrunk = [tuple((corner[i] + first[i]) / 2.0 for i in range(2)) for corner in (second, third)]
                simplex[1:] = [(function(point), point) for point in shrunk]  # type: ignore[arg-type, misc]
                asked += 2
        simplex.sort()
    return simplex[0][1]
