"""What the methods panel shows: which methods on which layers, their curves while they learn, and their results."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import traitlets

from workbench.errors import Cancelled, QuantizationError, WorkbenchError
from workbench.panels.long_run import LongRun, duration
from workbench.panels.methods_outcome import Outcome, outcome_of
from workbench.panels.state import Checked, one_sentence

if TYPE_CHECKING:
    from workbench.calibration.layer_inputs import LayerInputs
    from workbench.calibration.statistics import LayerStatistics
    from workbench.grids import Grid
    from workbench.methods.method import Method
    from workbench.panels.jobs import Job
    from workbench.panels.session import Session

#: Rows of real inputs that methods learn from, as ``quantize_layer`` takes them by itself.
ROWS = 1024
#: Points of a live curve; a longer one keeps every second.
MOST_POINTS = 600
#: What a method without steps counts as beside one of so many steps, when the time left is guessed.
DATA_FREE_STEPS = 10
#: Methods whose exponent is theirs to find: they need a power grid.
POWER_METHODS = frozenset({"powerquant", "nupes"})
#: Which grid methods get: the session's, or one family for all.
GRIDS = ("session", "uniform", "power")


def _read_methods(_state: Any, value: Any) -> tuple[str, ...]:
    from workbench.methods.method import parse_method

    if isinstance(value, str) or not isinstance(value, list | tuple):
        message = f"methods are a list of texts such as ['rtn', 'gptq'], not {str(value)[:60]!r}"
        raise QuantizationError(message)
    return tuple(dict.fromkeys(str(parse_method(each)) for each in value))


def _read_pattern(state: Any, value: Any) -> str:
    pattern = str(value).strip()
    if pattern:
        _matching(state.session, pattern)
    return pattern


def _read_count(name: str, most: int) -> Any:
    def read(_state: Any, value: Any) -> int:
        try:
            count = -1 if isinstance(value, bool) else int(value)
        except (TypeError, ValueError, OverflowError):
            count = -1
        if count != value or not 0 <= count <= most:
            message = f"{name} is a whole number from 0 to {most:,}, not {str(value)[:40]!r}"
            raise QuantizationError(message)
        return count

    return read


def _read_grids(_state: Any, value: Any) -> str:
    if value not in GRIDS:
        message = f"methods get the grid of the session, uniform or power, not {str(value)[:40]!r}"
        raise QuantizationError(message)
    return value


class MethodsState(LongRun):
    """Methods on layers of a session: what to run, live curves, results; get it by ``MethodsState.of(session)``."""

    kind: ClassVar[str] = "methods"

    methods = Checked(("rtn", "rtn-clip"), _read_methods)
    """Text forms of the methods to run, in order."""
    pattern = Checked("", _read_pattern)
    """Shell pattern of the layers to run them on; empty for the session's present layer."""
    steps = Checked(0, _read_count("the budget of steps", 1_000_000))
    """Optimiser steps of each method that learns; 0 leaves each its own."""
    seed = Checked(0, _read_count("the seed", 2**31 - 1))
    """Of every random choice."""
    grids = Checked("session", _read_grids)
    """Which grid: the session's (methods with an exponent of their own get a power grid of its bits), or one family."""

    results: Mapping[tuple[str, str, str, str], Outcome] = traitlets.Any({}, read_only=True)  # pyright: ignore[reportAssignmentType]
    """What is finished: (layer, method, grid asked for, granularity) -> outcome, in the order in which it came."""
    picked: tuple[str, str, str, str] | None = traitlets.Any(None, allow_none=True)  # pyright: ignore[reportAssignmentType]
    """Key of the result whose weights are shown."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        #: Curves of the run that is under way: (layer, method) -> (steps, losses); grows between two pulses.
        self.curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        self.origin = ""

    # ------------------------------------------------------------------ what to run

    def chosen(self) -> list[Method]:
        """Return the methods with the budget of steps in them."""
        from workbench.methods.method import parse_method

        return [self._budgeted(parse_method(text)) for text in self.methods]

    def _budgeted(self, method: Method) -> Method:
        learns = method.steps_planned > 0 and any(each.name == "steps" for each in fields(method))
        return method.but(steps=self.steps) if self.steps and learns else method

    def layers(self) -> list[str]:
        """Return the names of the layers to run on."""
        session = self.session
        if self.pattern:
            return _matching(session, self.pattern)
        return [session.layer_name] if session.layer_name else []

    def grid_for(self, method: Method) -> str:
        """Return the text of the grid that a method gets."""
        return grid_for(method, self.session.grid, self.grids)

    def to_spec(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        with self.lock:
            return {
                "methods": list(self.methods),
                "pattern": self.pattern,
                "steps": self.steps,
                "seed": self.seed,
                "grids": self.grids,
            }

    # ------------------------------------------------------------------ running

    def start(self) -> None:
        """Run the chosen methods on the chosen layers; results come one by one and stay when it is stopped."""
        session = self.session
        with self.lock:
            if session.model is None or session.layer is None:
                self.complain("open a model and pick a layer first: methods run on a layer's weights")
                return
            methods, layers = self.chosen(), self.layers()
            if not methods:
                self.complain("choose at least one method to run")
                return
            model, granularity, scale, seed = session.model, session.granularity, session.scale_rule, self.seed
            tasks = [(name, [(method, self.grid_for(method)) for method in methods]) for name in layers]
            self.curves = {}
        options = {"granularity": granularity, "scale": scale, "seed": seed}
        self.begin(
            lambda job: self._work(job, model, tasks, options), f"{len(methods)} methods on {len(layers)} layers"
        )

    def _work(self, job: Job, model: Any, tasks: list[tuple[str, list[tuple[Method, str]]]], options: dict) -> str:
        from workbench.methods.layer import quantize_layer

        weights = [_weight(method) for _, methods in tasks for method, _ in methods]
        total, done, failed = float(sum(weights)), 0.0, 0
        for name, methods in tasks:
            layer = model[name]
            self.tell(job, done / total, f"reading {name}")
            statistics, bias = self._inputs(job, model, layer, done / total)
            for method, grid in methods:
                share = _weight(method) / total
                base = done / total

                def step(_name: str, at: int, steps: int, loss: float, key: Any = (name, str(method))) -> None:
                    _ = steps
                    self._grow(key, at, loss)

                def progress(fraction: float, _label: str = "", base: float = base, share: float = share) -> None:
                    self.tell(job, base + share * fraction, f"{method.title} on {name}")  # noqa: B023 - called within this turn

                progress(0.0)
                try:
                    result = quantize_layer(
                        layer, method, grid, inputs=statistics, bias=bias, progress=progress, on_step=step, **options
                    )
                    outcome = outcome_of(layer, result, grid, options, self.origin)
                except Cancelled:
                    raise
                except WorkbenchError as error:
                    failed += 1
                    outcome = Outcome.failure(
                        name, str(method), grid, options=options, error=one_sentence(error), origin=self.origin
                    )
                done += _weight(method)
                self._publish(job, outcome)
        count = len(weights) - failed
        also = f", {failed} could not run" if failed else ""
        return f"{count} result{'s' if count != 1 else ''} in {duration(self.seconds_so_far())}{also}"

    def _inputs(self, job: Job, model: Any, layer: Any, at: float) -> tuple[LayerStatistics, Any]:
        """Return the layer's real inputs boiled down, or Gaussian ones; ``origin`` says which and why."""
        reading = f"reading the inputs of {layer.name}"
        found, self.origin = _inputs_of(model, layer, lambda _done, label="": self.tell(job, at, label or reading))
        return _statistics(layer, found), found.bias

    def _grow(self, key: tuple[str, str], step: int, loss: float) -> None:
        steps, losses = self.curves.setdefault(key, ([], []))
        if steps and step < steps[-1]:
            return  # a second phase that counts from zero again would draw the curve backwards
        steps.append(step)
        losses.append(loss)
        if len(steps) > MOST_POINTS:
            del steps[1:-1:2], losses[1:-1:2]

    def _publish(self, job: Job, outcome: Outcome) -> None:
        with self.lock:
            job.check()
            if outcome.trace_steps:
                self.curves[outcome.layer, outcome.method] = (list(outcome.trace_steps), list(outcome.trace_loss))
            results = {key: value for key, value in self.results.items() if key != outcome.key}
            self.set_trait("results", {**results, outcome.key: outcome})
            if self.picked not in self.results or (not outcome.error and self._is_best(outcome)):
                self.picked = outcome.key

    def _is_best(self, outcome: Outcome) -> bool:
        of_layer = [each for each in self.results.values() if each.layer == outcome.layer and not each.error]
        return outcome.sqnr_db >= max((each.sqnr_db for each in of_layer), default=outcome.sqnr_db)

    def clear(self) -> None:
        """Drop all results."""
        with self.lock:
            self.picked = None
            self.curves = {}
            self.set_trait("results", {})

    def forget(self) -> None:
        """Drop what belongs to the model before."""
        self.clear()
        self.pattern = ""

    def kept(self) -> str:
        """Say how many results stay."""
        count = len(self.results)
        return f"{count} result{'s' if count != 1 else ''} kept"

    # ------------------------------------------------------------------ into the recipe

    def use_in_recipe(self, key: tuple[str, str, str, str] | None = None) -> None:
        """Give the layer of a result (or all layers of the pattern it ran on) its grid and method in the recipe."""
        from workbench.panels.recipe_state import RecipeState

        with self.lock:
            outcome = self.results.get(key or self.picked)  # pyright: ignore[reportArgumentType]
            if outcome is None or outcome.error:
                self.complain("pick a result that succeeded first: it is what goes into the recipe")
                return
            wide = self.pattern and fnmatch.fnmatchcase(outcome.layer, self.pattern)
            RecipeState.of(self.session).add(
                self.pattern if wide else outcome.layer,
                weight=outcome.grid_asked,
                granularity=outcome.granularity,
                scale=outcome.scale,
                method=outcome.method,
            )


