"""The live grid: a layer's weights and a grid on them, whose error follows the mouse inside the browser."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from workbench.errors import WorkbenchError
from workbench.panels.live import families, transport
from workbench.panels.live.answers import Source, why_not_live

if TYPE_CHECKING:
    import os

    from workbench.grids import Grid
    from workbench.quantization import ErrorReport, Sketch

_HERE = Path(__file__).parent

#: Traits that name what is being measured; an error belongs to one state of them.
STATE = ("family", "bits", "exponent", "clip", "rounding", "range", "granularity", "scale_rule")


#: The uniform grid of each normalization: what a sketch compares other grids with.
RANGES = {"absmax": "narrow", "signed": "full", "range": "asymmetric"}

#: The answer of a widget that has none: no state is like it.
_NO_ANSWER = {"state": {"family": ""}}


@cache
def _catalogue() -> tuple[dict[str, Grid], bytes, dict[str, Any]]:
    """Return the named grids, their levels as bytes and where each one lies, made once."""
    grids = families.catalogue_grids()
    return grids, *transport.pack_levels(grids)


class LiveGrid(anywidget.AnyWidget):
    """Histogram, levels, code occupancy and error of a grid on a layer, redrawn by the browser while a slider moves.

    The browser holds a sketch of the layer and computes with it; Python is told the state when the mouse rests (on
    release, or after 120 ms without a change) and answers with the exact error. While dragging no message is sent.

    Args:
        sketch: what the browser computes with; its errors are ``≈`` and stay so, unless there is a layer.
        layer: a ``Layer``, array or tensor, for the exact error (``=``) and for other granularities.
        **state: initial ``bits``, ``exponent``, ``clip``, ``family``, ...; or ``grid``, a grid or its text form.

    >>> live = LiveGrid.from_layer(np.random.default_rng(0).normal(size=(64, 64)), grid="uniform:bits=3")
    >>> live.bits, live.family
    (3, 'uniform')
    """

    _esm = _HERE / "live.js"
    _css = _HERE / "live.css"
    markup = traitlets.Unicode(read_only=True).tag(sync=True)
    """The controls, as HTML."""

    family = traitlets.Unicode("power").tag(sync=True)
    """``uniform``, ``power``, ``log``, ``apot``, ``k-means``, a format's name (``nf4``, ``mxfp4``, ...), or ``custom``."""
    bits = traitlets.Int(4, min=2, max=8).tag(sync=True)
    """Bits of the families that have a choice."""
    exponent = traitlets.Float(0.55, min=families.SMALLEST_EXPONENT, max=2.0).tag(sync=True)
    """Exponent of the power family."""
    clip = traitlets.Float(1.0, min=0.05, max=1.0).tag(sync=True)
    """Fraction of the largest weight that the scale keeps."""
    rounding = traitlets.Enum(("power", "nearest"), "power").tag(sync=True)
    """Where the power family rounds."""
    range = traitlets.Enum(("narrow", "full", "asymmetric"), "narrow").tag(sync=True)
    """Range of the uniform family."""
    granularity = traitlets.Unicode("channel").tag(sync=True)
    """``tensor``, ``channel`` or ``group:128``."""
    scale_rule = traitlets.Unicode("absmax").tag(sync=True)
    """``absmax``, ``mse`` or ``percentile:99.9``."""
    log_counts = traitlets.Bool(default_value=False).tag(sync=True)
    """Whether the histogram's counts are logarithmic."""

    data = traitlets.Bytes(bytes(4 * transport.PICTURE_BINS)).tag(sync=True)
    """The sketch as the browser reads it."""
    info = traitlets.Dict().tag(sync=True)
    """What the sketch is of: name, size, axis, granularity, normalization."""
    levels = traitlets.Bytes(b"").tag(sync=True)
    """Levels and thresholds of the families that only Python knows."""
    catalogue = traitlets.Dict().tag(sync=True)
    """Where each of those lies in ``levels``."""
    overhead = traitlets.Float(0.0).tag(sync=True)
    """Bits per weight that scales, zero points and codebook take beside the codes."""
    exact = traitlets.Dict().tag(sync=True)
    """Python's answer: error over energy, mse, bound, whether approximate, and the state that it belongs to."""
    message = traitlets.Unicode("").tag(sync=True)
    """One sentence when something went wrong."""

    def __init__(self, sketch: Sketch | None = None, *, layer: Any = None, grid: Any = None, **state: Any) -> None:
        named, levels, catalogue = _catalogue()
        self._named = dict(named)
        self.fitted: dict[Grid, int] = {}
        self._source = Source(layer, sketch) if layer is not None or sketch is not None else None
        self._custom: Grid | None = None
        super().__init__(levels=levels, catalogue=catalogue, info=_no_info(), exact=_NO_ANSWER, **state)
        self.set_trait("markup", markup(families.CHOICES))
        if grid is not None:
            from workbench.grids import parse_grid

            self.grid = parse_grid(grid)
        if self._source is not None:
            if sketch is not None:
                self.granularity = str(sketch.granularity)
            self._answer()
            self.observe(self._answer, STATE)

    @traitlets.validate("exponent", "clip")
    def _finite(self, proposal: Any) -> float:
        """Refuse NaN, which passes every comparison with the ends of the range."""
        if math.isnan(proposal["value"]):
            message = f"{proposal['trait'].name} is a number, not NaN"
            raise traitlets.TraitError(message)
        return proposal["value"]

    @classmethod
    def from_layer(cls, layer: Any, **state: Any) -> LiveGrid:
        """Return a live grid on a layer, an array or a tensor, with initial ``bits``, ``exponent``, ``grid``, ..."""
        return cls(layer=layer, **state)

    # ------------------------------------------------------------------ the grid

    @property
    def state(self) -> dict[str, Any]:
        """What is being measured: the traits in ``STATE``."""
        return {name: getattr(self, name) for name in STATE}

    @property
    def grid(self) -> Grid:
        """The grid that the controls describe.

        Raises:
            GridError: k-means, before a codebook was fitted with these bits.
        """
        return families.grid_of(self.state, self._codebook, self._custom)

    @grid.setter
    def grid(self, grid: Grid) -> None:
        state = families.state_of(grid, self.fitted)
        if state["family"] == "custom" and grid != self._custom:
            self._custom = grid
            self._add("custom", grid)
        elif state["family"] == "k-means":
            self._add(f"k-means:{grid.bits}", grid)
        with self.hold_trait_notifications():
            for name, value in state.items():
                setattr(self, name, value)

    def add_codebook(self, grid: Grid, bits: int) -> None:
        """Take a k-means codebook, fitted elsewhere, as the family ``k-means`` with so many bits."""
        self.fitted[grid] = bits
        self._add(f"k-means:{bits}", grid)

    def forget_codebooks(self) -> None:
        """Drop the k-means codebooks: they were fitted to another layer."""
        if self.fitted:
            for bits in self.fitted.values():
                self._named.pop(f"k-means:{bits}", None)
            self.fitted = {}
            self._send_levels()

    @property
    def has_codebook(self) -> bool:
        """Whether a k-means codebook with the present bits is there."""
        return f"k-means:{self.bits}" in self._named

    def _codebook(self, bits: int) -> Grid:
        found = self._named.get(f"k-means:{bits}")
        if found is None and self._source is not None:
            found = self._source.kmeans(bits, self.granularity)
            self.add_codebook(found, bits)
        if found is None:
            from workbench.errors import GridError

            message = f"no k-means codebook of {bits} bits has been fitted yet"
            raise GridError(message)
        return found

    def _add(self, key: str, grid: Grid) -> None:
        """Send the levels of one more grid."""
        if self._named.get(key) != grid:
            self._named[key] = grid
            self._send_levels()

    def _send_levels(self) -> None:
        levels, catalogue = transport.pack_levels(self._named)
        with self.hold_sync():
            self.levels, self.catalogue = levels, catalogue

    # ------------------------------------------------------------------ what Python tells the browser

    def show_sketch(self, sketch: Sketch, about: str = "") -> None:
        """Give the browser a layer's sketch; ``about`` says its shape and dtype."""
        packed = transport.pack_sketch(sketch)
        with self.hold_sync():
            self.info = describe(sketch, about)
            self.data = packed

    def show_waiting(self, words: str, name: str | None = None) -> None:
        """Say that a sketch is on its way (``reading ...``); the numbers stand aside until it is there."""
        self.info = {**self.info, "waiting": words, **({} if name is None else {"name": name})}

    def show_failed(self, words: str, name: str) -> None:
        """Say why a layer has no numbers, with nothing of the layer before it left on the page."""
        with self.hold_sync():
            self.info = {**_no_info(), "range": "asymmetric", "name": name, "waiting": words}
            self.data = bytes(4 * transport.PICTURE_BINS)

    def show_exact(self, report: ErrorReport | None, state: Mapping[str, Any] | None = None) -> None:
        """Show a report as the answer to a state (the present one); None takes the answer back."""
        if report is None or not math.isfinite(report.bound):
            self.exact = _NO_ANSWER
            return
        self.exact = {
            "error": report.relative,
            "mse": report.mse,
            "bound": report.bound,
            "approximate": report.approximate,
            "state": dict(state or self.state),
        }

    def show_bits(self, bits_per_weight: float, grid: Grid) -> None:
        """Show what a weight costs with all that must be stored."""
        self.overhead = bits_per_weight - grid.bits

    def _answer(self, _change: Any = None) -> None:
        """Measure the state, standing alone: a few milliseconds, so at once and in the callback's thread."""
        source = self._source
        if source is None:
            return
        state = self.state
        try:
            with source.lock:
                grid = self.grid
                sketch = source.sketch(self.granularity, grid.normalization)
                if sketch is not source.shown:
                    source.shown = sketch
                    self.show_sketch(sketch, source.about)
                self.show_bits(source.bits_per_weight(grid, self.granularity), grid)
                report = source.measure(grid, self.granularity, self.scale_rule, self.clip)
                if state == self.state:
                    self.show_exact(report, state)
            self.message = why_not_live(grid, self.scale_rule)
        except WorkbenchError as error:
            self.message = str(error)

    # ------------------------------------------------------------------ beyond the notebook

    def to_html(self, path: str | os.PathLike[str], *, title: str | None = None, note: str = "") -> Path:
        """Write the widget into one page whose sliders are alive without a kernel or a network.

        Args:
            path: file to write.
            title: heading of the page; the layer's name when left out.
            note: how it was made, shown at the foot.

        Returns:
            The path.
        """
        from workbench.panels.static_html import write_page

        return write_page(self, path, title=title, note=note)

    @property
    def source(self) -> Source | None:
        """What the widget measures by itself; None when something else answers for it."""
        return self._source


