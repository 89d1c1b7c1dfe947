"""Running a graph node by node: in float, fake-quantized, in integers, or mixed; values are freed after their last use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from workbench.errors import IntegerError, WorkbenchError
from workbench.integer.graph import Graph, Node, Value
from workbench.integer.operator import INDEX
from workbench.integer.operators import operator_of
from workbench.integer.semantics import Semantics
from workbench.integer.watch import Watch, watch

Mode = Literal["integer", "fake", "float"]
MODES: tuple[Mode, ...] = ("integer", "fake", "float")


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What a run left behind.

    Attributes:
        mode: ``integer``, ``fake`` or ``float``.
        arrays: by value: codes of an integer run, real numbers of the others. The outputs; every value with ``keep``.
        values: how codes stand for real numbers; empty for a float graph on its own.
        output_names: of the graph, in order.
        watched: what each node observed (saturation, accumulator bits), where the run was asked to watch.
    """

    mode: Mode
    arrays: Mapping[str, np.ndarray]
    values: Mapping[str, Value]
    output_names: tuple[str, ...]
    watched: Mapping[str, Watch] = field(default_factory=dict)

    @property
    def codes(self) -> Mapping[str, np.ndarray]:
        """The integer arrays of an integer run.

        Raises:
            IntegerError: the run was not one of integers.
        """
        if self.mode != "integer":
            message = f"a {self.mode} run holds real numbers, no codes: run(..., mode='integer')"
            raise IntegerError(message)
        return self.arrays

    @property
    def outputs(self) -> tuple[np.ndarray, ...]:
        """The graph's outputs, as ``arrays`` holds them."""
        return tuple(self.arrays[name] for name in self.output_names)

    def real(self, name: str) -> np.ndarray:
        """Return one value as real numbers, float32.

        Raises:
            IntegerError: the run did not keep this value.
        """
        if name not in self.arrays:
            message = f"the run did not keep {name!r}: run(..., keep=True) keeps every value"
            raise IntegerError(message)
        array = self.arrays[name]
        return self.values[name].dequantize(array) if self.mode == "integer" else array

    def saturation(self) -> dict[str, int]:
        """Return, for each node that was watched, how many outputs left their type and were clamped.

        A fused ReLU whose zero point is the type's smallest code clamps at the type's end: what it sets to zero counts.
        ``ErrorBudget`` tells the two apart (its ``saturated`` compares with the float twin, ReLU included).
        """
        return {name: seen.saturated for name, seen in self.watched.items()}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {'x'.join(map(str, self.arrays[name].shape))}" for name in self.output_names)
        kept = len(self.arrays) - len(self.output_names)
        return f"Run({self.mode}: {shapes}{f'; {kept} more values kept' if kept else ''})"


def named_inputs(graph: Graph, inputs: Any) -> dict[str, np.ndarray]:
    """Return a graph's inputs by name.

    Args:
        graph: gives the names.
        inputs: one array for a graph of one input, a tuple in the graph's order, or a mapping; torch tensors as well.

    Raises:
        IntegerError: names are missing or unknown.
    """
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif isinstance(inputs, tuple):
        if len(inputs) != len(graph.inputs):
            message = f"this graph's inputs are {', '.join(graph.inputs)}; a tuple of {len(inputs)} was given"
            raise IntegerError(message)
        given = dict(zip(graph.inputs, inputs, strict=True))
    else:
        given = dict.fromkeys(graph.inputs[:1], inputs)
    if set(given) != set(graph.inputs):
        message = f"this graph's inputs are {', '.join(graph.inputs)}, not {', '.join(map(str, given)) or 'none'}"
        raise IntegerError(message)
    return {name: _as_array(given[name]) for name in graph.inputs}


def index_inputs(graph: Graph) -> frozenset[str]:
    """Return the names of a graph's inputs that are read as plain integers (token ids)."""
    return frozenset(
        name
        for node in graph.nodes
        for name, role in zip(node.inputs, operator_of(node.operator).input_roles(node), strict=True)
        if role == INDEX and name in graph.inputs
    )


