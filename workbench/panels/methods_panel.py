"""Methods: how good this layer gets at these bits, by which method, at what cost; curves while they learn."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from workbench.figures.distribution import Bars
from workbench.figures.frame import short
from workbench.figures.methods import Curve, before_after_figure, curves_figure, levels_figure
from workbench.panels.code import preamble
from workbench.panels.figure_panel import FigurePanel, choice, row
from workbench.panels.long_run import RunBar
from workbench.panels.methods_choice import MethodChoice
from workbench.panels.methods_state import ROWS, MethodsState
from workbench.panels.methods_table import COLUMNS, table_lines
from workbench.panels.panel import BUTTON_LAYOUT, guarded
from workbench.panels.sortable_table import SortableTable

if TYPE_CHECKING:
    from PIL import Image

    from workbench.panels.methods_outcome import Outcome


class MethodsPanel(FigurePanel):
    """Run several methods on a layer (or many), watch them learn, compare them, and take one into the recipe."""

    title: ClassVar[str] = "Methods"
    jobs = ()

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out the choice over the run, the results, the curves and the weights before and after."""
        self.state = MethodsState.of(self.session)
        state = self.state
        self.choice = MethodChoice(state)
        self.grids = choice(
            "Grid", [("the session's", "session"), ("uniform, same bits", "uniform"), ("power, same bits", "power")],
            state.grids,
        )  # fmt: skip
        self.pattern = _text("Layers", state.pattern, "the present layer, or e.g. *.mlp.*", "230px")
        self.steps = _number("Steps (0: own)", state.steps, 1_000_000, "of each method that learns; 0: its own")
        self.seed = _number("Seed", state.seed, 2**31 - 1, "of every random choice")
        self._controls = {"grids": self.grids, "pattern": self.pattern, "steps": self.steps, "seed": self.seed}
        for name, control in self._controls.items():
            control.observe(lambda change, name=name: self._set(name, change["new"]), "value")
        self.plan = widgets.HTML(layout={"width": "100%", "min_height": "40px"})
        self.run_bar = RunBar(state, "Run methods", self._start, "Run the chosen methods on the chosen layers")
        self.table = SortableTable(
            caption="Results (click a row to see its weights)",
            empty="No results yet: choose methods and press Run methods.",
            pickable=True,
            max_height=230,
            layout={"min_height": "190px"},
        )
        self.table.observe(self._row_picked, "picked")
        self.use = widgets.Button(
            description="Use in recipe", tooltip="Give the picked result's layer its grid and method in the recipe"
        )
        self.drop = widgets.Button(description="Clear results", tooltip="Drop all results")
        for button, action in ((self.use, self._use), (self.drop, self._clear)):
            button.layout = BUTTON_LAYOUT
            button.add_class("qwb-button")
            button.on_click(action)
        self.said = widgets.HTML(layout={"margin": "0"})
        dress = self.session.theme
        curves = self.place("curves", curves_figure([], dress=dress), 330)
        weights = self.place("weights", self._no_weights(), 330)
        levels = self.place("levels", levels_figure(*[[]] * 4, dress=dress), 330)  # pyright: ignore[reportArgumentType]
        self.watch(self._draw, "theme")
        self.watch(self._say_plan, "layer_name", "grid", "granularity", "scale_rule", "model")
        self.watch(self._show_results, "layer_name")
        self._state_handlers = [
            (self._say_plan, ("methods", "grids", "pattern", "steps", "seed")),
            (self._show_settings, ("grids", "pattern", "steps", "seed")),
            (self._show_results, ("results", "picked")),
            (self._draw_curves, ("pulse", "status")),
        ]
        for handler, names in self._state_handlers:
            state.observe(handler, list(names))
        self._say_plan()
        self._show_results()
        settings = widgets.Box(
            tuple(self._controls.values()),
            layout={"display": "flex", "flex_flow": "row wrap", "width": "100%", "grid_gap": "4px 0"},
        )
        below = widgets.HBox([self.use, self.drop, self.said], layout={"align_items": "center", "min_height": "30px"})
        below.add_class("qwb-row")
        return (self.choice, settings, self.plan, self.run_bar, self.table, below, row(curves, weights, levels))

    # ------------------------------------------------------------------ what a person does

    @guarded
    def _set(self, name: str, value: Any) -> None:
        """Take a setting from its control; nonsense leaves the old one, and the control says it again."""
        before = getattr(self.state, name)
        if before == value:
            return
        setattr(self.state, name, value)
        after = getattr(self.state, name)
        if after == before and after != str(value).strip():
            self._show_settings()
            self.show_error(self.session.message, "setting")
        else:
            self.clear_error("setting")

    @guarded
    def _start(self) -> None:
        self.said.value = ""
        if not self.choice.take_extra():
            return
        before = self.state.status
        self.state.start()
        if self.state.status == before and not self.state.running:
            self.show_error(self.session.message, "_start_refused")
        else:
            self.clear_error("_start_refused")

    @guarded
    def _row_picked(self, _change: Any) -> None:
        shown = self._shown()
        if 0 <= self.table.picked < len(shown):
            self.state.picked = shown[self.table.picked].key

    @guarded
    def _use(self, _button: Any) -> None:
        outcome = self._picked()
        if outcome is None or outcome.error:
            self.show_error("pick a result that succeeded first: it is what goes into the recipe", "use")
            return
        self.clear_error("use")
        self.state.use_in_recipe(outcome.key)
        self.said.value = (
            f'<span class="qwb-dim" role="status">✓ {html.escape(outcome.title)} is in the recipe '
            f"for {html.escape(short(outcome.layer, 60))}</span>"
        )

    @guarded
    def _clear(self, _button: Any) -> None:
        self.said.value = ""
        self.state.clear()

    # ------------------------------------------------------------------ showing

    @guarded
    def _show_settings(self, _change: Any = None) -> None:
        for name, control in self._controls.items():
            if control.value != getattr(self.state, name):
                control.value = getattr(self.state, name)

    @guarded
    def _say_plan(self, _change: Any = None) -> None:
        """Say what Run would do: layers, grids, granularity, scale rule."""
        state, session = self.state, self.session
        layers = state.layers()
        if not layers:
            self.plan.value = '<span class="qwb-dim">Open a model and pick a layer.</span>'
            return
        chosen = state.chosen()
        grids: dict[str, list[str]] = {}
        for method in chosen:
            grids.setdefault(state.grid_for(method), []).append(method.title)
        where = f"<b>{html.escape(layers[0])}</b>" if len(layers) == 1 else f"<b>{len(layers)} layers</b>"
        parts = [
            f"{html.escape(', '.join(titles))} on <code>{html.escape(grid)}</code>" for grid, titles in grids.items()
        ]
        clip = " (the session's clip is left out: methods find their own)" if session.clip < 1.0 else ""
        self.follow_code()
        self.plan.value = (
            f'<div class="qwb-dim" style="line-height:1.45">{where}, one scale per {html.escape(session.granularity)}, '
            f"{html.escape(session.scale_rule)} start{clip}: {'; '.join(parts) or 'no method is chosen'}</div>"
        )

    @guarded
    def _show_results(self, _change: Any = None) -> None:
        shown, picked = self._shown(), self._picked()
        at = next((i for i, each in enumerate(shown) if picked is not None and each.key == picked.key), -1)
        self.table.show(COLUMNS, table_lines(shown), picked=at)
        self.use.disabled = picked is None or bool(picked.error)
        self.drop.disabled = not shown
        self._draw()

    @guarded
    def _draw(self, _change: Any = None) -> None:
        self._draw_curves()
        dress, outcome = self.session.theme, self._picked()
        if outcome is None or outcome.error:
            self.draw("weights", self._no_weights())
            self.draw("levels", levels_figure(*[[]] * 4, dress=dress))  # pyright: ignore[reportArgumentType]
            return
        self.draw(
            "weights",
            before_after_figure(
                Bars("before", outcome.edges, outcome.before),
                Bars(outcome.title, outcome.edges, outcome.after),
                title=f"Weights before and after {outcome.title}",
                dress=dress,
            ),
        )
        changed = f" ({100 * outcome.changed:.1f} % moved)" if math.isfinite(outcome.changed) else ""
        self.draw(
            "levels",
            levels_figure(
                outcome.levels,
                outcome.shares,
                outcome.nearest_levels,
                outcome.nearest_shares,
                name=outcome.title,
                title=f"Levels of {outcome.title}{changed}",
                dress=dress,
            ),
        )

    @guarded
    def _draw_curves(self, _change: Any = None) -> None:
        state = self.state
        with state.lock:
            layer = self._curve_layer()
            kept = {
                (each.layer, each.method): (list(each.trace_steps), list(each.trace_loss))
                for each in state.results.values()
                if len(each.trace_steps) > 1
            }
            # A growing curve is copied: the worker goes on adding to it.
            live = {key: (list(steps), list(loss)) for key, (steps, loss) in list(state.curves.items())}
        curves = [
            Curve(_curve_name(method), steps[: len(loss)], loss[: len(steps)])
            for (name, method), (steps, loss) in {**kept, **live}.items()
            if name == layer and len(steps) > 1
        ]
        about = f": {short(layer, 18)}" if layer else ""
        self.draw(
            "curves",
            curves_figure(
                curves,
                steps=max((method.steps_planned for method in state.chosen()), default=0) if state.running else 0,
                title=f"Loss, lower is better{about}",
                dress=self.session.theme,
            ),
        )

    def _curve_layer(self) -> str:
        """Return the layer whose curves are shown: the one being learned, else the picked result's."""
        live = list(self.state.curves)
        if self.state.running and live:
            return live[-1][0]
        picked = self._picked()
        return picked.layer if picked is not None else (live[-1][0] if live else self.session.layer_name)

    def _shown(self) -> list[Outcome]:
        return list(self.state.results.values())

    def _picked(self) -> Outcome | None:
        return self.state.results.get(self.state.picked) if self.state.picked is not None else None

    def _no_weights(self) -> Any:
        nothing = Bars("", [0.0], [])  # pyright: ignore[reportArgumentType]
        return before_after_figure(nothing, nothing, dress=self.session.theme)

    # ------------------------------------------------------------------ picture, numbers, code

    def wait(self, timeout: float = 10.0) -> bool:
        """Block until the methods are done; False when ``timeout`` seconds passed first."""
        return self.state.wait(timeout)

    def pictures(self) -> Sequence[Image.Image]:
        """Return the table and the figures."""
        from workbench.figures.picture import draw_text

        lines = self.table.lines if self.table.rows else ["no method was run yet"]
        return [draw_text(lines, 760, self.session.theme), *super().pictures()]

    def numbers(self) -> dict[str, Any]:
        """Return the state, the settings and every result."""
        return {
            "state": self.session.to_spec(),
            "methods": self.state.to_spec(),
            "results": [outcome.numbers() for outcome in self._shown()],
        }

    def code(self) -> str:
        """Return Python that runs the chosen methods on the chosen layers, on the same inputs."""
        state, session = self.state, self.session
        layers, pairs = state.layers(), [(str(method), state.grid_for(method)) for method in state.chosen()]
        gaussian = any(each.origin for each in state.results.values() if each.layer in layers)
        word = "gaussian_inputs" if gaussian else "layer_inputs"
        source = "gaussian_inputs(layer" if gaussian else "layer_inputs(model, layer"
        model: Any = session.model
        convolutions = any(model[name].kind == "conv" for name in layers)
        lines = [
            preamble(session),
            "",
            f"from workbench.calibration.layer_inputs import {word}",
            f"from workbench.methods.layer import {'patches, ' if convolutions else ''}quantize_layer",
            "",
            "results = {}",
            f"for name in {layers!r}:",
            "    layer = model[name]",
            f"    inputs = {source}, rows={ROWS})",
            "    rows = inputs.values",
        ]
        if convolutions:
            lines += [
                "    if inputs.convolution is not None:",
                "        rows = patches(rows, layer.shape, inputs.convolution)",
            ]
        return "\n".join(
            [
                *lines,
                "    for method, grid in [",
                *(f"        ({method!r}, {grid!r})," for method, grid in pairs),
                "    ]:",
                "        results[name, method] = quantize_layer(",
                f"            layer, method, grid, granularity={session.granularity!r}, scale={session.scale_rule!r},",
                f"            inputs=rows, bias=inputs.bias, seed={state.seed},",
                "        )",
                "        print(results[name, method])",
            ]
        )

    def close(self) -> None:
        """Take the panel off the page; what runs goes on."""
        if self._is_closed:
            return
        for handler, names in self._state_handlers:
            self.state.unobserve(handler, list(names))
        self.choice.let_go()
        super().close()


def _curve_name(text: str) -> str:
    from workbench.methods.method import parse_method

    word, _, settings = text.partition(":")
    title = parse_method(word).title
    return f"{title} ({settings})" if settings else title


def _text(label: str, value: str, placeholder: str, width: str) -> widgets.Text:
    return widgets.Text(
        value=value,
        description=label,
        placeholder=placeholder,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": width, "margin": "0 8px 0 0"},
    )


def _number(label: str, value: int, most: int, tooltip: str) -> widgets.BoundedIntText:
    return widgets.BoundedIntText(
        value=value,
        min=0,
        max=most,
        description=label,
        tooltip=tooltip,
        style={"description_width": "initial"},
        layout={"width": f"{70 + 8 * len(label)}px", "margin": "0 8px 0 0"},
    )
