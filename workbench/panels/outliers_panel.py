"""Outliers: ranges and kurtosis of channels, the weight map, the largest weights and channels, one channel alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets
import numpy as np

from workbench.figures.channels import kurtosis_figure, range_figure
from workbench.figures.distribution import Bars, histogram_figure
from workbench.figures.frame import framed, short
from workbench.figures.palette import diverging, theme
from workbench.panels.code import preamble
from workbench.panels.figure_panel import FigurePanel, cell, choice, row
from workbench.panels.map_view import MapView, colour_bytes
from workbench.panels.panel import guarded
from workbench.panels.table_view import TableView

if TYPE_CHECKING:
    from PIL import Image

    from workbench.panels.jobs import Job
    from workbench.quantization.channels import ChannelStatistics
    from workbench.quantization.distribution import Axis

#: Cells of the weight map: no more than a page has pixels.
MAP_ROWS, MAP_COLUMNS = 256, 384
#: Rows of the tables.
LARGEST = 50


@dataclass(frozen=True)
class _Facts:
    """What the panel shows of a layer; nothing of it changes with the grid."""

    key: str
    output: Any
    input: Any
    map: Any
    largest: Any

    def of(self, axis: str) -> Any:
        return self.output if axis == "output" else self.input


class OutliersPanel(FigurePanel):
    """Where the large weights of a layer are; a click on a channel shows it alone."""

    title: ClassVar[str] = "Outliers"
    jobs = ("outliers", "channel")

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out ranges and kurtosis over the map and the tables, and one channel below them."""
        self._facts: _Facts | None = None
        self._input_channel = -1
        self.axis = choice("Channels", [("output (rows)", "output"), ("input (columns)", "input")], "output")
        self.axis.observe(self._axis_changed, "value")
        self.none = widgets.Button(description="All channels", tooltip="Let go of the picked channel", disabled=True)
        self.none.layout = widgets.Layout(width="auto", height="26px")
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
        self.alone = alone
        self.alone.layout.display = "none"
        tables = widgets.VBox([self.weights, self.channels], layout={"gap": "8px", "width": "100%"})
        self.watch(self._layer_changed, "layer")
        self.watch(self._redraw, "theme")
        self.watch(self._channel_changed, "channel", "grid", "clip", "scale_rule", "granularity", "theme")
        self._layer_changed()
        return (row(ranges, kurtosis), row(cell(self.map, 440, 3), cell(tables, 300, 2)), alone)

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
            from workbench.quantization import channel_statistics, largest_weights, weight_map

            job.check()
            output, inputs = channel_statistics(layer)
            job.progress(0.5)
            return _Facts(
                layer.content_key,
                output,
                inputs,
                weight_map(layer, MAP_ROWS, MAP_COLUMNS),
                largest_weights(layer, LARGEST),
            )

        def show(facts: _Facts) -> None:
            self._facts = facts
            self._draw_map()
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
        if layer is None or channel < 0:
            self.alone.layout.display = "none"
            self.none.disabled = True
            return
        grid, rule, clip, granularity = session.grid, session.scale_rule, session.clip, session.granularity

        def work(_job: Job) -> tuple[Any, Any, int]:
            from workbench.quantization.distribution import channel_counts, channel_levels

            levels = None
            if axis == "output" and granularity == "channel":
                levels = channel_levels(layer, channel, grid, rule, clip)
            return channel_counts(layer, channel, axis), levels, channel

        self.compute("channel", work, self._draw_channel)

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
    def _point_clicked(self, trace: Any, points: Any, _state: Any) -> None:
        if points.point_inds:
            self._pick(int(trace.customdata[points.point_inds[0]][0]))

    @guarded
    def _map_picked(self, _change: Any) -> None:
        if self._facts is not None and len(self.map.marker) == 2:
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
        """Draw ranges, kurtosis and the tables for the chosen axis."""
        facts, axis, dress = self._facts, self.axis.value, self.session.theme
        if facts is None:
            return
        found, picked = facts.of(axis), self._picked()
        self.draw("ranges", range_figure(found.smallest, found.largest, axis=axis, picked=picked, dress=dress))
        self.draw("kurtosis", kurtosis_figure(found.kurtosis, axis=axis, picked=picked, dress=dress))
        for name in ("ranges", "kurtosis"):
            self.on_click(name, self._point_clicked)
        heads = (f"{axis} channel", "largest magnitude", "smallest", "largest", "kurtosis")
        self.channels.caption = f"Largest {axis} channels"
        self._channel_order = found.by_magnitude(LARGEST)
        lines = [
            (str(c), f"{found.absmax[c]:.4g}", f"{found.smallest[c]:.4g}", f"{found.largest[c]:.4g}", f"{found.kurtosis[c]:.2f}")
            for c in self._channel_order
        ]
        self.channels.show(heads, lines, picked=self._line_of(picked))
        largest = facts.largest
        self.weights.show(
            ("weight", "output channel", "input channel"),
            [
                (f"{value:.5g}", str(row_), str(column))
                for value, row_, column in zip(largest.values, largest.rows, largest.columns, strict=True)
            ],
            picked=self.weights.picked if self.weights.rows else -1,
        )

    def _mark(self) -> None:
        """Mark the picked channel in the figures, the table and the map."""
        facts, axis = self._facts, self.axis.value
        if facts is None:
            return
        found, picked, dress = facts.of(axis), self._picked(), self.session.theme
        self.draw("ranges", range_figure(found.smallest, found.largest, axis=axis, picked=picked, dress=dress))
        self.draw("kurtosis", kurtosis_figure(found.kurtosis, axis=axis, picked=picked, dress=dress))
        self.channels.picked = self._line_of(picked)
