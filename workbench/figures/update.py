"""Bring a figure that is on screen to the state of a new one, in one message and without flicker."""

from __future__ import annotations

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
            # Not overwrite=True: it would assign the arrays that did not change, and send them again.
            # And not to_dict(): it writes arrays as base64 specs, which a FigureWidget's browser side echoes back whole.
            properties = fresh.to_plotly_json().items()
            old.update(
                {
                    name: value
                    for name, value in properties
                    if name not in {"type", "uid"} and not _same(old, name, value)
                }
            )
        shown.update_layout(layout)
    before, after = traces(shown), traces(new)
    if len(before) > len(after):
        shown.data = tuple(before[: len(after)])
    elif len(after) > len(before):
        shown.add_traces(after[len(before) :])


def _same(old: Any, name: str, value: Any) -> bool:
    """Return whether an array is the old one, gaps (NaN) included: plotly itself holds NaN for a change."""
    return isinstance(value, np.ndarray) and np.array_equal(value, old[name], equal_nan=value.dtype.kind == "f")


def traces(figure: go.Figure) -> list[Any]:
    """Return a figure's traces (``figure.data`` as type checkers can read it)."""
    return list(cast("tuple[Any, ...]", figure.data))
