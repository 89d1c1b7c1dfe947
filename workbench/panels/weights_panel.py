"""Weights: their histogram with the grid's levels on it, the codes in use, and their quantiles beside a Gaussian's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from workbench.figures.distribution import Bars, Quantiles, histogram_figure, occupancy_figure, quantile_figure
from workbench.figures.frame import framed, short
from workbench.panels.code import preamble
from workbench.panels.figure_panel import FigurePanel, choice, row
from workbench.panels.panel import guarded

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.panels.jobs import Job
    from workbench.quantization import Sketch

#: Bins of the histogram: two pixels or more each at the widths that notebooks have.
BINS = 256

_NO_LAYER = "No layer: open a model and pick one"


class WeightsPanel(FigurePanel):
    """How the weights of a layer, and of the layers compared with it, lie on the grid."""

    title: ClassVar[str] = "Weights"
    jobs = ("sketch", "weights", "compared")

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out the histogram over occupancy and quantiles."""
        self._shapes: dict[str, Any] = {}
        self._others: list[tuple[str, Sketch]] = []
        self._others_key: tuple[Any, ...] = ()
        self._normalised: tuple[Any, Any] = (None, None)
        self.axis = choice(
            "Axis", [("weight / its group's absmax", "normalised"), ("weight value", "value")], "normalised"
        )
        self.counts = choice("Counts", [("linear", False), ("logarithmic", True)], False)
        for control in (self.axis, self.counts):
            control.observe(self._draw_grid, "value")
        self.tools.children = (self.axis, self.counts)
        dress = self.session.theme
        empty = {name: framed([], title=_NO_LAYER, x=x, y=y, dress=dress, height=height) for name, x, y, height in (
            ("histogram", "weight value", "weights per bin", 310),
            ("occupancy", "stored code", "share of weights / %", 280),
            ("quantiles", "quantile of a Gaussian / σ", "quantile of the weights / σ", 280),
        )}  # fmt: skip
        boxes = {name: self.place(name, figure) for name, figure in empty.items()}
        self.watch(self._layers_changed, "layer", "compared")
        self.watch(self._grid_changed, "sketch", "grid", "clip", "scale_rule")
        self.watch(self._draw_all, "theme")
        self._layers_changed()
        self._grid_changed()
        return (row(boxes["histogram"]), row(boxes["occupancy"], boxes["quantiles"]))

    # ------------------------------------------------------------------ what follows from a change

    @guarded
    def _layers_changed(self, _change: Any = None) -> None:
        """Ask for the histograms and quantiles of the layers, which no grid changes."""
        session = self.session
        if session.layer is None:
            self._shapes = {}
            self._draw_all()
            return
        layers = [session.layer, *(session.model.layers[n] for n in self._compared() if session.model is not None)]
        known = self._shapes

        def work(job: Job) -> dict[str, Any]:
            from workbench.quantization import histogram, qq_points

            found = {}
            for layer in layers:
                job.check()
                key = layer.content_key
                found[key] = known.get(key) or (histogram(layer, BINS), qq_points(layer))
            return found

        def show(found: dict[str, Any]) -> None:
            self._shapes = found
            self._draw_quantiles()
            self._draw_grid()

        self.compute("weights", work, show, label=f"counting {session.layer_name}")
        self._ask_for_others()

    @guarded
    def _grid_changed(self, _change: Any = None) -> None:
        self._draw_grid()
        self._ask_for_others()

    def _ask_for_others(self) -> None:
        """Ask for the sketches of the compared layers, as the session has its own layer's."""
        session, grid, names = self.session, self.grid, self._compared()
        special = grid if grid.scale_format or grid.integer_zero_point else grid.normalization
        key = (tuple(names), session.granularity, special) if names and session.model is not None else ()
        if key == self._others_key:
            return
        self._others_key = key
        if session.model is None or not names:
            self._others = []
            self._draw_grid()
            return
        layers, granularity = [session.model.layers[name] for name in names], session.granularity

        def work(job: Job) -> list[tuple[str, Sketch]]:
            from workbench.quantization import sketch_for

            found = []
            for layer in layers:
                job.check()
                found.append((layer.name, sketch_for(layer, grid, granularity, job.progress)))
            return found

        def show(found: list[tuple[str, Sketch]]) -> None:
            self._others = found
            self._draw_grid()

        self.compute("compared", work, show, label="reading the compared layers")

    def _compared(self) -> list[str]:
        return [name for name in self.session.compared if name != self.session.layer_name]

    # ------------------------------------------------------------------ drawing

    @guarded
    def _draw_all(self, _change: Any = None) -> None:
        self._draw_quantiles()
        self._draw_grid()

    @guarded
    def _draw_grid(self, _change: Any = None) -> None:
        session = self.session
        if session.layer is None:
            return
        clip = self._clip()
        figure = self._histogram(clip)
        if figure is not None:
            self.draw("histogram", figure)
        if session.sketch is not None and clip is not None:
            self.draw("occupancy", self._occupancy(session.sketch, clip))

    def _draw_quantiles(self) -> None:
        layers = [
            Quantiles(layer.name, found[1].gaussian, found[1].weights, found[1].mean, found[1].std)
            for layer in self._layers()
            if (found := self._shapes.get(layer.content_key)) is not None
        ]
        if layers:
            self.draw("quantiles", quantile_figure(layers, dress=self.session.theme))

    def _layers(self) -> list[Any]:
        session = self.session
        if session.layer is None or session.model is None:
            return []
        return [session.layer, *(session.model.layers[name] for name in self._compared())]

    def _clip(self) -> float | None:
        """Return the clip that all groups share, or None where the scale rule gives each its own and none is best."""
        from workbench.quantization import best_clip

        session = self.session
        if session.scale_rule == "mse" and session.sketch is not None:
            return best_clip(session.sketch, self.grid).clip if session.sketch.clips_freely else 1.0
        return session.clip if session.scale_rule == "absmax" else None

    def _histogram(self, clip: float | None) -> go.Figure | None:
        from workbench.quantization.normalised import tensor_levels

        session, grid = self.session, self.grid
        if self.axis.value == "normalised":
            return None if session.sketch is None else self._normalised_histogram(session.sketch, clip)
        found = [(layer.name, self._shapes.get(layer.content_key)) for layer in self._layers()]
        bars = [Bars(name, shape[0].edges, shape[0].counts) for name, shape in found if shape is not None]
        if not bars:
            return None
        levels, note = None, f"levels differ from {_group(session.granularity)} to {_group(session.granularity)}"
        if session.granularity == "tensor" and session.sketch is not None and clip is not None:
            levels, note = tensor_levels(session.sketch, grid, clip), ""
        return self._bars_figure(bars, levels, "weight value", note)

    def _normalised_histogram(self, sketch: Sketch, clip: float | None) -> go.Figure:
        from workbench.quantization.normalised import normalised_histogram, normalised_levels

        session = self.session
        if self._normalised[0] is not sketch:
            self._normalised = (sketch, normalised_histogram(sketch, BINS))
        mine = self._normalised[1]
        bars = [Bars(session.layer_name, mine.edges, mine.counts)]
        for name, other in self._others:
            counted = normalised_histogram(other, BINS)
            bars.append(Bars(name, counted.edges, counted.counts))
        levels, note = None, "levels not drawn: a percentile scale clips each group differently"
        if clip is not None:
            levels = normalised_levels(self.grid, clip)
            note = f"levels at the clip {clip:.3f} that is best for all groups" if session.scale_rule == "mse" else ""
        where = "range" if self.grid.normalization == "range" else "absmax"
        return self._bars_figure(bars, levels, f"weight / {where} of its {_group(session.granularity)}", note)

    def _bars_figure(self, bars: list[Bars], levels: Any, x_title: str, note: str) -> go.Figure:
        session = self.session
        title = f"Weights of {short(session.layer_name, 48)}" + (f" ({note})" if note else "")
        return histogram_figure(
            bars[0],
            levels=levels,
            codes=self.grid.codes,
            compared=bars[1:],
            log=self.counts.value,
            x_title=x_title,
            title=title,
            dress=session.theme,
            height=310,
        )

    def _occupancy(self, sketch: Sketch, clip: float) -> go.Figure:
        from workbench.quantization import occupancy

        session, grid = self.session, self.grid
        mine = occupancy(sketch, grid, clip)
        others = [(name, occupancy(other, grid, clip).counts) for name, other in self._others]
        return occupancy_figure(
            grid.codes,
            grid.levels,
            mine.counts,
            entropy=mine.entropy,
            bits=grid.bits,
            compared=others,
            badge="≈" if mine.approximate else "=",
            dress=session.theme,
        )

    # ------------------------------------------------------------------ code and numbers

    def numbers(self) -> dict[str, Any]:
        """Return the state, the bins on screen, the levels on them, the code counts and the entropy."""
        from workbench.quantization import occupancy

        session = self.session
        found: dict[str, Any] = {"state": session.to_spec(), "axis": self.axis.value}
        clip = self._clip()
        if session.sketch is not None and clip is not None:
            used = occupancy(session.sketch, self.grid, clip)
            found["entropy"], found["bits"] = float(used.entropy), self.grid.bits
            found["codes"] = {int(c): float(n) for c, n in zip(self.grid.codes, used.counts, strict=True)}
        shape = self._shapes.get(session.layer.content_key) if session.layer is not None else None
        if shape is not None:
            found["histogram"] = {"edges": shape[0].edges.tolist(), "counts": shape[0].counts.tolist()}
            found["quantiles"] = {"gaussian": shape[1].gaussian.tolist(), "weights": shape[1].weights.tolist()}
        return found

    def code(self) -> str:
        """Return Python that counts the same weights in the same bins and codes."""
        session = self.session
        lines = [
            preamble(session, "best_clip") if session.scale_rule == "mse" else preamble(session),
            "",
            "from workbench.quantization import histogram, occupancy, qq_points, sketch_for",
            "from workbench.quantization.normalised import normalised_histogram",
            "",
            f"pooled = sketch_for(layer, grid, {session.granularity!r})",
        ]
        clip = "best_clip(pooled, grid).clip" if session.scale_rule == "mse" else repr(session.clip)
        if session.scale_rule in {"absmax", "mse"}:
            lines.append(f"codes = occupancy(pooled, grid, clip={clip})")
        lines += [
            f"normalised = normalised_histogram(pooled, {BINS})",
            f"counts = histogram(layer, {BINS})",
            "quantiles = qq_points(layer)",
        ]
        if session.scale_rule in {"absmax", "mse"}:
            lines.append('print(f"{codes.entropy:.3f} of {grid.bits} bits per weight")')
        return "\n".join(lines)


def _group(granularity: str) -> str:
    """Return what shares a scale, as a noun."""
    return "group" if granularity.startswith("group") else granularity
