"""Evaluate: what the recipe costs the whole model, figure by figure, beside the float model; and both models' texts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, ClassVar

import ipywidgets as widgets

from workbench.panels.evaluate_state import EvaluateState
from workbench.panels.evaluate_table import COLUMNS, table_lines, written_html
from workbench.panels.long_run import RunBar
from workbench.panels.panel import BUTTON_LAYOUT, Panel, guarded
from workbench.panels.recipe_panel import recipe_lines
from workbench.panels.snapshot import Snapshot
from workbench.panels.sortable_table import SortableTable


class EvaluatePanel(Panel):
    """Figures of the float model and of the recipe's side by side, with standard errors, and their texts."""

    title: ClassVar[str] = "Evaluate"

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out the figures to pick over the run, the table and the texts."""
        from workbench.evaluation.metrics import METRICS

        self.state = EvaluateState.of(self.session)
        state = self.state
        # All boxes are made now: another model may be opened on the worker's thread, where no widgets are made.
        self.boxes = {name: _box(metric.title, _about(metric)) for name, metric in METRICS.items()}
        for box in self.boxes.values():
            box.observe(self._ticked, "value")
        self._showing = False
        self.nothing = widgets.HTML('<span class="qwb-dim">Open a model to see which figures it has.</span>')
        self.picks = widgets.Box(
            [*self.boxes.values(), self.nothing],
            layout={"display": "flex", "flex_flow": "row wrap", "width": "100%", "min_height": "30px"},
        )
        self.limit = _number("Tokens scored at most", state.limit, 64, 10_000_000, "of text, by language models", 230)
        self.about = widgets.HTML(layout={"margin": "0", "flex": "1 1 auto", "min_width": "0"}).add_class("qwb-clip")
        self.run_bar = RunBar(
            state, "Evaluate", self._start, "Measure the float model and the recipe's, quantizing first where needed"
        )
        self.table = SortableTable(
            empty="No figures yet: pick some and press Evaluate.", max_height=320, layout={"min_height": "120px"}
        )
        self.prompt = widgets.Textarea(
            value=state.prompt,
            description="Prompt",
            placeholder="what both models continue",
            continuous_update=False,
            rows=3,
            style={"description_width": "initial"},
            layout={"width": "auto", "flex": "1 1 300px", "min_width": "200px", "margin": "0 8px 0 0"},
        )
        self.tokens = _number("New tokens", state.tokens, 1, 1000, "that each model writes at most", 160)
        self.write = widgets.Button(
            description="Write", tooltip="Let both models continue the prompt", layout=BUTTON_LAYOUT
        ).add_class("qwb-button")
        self.write.on_click(self._write)
        self.texts = widgets.HTML(layout={"width": "100%"})
        self._controls = {"limit": self.limit, "prompt": self.prompt, "tokens": self.tokens}
        for name, control in self._controls.items():
            control.observe(lambda change, name=name: self._set(name, change["new"]), "value")
        self.writing = widgets.VBox(
            [
                widgets.HBox(
                    [self.prompt, self.tokens, self.write],
                    layout={"width": "auto", "align_items": "flex-start", "overflow": "visible"},
                ),
                self.texts,
            ],
            layout={"width": "auto", "margin": "6px 4px 0 0", "overflow": "visible"},
        )
        self.watch(self._model_changed, "model")
        self._state_handlers = [
            (state, self._show_picks, ("metrics",)),
            (state, self._show_settings, tuple(self._controls)),
            (state, self._show_figures, ("float_figures", "figures", "metrics", "measured_as")),
            (state, self._show_texts, ("written", "written_as")),
            (state.recipe, self._show_figures, ("recipe", "quantized")),
            (state.recipe, self._show_texts, ("recipe",)),
            (state, self._settings_changed, ("metrics", *self._controls)),
            (state.recipe, self._settings_changed, ("recipe", "samples", "seed", "output")),
        ]
        for watched, handler, names in self._state_handlers:
            watched.observe(handler, list(names))
        self._model_changed()
        settings = widgets.HBox([self.limit, self.about], layout={"align_items": "center", "width": "100%"})
        return (self.picks, settings, self.run_bar, self.table, self.writing)

    # ------------------------------------------------------------------ what a person does

    @guarded
    def _start(self) -> None:
        self.state.start()
        self._say_refusal()

    @guarded
    def _write(self, _button: Any) -> None:
        self.state.write()
        self._say_refusal()

    def _say_refusal(self) -> None:
        if self.state.running:
            self.clear_error("refused")
        else:
            self.show_error(self.session.message, "refused")

    @guarded
    def _set(self, name: str, value: Any) -> None:
        if getattr(self.state, name) != value:
            setattr(self.state, name, value)
            self._show_settings()

    def _ticked(self, _change: Any) -> None:
        if not self._showing:
            offered = self.state.offered()
            self.state.metrics = tuple(name for name, box in self.boxes.items() if box.value and name in offered)

    def _settings_changed(self, _change: Any = None) -> None:
        self.follow_code()

    # ------------------------------------------------------------------ showing

    @guarded
    def _model_changed(self, _change: Any = None) -> None:
        offered = self.state.offered()
        for name, box in self.boxes.items():
            box.layout.display = None if name in offered else "none"
        self.nothing.layout.display = "none" if offered else None
        language = self.state.model_kind() == "causal"
        self.writing.layout.display = None if language else "none"
        self.limit.layout.display = None if language else "none"
        self._show_picks()
        self._show_figures()
        self._show_texts()

    @guarded
    def _show_picks(self, _change: Any = None) -> None:
        self._showing = True
        try:
            for name, box in self.boxes.items():
                if box.value != (name in self.state.metrics):
                    box.value = name in self.state.metrics
        finally:
            self._showing = False

    @guarded
    def _show_settings(self, _change: Any = None) -> None:
        for name, control in self._controls.items():
            if control.value != getattr(self.state, name):
                control.value = getattr(self.state, name)

    @guarded
    def _show_figures(self, _change: Any = None) -> None:
        state = self.state
        measured = {
            row.metric for each in (state.float_figures, state.figures) if each is not None for row in each.rows
        }
        self.table.show(
            COLUMNS, table_lines([n for n in state.offered() if n in measured], state.float_figures, state.figures)
        )
        recipe = html.escape(str(state.recipe.recipe))
        parts = [f"recipe: <code>{recipe}</code>"]
        if not state.recipe.fresh:
            parts.append("not quantized yet, Evaluate does that first")
        elif state.recipe.quantized is not None:
            parts.append(f"{state.recipe.quantized.bits_per_weight:.3f} bits per weight")
        if state.figures is not None and state.measured_as != str(state.recipe.recipe):
            parts.append(f"<b>figures below are of <code>{html.escape(state.measured_as)}</code></b>")
        self.about.value = f'<span class="qwb-dim" title="{recipe}">{" · ".join(parts)}</span>'

    @guarded
    def _show_texts(self, _change: Any = None) -> None:
        state = self.state
        text = written_html(state.written)
        if state.written is not None and state.written_as != str(state.recipe.recipe):
            text += f'<div class="qwb-dim"><b>These texts are of {html.escape(state.written_as)}</b></div>'
        if self.texts.value != text:
            self.texts.value = text

    # ------------------------------------------------------------------ picture, numbers, code

    def wait(self, timeout: float = 10.0) -> bool:
        """Block until the figures are measured; False when ``timeout`` seconds passed first."""
        return self.state.wait(timeout)

    def snapshot(self) -> Snapshot:
        """Return a picture of the table and the texts, and the numbers in them."""
        from workbench.figures.picture import draw_text, png, stack

        dress, written = self.session.theme, self.state.written
        lines = self.table.lines if self.table.rows else ["nothing was measured yet"]
        pictures = [draw_text([f"{self.title}: {self.state.recipe.recipe}"[:160], *lines], 1000, dress)]
        if written is not None:
            for name, text in (("float", written.reference_text), ("recipe", written.text)):
                pictures.append(draw_text([f"{name}:", *(written.prompt + text).splitlines()], 1000, dress))
        return Snapshot(png(stack(pictures, dress=dress)), self.numbers())

    def numbers(self) -> dict[str, Any]:
        """Return the state, the settings, the figures and the texts."""
        state = self.state
        figures = {
            name: {row.metric: vars(row) for row in found.rows}
            for name, found in (("float", state.float_figures), ("recipe", state.figures))
            if found is not None
        }
        texts = {} if state.written is None else {"float": state.written.reference_text, "recipe": state.written.text}
        return {"state": self.session.to_spec(), **state.recipe.to_spec(), **state.to_spec(), "figures": figures} | {
            "texts": texts
        }

    def code(self) -> str:
        """Return Python that measures both models and lets them write."""
        from workbench.evaluation.metrics import METRICS

        state = self.state
        metrics = list(state.metrics)
        alone = [name for name in metrics if not METRICS[name].reference]
        opening, *rest = recipe_lines(self.session, state.recipe)
        limit = f", limit={state.limit}" if state.model_kind() == "causal" else ""
        lines = [
            opening,
            "from workbench.evaluation import compare, evaluate, generate_side_by_side",
            *rest,
            "figures = {}",
        ]
        if alone:
            lines.append(f"figures['float'] = evaluate(model, metrics={alone!r}{limit})")
        lines.append(f"figures['recipe'] = evaluate(quantized, reference=model, metrics={metrics!r}{limit})")
        lines.append("print(compare(figures))")
        if state.model_kind() == "causal":
            lines += [
                f"(texts,) = generate_side_by_side(model, quantized, [{state.prompt!r}], tokens={state.tokens})",
                "print(texts.reference_text, texts.text, sep='\\n---\\n')",
            ]
        return "\n".join(lines)

    def close(self) -> None:
        """Take the panel off the page; what runs goes on."""
        if self._is_closed:
            return
        for watched, handler, names in self._state_handlers:
            watched.unobserve(handler, list(names))
        super().close()


def _about(metric: Any) -> str:
    against = ", against the float model" if metric.reference else ""
    return f"in {metric.unit}; {metric.better} is better{against}"


def _box(title: str, about: str) -> widgets.Checkbox:
    return widgets.Checkbox(
        value=False,
        description=title,
        tooltip=about,
        indent=False,
        layout={"width": "auto", "margin": "0 12px 0 0", "flex": "0 0 auto"},
    )


def _number(label: str, value: int, least: int, most: int, tooltip: str, width: int) -> widgets.BoundedIntText:  # noqa: PLR0917
    return widgets.BoundedIntText(
        value=value,
        min=least,
        max=most,
        description=label,
        tooltip=tooltip,
        style={"description_width": "initial"},
        layout={"width": f"{width}px", "margin": "0 8px 0 0", "flex": "0 0 auto"},
    )
