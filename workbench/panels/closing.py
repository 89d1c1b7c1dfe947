"""Closing widgets for good: ipywidgets keeps every one, with its layout and style, until each is closed."""

from __future__ import annotations

import ipywidgets as widgets


def close_tree(widget: widgets.Widget, *, itself: bool = True) -> None:
    """Close a widget with everything in it; a layout that was replaced by assignment cannot be found any more."""
    for child in getattr(widget, "children", ()):
        close_tree(child)
    if itself:
        for part in ("layout", "style"):
            inner = getattr(widget, part, None)
            if isinstance(inner, widgets.Widget):
                inner.close()
        widget.close()
