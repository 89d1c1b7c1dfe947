"""Which coding every value of a graph gets, and where ``requantize`` nodes go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from workbench.calibration.ranges import RangeObserver
from workbench.errors import IntegerError
from workbench.grids import PowerGrid
from workbench.integer.graph import Graph, Node, Value
from workbench.integer.operator import ANY, INDEX, OPERAND, SAME, STREAM, Kind, Setting
from workbench.integer.operators import operator_of
from workbench.integer.running import index_inputs
from workbench.integer.semantics import Semantics
from workbench.integer.weights import levels_of
from workbench.quantization.recipe import Recipe, weight_grid

#: A value whose negative part is at most this share of its range is shifted onto a power grid (GELU, SiLU: -0.17, -0.28).
SHIFT_SHARE = 0.25


def value_for_range(
    name: str, low: float, high: float, coding: str = "int8", *, headroom: float = 1.0, exponent: float | None = None
) -> Value:
    """Return the coding of a value whose real numbers lie between two bounds (zero is taken in).

    Args:
        name: of the value.
        low: smallest real number.
        high: largest real number.
        coding: ``int8`` (zero point anywhere), ``int8:symmetric``, ``uint8``, ``int16`` (symmetric, zero point 0), or a
            power grid as text; a power grid codes values that are non-negative or nearly so, and others get ``int8``.
        headroom: factor on the range of int16.
        exponent: of a power grid that leaves it open.

    Raises:
        IntegerError: the bounds are not finite or in the wrong order.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        message = f"the range of {name!r} is two finite numbers in order, not {low} to {high}"
        raise IntegerError(message)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    reach = max(-low, high)
    if reach < 1e-30:
        low, high, reach = 0.0, 1.0, 1.0
    if coding == "int16":
        return Value(name, np.dtype(np.int16), np.float32(reach * headroom / 32767.0))
    if coding == "int8:symmetric":
        return Value(name, np.dtype(np.int8), np.float32(reach / 127.0), low=-127)
    if coding in {"int8", "uint8"}:
        kind = np.dtype(coding)
        limits = np.iinfo(kind)
        scale = np.float32((high - low) / 255.0)
        zero_point = int(np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max))
        return Value(name, kind, scale, zero_point)
    if is_two_sided(low, high):
        return value_for_range(name, low, high, "int8")
    asked, _ = weight_grid(coding)
    grid = PowerGrid(
        bits=asked.bits,
        exponent=exponent if exponent is not None else asked.exponent,  # pyright: ignore[reportAttributeAccessIssue]
        rounding=asked.rounding,  # pyright: ignore[reportAttributeAccessIssue]
        signed=False,
        shifted=low < 0.0,
    )
    table = levels_of(grid, 16)
    width = high - low
    levels = np.zeros(256, dtype=table.values.dtype)
    levels[grid.codes] = table.values
    # Codes that the grid lacks (fewer than 8 bits) stand for its largest level.
    levels[int(grid.codes.max()) + 1 :] = table.values[-1]
    zero_point = int(np.rint(-low / width / table.scale)) + table.zero
    return Value(
        name,
        np.dtype(np.uint8),
        np.float32(width * table.scale),
        zero_point,
        high=int(grid.codes.max()),
        levels=levels,
        grid=grid,
        reach=width,
        offset=-low / width,
    )


@dataclass(frozen=True, eq=False)
class Plan:
    """What ``plan_codings`` decided.

    Attributes:
        graph: the float graph with ``requantize`` nodes where a consumer needs another coding (they do nothing in float).
        values: codings by name.
    """

    graph: Graph
    values: Mapping[str, Value]


def index_values(graph: Graph) -> frozenset[str]:
    """Return the names of values that are plain integers: read as ``INDEX``, or given as such by their node."""
    found = {node.output for node in graph.nodes if operator_of(node.operator).output_role(node) == INDEX}
    found |= index_inputs(graph)
    # Moving plain integers gives plain integers.
    for node in graph.nodes:
        roles = operator_of(node.operator).input_roles(node)
        if node.inputs and all(role == SAME for role in roles) and node.inputs[0] in found:
            found.add(node.output)
    return frozenset(found)


