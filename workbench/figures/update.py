"""Bring a figure that is on screen to the state of a new one, in one message and without flicker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go


def update_in_place(shown: go.Figure, new: go.Figure) -> None:
    """Give ``shown`` the traces and the layout of ``new``.

    Traces stay where they are and change only what differs, so the browser redraws without rebuilding and the
    person's zoom (``uirevision``) survives. Traces that ``new`` has more or fewer of are added or taken away.

    Args:
        shown: a ``go.Figure`` or a ``FigureWidget`` on screen.
        new: the figure to become; left as it is.
    """
    if any(old.type != fresh.type for old, fresh in zip(traces(shown), traces(new), strict=False)):
        shown.data = ()
    layout = cast("Any", new.layout).to_plotly_json()
    with shown.batch_update():
        for old, fresh in zip(traces(shown), traces(new), strict=False):
            for path, value in changes(old.to_plotly_json(), fresh.to_plotly_json()):
                old[path] = value
        shown.update_layout(layout)
    before, after = traces(shown), traces(new)
    if len(before) > len(after):
        shown.data = tuple(before[: len(after)])
    elif len(after) > len(before):
        shown.add_traces(after[len(before) :])


def changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every property that turns ``before`` into ``after``; None takes a property away.

    Values come leaf by leaf (``marker.color``, never ``marker``): in a message for several traces, those without the
    change get ``undefined`` in its place, and plotly's page breaks on a trace whose ``marker`` is undefined.
    """
    for name in dict.fromkeys((*before, *after)):
        if not path and name in {"type", "uid"}:
            continue
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            yield from changes(old or {}, new or {}, f"{path}{name}.")
        elif not _same(old, new):
            yield path + name, new


def _same(a: Any, b: Any) -> bool:
    """Return whether two properties are equal, gaps (NaN) of arrays included: plotly itself holds NaN for a change."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if a is None or b is None:
            return False
        first, second = np.asarray(a), np.asarray(b)
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    return type(a) is type(b) and a == b


def traces(figure: go.Figure) -> list[Any]:
    """Return a figure's traces (``figure.data`` as type checkers can read it)."""
    return list(cast("tuple[Any, ...]", figure.data))