def float_values(
    graph: Graph, inputs: Any, precision: Any = np.float32, until: Callable[[], None] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every value of a float graph as it comes, holding only what later nodes still read.

    Args:
        graph: of float nodes.
        inputs: see ``named_inputs``; all but plain integers (token ids) take the precision.
        precision: float32 or float64.
        until: called before each node; may raise ``Cancelled``.
    """
    alive: dict[str, np.ndarray] = {}
    indices = index_inputs(graph)
    for name, array in named_inputs(graph, inputs).items():
        alive[name] = array if name in indices else array.astype(precision)
        yield name, alive[name]
    for place, node in enumerate(graph.nodes):
        if until is not None:
            until()
        arrays = [alive[name] for name in node.inputs]
        with _naming(node, arrays):
            result = operator_of(node.operator).floating(node, arrays)
        alive[node.output] = result
        _free(graph, place, node, alive)
        yield node.output, result


@dataclass(frozen=True, eq=False)
class Runner:
    """One graph in its float and its integer form, with the codings between them."""

    graph: Graph
    values: Mapping[str, Value]
    semantics: Semantics
    float_graph: Graph | None

    def run(
        self,
        inputs: Any,
        *,
        mode: Mode = "integer",
        keep: bool = False,
        float_nodes: frozenset[str] = frozenset(),
        watched: bool = False,
        precision: Any = np.float32,
        on_node: Callable[[Node], None] | None = None,
    ) -> Run:
        """Run the graph; see ``IntegerModel.run``."""
        alive = {
            name: self._enter(name, array, mode, precision) for name, array in named_inputs(self.graph, inputs).items()
        }
        kept = dict(alive) if keep else {}
        seen: dict[str, Watch] = {}
        for place, node in enumerate(self.graph.nodes):
            if on_node is not None:
                on_node(node)
            arrays = [alive[name] for name in node.inputs]
            with _naming(node, arrays):
                if watched and mode == "integer":
                    with watch() as observed:
                        result = self._step(node, arrays, mode, float_nodes)
                    seen[node.name] = observed
                else:
                    result = self._step(node, arrays, mode, float_nodes)
            alive[node.output] = result
            if keep:
                kept[node.output] = result
            _free(self.graph, place, node, alive)
        arrays = kept if keep else {name: alive[name] for name in self.graph.outputs}
        return Run(mode, arrays, self.values, self.graph.outputs, seen)

    def _enter(self, name: str, array: np.ndarray, mode: Mode, precision: Any) -> np.ndarray:
        """Return an input as the mode reads it; integers of the coding's own type are codes already."""
        value = self.values[name]
        if value.shape is not None and array.shape != value.shape:
            message = (
                f"the input {name!r} has the shape {value.shape}, for which this model was made, not {array.shape}"
            )
            raise IntegerError(message)
        if value.index:
            return array
        codes = array.dtype.kind in "iu"
        if codes and array.dtype != value.dtype:
            message = (
                f"the input {name!r} is real numbers, or {value.dtype} codes of scale {value.scale}, not {array.dtype}"
            )
            raise IntegerError(message)
        if not codes and mode != "float" and not np.isfinite(array).all():
            message = f"the input {name!r} holds NaN or infinite numbers, which have no code"
            raise IntegerError(message)
        if mode == "integer":
            return array if codes else value.quantize(array)
        real = value.dequantize(array, precision) if codes else array.astype(precision)
        return real if mode == "float" else value.dequantize(value.quantize(real), precision)

    def _step(self, node: Node, arrays: list[np.ndarray], mode: Mode, float_nodes: frozenset[str]) -> np.ndarray:
        operator = operator_of(node.operator)
        if mode == "integer" and node.name not in float_nodes:
            return operator.integer(node, arrays, self.values, self.semantics)
        if mode == "integer":
            return self.twin(node, arrays)
        origin = self.float_node(node.name)
        if mode == "float":
            return operator.floating(origin, arrays)
        output = self.values[node.output]
        if node.name in float_nodes:
            return operator.floating(origin, arrays)
        result = operator.floating(replace(origin, constants=operator.fake_constants(origin, node)), arrays)
        return result if output.index else output.dequantize(output.quantize(result), result.dtype)

    def twin(self, node: Node, codes: list[np.ndarray]) -> np.ndarray:
        """Return what a node's float twin gives for the same codes, as codes of its output (nearest, clamped)."""
        output = self.values[node.output]
        return output.quantize(self.twin_real(node, codes))

    def twin_real(self, node: Node, codes: list[np.ndarray]) -> np.ndarray:
        """Return what a node's float twin gives for the same codes, as real numbers."""
        real = [self.values[name].dequantize(array) for name, array in zip(node.inputs, codes, strict=True)]
        return operator_of(node.operator).floating(self.float_node(node.name), real)

    def float_node(self, name: str) -> Node:
        """Return a node's float twin.

        Raises:
            IntegerError: the model came without one.
        """
        if self.float_graph is None:
            message = "this model was read as integers and has no float twin: it runs with mode='integer' only"
            raise IntegerError(message)
        return self.float_graph.node(name)


def _free(graph: Graph, place: int, node: Node, alive: dict[str, np.ndarray]) -> None:
    for name in (*node.inputs, node.output):
        # An output that nobody reads and the graph does not return has no last use at all.
        last = graph.last_use.get(name, place if name not in graph.outputs else -1)
        if last == place and name not in graph.outputs:
            alive.pop(name, None)


@contextmanager
def _naming(node: Node, arrays: list[np.ndarray]) -> Iterator[None]:
    """Say which node could not take its inputs: most often a model was given inputs of another shape."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, WorkbenchError):
            raise
        shapes = " and ".join(str(array.shape) for array in arrays)
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        message = f"{node.name!r} ({node.operator}) cannot take inputs of shape {shapes}: {reason}"
        raise IntegerError(message) from error


def _as_array(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    try:
        values = np.asarray(array)
    except ValueError:
        message = "an input is an array of numbers, and rows of different length make none"
        raise IntegerError(message) from None
    if values.dtype.kind not in "iufb":
        message = f"an input is an array of numbers, not {values.dtype}"
        raise IntegerError(message)
    return values
