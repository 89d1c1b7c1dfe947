"""The one state that all panels share: a model, a layer, a grid, and the numbers that follow from them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import traitlets

from workbench.errors import WorkbenchError
from workbench.panels import measuring, state
from workbench.panels.jobs import Job, Worker
from workbench.panels.spec import read_spec, write_spec
from workbench.panels.state import Checked, SketchShelf, one_sentence, weakly

if TYPE_CHECKING:
    from workbench.checkpoints import Layer, Model
    from workbench.grids import Grid
    from workbench.quantization import ErrorReport, Sketch

#: The grid that a session starts with: every control of the live panel has something to do.
FIRST_GRID = "power:bits=4,exponent=0.55"
#: Seconds of rest before the exact pass: enough to merge traits that one gesture sets together.
SETTLE_SECONDS = 0.01
#: Seconds of rest before the whole model is measured at a new grid.
SWEEP_DELAY = 0.15
#: How long ``open`` waits for a local file's headers before it leaves the rest to the worker.
PATIENCE = 2.0

_EMPTY: Mapping[str, Any] = {}


class Session(traitlets.HasTraits):
    """Model, layer, grid and scale, with the sketch and the errors that follow; panels watch it and set it.

    Assigning nonsense to a trait changes nothing and puts one sentence into ``message``. Long work runs on one
    thread that starts and ends by itself. Everything may be called from any thread.

    Args:
        source: what ``open_model`` takes, or a model; None starts empty.
        sweep: whether the errors of all layers are measured in the background.
    """

    layer_name = Checked("", state.read_layer_name)
    """Name of the layer that is looked at; empty when no model is open."""
    compared: Any = Checked((), state.read_compared)
    """Names of further layers to look at beside it."""
    grid: Any = Checked(None, state.read_grid)
    """The grid; a text form may be assigned."""
    granularity = Checked("channel", state.read_granularity)
    """What shares a scale: ``tensor``, ``channel`` or ``group:128``."""
    scale_rule = Checked("absmax", state.read_scale_rule)
    """How a scale is found: ``absmax``, ``percentile:99.9`` or ``mse``."""
    clip = Checked(1.0, state.read_clip)
    """Fraction of the largest weight that the scale keeps, 0.05 to 1."""
    channel = Checked(-1, state.read_channel)
    """The output channel (row) that was picked, or -1."""
    theme = Checked("light", state.read_theme)
    """``light`` or ``dark``: what the page shows."""

    model: Model | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The open model, or None."""
    layer: Layer | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The layer of that name, or None."""
    sketch: Sketch | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The layer's sketch at this granularity, or None while it is made."""
    report: ErrorReport | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The error as the sketch gives it at once (``≈``); None while there is no sketch, and for percentile scales.
    With scale rule ``mse`` it is the error at the best clip that all groups share; a clip for each group does better."""
    exact: ErrorReport | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The error of the exact pass (``=``), with ``per_channel``; None from a change until it is measured."""
    layer_errors: Mapping[str, ErrorReport] = traitlets.Any(_EMPTY, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Error of each layer at the present grid, as far as measured in the background (``≈``)."""
    layer_statistics: Mapping[str, Mapping[str, Any]] = traitlets.Any(_EMPTY, read_only=True)  # pyright: ignore[reportAssignmentType]
    """``weight_statistics(layer).to_dict()`` of each layer, as far as measured in the background."""
    layer_failures: Mapping[str, str] = traitlets.Any(_EMPTY, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Why a layer could not be measured, by name."""
    busy = traitlets.Unicode("", read_only=True)
    """What is being done, in words; empty when nothing takes long."""
    progress = traitlets.Float(0.0, read_only=True)
    """How far it is, 0 to 1."""
    paused = traitlets.Bool(False, read_only=True)
    """Whether ``cancel`` has stopped work that ``resume`` would take up again."""
    message = traitlets.Unicode("")
    """One sentence: the last error or news; empty when all is well."""

    def __init__(self, source: Any = None, *, sweep: bool = True) -> None:
        self.lock = threading.RLock()
        self._closed = False
        self._cleanups: list[Callable[[], None]] = []
        self._sweeps = sweep
        self.shelf = SketchShelf()
        super().__init__()
        self.worker = Worker(weakly(self._show_progress), weakly(self.complain))
        self._finalizer = weakref.finalize(self, self.worker.close)
        if source is not None:
            self.open(source)

    @traitlets.default("grid")
    def _first_grid(self) -> Grid:
        from workbench.grids import parse_grid

        return parse_grid(FIRST_GRID)

    # ------------------------------------------------------------------ what a person does

    def open(self, source: Any) -> None:
        """Open a model (anything ``open_model`` takes, ``demo:NAME``, or a ``Model``) and close the one before.

        Local files are open when this returns; what takes longer (a download) goes on in the background.
        """
        self._open(source, {})

    def select(self, layer_name: str) -> None:
        """Look at another layer."""
        self.layer_name = layer_name

    def set_grid(self, grid: str | Grid) -> None:
        """Take a grid or its text form; a block format (MX, NVFP4) brings its group size with it."""
        with self.lock:
            before = self.grid
            self.grid = grid
            block = getattr(self.grid, "block", None)
            if block and self.grid != before:
                self.granularity = f"group:{block}"

    def best_exponent(self) -> None:
        """Find the exponent of the power grid with these bits that errs least on the layer, and take it."""
        self._search("exponent", "searching the best exponent", measuring.best_exponent)

    def best_clip(self) -> None:
        """Find the clip, shared by all groups, at which the grid errs least on the layer, and take it."""
        self._search("clip", "searching the best clip", measuring.best_clip)

    def cancel(self) -> None:
        """Stop everything that runs; finished results stay, and ``resume`` goes on from them."""
        with self.lock:
            unfinished = self.worker.has("sketch", "exact", "sweep", "statistics")
            self.worker.cancel()
            self._show_progress("", 0.0)
            self.set_trait("paused", unfinished or self.paused)

    def resume(self) -> None:
        """Take up the background measurements where ``cancel`` stopped them."""
        with self.lock:
            self.set_trait("paused", False)
            self._measure()
            self._schedule_sweep(0.0)
            self._schedule_statistics()

    def wait(self, timeout: float | None = None, *, kinds: tuple[str, ...] = ()) -> bool:
        """Block until the background is done (scripts and tests); False when ``timeout`` seconds passed first.

        Args:
            timeout: seconds; None waits as long as it takes.
            kinds: wait for these only: ``open``, ``sketch``, ``exact``, ``sweep``, ``statistics``, ...
        """
        return self.worker.wait(timeout, kinds)

    def close(self) -> None:
        """Stop the background work, close the model and let go of all data."""
        self.worker.close()
        self._finalizer.detach()
        with self.lock:
            if self._closed:
                return
            self._closed = True
            model, cleanups = self.model, self._cleanups
            self._cleanups = []
            self.unobserve_all()
            self._forget_model()
            _close_quietly(model)
        for clean in cleanups:
            clean()

    def on_close(self, clean: Callable[[], None]) -> None:
        """Call ``clean()`` when the session closes."""
        self._cleanups.append(clean)

    def to_spec(self) -> dict[str, Any]:
        """Return the state as plain data that ``json`` can write and ``from_spec`` reads back."""
        return write_spec(self)

    def from_spec(self, spec: Mapping[str, Any]) -> Session:
        """Bring the session into the state that ``to_spec`` described; missing entries stay as they are.

        A spec with an unknown or unreadable entry changes nothing and leaves a message. Returns the session itself.
        """
        try:
            wanted = read_spec(self, spec)
        except (WorkbenchError, TypeError, ValueError) as error:
            self.complain(error)
            return self
        source = spec.get("source")
        if source and source != self.to_spec()["source"]:
            self._open(source, wanted)
        else:
            self._apply(wanted)
        return self

    # ------------------------------------------------------------------ what panels may ask for

    def background(
        self, kind: str, compute: Callable[[Job], Any], show: Callable[[Any], None], *, label: str = ""
    ) -> None:
        """Run ``compute(job)`` on the worker and hand the result to ``show``; the latest request of a kind wins.

        ``show`` runs on the worker with the lock held: it may set traits, and must not create widgets.
        """

        def run(job: Job) -> None:
            result = compute(job)
            with self.lock:
                job.check()
                show(result)

        self.worker.submit(kind, run, priority=3, label=label)

    def complain(self, error: Exception | str) -> None:
        """Show an error as one sentence in ``message``."""
        sentence = one_sentence(error)
        with self.lock:
            self.message = sentence

    # ------------------------------------------------------------------ opening

    def _open(self, source: Any, then: Mapping[str, Any]) -> None:
        if hasattr(source, "layers") and hasattr(source, "tree"):
            self._adopt(source, then)
            return
        if not _is_openable(source):
            self.complain(f"type a folder, a file or a Hub id to open, not {source!r}")
            return

        def run(job: Job) -> None:
            from workbench.checkpoints import open_model
            from workbench.resources import resolve_source

            job.announce()
            model = open_model(resolve_source(source.strip()) if isinstance(source, str) else source)
            with self.lock:
                if job.stale:
                    _close_quietly(model)
                    job.check()
                self._adopt(model, then)

        job = self.worker.submit("open", run, priority=0, label=f"opening {str(source)[:80]}")
        if job is not None and threading.current_thread() is not self.worker.thread:
            self.worker.wait(PATIENCE, ("open",))

    def _adopt(self, model: Model, then: Mapping[str, Any]) -> None:
        """Replace the model and everything that followed from the one before."""
        with self.lock:
            if self._closed:
                _close_quietly(model)
                return
            before = self.model
            self.worker.cancel("sketch", "exact", "sweep", "statistics", "search")
            with self.hold_trait_notifications():
                self._forget_model()
                self.set_trait("model", model)
                self.layer_name = _first_layer(model)
                self.message = ""
            self._apply(then)
            self._schedule_sweep(0.0)
            self._schedule_statistics()
            if before is not None and before is not model:
                # Not here and now: the worker may be reading the old model's file at this moment.
                self.worker.submit(f"close {id(before)}", lambda _job: _close_quietly(before), priority=0)
        self.worker.submit("warm", measuring.warm_up, priority=8, label="preparing kernels")

    def _forget_model(self) -> None:
        self.shelf.clear()
        for name in ("model", "layer", "sketch", "report", "exact"):
            self.set_trait(name, None)
        for name in ("layer_errors", "layer_statistics", "layer_failures"):
            self.set_trait(name, {})
        self.set_trait("paused", False)
        self.compared = ()
        self.layer_name = ""

    def _apply(self, wanted: Mapping[str, Any]) -> None:
        with self.lock:
            if "layer_name" in wanted:
                self.layer_name = wanted["layer_name"]
            with self.hold_trait_notifications():
                for name, value in wanted.items():
                    setattr(self, name, value)

    # ------------------------------------------------------------------ what follows from a change

    @traitlets.observe("layer_name")
    def _layer_changed(self, _change: Any) -> None:
        layer = self.model[self.layer_name] if self.model is not None and self.layer_name else None
        if layer is not self.layer:
            self.channel = -1
            self.set_trait("layer", layer)
            self.message = ""
            self._measure()

    @traitlets.observe("grid", "granularity", "scale_rule", "clip")
    def _scale_changed(self, _change: Any) -> None:
        self.message = ""
        self.set_trait("layer_errors", {})
        self._measure()
        self._schedule_sweep(SWEEP_DELAY)

    def _measure(self) -> None:
        """Bring sketch and report up to date at once if the sketch is at hand, and ask for what is not."""
        with self.lock:
            self.worker.cancel("exact")
            self.set_trait("exact", None)
            if self.layer is None or self._closed:
                self.worker.cancel("sketch")
                self.set_trait("sketch", None)
                self.set_trait("report", None)
                return
            # First of all: the pass starts while panels on this thread still draw what follows below.
            scale = {"granularity": self.granularity, "rule": self.scale_rule, "clip": self.clip}
            exact = measuring.exact_job(self, self.layer, self.grid, **scale)
            label = f"measuring {self.layer_name}"
            self.worker.submit("exact", exact, priority=2, delay=SETTLE_SECONDS, label=label)
            found = self.shelf.get(SketchShelf.key(self.layer, self.granularity, self.grid))
            if found is None:
                self.set_trait("sketch", None)
                self.set_trait("report", None)
                self.worker.submit(
                    "sketch", self._job(measuring.make_sketch), priority=1, label=f"reading {self.layer_name}"
                )
            else:
                self.worker.cancel("sketch")
                try:
                    report = measuring.sketch_report(found, self.grid, self.scale_rule, self.clip)
                except WorkbenchError as error:
                    report = None
                    self.complain(error)
                self.show_sketch(found, report)

    def _job(self, measure: Callable[[Session, Job], Any]) -> Callable[[Job], Any]:
        return lambda job: measure(self, job)

    def show_sketch(self, sketch: Sketch, report: ErrorReport | None) -> None:
        """Make a sketch the present one, with what it tells of the present grid (called with the lock held)."""
        self.set_trait("sketch", sketch)
        self.set_trait("report", report)

    # ------------------------------------------------------------------ the whole model

    def measured_layers(self) -> list[str]:
        """Return the names of the layers that a model's quantization is about: linear, conv and embedding weights."""
        if self.model is None:
            return []
        return [name for name, layer in self.model.layers.items() if layer.kind in {"linear", "conv", "embedding"}]

    def _schedule_sweep(self, delay: float) -> None:
        if self._sweeps and self.model is not None and not self.paused and not self._closed:
            self.worker.submit(
                "sweep", self._job(measuring.sweep_errors), priority=7, delay=delay, label="errors of all layers"
            )

    def _schedule_statistics(self) -> None:
        if self._sweeps and self.model is not None and not self.paused and not self._closed:
            self.worker.submit(
                "statistics", self._job(measuring.sweep_statistics), priority=9, label="statistics of all layers"
            )

    # ------------------------------------------------------------------ searches

    def _search(self, kind: str, label: str, find: Callable[[Session, Job, Layer], None]) -> None:
        layer = self.layer
        if layer is None:
            self.complain(f"open a model and pick a layer first: the best {kind} belongs to a layer")
            return
        self.worker.submit("search", lambda job: find(self, job, layer), priority=1, label=label)

    def _show_progress(self, label: str, fraction: float) -> None:
        with self.lock:
            self.set_trait("busy", label)
            self.set_trait("progress", fraction)


def _first_layer(model: Model) -> str:
    """Return the first linear or conv layer's name: what a person most likely wants to see first."""
    for name, layer in model.layers.items():
        if layer.kind in {"linear", "conv"}:
            return name
    return next(iter(model.layers), "")


def _is_openable(source: Any) -> bool:
    if isinstance(source, str):
        return bool(source.strip())
    return hasattr(source, "__fspath__") or hasattr(source, "named_parameters")


def _close_quietly(model: Model | None) -> None:
    with suppress(Exception):
        if model is not None:
            model.close()
