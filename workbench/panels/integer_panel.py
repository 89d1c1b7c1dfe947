"""Integer: the picked layer run in integers on real inputs, beside float and fake quantization."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from workbench.figures.frame import framed
from workbench.figures.integer import accumulator_figure, off_by_figure, outputs_figure
from workbench.panels.code import run_lines
from workbench.panels.figure_panel import FigurePanel, choice, row
from workbench.panels.follow_panel import FollowPanel
from workbench.panels.integer_state import FOLLOWERS, KINDS, IntegerState
from workbench.panels.integer_table import PathLine, facts, facts_html, numbers_of, paths_html, paths_text
from workbench.panels.panel import guarded

if TYPE_CHECKING:
    from PIL import Image

#: Grids of the inputs to choose from: what they are called, and their text.
ACTIVATIONS = (
    ("8 bits, zero point", "uniform:bits=8,range=asymmetric"),
    ("8 bits, symmetric", "uniform:bits=8"),
    ("16 bits, symmetric", "uniform:bits=16"),
    ("6 bits, zero point", "uniform:bits=6,range=asymmetric"),
    ("4 bits, zero point", "uniform:bits=4,range=asymmetric"),
    ("8 bits, power 1/2", "power:bits=8,exponent=0.5,shifted=true"),
    ("4 bits, power 1/2", "power:bits=4,exponent=0.5,shifted=true"),
)
#: Accumulators to choose from; any other can be typed.
ACCUMULATORS = ("auto", "int32", "int24:wrap", "int20:wrap", "int16:wrap", "int16:saturate", "int12:saturate")


class IntegerPanel(FigurePanel):
    """A layer's integer outputs on real activations: whose rounding, how wide, what was clamped, what it costs."""

    title: ClassVar[str] = "Integer"

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out the settings over the facts, the figures, the costs and the followed number."""
        self.state = IntegerState.of(self.session)
        state = self.state
        semantics = _semantics_names()
        self.semantics = choice("Semantics", semantics, state.semantics)
        self.versus = choice("against", semantics, state.versus)
        self.activation = choice("Inputs", _with(ACTIVATIONS, state.activation), state.activation)
        self.accumulator = widgets.Combobox(
            description="Accumulator",
            options=ACCUMULATORS,
            value=state.accumulator,
            ensure_option=False,
            continuous_update=False,
            placeholder="int16:wrap",
            style={"description_width": "initial"},
            layout={"width": "210px", "margin": "0 8px 0 0"},
        )
        self.then = choice("then", [(_follower(word), word) for word in FOLLOWERS], state.then)
        self.kind = choice("by", KINDS, state.kind)
        self._showing = False
        self._controls = {
            name: getattr(self, name) for name in ("semantics", "versus", "activation", "accumulator", "then", "kind")
        }
        for name, control in self._controls.items():
            control.observe(lambda change, name=name: self._set(name, change["new"]), "value")
        self.about = widgets.HTML(layout={"width": "100%"})
        self.facts = widgets.HTML(layout={"width": "100%", "min_height": "150px"})
        self.costs = widgets.HTML(layout={"width": "100%"})
        outputs = self.place("outputs", self._nothing("output channel", "output value"), 480)
        self.on_point("outputs", self._output_clicked)
        off_by = self.place("off_by", self._nothing("difference / output steps", "outputs"), 420)
        bits = self.place("bits", self._nothing("bits, two's complement", "sums"), 420)
        self.follow = FollowPanel(self.session)
        self.watch(self._draw, "theme", "channel")
        self._state_handlers = [
            (self._draw, ("run", "versus", "row")),
            (self._say_state, ("note", "inputs", "run")),
            (self._show_settings, tuple(self._controls)),
        ]
        for handler, names in self._state_handlers:
            state.observe(handler, list(names))
        state.show()
        self._draw()
        controls = widgets.Box(
            tuple(self._controls.values()),
            layout={"display": "flex", "flex_flow": "row wrap", "width": "100%", "grid_gap": "4px 0"},
        )
        return (controls, self.about, self.facts, row(outputs), row(off_by, bits), self.costs, self.follow)

    # ------------------------------------------------------------------ settings

    @guarded
    def _set(self, name: str, value: Any) -> None:
        """Take a setting from its control; what cannot be read leaves the old one, and the control says it again."""
        before = getattr(self.state, name)
        if self._showing or before == value:
            return
        self.clear_error("setting")
        setattr(self.state, name, value)
        after = getattr(self.state, name)
        if after != value:
            self._show_settings()
        if after == before and after != str(value).strip().lower():
            self.show_error(self.session.message, "setting")

    @guarded
    def _show_settings(self, _change: Any = None) -> None:
        self._showing = True  # a list that loses the value it shows takes its first one, and nobody chose that
        try:
            self._show_each()
        finally:
            self._showing = False

    def _show_each(self) -> None:
        for name, control in self._controls.items():
            value = getattr(self.state, name)
            if name == "activation":
                control.options = _with(ACTIVATIONS, value)
            if control.value != value:
                control.value = value

    @guarded
    def _say_state(self, _change: Any = None) -> None:
        """Say what the inputs are, or why there is nothing to see."""
        state, inputs = self.state, self.state.inputs
        parts = []
        if inputs is not None:
            real = inputs.origin == "real"
            origin = "real inputs" if real else "Gaussian inputs, not the model's own"
            parts.append(
                f"<b>{origin}</b>: {html.escape(inputs.description)}" if inputs.description else f"<b>{origin}</b>"
            )
        if state.note:
            parts.append(f'<span class="qwb-error">{html.escape(state.note)}</span>')
        if not parts:
            parts.append("…" if self.session.layer is not None else "Open a model and pick a layer.")
        self.about.value = f'<div class="qwb-dim">{" · ".join(parts)}</div>'

    # ------------------------------------------------------------------ drawing

    @guarded
    def _draw(self, _change: Any = None) -> None:
        self._say_state()
        run, state, dress = self.state.run, self.state, self.session.theme
        if run is None:
            self.facts.value, self.costs.value = "", ""
            self.draw("outputs", self._nothing("output channel", "output value"))
            self.draw("off_by", self._nothing("difference / output steps", "outputs"))
            self.draw("bits", self._nothing("bits, two's complement", "sums"))
            return
        self.facts.value = facts_html(facts(run))
        self.costs.value = paths_html(self._paths())
        at = min(state.row, run.codes.shape[0] - 1)
        self.draw(
            "outputs",
            outputs_figure(
                run.real[at],
                run.fake[at],
                run.integer[at],
                step=run.step,
                row=at,
                picked=self.session.channel,
                dress=dress,
            ),
        )
        names = (str(run.semantics), state.versus)
        self.draw("off_by", off_by_figure(run.off_by(*names), names=names, dress=dress))
        self.draw(
            "bits",
            accumulator_figure(
                run.sums_by_bits, worst_case=run.worst_case_bits, width=run.accumulator.bits, dress=dress
            ),
        )

    def _paths(self) -> list[PathLine]:
        run = self.state.run
        own = [PathLine.of("this layer", run)] if run is not None else []
        return own + [PathLine.of(name, rival) for name, rival in self.state.rivals]

    def _nothing(self, x: str, y: str) -> Any:
        return framed([], title="", x=x, y=y, dress=self.session.theme, height=300)

    @guarded
    def _output_clicked(self, data: Any) -> None:
        self.session.channel = int(data[0])

    # ------------------------------------------------------------------ picture, numbers, code

    def wait(self, timeout: float = 10.0) -> bool:
        """Block until the run is done; False when ``timeout`` seconds passed first."""
        return self.session.wait(timeout, kinds=("integer",))

    def pictures(self) -> Sequence[Image.Image]:
        """Return the facts, the figures and the costs."""
        from workbench.figures.picture import draw_text

        dress, run = self.session.theme, self.state.run
        if run is None:
            return [draw_text([self.state.note or "nothing was run yet"], 760, dress)]
        lines = [f"{name}: {text}" for name, text, _ in facts(run)]
        return [draw_text(lines, 760, dress), *super().pictures(), draw_text(paths_text(self._paths()), 760, dress)]

    def numbers(self) -> dict[str, Any]:
        """Return the state, the settings and what the run says."""
        found: dict[str, Any] = {"state": self.session.to_spec(), "integer": self.state.to_spec()}
        run = self.state.run
        if run is not None:
            found |= numbers_of(run, self._paths())
            steps = run.off_by(run.semantics, self.state.versus)
            found["off_by"] = {str(step): count for step, count in steps.items()}
        if self.state.inputs is not None:
            found["inputs"] = self.state.inputs.origin
        return found

    def code(self) -> str:
        """Return Python that runs the layer in integers and compares two semantics."""
        state = self.state
        return "\n".join(
            [
                run_lines(self.session, state),
                "print(run)",
                f"print(run.off_by({state.semantics!r}, {state.versus!r}))",
                "print(run.operations.to_frame())",
            ]
        )

    def close(self) -> None:
        """Take the panel off the page and off its session."""
        if self._is_closed:
            return
        for handler, names in self._state_handlers:
            self.state.unobserve(handler, list(names))
        self.state.hide()
        self.follow.close()
        super().close()


def _semantics_names() -> list[str]:
    from workbench.integer.semantics import SEMANTICS

    return list(SEMANTICS)


def _with(options: Sequence[tuple[str, str]], value: str) -> list[tuple[str, str]]:
    """Return the options, with a value of its own that is none of them."""
    known = [text for _, text in options]
    return list(options) if value in known else [*options, (value, value)]


def _follower(word: str) -> str:
    return "nothing" if word == "none" else word
