"""Plotly figures as widgets that share one copy of plotly's JavaScript.

Each ``plotly.graph_objects.FigureWidget`` carries plotly.js itself: 5 MB over the wire, into the browser's memory and
into the saved notebook, for every figure. Here one hidden widget carries the bundle, and figures wait for it.
"""

from __future__ import annotations

import functools
import re
import threading
from pathlib import Path
from typing import Any

import anywidget
import plotly
import plotly.graph_objects as go

_KEY = "__workbench_plotly_" + re.sub(r"\W", "_", plotly.__version__)
#: A promise that the bundle resolves, whichever of bundle and figures the browser meets first.
_SLOT = f"""(globalThis.{_KEY} ??= (() => {{
  const slot = {{}};
  slot.promise = new Promise((resolve) => {{ slot.resolve = resolve; }});
  return slot;
}})())"""


class SharedFigureWidget(go.FigureWidget):
    """A ``FigureWidget`` whose JavaScript is a promise of the shared bundle."""

    _esm = f"""
export default async () => {{
  const widget = await {_SLOT}.promise;
  return typeof widget === "function" ? await widget() : widget;
}};
"""


class _Bundle(anywidget.AnyWidget):
    """Carries plotly's widget bundle to the page, once; it is never displayed."""


_lock = threading.Lock()
_bundle: _Bundle | None = None


@functools.cache
def _bundle_source() -> str | None:
    """Return plotly's widget module, changed to resolve the promise; None where this plotly is laid out otherwise."""
    try:
        source = (Path(plotly.__file__).parent / "package_data" / "widgetbundle.js").read_text(encoding="utf-8")
        export = list(re.finditer(r"export\s*\{[^}]*?([\w$]+) as default\s*\}", source))[-1]
    except (OSError, IndexError):
        return None
    resolve = f";{_SLOT}.resolve({export[1]});export default {{}};\n"
    return source[: export.start()] + resolve + source[export.end() :]


def _share_bundle() -> bool:
    """Make sure that a live bundle widget exists; False where figures must carry their own."""
    global _bundle  # noqa: PLW0603 - one for the kernel is the point
    with _lock:
        source = _bundle_source()
        if source is None:
            return False
        if _bundle is None or _bundle.comm is None:
            _bundle = _Bundle(_esm=source)
        return True


def figure_view(figure: go.Figure | None = None, **layout: Any) -> go.FigureWidget:
    """Return a plotly figure as a widget that fills the width it is given.

    Args:
        figure: the figure; numpy arrays in it stay arrays. (Base64 specs from ``plotly.io`` would make the page send
            the whole data back for each row: rebuild such figures from arrays first.)
        layout: plotly layout entries, e.g. ``height=280``.
    """
    kind = SharedFigureWidget if _share_bundle() else go.FigureWidget
    view = kind(figure if figure is not None else go.Figure())
    view.update_layout(autosize=True, uirevision="keep", **layout)
    view.layout.width = None
    return view