def describe(sketch: Sketch, about: str = "") -> dict[str, Any]:
    """Return what the browser needs to know of a sketch beside its bins (plain data)."""
    granularity = str(sketch.granularity)
    sharing = {"tensor": "tensor", "channel": "output channel"}.get(granularity, "group")
    if sketch.normalization == "range":
        unit = f"(weight − smallest) / range of its {sharing}"
    else:
        unit = f"weight / {'signed ' if sketch.normalization == 'signed' else ''}largest magnitude of its {sharing}"
    whole = granularity == "tensor" and sketch.normalization == "absmax"
    return {
        "name": sketch.name,
        "about": f"{about or f'{sketch.rows} × {sketch.columns}'} · {sketch.count:,} weights",
        "unit": unit.replace("of its tensor", "of the tensor"),
        "span": float(sketch.absmax) if whole and sketch.absmax > 0.0 else 1.0,
        "domain": [0.0 if sketch.normalization == "range" else -1.0, 1.0],
        "granularity": granularity,
        "normalization": sketch.normalization,
        "range": RANGES[sketch.normalization],
        "energy": float(sketch.energy),
        "count": int(sketch.count),
    }


def _no_info() -> dict[str, Any]:
    """Return the info of a widget that has no sketch yet."""
    return {
        "name": "", "about": "", "unit": "", "span": 1.0, "domain": [-1.0, 1.0], "granularity": "", "normalization": "absmax",
        "range": "narrow", "energy": 0.0, "count": 1, "waiting": "no layer yet",
    }  # fmt: skip


def markup(choices: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Return the controls' HTML with what each select offers."""
    text = (_HERE / "live.html").read_text(encoding="utf-8")
    for name, offered in choices.items():
        options = "".join(
            f'<option value="{html.escape(value)}">{html.escape(words)}</option>' for value, words in offered
        )
        text = text.replace(f"{{{name}}}", options)
    return text
