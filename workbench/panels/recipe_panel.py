"""Recipe: what every layer of the model gets, as a table to edit; its bits; and the model quantized by it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from workbench.figures.frame import short
from workbench.panels.code import model_line
from workbench.panels.figure_panel import choice
from workbench.panels.long_run import RunBar, duration
from workbench.panels.methods_table import decibel, signed
from workbench.panels.panel import BUTTON_LAYOUT, Panel, guarded
from workbench.panels.recipe_plan import KINDS, LayerPlan, RecipePlan, matching, needs_inputs, reads_images
from workbench.panels.recipe_state import FIELDS, RecipeState
from workbench.panels.recipe_table import RecipeTable
from workbench.panels.snapshot import Snapshot
from workbench.panels.sortable_table import Cell, Column, Line, SortableTable

if TYPE_CHECKING:
    from workbench.methods.result import LayerResult

#: Heading, meaning, what an empty cell means, width, and what it means in the first row.
COLUMNS = (
    ["layers", "Shell pattern of layer names; later rows override earlier ones", "*", 14, "*"],
    [
        "weight grid",
        "Levels of the weights, or float to leave the layers as they are",
        "as above",
        14,
        "uniform:bits=8",
    ],
    ["granularity", "What shares a scale: tensor, channel or group:128", "as above", 11, "channel"],
    ["scale", "Rule of the scale: absmax, mse or percentile:99.9", "as above", 9, "absmax"],
    ["activation", "How the layers' inputs are coded, e.g. float, int8@token", "as above", 10, "float"],
    ["method", "How codes are chosen, e.g. rtn-clip, gptq, nupes:steps=500", "as above", 12, "rtn"],
)
WEIGHTS = (
    "uniform:bits=8", "uniform:bits=4", "uniform:bits=4,range=asymmetric", "uniform:bits=3", "uniform:bits=2",
    "power:bits=4,exponent=search", "power:bits=3,exponent=search", "power:bits=4,exponent=0.5", "nf4", "mxfp4", "float",
)  # fmt: skip
GRANULARITIES = ("tensor", "channel", "group:128", "group:64", "group:32")
SCALES = ("absmax", "mse", "percentile:99.9")
ACTIVATIONS = ("float", "int8", "int8@token", "uint8", "int16", "uniform:bits=4@token", "power:bits=8,exponent=0.5")

LAYER_COLUMNS = (
    Column("layer", words=True),
    Column("gets", words=True, about="Grid, what shares a scale, scale rule, method and activation coding."),
    Column("weights"),
    Column(
        "bits per weight", about="Codes, scales, zero points and codebook; as stored where the layer is left alone."
    ),
    Column("SQNR / dB", about="Once it is quantized: of its outputs where the model was run, else of its weights."),
    Column("gain over RTN / dB", about="Against round to nearest on the same grid and scale rule."),
    Column("time", about="Wall time of the method for this layer."),
)


class RecipePanel(Panel):
    """The model-wide choice, row by row, with what it costs; quantizes the model and shows each layer as it comes."""

    title: ClassVar[str] = "Recipe"

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out presets and file over the rows, the bits, the run and the layers."""
        from workbench.methods.method import all_methods
        from workbench.quantization.recipe import PRESETS

        self.state = RecipeState.of(self.session)
        state = self.state
        self.preset = choice("Preset", [("choose …", ""), *((name, name) for name in PRESETS)], "")
        self.preset.layout.width = "230px"
        self.preset.observe(self._preset_chosen, "value")
        self.path = widgets.Text(
            value="recipe.yaml",
            description="File",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"flex": "0 1 280px", "width": "auto", "min_width": "140px", "margin": "0"},
        )
        self.load = _button("Load", "Read the recipe from this YAML file", self._load)
        self.save = _button("Save", "Write the recipe to this YAML file", self._save)
        self.said = widgets.HTML(layout={"margin": "0", "min_width": "0", "flex": "1 1 auto"}).add_class("qwb-clip")
        suggestions = dict(enumerate([[], WEIGHTS, GRANULARITIES, SCALES, ACTIVATIONS, list(all_methods())]))
        self.table = RecipeTable(
            columns=[list(column) for column in COLUMNS],
            suggestions={str(k): list(values) for k, values in suggestions.items() if values},
            facts_name="matches",
        )
        self.table.on_ask(self._asked)
        self.bits = widgets.HTML(layout={"width": "100%", "min_height": "22px"})
        self.samples = _number("Calibration samples", state.samples, 1, 100_000, "texts or images to learn from", 200)
        self.seed = _number("Seed", state.seed, 0, 2**31 - 1, "of every random choice", 130)
        self.transforms = widgets.Text(
            description="Before rounding",
            placeholder="no transforms, or e.g. smoothquant:alpha=0.5; rotation",
            tooltip="Changes of the float model that keep its function, before any rounding; several are parted by ;",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "460px", "max_width": "100%", "margin": "0"},
        )
        self.transforms.observe(self._transforms_typed, "value")
        self.output = widgets.Text(
            value=state.output,
            description="Folder",
            placeholder="none: kept in memory",
            tooltip="Write the quantized model here; a run that was stopped or killed goes on from its finished layers",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"flex": "0 1 320px", "width": "auto", "min_width": "160px", "margin": "0"},
        )
        self._controls = {"samples": self.samples, "seed": self.seed, "output": self.output}
        for name, control in self._controls.items():
            control.observe(lambda change, name=name: self._set(name, change["new"]), "value")
        self.run_bar = RunBar(state, "Quantize model", self._start, "Quantize the whole model by this recipe")
        self.layers = SortableTable(
            caption="What each layer gets", empty="Open a model to see its layers.", max_height=330
        )
        self.watch(self._show_plan, "model")
        self._state_handlers = [
            (self._show_recipe, ("recipe",)),
            (self._show_plan, ("pulse", "status", "quantized")),
            (self._show_settings, ("samples", "seed", "output")),
            (self._settings_changed, ("recipe", "samples", "seed", "output")),
        ]
        for handler, names in self._state_handlers:
            state.observe(handler, list(names))
        self._show_recipe()
        file_row = widgets.HBox(
            [self.preset, self.path, self.load, self.save, self.said], layout={"align_items": "center"}
        ).add_class("qwb-row")
        run_row = widgets.HBox([self.samples, self.seed, self.output], layout={"align_items": "center"}).add_class(
            "qwb-row"
        )
        return (file_row, self.table, self.transforms, self.bits, run_row, self.run_bar, self.layers)

    # ------------------------------------------------------------------ what a person does

    @guarded
    def _asked(self, asked: Mapping[str, Any]) -> None:
        """Take an edit or a press of a row's button; nonsense leaves the recipe and says why, beside the cell."""
        what, at = asked.get("what"), int(asked.get("row", -1))
        state = self.state
        self.said.value = ""
        if what == "edit":
            column = int(asked.get("column", -1))
            field = FIELDS[column] if 0 <= column < len(FIELDS) else ""
            sentence = state.edit(at, field, str(asked.get("value", ""))[:300])
            if sentence:
                self.table.refuse(at, column, sentence)
            else:
                self._show_recipe()  # also where the text was only written differently: the cell shows how it is read
        elif what == "add":
            state.add_row()
        elif what == "remove":
            state.remove(at)
        elif what in {"up", "down"}:
            state.move(at, at - 1 if what == "up" else at + 1)

    @guarded
    def _transforms_typed(self, change: Any) -> None:
        sentence = self.state.edit_transforms(change["new"])
        self._show_transforms()
        if sentence:
            self.show_error(sentence, "transforms")

    def _show_transforms(self) -> None:
        text = "; ".join(self.state.recipe.transforms)
        if self.transforms.value != text:
            self.transforms.value = text

    @guarded
    def _preset_chosen(self, change: Any) -> None:
        if change["new"]:
            self.said.value = ""
            self.state.recipe = change["new"]

    @guarded
    def _load(self, _button: Any) -> None:
        self._file_done(self.state.load(self.path.value), "read from")

    @guarded
    def _save(self, _button: Any) -> None:
        self._file_done(self.state.save(self.path.value), "written to")

    def _file_done(self, worked: bool, what: str) -> None:
        if not worked:
            self.said.value = ""
            self.show_error(self.session.message, "file")
            return
        self.clear_error("file")
        path = html.escape(self.path.value.strip())
        self.said.value = f'<span class="qwb-dim" role="status" title="{path}">✓ {what} {path}</span>'

    @guarded
    def _start(self) -> None:
        self.state.start()
        if self.state.running:
            self.clear_error("_refused")
        else:
            self.show_error(self.session.message, "_refused")

    @guarded
    def _set(self, name: str, value: Any) -> None:
        if getattr(self.state, name) != value:
            setattr(self.state, name, value)
            self._show_settings()

    # ------------------------------------------------------------------ showing

    @guarded
    def _show_settings(self, _change: Any = None) -> None:
        for name, control in self._controls.items():
            if control.value != getattr(self.state, name):
                control.value = getattr(self.state, name)

    @guarded
    def _show_recipe(self, _change: Any = None) -> None:
        recipe, model = self.state.recipe, self.session.model
        rows = []
        for entry in recipe.entries:
            count = matching(model, entry.pattern)
            facts = f"{count} layer{'s' if count != 1 else ''}" if model is not None else ""
            texts = [str(getattr(entry, field) or "") for field in FIELDS]
            rows.append([texts, facts, "warn" if model is not None and not count else ""])
        self.table.show(rows)
        self.clear_error("transforms")
        self._show_transforms()
        named = recipe.name if recipe.name in [value for _, value in self.preset.options] else ""
        if self.preset.value != named:
            self.preset.value = named
        self._show_plan()

    @guarded
    def _show_plan(self, _change: Any = None) -> None:
        if _change is not None and _change["name"] == "model":
            self._show_recipe()
            return
        plan = self.state.plan()
        self.bits.value = bits_html(plan)
        model: Any = self.session.model
        listed = [
            each for each in plan.layers if each.extra or each.name not in model or model[each.name].kind in KINDS
        ]
        rest = len(plan.layers) - len(listed)
        said = [f"{rest} norms and the like stay as they are"] if rest else []
        made = self.state.quantized
        if made is not None:
            said.append(
                f"outputs on {made.calibration}" if made.calibration else "SQNR of the weights: nothing was run"
            )
        self.layers.caption = "What each layer gets" + (f" ({'; '.join(said)})" if said else "")
        self.layers.show(LAYER_COLUMNS, [_layer_line(each, self.state.results.get(each.name)) for each in listed])

    def _settings_changed(self, _change: Any = None) -> None:
        self.follow_code()

    # ------------------------------------------------------------------ picture, numbers, code

    def wait(self, timeout: float = 10.0) -> bool:
        """Block until the model is quantized; False when ``timeout`` seconds passed first."""
        return self.state.wait(timeout)

    def snapshot(self) -> Snapshot:
        """Return a picture of the rows and the layers, and the numbers in them."""
        from workbench.figures.picture import draw_text, png, stack

        dress = self.session.theme
        rows = ["\t".join(column[0] for column in COLUMNS), *("\t".join(row[0]) for row in self.table.rows)]
        plan = self.state.plan()
        about = f"whole model: {plan.bits_per_weight:.3f} bits per weight" if plan.layers else "no model is open"
        pictures = [draw_text([f"{self.title}: {about}"], 900, dress), draw_text(rows, 900, dress)]
        if self.layers.rows:
            pictures.append(draw_text([line[:170] for line in self.layers.lines[:60]], 900, dress))
        return Snapshot(png(stack(pictures, dress=dress)), self.numbers())

    def numbers(self) -> dict[str, Any]:
        """Return the recipe, its bits, and the layers that are quantized."""
        plan = self.state.plan()
        return {
            "state": self.session.to_spec(),
            **self.state.to_spec(),
            "bits_per_weight": plan.bits_per_weight,
            "quantized_bits_per_weight": plan.quantized_bits_per_weight,
            "layers": {name: result.to_dict() for name, result in self.state.results.items()},
        }

    def code(self) -> str:
        """Return Python that quantizes the model by this recipe."""
        return "\n".join([*recipe_lines(self.session, self.state), "print(quantized.to_frame())"])

    def close(self) -> None:
        """Take the panel off the page; what runs goes on."""
        if self._is_closed:
            return
        for handler, names in self._state_handlers:
            self.state.unobserve(handler, list(names))
        super().close()


