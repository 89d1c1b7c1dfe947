"""Outliers: ranges and kurtosis of channels, the weight map, the largest weights and channels, one channel alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from workbench.figures.channels import kurtosis_figure, range_figure
from workbench.figures.distribution import Bars, histogram_figure
from workbench.figures.frame import framed
from workbench.figures.palette import diverging
from workbench.figures.picture import draw_text
from workbench.figures.picture_map import draw_map
from workbench.figures.weight_map import WeightPicture, strongest_channel, weight_picture
from workbench.panels.code import preamble
from workbench.panels.figure_panel import FigurePanel, cell, choice, row
from workbench.panels.map_view import MapView, colour_bytes
from workbench.panels.panel import guarded
from workbench.panels.table_view import TableView

if TYPE_CHECKING:
    from PIL import Image

    from workbench.panels.jobs import Job
    from workbench.quantization import ChannelStatistics, Histogram, LargestWeights, WeightStatistics

#: Cells of the weight map: no more than a page has pixels.
MAP_ROWS, MAP_COLUMNS = 256, 384
#: Rows of the tables.
LARGEST = 50
#: Bins of a single channel's histogram: it holds some hundreds or thousands of weights.
CHANNEL_BINS = 96


@dataclass(frozen=True)
class _Facts:
    """What the panel shows of a layer; no grid changes it."""

    statistics: WeightStatistics
    picture: WeightPicture
    largest: LargestWeights

    def of(self, axis: str) -> ChannelStatistics:
        return self.statistics.output if axis == "output" else self.statistics.input

    def channel_at(self, axis: str, marker: Sequence[float]) -> int:
        """Return the strongest channel in the map's cell under the marker."""
        edges = self.picture.row_edges if axis == "output" else self.picture.column_edges
        return strongest_channel(self.of(axis), edges, marker[1] if axis == "output" else marker[0])


