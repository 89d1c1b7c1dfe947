"""What the integer panels share: whose rounding, which accumulator, which inputs, and the layer's run that follows."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import traitlets

from workbench.errors import Cancelled, IntegerError, WorkbenchError
from workbench.panels.state import Checked, one_sentence, read_grid

if TYPE_CHECKING:
    from workbench.calibration.layer_inputs import LayerInputs
    from workbench.grids import Grid
    from workbench.integer.layer_run import LayerRun
    from workbench.panels.jobs import Job
    from workbench.panels.session import Session

#: Rows of real inputs (tokens, or patches of an image) that a layer is run on.
ROWS = 256
#: Seconds of rest before a layer is run again.
SETTLE_SECONDS = 0.15

#: What may follow the layer, in the order of the list.
FOLLOWERS = ("none", "relu", "gelu", "silu", "tanh", "logistic", "softmax")
KINDS = ("table", "polynomial", "runtime")


def _read_semantics(_state: Any, value: Any) -> str:
    from workbench.integer.semantics import as_semantics

    return as_semantics(value).name


def _read_accumulator(_state: Any, value: Any) -> str:
    from workbench.integer.accumulator import as_accumulator

    text = str(value).strip()
    return text if text == "auto" else str(as_accumulator(text))


def _read_activation(_state: Any, value: Any) -> str:
    return str(read_grid(None, str(value)))


def _read_follower(_state: Any, value: Any) -> str:
    return _one_of(value, FOLLOWERS, "what follows a layer")


def _read_kind(_state: Any, value: Any) -> str:
    return _one_of(value, KINDS, "the kind of an operator")


def _read_row(state: Any, value: Any) -> int:
    rows = state.run.codes.shape[0] if state.run is not None else None
    try:
        row = int(value)
    except (TypeError, ValueError, OverflowError):
        row = -1
    if isinstance(value, bool) or row != value or row < 0 or (rows is not None and row >= rows):
        message = f"row {str(value)[:40]!r} is not one of the {rows if rows is not None else 'run'} input rows"
        raise IntegerError(message)
    return row


def _one_of(value: Any, words: tuple[str, ...], name: str) -> str:
    if value not in words:
        message = f"{name} is {', '.join(words[:-1])} or {words[-1]}, not {str(value)[:40]!r}"
        raise IntegerError(message)
    return value


class IntegerState(traitlets.HasTraits):
    """Settings of the integer run of a session's layer, and its result; get it by ``IntegerState.of(session)``.

    As in a session, nonsense changes nothing and puts one sentence into the session's ``message``. The layer is run
    again on the session's worker whenever a setting, the layer or its grid changes, as long as a panel shows it.
    """

    semantics = Checked("tflm", _read_semantics)
    """Whose rounding."""
    versus = Checked("onnxruntime", _read_semantics)
    """The semantics to compare with."""
    activation = Checked("uniform:bits=8,range=asymmetric", _read_activation)
    """Grid of the layer's inputs, as text."""
    accumulator = Checked("auto", _read_accumulator)
    """``auto`` is as wide as the operands ask for; else e.g. ``int32``, ``int16:wrap``, ``int16:saturate``."""
    then = Checked("none", _read_follower)
    """Activation function after the layer."""
    kind = Checked("table", _read_kind)
    """How that function is computed."""
    row = Checked(0, _read_row)
    """The input row whose outputs are shown."""

    inputs: LayerInputs | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The inputs of the layer; their ``origin`` says whether they are real."""
    run: LayerRun | None = traitlets.Any(None, read_only=True)  # pyright: ignore[reportAssignmentType]
    """The layer's run at these settings; None while it is computed."""
    rivals: tuple[tuple[str, LayerRun], ...] = traitlets.Any((), read_only=True)  # pyright: ignore[reportAssignmentType]
    """Other ways to run the layer on the same inputs: the uniform grid of the same bits, the power domain, ..."""
    note = traitlets.Unicode("", read_only=True)
    """Why the inputs are not real, or why there is no run; empty when all is well."""

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)  # the session keeps its state alive, not the other way round
        self.lock = session.lock
        self._shown_by = 0
        super().__init__()
        self._settings = ("semantics", "activation", "accumulator", "then", "kind")
        self.observe(self._changed, list(self._settings))

    @staticmethod
    def of(session: Session) -> IntegerState:
        """Return the session's own state."""
        with session.lock:
            found = _states.get(session)
            if found is None:
                found = _states[session] = IntegerState(session)
        return found

    @property
    def session(self) -> Session:
        """The session whose layer is run."""
        alive = self._session()
        if alive is None:
            message = "the session of this panel has gone"
            raise WorkbenchError(message)
        return alive

    def complain(self, error: Exception | str) -> None:
        """Show an error as one sentence in the session's message."""
        self.session.complain(error)

    def show(self) -> None:
        """Begin to follow the session: a panel is on the page."""
        with self.lock:
            self._shown_by += 1
            if self._shown_by == 1:
                self.session.observe(self._layer_changed, ["layer"])
                self.session.observe(self._changed, ["grid", "granularity", "scale_rule", "clip"])
                self._layer_changed()

    def hide(self) -> None:
        """Stop following the session when the last panel has gone."""
        with self.lock:
            self._shown_by -= 1
            if self._shown_by == 0 and self._session() is not None:
                self.session.unobserve(self._layer_changed, ["layer"])
                self.session.unobserve(self._changed, ["grid", "granularity", "scale_rule", "clip"])
                self.session.worker.cancel("integer")

    def to_spec(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        with self.lock:
            names = (*self._settings, "versus", "row")
            return {name: getattr(self, name) for name in names}

    def from_spec(self, spec: dict[str, Any]) -> None:
        """Take settings that ``to_spec`` gave; unknown ones become a message."""
        unknown = set(spec) - set(self.to_spec())
        if unknown:
            self.complain(f"the integer panel has no setting called {', '.join(sorted(unknown))}")
            return
        with self.hold_trait_notifications():
            for name, value in spec.items():
                setattr(self, name, value)

    # ------------------------------------------------------------------ what follows from a change

    def _layer_changed(self, _change: Any = None) -> None:
        with self.lock:
            self.set_trait("inputs", None)
            self.set_trait("run", None)
            self.row = 0
        self._changed()

    def _changed(self, _change: Any = None) -> None:
        with self.lock:
            if self._shown_by == 0:
                return
            self.set_trait("note", "")
            if self.session.layer is None:
                self.set_trait("run", None)
                self.session.worker.cancel("integer")
                return
            layer, grid = self.session.layer, self.session.grid
            options = self.options()
            label = f"running {layer.name} in integers"
            self.session.worker.submit(
                "integer",
                lambda job: self._work(job, layer, grid, options),
                priority=4,
                delay=SETTLE_SECONDS,
                label=label,
            )

    def options(self) -> dict[str, Any]:
        """Return what ``run_layer`` is called with beside layer, inputs and grid."""
        session = self.session
        return {
            "granularity": session.granularity,
            "scale": session.scale_rule,
            "clip": session.clip,
            "activation": self.activation,
            "semantics": self.semantics,
            "accumulator": None if self.accumulator == "auto" else self.accumulator,
            "then": None if self.then == "none" else self.then,
            "kind": self.kind,
        }

    def _work(self, job: Job, layer: Any, grid: Grid, options: dict[str, Any]) -> None:
        from workbench.integer.layer_run import run_layer

        try:
            inputs, note = self.inputs, ""
            if inputs is None:
                inputs, note = _inputs_of(self.session.model, layer, job)
                with self.lock:
                    job.check()
                    self.set_trait("inputs", inputs)
            else:
                note = self.note
            run = run_layer(layer, inputs, grid=grid, progress=job.progress, **options)
            rivals = tuple(_rivals(layer, inputs, grid, options, job))
        except Cancelled:
            raise
        except Exception as error:
            with self.lock:
                job.check()
                self.set_trait("run", None)
                self.set_trait("note", one_sentence(error))
            return
        with self.lock:
            job.check()
            self.set_trait("note", note)
            self.set_trait("rivals", rivals)
            self.set_trait("run", run)


_states: weakref.WeakKeyDictionary[Session, IntegerState] = weakref.WeakKeyDictionary()


def _rivals(
    layer: Any, inputs: LayerInputs, grid: Grid, options: dict[str, Any], job: Job
) -> Iterator[tuple[str, LayerRun]]:
    """Run the layer the other ways that are worth comparing with; one that cannot run is left out."""
    from workbench.grids import PowerGrid, UniformGrid
    from workbench.integer.layer_run import run_layer

    ways: list[tuple[str, Any, dict[str, Any]]] = []
    if not isinstance(grid, UniformGrid) and 2 <= grid.bits <= 8:
        ways.append(("uniform, same bits", UniformGrid(grid.bits), {}))
    if isinstance(grid, PowerGrid):
        ways.append(("power domain (approximation)", grid, {"method": "power-domain"}))
    for name, other, more in ways:
        job.check()
        with suppress(WorkbenchError):
            yield name, run_layer(layer, inputs, grid=other, **{**options, **more})


def _inputs_of(model: Any, layer: Any, job: Job) -> tuple[LayerInputs, str]:
    """Return the layer's real inputs, or Gaussian ones and the sentence that says why."""
    from workbench.calibration.layer_inputs import gaussian_inputs, layer_inputs

    try:
        return layer_inputs(model, layer, rows=ROWS, progress=job.progress), ""
    except WorkbenchError as error:
        job.check()
        return gaussian_inputs(layer, rows=ROWS), str(error)
