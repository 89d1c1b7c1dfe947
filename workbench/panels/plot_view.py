"""Plotly figures as widgets: one copy of plotly.js for the page, one small message for a change.

plotly's own ``FigureWidget`` brings 5 MB of JavaScript with every figure, answers each update with its whole state, and
loses updates that arrive before its page has drawn it, when it stands inside another widget. Here the whole figure is
one synchronised text (its arrays as base64), and the browser's ``Plotly.react`` works out what differs: the page shows
the kernel's figure after a reload, in a tab that was hidden, and in a saved notebook.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

if TYPE_CHECKING:
    import plotly.graph_objects as go


class PlotView(anywidget.AnyWidget):
    """A plotly figure that fills the width it is given.

    Args:
        figure: what to show first; None is an empty figure.
    """

    _esm = Path(__file__).with_name("plot_view.js")

    spec = traitlets.Unicode('{"data": [], "layout": {}}').tag(sync=True)
    """The figure as JSON."""
    clicked = traitlets.Dict().tag(sync=True)
    """The last click: ``data``, the point's ``customdata``, and ``count``, which makes every click a change."""
    library = traitlets.Unicode().tag(sync=True)
    """Where the page keeps plotly.js."""

    def __init__(self, figure: go.Figure | None = None, **traits: Any) -> None:
        import plotly.graph_objects as go

        super().__init__(library=share_library(), **traits)
        self.figure: go.Figure = go.Figure()
        self._on_point: Callable[[Any], None] | None = None
        self.observe(self._pass_click_on, "clicked")
        if figure is not None:
            self.show(figure)

    def show(self, figure: go.Figure) -> None:
        """Bring the figure on screen to a new state; its ``uirevision`` decides whether a zoom survives."""
        self.figure = figure
        self.spec = str(figure.to_json())

    def on_point(self, handler: Callable[[Any], None]) -> None:
        """Call ``handler(customdata)`` when a point that has ``customdata`` is clicked (instead of any other handler)."""
        self._on_point = handler

    def _pass_click_on(self, _change: Any) -> None:
        if self._on_point is not None and "data" in self.clicked:
            self._on_point(self.clicked["data"])


class _Library(anywidget.AnyWidget):
    """Carries plotly.js to the page, once; it is never displayed.

    The source is a trait and no module of the widget itself: anywidget gives a module two seconds to load, which a busy
    machine may not manage with 5 MB.
    """

    _esm = """
    async function load(key, source) {
      const slot = (globalThis[key] ??= (() => {
        const made = {};
        made.promise = new Promise((resolve) => { made.resolve = resolve; });
        return made;
      })());
      if (slot.loading) return;
      slot.loading = true;
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const page = globalThis.Plotly;                       // JupyterLab's own, where it has one
      const { default: Plotly } = await import(url);
      URL.revokeObjectURL(url);
      if (page === undefined) delete globalThis.Plotly; else globalThis.Plotly = page;
      slot.resolve(Plotly);
    }
    export default { initialize({ model }) { load(model.get("key"), model.get("source")); } };
    """
    key = traitlets.Unicode().tag(sync=True)
    source = traitlets.Unicode().tag(sync=True)


_lock = threading.Lock()
_library: _Library | None = None


def share_library() -> str:
    """Make sure that a live widget carries plotly.js, and return the name under which the page keeps it."""
    global _library  # noqa: PLW0603 - one for the kernel is the point
    key, source = _module()
    with _lock:
        if _library is None or _library.comm is None:
            _library = _Library(key=key, source=source)
    return key


@functools.cache
def _module() -> tuple[str, str]:
    """Return the page's name for plotly.js, and plotly.js as an ES module.

    plotly.js is written for pages and for CommonJS: it gets a ``module`` to fill, and must not see a loader's ``define``.
    """
    import plotly
    from plotly.offline import get_plotlyjs

    key = "__workbench_plotly_" + re.sub(r"\W", "_", plotly.__version__)
    lines = (
        "const module = { exports: {} };",
        "const define = undefined;",
        get_plotlyjs(),
        "export default module.exports;",
    )
    return key, "\n".join(lines)
