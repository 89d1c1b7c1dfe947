from __future__ import annotations

import numpy as np
import pytest

from workbench import error_budget, integerize
from workbench.errors import Cancelled, WorkbenchError
from workbench.integer import IntegerModel
from workbench.integer.graph import Graph, Node
from workbench.quantization.recipe import Recipe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 8)).astype(np.float32)


def layer(name, source, output, rows=8, columns=8):
    return Node(name, "linear", (source,), output, {"weight": RNG.normal(size=(rows, columns)).astype(np.float32)})


GRAPH = Graph(
    (
        layer("one", "x", "a"),
        Node("act", "relu", ("a",), "b"),
        layer("two", "b", "c"),
        Node("sum", "add", ("b", "c"), "d"),
        Node("rows", "reshape", ("d",), "e", {}, {"shape": (0, 8)}),
        layer("three", "e", "y"),
    ),
    ("x",),
    ("y",),
)


@pytest.fixture(scope="module")
def model():
    # "two" gets 2-bit weights: it must stand out.
    return integerize(GRAPH, Recipe.of("w8a16").but("two", weight="uniform:bits=2"), X)


def test_the_worst_layer_comes_first(model):
    budget = error_budget(model, X)
    assert budget.nodes[0].name == "two"
    assert budget.nodes[0].change < -0.5 * budget.integer
    assert budget.floating == 0.0
    assert {row.name for row in budget.nodes} == {"one", "two", "sum", "three"}
    assert "rows" in model.layers  # a reshape adds no error and is not listed


def test_own_errors_are_those_of_the_definition(model):
    budget = error_budget(model, [X[:50], X[50:]])
    run = model.run(X, keep=True)
    for row in budget.nodes:
        node = model.node(row.name)
        value = model.values[node.output]
        reals = [model.values[name].dequantize(run.codes[name]).astype(np.float64) for name in node.inputs]
        origin = model.float_graph.node(row.name)
        if row.operator == "linear":
            twin = reals[0] @ origin.constants["weight"].astype(np.float64).T
        else:
            twin = reals[0] + reals[1]
        if origin.options.get("activation") == "relu":
            twin = np.maximum(twin, 0)
        gap = (value.dequantize(run.codes[node.output], np.float64) - twin) / value.scale
        assert row.steps == pytest.approx(np.sqrt(np.mean(gap**2)), rel=1e-3)
        assert row.largest == pytest.approx(np.abs(gap).max(), rel=1e-3)
        assert row.saturated == 0.0


def test_switching_is_the_run_with_that_node_in_float(model):
    def largest(outputs):
        return float(max(np.abs(each).max() for each in outputs))

    budget = error_budget(model, X, largest, metric_name="largest logit")
    assert budget.metric_name == "largest logit"
    assert budget.integer == largest([model(X)])
    assert budget.floating == largest([model(X, "float")])
    for row in budget.nodes:
        assert row.metric == largest([model.run(X, float_nodes=(row.name,)).real("y")])
        assert row.change == row.metric - budget.integer
    linear = next(row for row in budget.groups if row.name == "linear")
    assert linear.nodes == 3
    assert linear.metric == largest([model.run(X, float_nodes=("one", "two", "three")).real("y")])


def test_groups_only_and_chosen_nodes_and_the_fake_run(model):
    budget = error_budget(model, X, single=False)
    assert all(np.isnan(row.change) for row in budget.nodes)
    assert all(np.isfinite(row.change) for row in budget.groups)
    chosen = error_budget(model, X, nodes=("one",), mode="fake")
    assert [row.name for row in chosen.nodes] == ["one"]
    expected = model.run(X, mode="fake", float_nodes=("one",)).real("y")
    assert chosen.nodes[0].metric == pytest.approx(np.sqrt(np.mean((expected - model(X, "float")) ** 2)), rel=1e-6)


def test_saturation_is_counted_but_a_relu_is_not_saturation(model):
    assert error_budget(model, X).nodes[0].saturated == 0
    wide = error_budget(model, 40 * X)
    assert max(row.saturated for row in wide.nodes) > 0.05


def test_its_tables(model):
    budget = error_budget(model, X)
    frame = budget.to_frame()
    assert list(frame.index) == [row.name for row in budget.nodes]
    assert list(budget.to_frame(groups=True)["operator"]) == [row.operator for row in budget.groups]
    assert "linear" in repr(budget)
    assert "two" in budget._repr_html_()


def test_progress_grows_and_can_cancel(model):
    told = []
    error_budget(model, [X[:5], X[5:9]], progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0

    def stop(fraction):
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        error_budget(model, X, progress=stop)


def test_what_has_no_float_twin_has_no_budget(model):
    with pytest.raises(WorkbenchError, match="read as integers"):
        error_budget(IntegerModel(model.graph, model.values), X)
    with pytest.raises(WorkbenchError, match="needs inputs"):
        error_budget(model, [])
    with pytest.raises(WorkbenchError, match="needs inputs"):
        error_budget(model, X[:0])
    with pytest.raises(WorkbenchError, match="takes an IntegerModel"):
        error_budget("demo:tiny-resnet", X)
    with pytest.raises(WorkbenchError, match="needs a node"):
        error_budget(model, X, nodes=[])
    with pytest.raises(WorkbenchError, match="returns one number, not NoneType"):
        error_budget(model, X, metric=lambda outputs: None)
    with pytest.raises(WorkbenchError, match="not of 'float'"):
        error_budget(model, X, mode="float")
