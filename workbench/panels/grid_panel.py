"""Grid: the live widget, linked to the session both ways."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import ipywidgets as widgets

from workbench.panels.code import preamble
from workbench.panels.live import LiveGrid
from workbench.panels.live.answers import Source, about, browser_sketch, why_not_live
from workbench.panels.live.widget import STATE
from workbench.panels.panel import Panel, guarded
from workbench.panels.snapshot import Snapshot

if TYPE_CHECKING:
    from workbench.checkpoints import Layer
    from workbench.grids import Grid
    from workbench.panels.jobs import Job
    from workbench.quantization import ErrorReport, Sketch

#: How long a picture waits for the session's sketch.
PATIENCE = 10.0


class GridPanel(Panel):
    """Family, bits, exponent, clip, granularity and scale rule of the session's grid, and the error they make, live.

    The browser tells its state when the mouse rests; the panel sets the session, and shows the session's exact error
    beside the state it was measured for. Whoever else sets the session moves the sliders.
    """

    title: ClassVar[str] = "Grid"

    def build(self) -> Sequence[widgets.Widget]:
        """Make the live widget and link it."""
        self.live = LiveGrid()
        self._told: dict[str, Any] = {}
        self._fitted_on: tuple[Any, ...] = ()
        self._shown: Sketch | None = None
        self._layer: Layer | None = None
        self.live.observe(self._take_from_page, STATE)
        self.watch(self._show_state, "grid", "granularity", "scale_rule", "clip")
        self.watch(self._show_sketch, "layer", "sketch", "grid")
        self.watch(self._show_answer, "exact", "report")
        self.watch(self._show_failure, "message")
        self._show_state()
        self._show_sketch()
        self._show_answer()
        return (self.live,)

    # ------------------------------------------------------------------ from the page to the session

    @guarded
    def _take_from_page(self, _change: Any) -> None:
        """Bring the session to what the page says; one message holds the whole state, so once is enough."""
        session, live = self.session, self.live
        with session.lock:
            state = live.state
            changed = {name for name in STATE if state[name] != self._told.get(name)}
            if not changed:
                return
            if live.family == "k-means" and not live.has_codebook:
                self._fit_codebook()
                return
            self._told = state
            with session.hold_trait_notifications():
                if changed & {"family", "bits", "exponent", "rounding", "range"}:
                    session.set_grid(live.grid)
                for name in ("granularity", "scale_rule", "clip"):
                    if name in changed:
                        setattr(session, name, state[name])
        # A sentence that the session refused with leaves its state as it was: the page follows.
        self._show_state()

    def _fit_codebook(self) -> None:
        """Fit the k-means codebook that the page asks for, and take it."""
        session, bits = self.session, self.live.bits
        layer, granularity = session.layer, self.live.granularity
        if layer is None:
            return

        def work(_job: Job) -> Grid:
            from workbench.quantization import kmeans, sketch

            return kmeans(sketch(layer, granularity), bits)

        @guarded
        def show(self: GridPanel, grid: Grid) -> None:
            if not self._is_closed and self.live.family == "k-means" and self.live.bits == bits:
                self.live.add_codebook(grid, bits)
                self._told = {}
                session.granularity = granularity
                session.set_grid(grid)
                self._show_state()

        session.background(
            f"k-means {id(self)}", work, lambda grid: show(self, grid), label=f"fitting {bits}-bit k-means"
        )

    # ------------------------------------------------------------------ from the session to the page

    @guarded
    def _show_state(self, _change: Any = None) -> None:
        """Move the controls to the session's state."""
        session, live = self.session, self.live
        with session.lock, live.hold_sync(), live.hold_trait_notifications():
            live.grid = self.grid
            live.granularity = session.granularity
            live.scale_rule = session.scale_rule
            live.clip = session.clip
            live.message = why_not_live(self.grid, session.scale_rule)
            self._told = live.state
            if session.layer is not None:
                from workbench.quantization import bits_per_weight

                bits = bits_per_weight(self.grid, session.granularity, session.layer.shape)
                live.show_bits(bits, self.grid)

    @guarded
    def _show_sketch(self, _change: Any = None) -> None:
        """Give the page the layer's sketch, or say that it is on its way."""
        session, live = self.session, self.live
        layer, sketch = session.layer, session.sketch
        if layer is not self._layer:
            self._layer = layer
            live.show_exact(None)
        if layer is None:
            live.forget_codebooks()
            live.show_waiting("open a model and pick a layer", "")
            self._shown = None
            return
        fitted_on = (layer.content_key, layer.name, session.granularity)
        if fitted_on != self._fitted_on:
            live.forget_codebooks()
            self._fitted_on = fitted_on
            self._show_state()
        if sketch is None:
            live.show_waiting(f"reading {layer.name} …", layer.name)
        elif browser_sketch(sketch):
            self._publish(sketch)
        else:
            granularity, normalization = session.granularity, self.grid.normalization
            if self._shown is not None and _is_of(self._shown, layer, granularity, normalization):
                self._publish(self._shown)
                return

            def work(job: Job) -> Sketch:
                from workbench.quantization import sketch

                return sketch(layer, granularity, normalization, progress=job.progress)

            session.background(f"live {id(self)}", work, self._publish, label=f"reading {layer.name}")

    @guarded
    def _show_failure(self, _change: Any = None) -> None:
        """Say why a layer cannot be read; a sketch that arrives after all takes the sentence away."""
        session = self.session
        if session.message and session.layer is not None and session.sketch is None:
            self._shown = None
            self.live.show_failed(session.message, session.layer.name)

    @guarded
    def _publish(self, sketch: Sketch) -> None:
        layer = self.session.layer
        if self._is_closed or layer is None or sketch.name != layer.name:
            return
        self._shown = sketch
        self.live.show_sketch(sketch, about(layer.shape, layer.dtype))

    @guarded
    def _show_answer(self, _change: Any = None) -> None:
        """Show the exact error; before that, the sketch's, where the browser cannot tell by itself.

        An answer carries the state that it belongs to, so a new state needs no taking back: the page ignores what does
        not fit. Only another layer's answer could be mistaken, and goes with its sketch.
        """
        session = self.session
        with session.lock:
            report = session.exact
            if report is None and why_not_live(self.grid, session.scale_rule):
                report = session.report
            if report is not None:
                self.live.show_exact(report, self._told)

    @property
    def grid(self) -> Grid:
        """The session's grid."""
        return cast("Grid", self.session.grid)

    @property
    def answer(self) -> ErrorReport | None:
        """What the session knows of the present state: the exact error, else the sketch's, else None."""
        return self.session.exact or self.session.report

    # ------------------------------------------------------------------ code, picture, page

    def code(self) -> str:
        """Return Python that measures the same error on the same weights."""
        session = self.session
        return (
            f"{preamble(session, 'exact_error')}\n"
            f"report = exact_error(layer, grid, granularity={session.granularity!r}, scale={session.scale_rule!r}, "
            f"clip={session.clip!r})\n"
            "print(report.mse, report.sqnr_db)"
        )

    def numbers(self) -> dict[str, Any]:
        """Return the state, the error and its badge, and the bits per weight."""
        session = self.session
        found: dict[str, Any] = session.to_spec()
        if session.layer is not None:
            found["bits_per_weight"] = self.live.overhead + self.grid.bits
        if self.answer is not None:
            found |= self.answer.to_dict()
        return found

    def snapshot(self) -> Snapshot:
        """Return a picture of the histogram with the levels on it, drawn without a browser, and the numbers."""
        from workbench.figures.picture import draw_text, png, stack
        from workbench.figures.picture_figure import draw_figure

        session = self.session
        if session.layer is not None and self.answer is None and not self._on_worker():
            session.wait(PATIENCE, kinds=("sketch", "exact"))
        report = self.answer
        lines = [f"{self.title}: {session.layer_name or 'no layer'}, {self.grid.label}, {session.granularity}"]
        if report is not None:
            lines.append(f"SQNR {report.badge} {report.sqnr_db:.2f} dB\tMSE {report.badge} {report.mse:.4g}")
        parts = [draw_text(lines, 760, session.theme)]
        figure = self._figure()
        if figure is not None:
            parts.append(draw_figure(figure, 760, 320, session.theme))
        return Snapshot(png(stack(parts, dress=session.theme)), self.numbers())

    def _figure(self) -> Any:
        """Return the histogram with the grid's levels; None while there is no sketch."""
        from workbench.figures.distribution import Bars, histogram_figure
        from workbench.quantization.normalised import normalised_histogram, normalised_levels

        session, sketch = self.session, self.session.sketch
        if sketch is None:
            return None
        counted = normalised_histogram(sketch, 256)
        shared = session.scale_rule == "absmax"
        return histogram_figure(
            Bars(session.layer_name, counted.edges, counted.counts),
            levels=normalised_levels(self.grid, session.clip) if shared else None,
            codes=self.grid.codes,
            log=self.live.log_counts,
            x_title=self.live.info["unit"],
            dress=session.theme,
        )

    def _on_worker(self) -> bool:
        import threading

        return threading.current_thread() is self.session.worker.thread

    def to_html(self, path: str | os.PathLike[str], *, title: str | None = None, note: str = "") -> Path:
        """Write the live widget into one page whose sliders are alive without a kernel (see ``LiveGrid.to_html``)."""
        from workbench.panels.static_html import write_page

        layer = self.session.layer
        return write_page(self.live, path, title=title, note=note, source=Source(layer) if layer is not None else None)


def _is_of(sketch: Sketch, layer: Any, granularity: str, normalization: str) -> bool:
    return (sketch.name, sketch.granularity, sketch.normalization) == (layer.name, granularity, normalization)
