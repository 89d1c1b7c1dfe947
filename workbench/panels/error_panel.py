"""Error: what the grid costs on the layer, beside other grids of the same bits; the landscape; each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from workbench.errors import WorkbenchError
from workbench.figures.channels import channel_error_figure
from workbench.figures.comparison import Bar, comparison_figure
from workbench.figures.frame import framed
from workbench.figures.landscape import LandscapeMap, landscape_map
from workbench.figures.palette import sequential, theme
from workbench.panels.code import preamble
from workbench.panels.error_table import Line, grid_kind, table_html, table_text
from workbench.panels.figure_panel import FigurePanel, cell, choice, row
from workbench.panels.map_view import MapView, colour_bytes
from workbench.panels.panel import guarded

if TYPE_CHECKING:
    from PIL import Image

    from workbench.panels.jobs import Job
    from workbench.quantization import ErrorReport
    from workbench.quantization.contenders import Contender, Contest

#: Cells of the landscape along each axis.
CELLS = 64
#: The marker of the landscape moves in these steps of exponent and clip.
MARKER_STEP = 0.005


class ErrorPanel(FigurePanel):
    """The reconstruction error of the layer on the grid, and whether another grid would do better."""

    title: ClassVar[str] = "Error"
    jobs = ("sketch", "exact", "contest", "landscape")

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out the table and the bars over the landscape and the channels."""
        self._contest: Contest | None = None
        self._rivals: tuple[Contender, Contender] | None = None
        self._landscape: LandscapeMap | None = None
        self._landscape_key: tuple[Any, ...] = ()
        self._contest_key: tuple[Any, ...] = ()
        self.order = choice("Channels", [("by number", False), ("by falling error", True)], False)
        self.order.observe(self._draw_channels, "value")
        self.tools.children = (self.order,)
        self.table = widgets.HTML(layout={"width": "100%"})
        dress = self.session.theme
        bars = self.place("bars", framed([], title="", x="grid", y="SQNR / dB", dress=dress, height=300), 420)
        channels = self.place("channels", self._no_channels(), 420)
        self.on_point("channels", self._point_clicked)
        table = colour_bytes(sequential(), sequential())
        self.map = MapView(
            colours=table,
            up=True,
            pickable=True,
            x_label="exponent",
            y_label="clip (fraction of absmax)",
            value_label="SQNR / dB",
            x_name="exponent",
            y_name="clip",
            value_name="SQNR ≈",
            value_unit="dB",
            x_step=MARKER_STEP,
            y_step=MARKER_STEP,
            height=330,
        )
        self.map.observe(self._marker_moved, "marker")
        self.about_map = widgets.HTML(layout={"width": "100%"})
        landscape = widgets.VBox([self.about_map, self.map], layout={"width": "100%"})
        self.watch(self._grid_changed, "grid", "clip", "layer", "granularity", "scale_rule")
        self.watch(self._numbers_changed, "report", "exact")
        self.watch(self._sketch_changed, "sketch")
        self.watch(self._channel_changed, "channel")
        self.watch(self._draw_all, "theme")
        self._grid_changed()
        self._sketch_changed()
        return (self.table, row(bars, cell(landscape, 420)), row(channels))

    # ------------------------------------------------------------------ what follows from a change

    @guarded
    def _grid_changed(self, _change: Any = None) -> None:
        self._hold_contest()
        self._place_marker()
        self._draw_all()

    @guarded
    def _numbers_changed(self, _change: Any = None) -> None:
        self._draw_table()
        self._draw_bars()
        if self.session.exact is not None:
            self._draw_channels()

    @guarded
    def _sketch_changed(self, _change: Any = None) -> None:
        self._draw_landscape()

    @guarded
    def _channel_changed(self, _change: Any = None) -> None:
        self._draw_channels()

    def _hold_contest(self) -> None:
        """Ask for the other grids of the same bits, unless they are known: the present grid does not change them."""
        session, layer = self.session, self.session.layer
        if layer is None:
            self._contest, self._rivals, self._contest_key = None, None, ()
            return
        bits, granularity = self.grid.bits, session.granularity
        if not 2 <= bits <= 8:
            self._contest, self._rivals, self._contest_key = None, None, ()
            return
        rule = "mse" if session.scale_rule == "mse" else "absmax"
        key = (layer.content_key, layer.name, bits, granularity, rule, self._budget())
        if key == self._contest_key:
            return
        self._contest_key, self._contest, self._rivals = key, None, None

        def work(job: Job) -> tuple[Contest, tuple[Contender, Contender]]:
            from workbench.quantization.contenders import contest, measured

            found = contest(layer, bits, granularity, progress=lambda done: job.progress(0.8 * done))
            rivals = []
            for rival in (found.uniform, found.best(key[-1])):
                job.check()
                rivals.append(measured(layer, rival, granularity, rule))
            return found, (rivals[0], rivals[1])

        def show(result: tuple[Contest, tuple[Contender, Contender]]) -> None:
            self._contest, self._rivals = result
            self._draw_all()

        self.compute(
            "contest", work, show, label=f"trying every grid of {bits} bits on {layer.name}", priority=6, delay=0.2
        )

    def _budget(self) -> float:
        """Return the bits per weight that the present grid takes on the layer, scales counted."""
        from workbench.quantization import bits_per_weight

        layer = self.session.layer
        return 0.0 if layer is None else bits_per_weight(self.grid, self.session.granularity, layer.weight.shape)

    # ------------------------------------------------------------------ the landscape

    def _draw_landscape(self) -> None:
        """Ask for the landscape of the layer, unless it is on screen: it holds every exponent and clip already."""
        session, layer = self.session, self.session.layer
        bits = self.grid.bits
        if layer is None or not 2 <= bits <= 8:
            self._landscape, self._landscape_key = None, ()
            self.map.clear()
            self.about_map.value = ""
            return
        granularity = session.granularity
        rounding: Any = getattr(self.grid, "rounding", "power")
        key = (layer.content_key, layer.name, bits, granularity, rounding)
        if key == self._landscape_key:
            return
        self._landscape_key = key

        def work(job: Job) -> LandscapeMap:
            from workbench.quantization import landscape, sketch

            try:
                found = landscape(sketch(layer, granularity, progress=job.progress), bits, rounding=rounding)
            except WorkbenchError:
                with session.lock:
                    job.check()
                    self._clear_figures()
                raise
            return landscape_map(found)

        def show(found: LandscapeMap) -> None:
            self._landscape = found
            exponent, clip = found.best
            label = (
                f"Exponent and clip of {bits}-bit power grids on {layer.name}; best at {exponent:.3f} and {clip:.3f}"
            )
            self.map.show(
                found.values,
                x_edges=found.exponent_edges,
                y_edges=found.clip_edges,
                low=found.low,
                high=found.high,
                best=[exponent, clip],
                label=label,
                value_name=f"SQNR {found.badge}",
            )
            self.about_map.value = (
                f"<b>Every exponent and clip</b> of {bits}-bit power grids, {found.badge} from the sketch. Drag the marker, or move "
                f"it by the arrow keys; Home goes to the best (×): {found.high:.2f} dB at exponent {exponent:.3f}, "
                f"clip {clip:.3f}."
            )
            self._place_marker()

        self.compute("landscape", work, show, label=f"landscape of {layer.name}", priority=5, delay=0.1)

    def _clear_figures(self) -> None:
        """Leave nothing of the layer before on screen: the present one cannot be measured."""
        self._landscape = None
        self.map.clear()
        self.about_map.value = ""
        self.draw("channels", self._no_channels())

    def _no_channels(self) -> Any:
        return framed([], title="", x="output channel", y="mean squared error", dress=self.session.theme, height=300)

    def _place_marker(self) -> None:
        from workbench.grids import PowerGrid

        grid = self.grid
        self.map.marker = [grid.exponent, self.session.clip] if isinstance(grid, PowerGrid) else []

    @guarded
    def _marker_moved(self, _change: Any) -> None:
        """Take the marker's exponent and clip, both in one change of the session."""
        from workbench.grids import PowerGrid

        session, grid = self.session, self.grid
        if len(self.map.marker) != 2 or self._landscape is None:
            return
        exponent, clip = self.map.marker
        clip = min(1.0, max(0.05, clip))
        exponent = min(2.0, max(MARKER_STEP, exponent))
        power = replace(grid, exponent=exponent) if isinstance(grid, PowerGrid) else PowerGrid(grid.bits, exponent)
        if (power, clip) == (grid, session.clip):
            return
        session.from_spec({"grid": str(power), "clip": clip, "scale_rule": "absmax"})
        self._place_marker()

    # ------------------------------------------------------------------ drawing

    @guarded
    def _draw_all(self, _change: Any = None) -> None:
        self._draw_table()
        self._draw_bars()
        self._draw_channels()
        self._draw_landscape()

    def _mine(self) -> ErrorReport | None:
        """Return the error of the present grid: measured where it is known, else from the sketch."""
        return self.session.exact or self.session.report

    def _lines(self) -> list[Line]:
        """Return what the table says: this grid and its rivals."""
        session, lines = self.session, []
        if session.layer is not None:
            lines.append(Line("this grid", self.grid, session.clip, self._budget(), self._mine()))
        if self._rivals is not None:
            for name, rival in zip(("uniform, same bits", "best of all grids"), self._rivals, strict=True):
                lines.append(Line(name, rival.grid, rival.clip, rival.bits_per_weight, rival.report))
        return lines

    def _draw_table(self) -> None:
        self.table.value = table_html(self._lines())

    def _draw_bars(self) -> None:
        mine = self._mine()
        bars = []
        if mine is not None:
            grid = self.grid
            bars.append(Bar("this grid", mine.sqnr_db, mine.mse, self._budget(), mine.badge, "current", grid.label))
        if self._contest is not None and self._rivals is not None:
            uniform, best = self._rivals
            for entry in self._contest.contenders:
                rival, part = entry, "other"
                if entry.grid == best.grid:
                    rival, part = best, "best"
                elif entry.grid == uniform.grid:
                    rival, part = uniform, "uniform"
                report = rival.report
                bars.append(
                    Bar(grid_kind(rival.grid), report.sqnr_db, report.mse, rival.bits_per_weight, report.badge, part, rival.grid.label)
                )  # fmt: skip
        self.draw("bars", comparison_figure(bars, dress=self.session.theme, height=300))

    @guarded
    def _draw_channels(self, _change: Any = None) -> None:
        exact = self.session.exact
        if exact is None or exact.per_channel is None:
            return
        uniform = self._rivals[0].report.per_channel if self._rivals is not None else None
        figure = channel_error_figure(
            exact.per_channel,
            reference=uniform if uniform is not None and len(uniform) == len(exact.per_channel) else None,
            names=("this grid", "uniform, same bits"),
            ordered=self.order.value,
            picked=self.session.channel,
            badge=exact.badge,
            dress=self.session.theme,
            height=300,
        )
        self.draw("channels", figure)

    @guarded
    def _point_clicked(self, data: Any) -> None:
        self.session.channel = int(data[0])

    # ------------------------------------------------------------------ picture, numbers, code

    def pictures(self) -> Sequence[Image.Image]:
        """Return table, bars, landscape and channels."""
        from workbench.figures.picture import draw_text
        from workbench.figures.picture_map import draw_map

        dress = self.session.theme
        drawn = list(super().pictures())
        found = self._landscape
        if found is not None:
            marks = [(*found.best, "#ffffff")]
            if len(self.map.marker) == 2:
                marks.append((self.map.marker[0], self.map.marker[1], theme(dress).levels))
            drawn.insert(
                1,
                draw_map(
                    found.values,
                    sequential(),
                    found.low,
                    found.high,
                    x_edges=found.exponent_edges,
                    y_edges=found.clip_edges,
                    labels=("exponent", "clip (fraction of absmax)", "SQNR / dB"),
                    marks=marks,
                    up=True,
                    width=760,
                    dress=dress,
                ),
            )
        return [draw_text(table_text(self._lines()), 760, dress), *drawn]

    def numbers(self) -> dict[str, Any]:
        """Return the state, the errors of this grid and of its rivals, the landscape's best, the error of each channel."""
        session = self.session
        errors = {line.name: line.numbers() for line in self._lines() if line.report is not None}
        found: dict[str, Any] = {"state": session.to_spec(), "errors": errors}
        if self._landscape is not None:
            exponent, clip = self._landscape.best
            found["landscape"] = {"exponent": exponent, "clip": clip, "sqnr_db": self._landscape.high}
        if session.exact is not None and session.exact.per_channel is not None:
            found["per_channel"] = session.exact.per_channel.tolist()
        return found

    def code(self) -> str:
        """Return Python that measures this grid and its rivals, and the landscape."""
        session = self.session
        granularity, rule = session.granularity, "mse" if session.scale_rule == "mse" else "absmax"
        rounding = getattr(self.grid, "rounding", "power")
        return "\n".join(
            [
                preamble(session, "bits_per_weight", "exact_error", "landscape", "sketch"),
                "",
                "from workbench.quantization.contenders import contest, measured",
                "",
                "report = exact_error(",
                f"    layer, grid, granularity={granularity!r}, scale={session.scale_rule!r}, clip={session.clip!r},",
                "    per_channel=True,",
                ")",
                f"others = contest(layer, grid.bits, {granularity!r})",
                f"budget = bits_per_weight(grid, {granularity!r}, layer.weight.shape)",
                f"uniform = measured(layer, others.uniform, {granularity!r}, {rule!r})",
                f"best = measured(layer, others.best(budget), {granularity!r}, {rule!r})",
                f"found = landscape(sketch(layer, {granularity!r}), grid.bits, rounding={rounding!r})",
                "for name, one in (('this grid', report), ('uniform', uniform.report), ('best', best.report)):",
                "    print(f'{name}: {one}')",
            ]
        )
