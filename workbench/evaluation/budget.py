"""Which operator adds how much error: each is switched back to float, alone and with all of its kind.

Two measures:

* **steps**: the root mean square difference between a node's integer output and its float twin's on the *same*
  dequantized inputs, in steps of the output's scale. Correct rounding alone gives about 0.29 (1 / sqrt 12), and weights,
  tables and saturation add to it. It is the node's own error; what arrives from earlier nodes is not counted.
* **change of the metric** when the node (or every node of an operator) is computed in float on dequantized inputs and
  all others stay in integers, which read codes: its result is rounded to the nearest one. So this is what the node's
  arithmetic and weights cost the whole model. With ``mode="fake"`` the run around it is the fake-quantized one and the
  node keeps its result unrounded: the coding of its output counts as well.

Effects of several nodes do not add up exactly: the model is not linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.integer.graph import Node
from workbench.integer.integerize import plain_inputs
from workbench.integer.model import IntegerModel
from workbench.integer.running import Mode, named_inputs

if TYPE_CHECKING:
    import pandas as pd

#: What a metric is: logits of all inputs (a list, one entry per input) to one number.
Metric = Callable[[list[Any]], float]


@dataclass(frozen=True)
class OperatorError:
    """One row of a budget.

    Attributes:
        name: of the node, or of the operator for a group.
        operator: of the node.
        nodes: how many nodes the row stands for.
        steps: root mean square own error in output steps; of a group, over all its outputs.
        largest: largest own error in output steps.
        saturated: share of outputs whose float twin lies beyond the output's codes.
        metric: the metric with these nodes in float.
        change: that minus the metric of the integer run; NaN where no metric was asked.
    """

    name: str
    operator: str
    nodes: int
    steps: float
    largest: float
    saturated: float
    metric: float
    change: float


@dataclass(frozen=True, repr=False)
class ErrorBudget:
    """What every operator costs.

    Attributes:
        nodes: one row per node, the largest change of the metric (or the most steps) first.
        groups: one row per operator.
        metric_name: what was measured.
        integer: the metric of the integer (or fake-quantized) run.
        floating: the metric of the float run.
    """

    nodes: tuple[OperatorError, ...]
    groups: tuple[OperatorError, ...]
    metric_name: str
    integer: float
    floating: float

    def to_frame(self, groups: bool = False) -> pd.DataFrame:
        """Return the rows as a table, of single nodes or of operators."""
        import pandas as pd

        rows = self.groups if groups else self.nodes
        return pd.DataFrame([vars(row) for row in rows]).set_index("name")

    def __repr__(self) -> str:
        head = f"{self.metric_name}: integer {self.integer:.6g}, float {self.floating:.6g}; {len(self.nodes)} nodes"
        rows = [
            f"  {row.operator:<20} {row.nodes:>4} nodes  {row.steps:8.3g} steps  change {row.change:+.4g} if in float"
            for row in self.groups
        ]
        return "\n".join([f"ErrorBudget({head})", *rows])

    def _repr_html_(self) -> str:
        heads = "".join(
            f"<th>{name}</th>" for name in ("name", "operator", "nodes", "steps", "largest", "saturated", "change")
        )
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(row.name)}</td><td>{escape(row.operator)}</td><td>{row.nodes}</td>"
            f"<td>{row.steps:.3g}</td><td>{row.largest:.3g}</td><td>{row.saturated:.2g}</td><td>{row.change:+.3g}</td></tr>"
            for row in (*self.groups, *self.nodes[:20])
        )
        head = f"{escape(self.metric_name)}: integer {self.integer:.6g}, float {self.floating:.6g}"
        return f"<b>{head}</b><table class='workbench-error-budget'><tr>{heads}</tr>{rows}</table>"


def error_budget(
    model: IntegerModel,
    inputs: Any,
    metric: Metric | None = None,
    *,
    metric_name: str | None = None,
    single: bool = True,
    nodes: Iterable[str] | None = None,
    mode: Mode = "integer",
    progress: Callable[[float], None] | None = None,
) -> ErrorBudget:
    """Measure what every operator of an integer model adds to the error.

    Args:
        model: what ``integerize`` gave.
        inputs: model inputs: one array (one run), or a list of inputs (one run each).
        metric: takes the real outputs of all runs, one entry each, and returns one number (accuracy, perplexity). By
            default the root mean square difference of the outputs to the float run's.
        metric_name: for people.
        single: switch every single node (as many runs as nodes); otherwise groups of one operator only.
        mode: what the other nodes compute in: ``integer``, or ``fake`` (see above).
        nodes: only these nodes; by default all but those that change nothing (reshape, transpose, ...).
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no inputs, no nodes, a metric that gives no number, or a model without its float graph.
    """
    if not isinstance(model, IntegerModel):
        message = f"error_budget takes an IntegerModel (integerize gives one), not {type(model).__name__}"
        raise WorkbenchError(message)
    runs = plain_inputs(inputs)
    if not runs or not all(np.size(array) for each in runs for array in named_inputs(model.graph, each).values()):
        message = "error_budget needs inputs to measure on"
        raise WorkbenchError(message)
    if model.float_graph is None:
        message = "error_budget compares with the float operators, and this model was read as integers"
        raise WorkbenchError(message)
    tell = progress or (lambda fraction: None)
    if mode not in {"integer", "fake"}:
        message = f"an error budget switches nodes of an integer or a fake run back to float, not of {mode!r}"
        raise WorkbenchError(message)
    targets = [model(each, "float") for each in runs]
    measure = _measure(metric or (lambda outputs: _distance(outputs, targets)))
    if nodes is None:
        chosen = [node for node in model.graph.nodes if _computes(node)]
    else:
        chosen = [model.node(name) for name in ([nodes] if isinstance(nodes, str) else nodes)]
    if not chosen:
        message = "error_budget needs a node to switch back to float"
        raise WorkbenchError(message)
    kinds: dict[str, list[Node]] = {}
    for node in chosen:
        kinds.setdefault(node.operator, []).append(node)
    total = 1 + len(kinds) + (len(chosen) if single else 0)
    own = _own_errors(model, runs, chosen, lambda fraction: tell(fraction / total))
    base = measure([model(each, mode) for each in runs])
    done = 1

    def switched(names: list[str]) -> float:
        nonlocal done
        found = []
        for each in runs:
            tell(done / total)
            run = model.run(each, mode=mode, float_nodes=names)
            found.append(_outputs(run))
        done += 1
        return measure(found)

    groups = [
        _row(kind, kind, [own[node.name] for node in members], switched([node.name for node in members]), base)
        for kind, members in kinds.items()
    ]
    rows = [
        _row(node.name, node.operator, [own[node.name]], switched([node.name]) if single else math.nan, base)
        for node in chosen
    ]
    tell(1.0)
    return ErrorBudget(
        tuple(sorted(rows, key=_order)),
        tuple(sorted(groups, key=_order)),
        metric_name
        or ("distance to the float outputs (rms)" if metric is None else getattr(metric, "__name__", "metric")),
        base,
        measure(targets),
    )


def _measure(metric: Metric) -> Metric:
    """Refuse a metric that gives no number."""

    def measure(outputs: list[Any]) -> float:
        found = metric(outputs)
        try:
            return float(found)
        except (TypeError, ValueError):
            message = f"a metric takes the outputs of all runs and returns one number, not {type(found).__name__}"
            raise WorkbenchError(message) from None

    return measure


@dataclass
class _Own:
    """Sums over everything that a node gave."""

    count: int = 0
    squares: float = 0.0
    largest: float = 0.0
    saturated: int = 0


def _own_errors(
    model: IntegerModel, runs: list[Any], nodes: list[Node], tell: Callable[[float], None]
) -> dict[str, _Own]:
    """Compare each node with its float twin on the same codes, one integer run for all."""
    wanted = {node.name for node in nodes}
    found = {node.name: _Own() for node in nodes}
    for place, each in enumerate(runs):
        run = model.run(each, keep=True)
        for number, node in enumerate(model.graph.nodes):
            tell((place + number / len(model.graph)) / len(runs))
            value = model.values[node.output]
            if node.name not in wanted or value.index:
                continue
            codes = run.codes[node.output]
            real = model.float_twin(node.name, [run.codes[name] for name in node.inputs])
            # A value beyond the type cannot be met: that is saturation, and it is part of the error.
            gap = (value.dequantize(codes, np.float64) - real) / np.mean(value.scale)
            one = found[node.name]
            one.count += codes.size
            one.squares += float((gap**2).sum())
            one.largest = max(one.largest, float(np.abs(gap).max(initial=0.0)))
            ends = [value.dequantize(np.array(end, dtype=value.dtype), np.float64) for end in (value.low, value.high)]
            half = np.mean(value.scale) / 2
            one.saturated += int(np.count_nonzero((real < ends[0] - half) | (real > ends[1] + half)))
    return found


def _row(name: str, operator: str, own: list[_Own], metric: float, base: float) -> OperatorError:
    count = max(sum(one.count for one in own), 1)
    return OperatorError(
        name,
        operator,
        len(own),
        math.sqrt(sum(one.squares for one in own) / count),
        max((one.largest for one in own), default=0.0),
        sum(one.saturated for one in own) / count,
        metric,
        metric - base,
    )


def _order(row: OperatorError) -> tuple[float, float]:
    return (-abs(row.change) if math.isfinite(row.change) else 0.0, -row.steps)


def _computes(node: Node) -> bool:
    from workbench.integer.operator import INDEX, SAME
    from workbench.integer.operators import operator_of

    operator = operator_of(node.operator)
    roles = operator.input_roles(node)
    if operator.output_role(node) == INDEX:
        return False
    return bool(roles) and not (set(roles) == {SAME} and "pool" not in node.operator)


def _outputs(run: Any) -> Any:
    found = tuple(run.real(name) for name in run.output_names)
    return found[0] if len(found) == 1 else found


def _distance(outputs: list[Any], targets: list[Any]) -> float:
    squares, count = 0.0, 0
    for one, other in zip(outputs, targets, strict=True):
        for found, wanted in zip(_several(one), _several(other), strict=True):
            squares += float(((np.asarray(found, dtype=np.float64) - wanted) ** 2).sum())
            count += int(np.size(found))
    return math.sqrt(squares / max(count, 1))


def _several(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
