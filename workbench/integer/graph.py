"""A model as a graph of nodes, and how the codes of each value stand for real numbers.

One graph serves three runs: in float, with quantize-dequantize at the same places, and in integers only. A float graph
holds float32 constants; ``Operator.prepare`` turns each of its nodes into an integer node of the same name, whose
constants are integers (weights, biases, multipliers, shifts, tables).

    graph = Graph(
        nodes=(
            Node("fc1", "linear", ("x",), "h", {"weight": w1, "bias": b1}),
            Node("relu", "relu", ("h",), "r"),
            Node("fc2", "linear", ("r",), "logits", {"weight": w2, "bias": b2}),
        ),
        inputs=("x",),
        outputs=("logits",),
    )
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.grids.grid import Grid


@dataclass(frozen=True, eq=False)
class Node:
    """One operator at work in a graph.

    Attributes:
        name: unique in the graph; the dotted module name where the node has weights, so that recipes can match it.
        operator: a key of ``OPERATORS``, e.g. ``"linear"``.
        inputs: names of the values that it reads, in the operator's order.
        output: name of the one value that it gives.
        constants: arrays by name: float32 in a float graph, integers in an integer graph.
        options: everything else (strides, axes, clamps, ...); numbers, texts, tuples, or real scales as arrays, which
            are read while preparing and by the fake-quantized run, never by the integer one.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    output: str
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))

    def with_constants(self, **constants: np.ndarray) -> Node:
        """Return the node with some constants replaced or added."""
        return replace(self, constants={**self.constants, **constants})

    def with_options(self, **options: Any) -> Node:
        """Return the node with some options replaced or added."""
        return replace(self, options={**self.options, **options})

    def __repr__(self) -> str:
        return f"Node({self.name!r}: {self.output} = {self.operator}({', '.join(self.inputs)}))"


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run.

    Attributes:
        nodes: every node; a node reads graph inputs and outputs of nodes before it.
        inputs: names of the values that a run is given.
        outputs: names of the values that a run returns.

    Raises:
        IntegerError: two nodes or values share a name, a node reads what no earlier node gives, an output is missing.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("nodes", "inputs", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = set(self.inputs)
        names: set[str] = set()
        if len(known) != len(self.inputs):
            message = f"every input of a graph has its own name, not {', '.join(self.inputs)}"
            raise IntegerError(message)
        for node in self.nodes:
            missing = [value for value in node.inputs if value not in known]
            if missing:
                message = (
                    f"node {node.name!r} reads {missing[0]!r}, which is neither an input of the graph nor the output of "
                    "a node before it"
                )
                raise IntegerError(message)
            if node.name in names or node.output in known:
                message = f"the node {node.name!r} or its output {node.output!r} has a name that is taken already"
                raise IntegerError(message)
            names.add(node.name)
            known.add(node.output)
        absent = [value for value in self.outputs if value not in known]
        if absent or not self.outputs:
            message = f"a graph returns values that its nodes give, not {', '.join(absent) or 'nothing'}"
            raise IntegerError(message)

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by their name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that gives each value; graph inputs have none."""
        return {node.output: node for node in self.nodes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, in order; values that nobody reads have an empty tuple."""
        found: dict[str, list[Node]] = {value: [] for value in self.values}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found[value].append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    @property
    def values(self) -> tuple[str, ...]:
        """Names of all values: the inputs, then the outputs of the nodes in order."""
        return (*self.inputs, *(node.output for node in self.nodes))

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """The index of the last node that reads each value; values that a run returns have none."""
        last = {value: place for place, node in enumerate(self.nodes) for value in node.inputs}
        return {value: place for value, place in last.items() if value not in self.outputs}

    def node(self, name: str) -> Node:
        """Return a node by its name.

        Raises:
            IntegerError: no node has this name; the message suggests near ones.
        """
        if name not in self.by_name:
            import difflib

            near = [each for each in self.by_name if each.endswith(f".{name}")][:3]
            near = near or difflib.get_close_matches(str(name), list(self.by_name), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "graph.nodes lists them"
            message = f"the graph has no node {name!r}; {hint}"
            raise IntegerError(message)
        return self.by_name[name]

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """Return a graph of other nodes between the same inputs and outputs."""
        return Graph(tuple(nodes), self.inputs, self.outputs)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        kinds = dict.fromkeys(node.operator for node in self.nodes)
        return (
            f"Graph({len(self.nodes)} nodes: {', '.join(kinds)}; {', '.join(self.inputs)} -> {', '.join(self.outputs)})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(node.name)}</td><td>{escape(node.operator)}</td>"
            f"<td style='text-align:left'>{escape(', '.join(node.inputs))} → {escape(node.output)}</td></tr>"
            for node in self.nodes
        )
        return f"<table><tr><th>node</th><th>operator</th><th>values</th></tr>{rows}</table>"


@dataclass(frozen=True, eq=False)
class Value:
    """How the codes of one value stand for real numbers: ``real = scale * (code - zero_point)``.

    With ``levels`` a code is first looked up: ``real = scale * (levels[code] - zero_point)``; a power-coded activation is
    kept as 8-bit codes and multiplied as 16-bit levels.

    Attributes:
        name: of the value.
        dtype: integer type of the codes. For ``index`` values (token ids, positions, masks) the type they are given in.
        scale: real step, float32; above 0. One number (one per last axis only for values that leave the graph).
        zero_point: the code (with ``levels``: the level) of the real number 0.
        low: smallest code in use; the type's by default.
        high: largest code in use.
        levels: integers that the codes stand for, by the code's bits read as an unsigned number; or None.
        grid: the grid that chose ``levels``; its axis is ``real / reach + offset``.
        reach: the real number (measured from the offset) that the grid's level 1 stands for.
        offset: where the real number 0 lies on the grid's axis (not 0 for shifted grids only).
        index: whether these are plain integers that stand for themselves.
        shape: the only shape that this value can have, where the model was made for one; else None.
    """

    name: str
    dtype: np.dtype
    scale: Any = 1.0
    zero_point: int = 0
    low: int | None = None
    high: int | None = None
    levels: np.ndarray | None = None
    grid: Grid | None = None
    reach: float = 1.0
    offset: float = 0.0
    index: bool = False
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        kind = np.dtype(self.dtype)
        object.__setattr__(self, "dtype", kind)
        if self.index:
            return
        if kind.kind not in "iu":
            message = f"the codes of {self.name!r} have an integer type, not {kind}"
            raise IntegerError(message)
        scale = np.asarray(self.scale, dtype=np.float32)
        if scale.size == 0 or not np.all(np.isfinite(scale)) or np.any(scale <= 0):
            message = f"the scale of {self.name!r} is a finite float32 number above 0, not {self.scale}"
            raise IntegerError(message)
        object.__setattr__(self, "scale", float(scale) if scale.ndim == 0 else scale)
        limits = np.iinfo(kind)
        low = int(limits.min) if self.low is None else int(self.low)
        high = int(limits.max) if self.high is None else int(self.high)
        if not limits.min <= low <= high <= limits.max:
            message = f"the codes of {self.name!r} run from {low} to {high}, which {kind} cannot hold"
            raise IntegerError(message)
        if self.levels is None and not limits.min <= int(self.zero_point) <= limits.max:
            message = f"the zero point {self.zero_point} of {self.name!r} does not fit {kind}"
            raise IntegerError(message)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "zero_point", int(self.zero_point))

    @property
    def coding(self) -> tuple[Any, ...]:
        """What makes two values read alike, comparable with ``==``: everything but the name."""
        scale = tuple(np.ravel(self.scale).tolist())
        return (
            self.dtype,
            scale,
            self.zero_point,
            self.low,
            self.high,
            str(self.grid),
            self.reach,
            self.offset,
            self.index,
        )

    def named(self, name: str) -> Value:
        """Return the same coding under another name."""
        return replace(self, name=name)

    def operand(self, codes: np.ndarray) -> np.ndarray:
        """Return the integers that a product multiplies: the codes themselves, or their levels."""
        if self.levels is None:
            return codes
        return self.levels[codes.view(np.uint8) if codes.dtype.itemsize == 1 else codes.view(np.uint16)]

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """Return the codes nearest to real numbers (half to even), clamped to the codes in use."""
        if self.index:
            return np.asarray(real).astype(self.dtype, copy=False)
        real = np.asarray(real, dtype=np.float64)
        if self.grid is not None:
            return self.grid.encode(real / self.reach + self.offset).astype(self.dtype)
        codes = np.rint(real / np.asarray(self.scale, dtype=np.float64)) + self.zero_point
        low, high = np.iinfo(self.dtype).min if self.low is None else self.low, self.high
        return np.clip(codes, low, high).astype(self.dtype)

    def dequantize(self, codes: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
        """Return the real numbers that codes stand for (index values stay integers)."""
        codes = np.asarray(codes)
        if self.index:
            return codes
        steps = self.operand(codes).astype(np.float64) - self.zero_point
        return (steps * np.asarray(self.scale, dtype=np.float64)).astype(dtype)

    def __repr__(self) -> str:
        if self.index:
            return f"Value({self.name!r}, {self.dtype} index)"
        scale = f"{self.scale:.6g}" if np.ndim(self.scale) == 0 else f"{np.size(self.scale)} scales"
        point = f", zero point {self.zero_point}" if self.zero_point else ""
        coded = f", {self.grid}" if self.grid is not None else ""
        return f"Value({self.name!r}, {self.dtype}, scale {scale}{point}{coded})"
