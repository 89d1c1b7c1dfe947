"""Layers: the model's tree with what each layer is, how heavy its tails are, and its error at the present grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import ipywidgets as widgets

from workbench.panels.code import model_line
from workbench.panels.layers_picture import draw_layers
from workbench.panels.layers_table import LayersTable
from workbench.panels.panel import Panel, guarded
from workbench.panels.snapshot import Snapshot


class LayersPanel(Panel):
    """Search, sort, pick and compare layers; error bars fill in the background."""

    title: ClassVar[str] = "Layers"

    def build(self) -> Sequence[widgets.Widget]:
        """Make the table and link it with the session, both ways."""
        self.table = LayersTable(layout={"width": "100%", "height": "100%", "min_height": "240px"})
        self.table.observe(self._take_picked, "picked")
        self.table.observe(self._take_compared, "compared")
        self.watch(self._show_model, "model")
        self.watch(self._show_picked, "layer_name", "compared")
        self.watch(self._show_errors, "layer_errors", "layer_failures")
        self.watch(self._show_statistics, "layer_statistics")
        self.body.remove_class("qwb-body")
        self.body.layout.flex = "1 1 auto"
        self._show_model(None)
        return (self.table,)

    @guarded
    def _show_model(self, _change: Any) -> None:
        with self.session.lock:
            model = self.session.model
            self.table.show_layers(model.layers if model is not None else {}, self.session.measured_layers())
        self._show_picked(None)
        self._show_errors(None)
        self._show_statistics(None)

    @guarded
    def _show_picked(self, _change: Any) -> None:
        with self.session.lock, self.table.hold_sync():
            self.table.picked = self.session.layer_name
            self.table.compared = list(self.session.compared)

    @guarded
    def _show_errors(self, _change: Any) -> None:
        with self.session.lock, self.table.hold_sync():
            self.table.sqnr = self.table.column(
                {name: report.sqnr_db for name, report in self.session.layer_errors.items()}
            )
            self.table.failures = dict(self.session.layer_failures)

    @guarded
    def _show_statistics(self, _change: Any) -> None:
        with self.session.lock, self.table.hold_sync():
            self.table.sigma = self.table.column(_pluck(self.session.layer_statistics, "max_over_sigma"))
            self.table.kurtosis = self.table.column(_pluck(self.session.layer_statistics, "kurtosis"))

    @guarded
    def _take_picked(self, _change: Any) -> None:
        if self.table.picked:
            self.session.select(self.table.picked)

    @guarded
    def _take_compared(self, _change: Any) -> None:
        self.session.compared = tuple(self.table.compared)

    def code(self) -> str:
        """Return Python that prints the error of every layer at the present grid."""
        session = self.session
        clip, rule = session.clip, session.scale_rule
        # As the session does: a sketch tells where it can, else the exact pass.
        rounded = session.grid.integer_zero_point or session.grid.scale_format not in {None, "float32"}
        if rule.startswith("percentile") or (rounded and (rule == "mse" or clip < 1.0)):
            names = "exact_error, open_model, parse_grid"
            measure = [
                "    report = exact_error(",
                f"        layer, grid, granularity={session.granularity!r}, scale={rule!r}, clip={clip!r}",
                "    )",
            ]
        else:
            names = "open_model, parse_grid, sketch, sketch_error"
            taken = repr(clip)
            measure = [f"    layer_sketch = sketch(layer, granularity={session.granularity!r}, grid=grid)"]
            if rule == "mse":
                names = "best_clip, " + names
                taken = f"min({clip!r}, best_clip(layer_sketch, grid).clip)"
            measure += [f"    report = sketch_error(layer_sketch, grid, clip={taken})"]
        return "\n".join(
            [
                f"from workbench import {names}",
                "",
                model_line(session),
                f"grid = parse_grid({str(session.grid)!r})",
                "for name, layer in model.layers.items():",
                '    if layer.kind not in {"linear", "conv", "embedding"}:',
                "        continue",
                *measure,
                '    print(f"{name:60s} {report.sqnr_db:6.2f} dB")',
            ]
        )

    def numbers(self) -> dict[str, Any]:
        """Return each layer's shape, number of weights, statistics and error, as far as measured."""
        with self.session.lock:
            model, errors = self.session.model, self.session.layer_errors
            statistics = self.session.layer_statistics
            layers = dict(model.layers) if model is not None else {}
        return {
            **self.session.to_spec(),
            "layers": {
                name: {
                    "shape": list(layer.shape),
                    "parameters": layer.parameters,
                    "max_over_sigma": statistics.get(name, {}).get("max_over_sigma"),
                    "kurtosis": statistics.get(name, {}).get("kurtosis"),
                    "mse": errors[name].mse if name in errors else None,
                    "sqnr_db": errors[name].sqnr_db if name in errors else None,
                }
                for name, layer in layers.items()
            },
        }

    def snapshot(self) -> Snapshot:
        """Return the table as a picture: the measured layers in the model's order with their errors as bars."""
        from workbench.figures.picture import png

        numbers = self.numbers()
        title = f"{self.title} of {self._name()}: {self.session.grid.label}, {self.session.granularity}"
        shown = {name: numbers["layers"][name] for name in self.session.measured_layers()}
        return Snapshot(png(draw_layers(title, shown, self.session.theme)), numbers)

    def _name(self) -> str:
        model = self.session.model
        return model.name if model is not None else "no model"


def _pluck(results: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    return {name: result[key] for name, result in results.items()}
