"""Follow one number: every integer between the inputs of a layer and one of its outputs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets
import numpy as np

from workbench.panels.code import run_lines
from workbench.panels.follow_table import TERM_COLUMNS, shown_terms, steps_html, term_rows
from workbench.panels.integer_state import IntegerState
from workbench.panels.panel import BUTTON_LAYOUT, Panel, guarded
from workbench.panels.snapshot import Snapshot
from workbench.panels.table_view import TableView

if TYPE_CHECKING:
    from workbench.integer.follow import Trace


class FollowPanel(Panel):
    """One output of the integer run, step by step, redoable on paper."""

    title: ClassVar[str] = "Follow one number"

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out which output to follow over its steps."""
        self.state = IntegerState.of(self.session)
        self.trace: Trace | None = None
        self._numbers: list[int | None] = []
        layout = {"width": "150px", "margin": "0 8px 0 0"}
        style = {"description_width": "initial"}
        self.row = widgets.BoundedIntText(0, min=0, max=0, description="input row", layout=layout, style=style)
        self.channel = widgets.BoundedIntText(0, min=0, max=0, description="channel", layout=layout, style=style)
        self.differ = widgets.Button(
            description="Where two semantics differ",
            tooltip="Go to an output that the two semantics of the integer panel round differently",
            layout=BUTTON_LAYOUT,
        ).add_class("qwb-button")
        self.row.observe(self._row_typed, "value")
        self.channel.observe(self._channel_typed, "value")
        self.differ.on_click(self._go_where_they_differ)
        self.tools.children = (self.row, self.channel, self.differ)
        self.terms = TableView(
            caption="the terms of the sum; click one for its formulas", pickable=True, max_height=230
        )
        self.terms.observe(self._show_term, "picked")
        self.term = widgets.HTML(layout={"width": "100%"})
        self.about = widgets.HTML(layout={"width": "100%"})
        self.steps = widgets.HTML(layout={"width": "100%", "min_height": "120px"})
        self.watch(self._show, "channel")
        self._names = ["run", "row", "versus"]
        self.state.observe(self._show, self._names)
        self.state.show()
        self._show()
        return (self.about, self.terms, self.term, self.steps)

    # ------------------------------------------------------------------ what a person does

    @guarded
    def _row_typed(self, change: Any) -> None:
        self.state.row = change["new"]

    @guarded
    def _channel_typed(self, change: Any) -> None:
        self.session.channel = change["new"]

    @guarded
    def _go_where_they_differ(self, _button: Any) -> None:
        """Go to the next output whose codes differ between the two semantics, else to the one furthest from float."""
        run = self.state.run
        if run is None:
            return
        gap = run.codes.astype(np.int64) - run.codes_under(self.state.versus)
        places = np.flatnonzero(gap)
        if places.size == 0:
            self.differ.description = "They agree everywhere"
            return
        here = self.state.row * run.codes.shape[1] + max(self.session.channel, 0)
        place = int(places[np.searchsorted(places, here, side="right") % places.size])
        with self.state.hold_trait_notifications():
            self.state.row = place // run.codes.shape[1]
        self.session.channel = place % run.codes.shape[1]

    # ------------------------------------------------------------------ drawing

    @guarded
    def _show(self, _change: Any = None) -> None:
        run = self.state.run
        self.differ.description = "Where two semantics differ"
        self.differ.disabled = run is None
        if run is None:
            self.trace = None
            self.about.value = '<div class="qwb-dim">No layer has run in integers yet.</div>'
            self.terms.show([], [])
            self.term.value = self.steps.value = ""
            return
        rows, channels = run.codes.shape
        row, channel = min(self.state.row, rows - 1), min(max(self.session.channel, 0), channels - 1)
        _bound(self.row, rows - 1, row)
        _bound(self.channel, channels - 1, channel)
        trace = self.trace = run.follow(row, channel)
        other = run.follow(row, channel, self.state.versus).code
        compared = "" if other == trace.code else f", <b>{html.escape(self.state.versus)} gives code {other}</b>"
        label = f" ({html.escape(run.labels[row])})" if row < len(run.labels) else ""
        self.about.value = (
            f"<div>Input row {row}{label}, channel {channel}: float {trace.real:.6g}, fake-quant {trace.fake:.6g}, "
            f"integer {trace.integer:.6g} = code {trace.code} under {html.escape(trace.semantics)}{compared}.</div>"
        )
        self._numbers = shown_terms(len(trace.terms))
        self.terms.show(TERM_COLUMNS, term_rows(trace, self._numbers))
        self.term.value = ""
        self.steps.value = steps_html(trace.steps)

    @guarded
    def _show_term(self, _change: Any) -> None:
        picked = self.terms.picked
        number = self._numbers[picked] if 0 <= picked < len(self._numbers) else None
        self.term.value = "" if self.trace is None or number is None else steps_html(self.trace.term(number))

    # ------------------------------------------------------------------ picture, numbers, code

    def numbers(self) -> dict[str, Any]:
        """Return the state and the steps."""
        found: dict[str, Any] = {"state": self.session.to_spec(), "integer": self.state.to_spec()}
        if self.trace is not None:
            found["steps"] = self.trace.to_frame().to_dict("records")
        return found

    def snapshot(self) -> Snapshot:
        """Return a picture of the steps as text, and the numbers."""
        from workbench.figures.picture import draw_text, png

        self.session.wait(10.0, kinds=("integer",))
        lines = [self.title, *(str(self.trace).splitlines() if self.trace is not None else ["nothing was run yet"])]
        return Snapshot(png(draw_text(lines, 760, self.session.theme)), self.numbers())

    def code(self) -> str:
        """Return Python that follows the same number."""
        return "\n".join(
            [
                run_lines(self.session, self.state),
                f"print(run.follow({self.row.value}, {self.channel.value}).to_frame().to_string())",
            ]
        )

    def close(self) -> None:
        """Take the panel off the page and off its session."""
        if self._is_closed:
            return
        self.state.unobserve(self._show, self._names)
        self.state.hide()
        super().close()


def _bound(field: widgets.BoundedIntText, top: int, value: int) -> None:
    """Give a field its range and value without a moment at which they disagree."""
    field.max = max(top, field.value, value)
    if field.value != value:
        field.value = value
    field.max = max(top, 0)