class Planner:
    """Chooses codings for one graph."""

    def __init__(
        self, graph: Graph, observers: Mapping[str, RangeObserver], recipe: Recipe, semantics: Semantics, kind: Kind
    ) -> None:
        self.graph = graph
        self.observers = observers
        self.recipe = recipe
        self.semantics = semantics
        self.kind: Kind = kind
        self.exponents: dict[tuple[str, str], float] = {}

    def setting(self, name: str) -> Setting:
        """Return what a node is prepared with."""
        return Setting(self.recipe.for_layer(name), self.semantics, self.kind, self.recipe.stream)

    @cached_property
    def indices(self) -> frozenset[str]:
        """Values that are plain integers."""
        return index_values(self.graph)

    @cached_property
    def fixed(self) -> Mapping[str, Value]:
        """Codings that do not depend on calibration, by value."""
        found = {}
        for node in self.graph.nodes:
            value = operator_of(node.operator).fixed_value(node, self.setting(node.name))
            if value is not None:
                found[node.output] = value
        return found

    @cached_property
    def groups(self) -> Mapping[str, str]:
        """Each value's representative: values between which nothing is computed share one coding."""
        parent = {name: name for name in self.graph.values}

        def root(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for node in self.graph.nodes:
            for name, role in zip(node.inputs, operator_of(node.operator).input_roles(node), strict=True):
                # What is joined with others cannot force its own fixed coding on them.
                if role == SAME and not (len(node.inputs) > 1 and root(name) in self.fixed):
                    parent[root(node.output)] = root(name)
        return {name: root(name) for name in self.graph.values}

    def plan(self) -> Plan:
        """Return graph and codings."""
        demands: dict[str, list[tuple[str, str]]] = {name: [] for name in self.graph.values}
        weak: dict[str, list[tuple[str, str]]] = {name: [] for name in self.graph.values}
        for node in self.graph.nodes:
            entry = self.recipe.for_layer(node.name)
            operator = operator_of(node.operator)
            for name, role in zip(node.inputs, operator.input_roles(node), strict=True):
                wanted = self.recipe.stream if role == STREAM else str(entry.activation)
                if role in {OPERAND, STREAM}:
                    demands[self.groups[name]].append((wanted, str(entry.ranges)))
                elif role == ANY:
                    weak[self.groups[name]].append((plain(wanted), str(entry.ranges)))
            if operator.output_role(node) == STREAM:
                demands[self.groups[node.output]].append((self.recipe.stream, "minmax"))
        for name, output in ((self.groups[value], value) for value in self.graph.outputs):
            # A result that nobody else reads keeps resolution.
            if output not in self.indices and not demands[name]:
                demands[name].append((self.recipe.stream, "minmax"))
        shared = {
            name: self._shared(name, demands[name] or weak[name]) for name in set(self.groups.values()) - self.indices
        }
        values: dict[str, Value] = {}
        for name in self.graph.values:
            if name in self.indices:
                values[name] = Value(name, np.dtype(np.int64), index=True)
            else:
                values[name] = shared[self.groups[name]].named(name)
        return self._insert(values)

    def _shared(self, group: str, demands: list[tuple[str, str]]) -> Value:
        """Return the one coding of a group of values."""
        members = [name for name, representative in self.groups.items() if representative == group]
        for name in members:
            if name in self.fixed:
                return self.fixed[name].named(group)
        wanted = {coding for coding, _ in demands} or {"int8"}
        # Several wishes, or power codes (made by a look-up from fine codes): keep resolution.
        coding = wanted.pop() if len(wanted) == 1 else "int16"
        coding = plain(coding)
        rule = demands[0][1] if coding not in {"int16"} and demands else "minmax"
        return self._value(group, members, coding, rule)

    def _value(self, name: str, members: list[str], coding: str, rule: str) -> Value:
        observer = RangeObserver()
        for member in members:
            observer.merge(self.observers[member])
        if observer.count == 0:
            message = f"calibration gave no number of {name!r}; give it inputs that reach every part of the model"
            raise IntegerError(message)
        low, high = observer.range("minmax")
        if coding.startswith("power") and is_two_sided(low, high):
            coding = "int8"
        exponent = None
        if coding.startswith("power"):
            grid, searching = weight_grid(coding)
            exponent = observer.best_exponent(grid.bits) if searching else grid.exponent  # pyright: ignore[reportAttributeAccessIssue]
        if coding != "int16" and (exponent is None or rule != "mse"):
            low, high = observer.range(rule, levels=256)
        return value_for_range(name, low, high, coding, headroom=self.recipe.headroom, exponent=exponent)

    def _insert(self, values: dict[str, Value]) -> Plan:
        """Put ``requantize`` nodes where a consumer wants a coding that the value does not have."""
        nodes: list[Node] = []
        made: dict[tuple[str, str, str], str] = {}
        for node in self.graph.nodes:
            operator = operator_of(node.operator)
            entry = self.recipe.for_layer(node.name)
            inputs = list(node.inputs)
            for place, (name, role) in enumerate(zip(node.inputs, operator.input_roles(node), strict=True)):
                if role == SAME and not values[name].index and values[name].coding != values[node.output].coding:
                    inputs[place] = self._recoded(name, values[node.output], nodes, values)
                if role not in {OPERAND, STREAM}:
                    continue
                wanted = self.recipe.stream if role == STREAM else str(entry.activation)
                if satisfies(values[name], wanted):
                    continue
                key = (name, wanted, str(entry.ranges))
                if key not in made:
                    members = [each for each, group in self.groups.items() if group == self.groups[name]]
                    value = self._value(name, members, wanted, str(entry.ranges))
                    # A power grid may have fallen back to what the value has already.
                    alike = value.coding == values[name].coding
                    made[key] = name if alike else self._recoded(name, value, nodes, values)
                inputs[place] = made[key]
            nodes.append(replace(node, inputs=tuple(inputs)))
        return Plan(self.graph.with_nodes(nodes), values)

    @staticmethod
    def _recoded(name: str, value: Value, nodes: list[Node], values: dict[str, Value]) -> str:
        """Append a node that brings a value to another coding; return the name of what it gives."""
        word = "power" if value.levels is not None else str(value.dtype)
        fresh = _unused(f"{name}.{word}", values)
        values[fresh] = value.named(fresh)
        nodes.append(Node(fresh, "requantize", (name,), fresh))
        return fresh


def is_two_sided(low: float, high: float) -> bool:
    """Return whether a range reaches too far below zero for a power grid of one sign."""
    return -low > SHIFT_SHARE * (high - low)


def plain(wanted: str) -> str:
    """Return the coding in equal steps from which a wanted one is made."""
    return "int16" if wanted.startswith("power") else wanted


def _unused(name: str, taken: Mapping[str, Value]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found


def satisfies(value: Value, wanted: str) -> bool:
    """Return whether a consumer that wants a coding can read a value as it is."""
    if value.index:
        return True
    if wanted.startswith("power"):
        return value.levels is not None
    if value.levels is not None:
        return False
    if wanted == "int8:symmetric":
        return value.dtype == np.int8 and value.zero_point == 0
    return value.dtype == np.dtype(wanted)