class OutliersPanel(FigurePanel):
    """Where the large weights of a layer are; a click on a channel shows it alone."""

    title: ClassVar[str] = "Outliers"
    jobs = ("outliers", "channel")

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out ranges and kurtosis over the map and the tables, and one channel below them."""
        self._facts: _Facts | None = None
        self._input_channel = -1
        self._ranked: Any = None
        self._setting = 0
        self.axis = choice("Channels", [("output (rows)", "output"), ("input (columns)", "input")], "output")
        self.axis.observe(self._axis_changed, "value")
        self.none = widgets.Button(
            description="All channels",
            tooltip="Let go of the picked channel",
            disabled=True,
            layout={"width": "auto", "height": "26px"},
        )
        self.none.add_class("qwb-button")
        self.none.on_click(lambda _: self._pick(-1))
        self.tools.children = (self.axis, self.none)
        dress = self.session.theme
        ranges = self.place(
            "ranges", framed([], title="", x="output channel", y="weight value", dress=dress, height=270)
        )
        kurtosis = self.place(
            "kurtosis", framed([], title="", x="output channel", y="kurtosis", dress=dress, height=270)
        )
        alone = self.place(
            "channel", framed([], title="", x="weight value", y="weights per bin", dress=dress, height=260)
        )
        for name in ("ranges", "kurtosis"):
            self.on_point(name, self._point_clicked)
        self.map = MapView(
            colours=colour_bytes(diverging("light"), diverging("dark")),
            x_label="input channel",
            y_label="output channel",
            value_label="weight value",
            x_name="input channel",
            y_name="output channel",
            value_name="weight",
            whole=True,
            pickable=True,
            marker_kind="row",
            height=340,
        )
        self.map.observe(self._map_picked, "marker")
        self.weights = TableView(caption="Largest weights", pickable=True, max_height=170)
        self.channels = TableView(caption="Largest channels", pickable=True, max_height=170)
        self.weights.observe(self._weight_picked, "picked")
        self.channels.observe(self._channel_picked, "picked")
        self.alone = row(alone)
        self.alone.layout.display = "none"
        tables = widgets.VBox([self.weights, self.channels], layout={"grid_gap": "8px", "width": "100%"})
        self.watch(self._layer_changed, "layer")
        self.watch(self._redraw, "theme")
        self.watch(self._channel_changed, "channel", "grid", "clip", "scale_rule", "granularity", "theme")
        self._layer_changed()
        return (row(ranges, kurtosis), row(cell(self.map, 440, 3), cell(tables, 300, 2)), self.alone)

    # ------------------------------------------------------------------ what follows from a change

    @guarded
    def _layer_changed(self, _change: Any = None) -> None:
        layer = self.session.layer
        self._input_channel = -1
        if layer is None:
            self._facts = None
            self.map.clear()
            self.weights.show([], [])
            self.channels.show([], [])
            return

        def work(job: Job) -> _Facts:
            from workbench.quantization import largest_weights, weight_map, weight_statistics

            statistics = weight_statistics(layer, lambda done: job.progress(0.5 * done))
            shrunk = weight_map(layer, MAP_ROWS, MAP_COLUMNS, lambda done: job.progress(0.5 + 0.4 * done))
            job.check()
            return _Facts(statistics, weight_picture(shrunk), largest_weights(layer, LARGEST))

        def show(facts: _Facts) -> None:
            self._facts = facts
            self._draw_map()
            self.weights.picked = -1
            self._redraw()
            self._channel_changed()

        self.compute("outliers", work, show, label=f"looking for outliers in {layer.name}")

    @guarded
    def _axis_changed(self, _change: Any = None) -> None:
        self._redraw()
        self._channel_changed()

    @guarded
    def _channel_changed(self, _change: Any = None) -> None:
        """Show the picked channel alone: its weights, and the grid's levels at its own scale."""
        session, layer, axis = self.session, self.session.layer, self.axis.value
        channel = self._picked()
        self._mark()
        self.none.disabled = channel < 0
        if layer is None or channel < 0:
            self.alone.layout.display = "none"
            return
        grid, rule, clip = self.grid, session.scale_rule, session.clip
        has_scale = axis == "output" and session.granularity == "channel"

        def work(_job: Job) -> tuple[Histogram, Any]:
            from workbench.quantization import histogram
            from workbench.quantization.normalised import channel_levels, channel_weights

            levels = channel_levels(layer, channel, grid, rule, clip) if has_scale else None
            return histogram(channel_weights(layer, channel, axis), CHANNEL_BINS), levels

        def show(found: tuple[Histogram, Any]) -> None:
            self._draw_channel(*found, channel, axis)

        self.compute("channel", work, show)

    # ------------------------------------------------------------------ picking

    def _picked(self) -> int:
        return self.session.channel if self.axis.value == "output" else self._input_channel

    def _pick(self, channel: int) -> None:
        if self.axis.value == "output":
            self.session.channel = channel
        else:
            self._input_channel = channel
            self._channel_changed()

    @guarded
    def _point_clicked(self, data: Any) -> None:
        self._pick(int(data[0]))

    @guarded
    def _map_picked(self, _change: Any) -> None:
        if not self._setting and self._facts is not None and len(self.map.marker) == 2:
            self._pick(self._facts.channel_at(self.axis.value, self.map.marker))

    @guarded
    def _weight_picked(self, _change: Any) -> None:
        if self._facts is not None and 0 <= self.weights.picked < len(self._facts.largest.rows):
            where = self._facts.largest.rows if self.axis.value == "output" else self._facts.largest.columns
            self._pick(int(where[self.weights.picked]))

    @guarded
    def _channel_picked(self, _change: Any) -> None:
        if 0 <= self.channels.picked < len(self.channels.rows):
            self._pick(int(self.channels.rows[self.channels.picked][0]))

    # ------------------------------------------------------------------ drawing

    @guarded
    def _redraw(self, _change: Any = None) -> None:
        """Draw everything that the chosen axis decides."""
        facts, axis = self._facts, self.axis.value
        if facts is None:
            return
        self._mark()
        found = facts.of(axis)
        self._ranked = found.to_frame().nlargest(LARGEST, "absmax")
        lines = [
            (
                str(one.Index),
                f"{one.absmax:.4g}",
                f"{one.max_over_std:.2f}",
                f"{one.minimum:.4g}",
                f"{one.maximum:.4g}",
                f"{one.kurtosis:.2f}",
            )
            for one in self._ranked.itertuples()
        ]
        heads = ("channel", "max |w|", "max / σ", "min", "max", "kurtosis")
        self.channels.caption = f"{axis.capitalize()} channels with the largest weights"
        self.channels.show(heads, lines, picked=self._line_of(self._picked()))
        largest = facts.largest
        cells = zip(largest.values, largest.rows, largest.columns, strict=True)
        self.weights.show(
            ("weight", "output channel", "input channel"),
            [(f"{value:.5g}", str(output), str(input_)) for value, output, input_ in cells],
            picked=self.weights.picked,
        )

    def _mark(self) -> None:
        """Mark the picked channel in the figures, the table and the map."""
        facts, axis = self._facts, self.axis.value
        if facts is None:
            return
        found, picked, dress = facts.of(axis), self._picked(), self.session.theme
        self.draw("ranges", range_figure(found.minimum, found.maximum, axis=axis, picked=picked, dress=dress))
        self.draw("kurtosis", kurtosis_figure(found.kurtosis, axis=axis, picked=picked, dress=dress))
        self.channels.picked = self._line_of(picked)
        marker = list(self.map.marker)
        if picked < 0:
            marker = []
        elif not marker or facts.channel_at(axis, marker) != picked:
            # Picked elsewhere: the marker goes to the channel's middle, and stays where it is along the other axis.
            other = marker[0] if marker and axis == "output" else marker[1] if marker else 0.5
            marker = [other, picked + 0.5] if axis == "output" else [picked + 0.5, other]
        with self._quietly():
            self.map.marker_kind = "row" if axis == "output" else "column"
            self.map.marker = marker

    def _draw_map(self) -> None:
        facts = self._facts
        if facts is None:
            return
        shown, total = facts.picture, facts.statistics
        lines, cells = shown.values.shape
        shrunk = "" if (lines, cells) == total.shape else "; each cell shows its weight of largest magnitude"
        with self._quietly():
            self.map.show(
                shown.values,
                x_edges=shown.column_edges,
                y_edges=shown.row_edges,
                low=-shown.reach,
                high=shown.reach,
                marker=[],
                label=f"Weights of {total.name}, {len(total.output)} output by {len(total.input)} input channels{shrunk}",
                hint=f"Colours end at ±{shown.reach:.3g}; the largest weight is {total.absmax:.3g}{shrunk}.",
            )

    def _draw_channel(self, found: Histogram, levels: Any, channel: int, axis: str) -> None:
        facts, session = self._facts, self.session
        if facts is None or channel != self._picked():
            return
        one = facts.of(axis)
        title = (
            f"{axis.capitalize()} channel {channel} alone: {int(found.counts.sum())} weights, "
            f"σ = {one.std[channel]:.4g}, largest {one.max_over_std[channel]:.1f} σ, kurtosis {one.kurtosis[channel]:.2f}"
        )
        figure = histogram_figure(
            Bars(f"channel {channel}", found.edges, found.counts),
            levels=levels,
            codes=self.grid.codes,
            title=title,
            dress=session.theme,
            height=260,
        )
        self.draw("channel", figure)
        self.alone.layout.display = "flex"

    def _line_of(self, channel: int) -> int:
        """Return the line of the channels' table that shows a channel, or -1."""
        ranked = [] if self._ranked is None else self._ranked.index.tolist()
        return ranked.index(channel) if channel in ranked else -1

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set the map's marker without taking it for the person's."""
        self._setting += 1
        try:
            yield
        finally:
            self._setting -= 1

    # ------------------------------------------------------------------ picture, numbers, code

    def pictures(self) -> Sequence[Image.Image]:
        """Return ranges, kurtosis, the map, and the picked channel if there is one."""
        drawn = list(super().pictures())
        if self._picked() < 0:
            drawn = drawn[:2]
        if self._facts is not None:
            shown, dress = self._facts.picture, self.session.theme
            drawn.insert(
                2,
                draw_map(
                    shown.values,
                    diverging(dress),
                    -shown.reach,
                    shown.reach,
                    x_edges=shown.column_edges,
                    y_edges=shown.row_edges,
                    labels=("input channel", "output channel", "weight value"),
                    width=760,
                    dress=dress,
                ),
            )
            drawn.append(draw_text([self.weights.caption, *self.weights.lines[:11]], 760, dress))
            drawn.append(draw_text([self.channels.caption, *self.channels.lines[:11]], 760, dress))
        return drawn

    def numbers(self) -> dict[str, Any]:
        """Return the state, the layer's statistics, its largest weights, and the channels with the largest ones."""
        found: dict[str, Any] = {"state": self.session.to_spec(), "axis": self.axis.value, "channel": self._picked()}
        facts = self._facts
        if facts is not None:
            found["statistics"] = facts.statistics.to_dict()
            found["largest"] = facts.largest.to_frame().to_dict("list")
            found["channels"] = (
                facts.of(self.axis.value).to_frame().nlargest(LARGEST, "absmax").reset_index().to_dict("list")
            )
        return found

    def code(self) -> str:
        """Return Python that finds the same channels and weights."""
        axis, channel = self.axis.value, self._picked()
        lines = [
            preamble(self.session),
            "",
            "from workbench.quantization import histogram, largest_weights, weight_map, weight_statistics",
            "from workbench.quantization.normalised import channel_weights",
            "",
            "statistics = weight_statistics(layer)",
            f'channels = statistics.{axis}.to_frame().nlargest({LARGEST}, "absmax")',
            f"largest = largest_weights(layer, {LARGEST}).to_frame()",
            f"picture = weight_map(layer, {MAP_ROWS}, {MAP_COLUMNS})",
        ]
        if channel >= 0:
            lines.append(f"alone = histogram(channel_weights(layer, {channel}, {axis!r}), {CHANNEL_BINS})")
        return "\n".join([*lines, "print(statistics)", "print(channels.head(10))"])