def recipe_lines(session: Any, state: RecipeState) -> list[str]:
    """Return the lines that open the model and quantize it by the recipe; they define ``model`` and ``quantized``."""
    entries, model = state.recipe.to_dict(), session.model
    imports, calibration = [], ""
    output = f"output={state.output!r}, " if state.output else ""
    if model is not None and needs_inputs(model, state.recipe):
        make = "from_images" if reads_images(model) else "from_texts"
        imports = ["from workbench.calibration import Calibration"]
        calibration = f"Calibration.{make}(model, samples={state.samples}, seed={state.seed}), "
    return [
        "from workbench import Recipe, open_model",
        *imports,
        "from workbench.methods.runner import quantize_model",
        "",
        model_line(session),
        "recipe = Recipe.from_dict({",
        *(f"    {name!r}: {value!r}," for name, value in entries.items() if name != "entries"),
        "    'entries': [",
        *(f"        {entry!r}," for entry in entries["entries"]),
        "    ],",
        "})",
        f"quantized = quantize_model(model, recipe, {calibration}{output}seed={state.seed})",
    ]


def bits_html(plan: RecipePlan) -> str:
    """Say what the recipe takes: bits of the quantized layers, and of the whole model with what is left alone."""
    if not plan.layers:
        return '<span class="qwb-dim">Open a model to see what the recipe takes.</span>'
    chosen = plan.quantized
    if not chosen:
        return '<span class="qwb-error" role="status">The recipe quantizes no layer of this model.</span>'
    stored = sum(each.stored_bits for each in plan.layers if not each.extra) / max(plan.weights, 1)
    return (
        f"<div><b>{plan.quantized_bits_per_weight:.3f} bits per weight</b> in the {len(chosen)} quantized layers "
        f"({100 * plan.quantized_share:.0f} % of the weights) · <b>{plan.bits_per_weight:.3f}</b> in the whole model "
        f"({stored:.3g} as it is stored now)</div>"
    )


