"""What the panels with plotly figures share: figures that change in place, results from the worker, pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import ipywidgets as widgets

from workbench.errors import Cancelled
from workbench.panels.panel import Panel
from workbench.panels.plot_view import PlotView
from workbench.panels.snapshot import Snapshot

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from PIL import Image

    from workbench.grids import Grid
    from workbench.panels.jobs import Job

#: How long a snapshot waits for numbers that are being computed.
SNAPSHOT_PATIENCE = 10.0


class FigurePanel(Panel):
    """A panel of plotly figures.

    A subclass calls ``place`` for each figure in ``build``, ``draw`` whenever one changes, and ``compute`` for what
    takes more than a few milliseconds.
    """

    #: Jobs of the session's worker whose results the panel shows: a snapshot waits for them.
    jobs: tuple[str, ...] = ()

    def place(self, name: str, figure: go.Figure, least: int = 360) -> widgets.Box:
        """Make the widget of a figure and return the box that holds it, at least ``least`` pixels wide."""
        view = PlotView(figure)
        self._views[name] = view
        return cell(view, least)

    def draw(self, name: str, figure: go.Figure) -> None:
        """Bring a figure on screen to a new state, in place."""
        if not self._is_closed:
            self._views[name].show(figure)

    def figure(self, name: str) -> go.Figure:
        """Return the figure of this name as it is on screen."""
        return self._views[name].figure

    def on_point(self, name: str, handler: Callable[[Any], None]) -> None:
        """Call ``handler(customdata)`` when a point of the figure is clicked."""
        self._views[name].on_point(handler)

    def compute(
        self,
        kind: str,
        work: Callable[[Job], Any],
        show: Callable[[Any], None],
        *,
        label: str = "",
        priority: int = 3,
        delay: float = 0.0,
    ) -> None:
        """Run ``work(job)`` on the session's worker and ``show(result)`` after it; the latest of a kind wins.

        The kind is the panel's own: two panels of one class do not push each other's work away. ``show`` runs with the
        session's lock held. What takes long goes behind the session's exact error (priority 2) and waits ``delay``
        seconds for the person to come to rest.
        """

        def run(job: Job) -> None:
            try:
                result = work(job)
                with self.session.lock:
                    job.check()
                    if not self._is_closed:
                        show(result)
            except Cancelled:
                raise
            except Exception as error:  # on the worker nobody else would tell the person
                if not self._is_closed:
                    self.show_error(error, kind)
            else:
                self.clear_error(kind)

        self.session.worker.submit(self._kind(kind), run, priority=priority, delay=delay, label=label)

    def wait(self, timeout: float = SNAPSHOT_PATIENCE) -> bool:
        """Block until what the panel shows is computed; False when ``timeout`` seconds passed first."""
        if threading.current_thread() is self.session.worker.thread:
            return False
        kinds = tuple(kind if kind in {"sketch", "exact"} else self._kind(kind) for kind in self.jobs)
        return self.session.wait(timeout, kinds=kinds)

    def pictures(self) -> Sequence[Image.Image]:
        """Return the pictures of a snapshot, top to bottom."""
        from workbench.figures.picture_figure import draw_figure

        figures: list[Any] = [view.figure for view in self._views.values()]
        return [draw_figure(figure, 760, int(figure.layout.height or 280), self.session.theme) for figure in figures]

    def snapshot(self) -> Snapshot:
        """Return a picture of the panel's figures, drawn without a browser, and the numbers in them."""
        from workbench.figures.picture import draw_text, png, stack

        self.wait()
        dress = self.session.theme
        heading = f"{self.title}: {self.session.layer_name or 'no layer'}, {self.grid.label}"
        sheet = stack([draw_text([heading], 760, dress), *self.pictures()], dress=dress)
        return Snapshot(png(sheet), self.numbers())

    @property
    def grid(self) -> Grid:
        """The session's grid."""
        return cast("Grid", self.session.grid)

    @property
    def _views(self) -> dict[str, PlotView]:
        # Made on first use: ``build`` runs inside the base's constructor.
        if "_views_by_name" not in self.__dict__:
            self._views_by_name: dict[str, PlotView] = {}
        return self._views_by_name

    def _kind(self, kind: str) -> str:
        return f"{kind} {id(self)}"


def cell(widget: widgets.Widget, least: int = 360, grow: int = 1) -> widgets.Box:
    """Return a box that shares a row with others and wraps below them where the page is narrow."""
    return widgets.Box(
        [widget], layout={"flex": f"{grow} 1 {least}px", "min_width": "0", "overflow": "hidden", "display": "block"}
    )


def row(*boxes: widgets.Widget) -> widgets.Box:
    """Return a row of cells that wraps."""
    return widgets.Box(boxes, layout={"display": "flex", "flex_flow": "row wrap", "width": "100%", "grid_gap": "8px"})


def choice(label: str, options: Sequence[str] | Sequence[tuple[str, Any]], value: Any) -> Any:
    """Return a labelled drop-down list; unlike toggle buttons it tells a screen reader its name and state."""
    return widgets.Dropdown(
        description=label,
        options=options,
        value=value,
        style={"description_width": "initial"},
        layout={"width": "auto", "margin": "0 8px 0 0"},
    )