def grid_for(method: Method, grid: Grid, family: str = "session") -> str:
    """Return the text of the grid that a method gets: the session's where it can use it, else one of the same bits."""
    from workbench.grids import PowerGrid, UniformGrid

    bits = max(2, min(int(grid.bits), 8))
    nearest = isinstance(grid, PowerGrid) and grid.rounding == "nearest"
    search = f"power:bits={bits},exponent=search" + (",rounding=nearest" if nearest else "")
    if method.word in POWER_METHODS:
        return search
    if family == "power":
        return str(grid) if isinstance(grid, PowerGrid) else search
    if family == "uniform":
        return str(grid) if isinstance(grid, UniformGrid) else str(UniformGrid(bits))
    return str(grid)


def _weight(method: Method) -> int:
    return method.steps_planned + DATA_FREE_STEPS


def _matching(session: Any, pattern: str) -> list[str]:
    """Return the linear and conv layers that a pattern names.

    Raises:
        QuantizationError: there are none.
    """
    model = session.model
    names = [] if model is None else [n for n, layer in model.layers.items() if layer.kind in {"linear", "conv"}]
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        message = f"the pattern {pattern[:80]!r} matches none of the model's {len(names)} linear and conv layers"
        raise QuantizationError(message)
    return found


def _inputs_of(model: Any, layer: Any, progress: Any) -> tuple[LayerInputs, str]:
    """Return the layer's real inputs and an empty text, or Gaussian ones and the sentence that says why."""
    from workbench.calibration.layer_inputs import gaussian_inputs, layer_inputs

    try:
        return layer_inputs(model, layer, rows=ROWS, progress=progress), ""
    except Cancelled:
        raise
    except WorkbenchError as error:
        return gaussian_inputs(layer, rows=ROWS), str(error)


def _statistics(layer: Any, inputs: LayerInputs) -> LayerStatistics:
    from workbench.calibration.statistics import LayerStatistics
    from workbench.methods.layer import patches

    rows = inputs.values
    if inputs.convolution is not None:
        rows = patches(rows, layer.shape, inputs.convolution)
    return LayerStatistics.from_inputs(layer.name, rows)