def _layer_line(plan: LayerPlan, result: LayerResult | None) -> Line:
    name = Cell(short(plan.name, 60))
    weights = Cell(f"{plan.weights:,}", plan.weights)
    bits = Cell(f"{plan.bits_per_weight:.3f}", plan.bits_per_weight)
    blank = Cell("")
    if not plan.quantized:
        return Line((name, Cell(f"as it is ({plan.reason})", tone="dim"), weights, bits, blank, blank, blank))
    gets = f"{plan.weight} · {plan.granularity} · {plan.scale} · {plan.method}"
    gets += f" · inputs {plan.activation}" if plan.activation != "float" else ""
    if result is None:
        return Line((name, Cell(gets), weights, bits, Cell("…", tone="dim"), blank, blank))
    return Line(
        (
            name,
            Cell(gets),
            weights,
            Cell(f"{result.bits_per_weight:.3f}", result.bits_per_weight),
            Cell(decibel(result.sqnr_db), result.sqnr_db),
            Cell(signed(result.gain_db), result.gain_db),
            Cell(duration(result.seconds), result.seconds),
        ),
        " · ".join(result.notes),
    )


def _button(name: str, tooltip: str, act: Any) -> widgets.Button:
    button = widgets.Button(description=name, tooltip=tooltip, layout=BUTTON_LAYOUT)
    button.add_class("qwb-button")
    button.on_click(act)
    return button


def _number(label: str, value: int, least: int, most: int, tooltip: str, width: int) -> widgets.BoundedIntText:  # noqa: PLR0917
    return widgets.BoundedIntText(
        value=value,
        min=least,
        max=most,
        description=label,
        tooltip=tooltip,
        style={"description_width": "initial"},
        layout={"width": f"{width}px", "margin": "0 8px 0 0"},
    )
