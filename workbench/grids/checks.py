"""Checks of grid parameters: the value in its plain Python type, or one sentence that says what is allowed."""

from __future__ import annotations

import math
import operator
from difflib import get_close_matches
from typing import Any

from workbench.errors import GridError


def whole(value: Any, name: str, grid: str, low: int, high: int) -> int:
    """Return ``value`` as an int from ``low`` to ``high``.

    Raises:
        GridError: it is no whole number, or outside the range.
    """
    try:
        number = operator.index(value) if not isinstance(value, bool) else None
    except TypeError:
        number = None
    if number is None:
        message = f"{name} of {grid} is a whole number from {low} to {high}, not {shown(value)}"
        raise GridError(message)
    if not low <= number <= high:
        message = f"{name} of {grid} lies between {low} and {high}, not at {shown(number)}"
        raise GridError(message)
    return number


def real(value: Any, name: str, grid: str) -> float:
    """Return ``value`` as a finite float.

    Raises:
        GridError: it is no finite number.
    """
    try:
        number = float(value) if not isinstance(value, str | bytes | bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        message = f"{name} of {grid} is a finite number, not {shown(value)}"
        raise GridError(message)
    return number


def truth(value: Any, name: str, grid: str) -> bool:
    """Return ``value`` as a bool (numpy's included).

    Raises:
        GridError: it is neither true nor false.
    """
    if isinstance(value, bool) or type(value).__name__ in {"bool_", "bool"}:
        return bool(value)
    message = f"{name} of {grid} is True or False, not {shown(value)}"
    raise GridError(message)


def choice(value: Any, name: str, grid: str, allowed: tuple[Any, ...]) -> Any:
    """Return ``value`` where it is one of ``allowed``.

    Raises:
        GridError: it is not; the sentence names the nearest one.
    """
    if any(value == known and type(value) is type(known) for known in allowed):
        return value
    words = [str(known) for known in allowed]
    message = f"{name} of {grid} is one of {', '.join(words)}, not {shown(value)}{nearest(value, words)}"
    raise GridError(message)


def nearest(word: Any, known: list[str]) -> str:
    """Return `` (did you mean ...?)`` where a known word is near, else nothing."""
    close = get_close_matches(str(word)[:80].strip().lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def shown(value: Any) -> str:
    """Return ``value`` as an error sentence quotes it: its repr, cut when long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
