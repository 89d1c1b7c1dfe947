from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer.codings import value_for_range
from workbench.integer.graph import Graph, Node, Value
from workbench.integer.operators import OPERATORS, operator_of, register
from workbench.integer.shape_operators import Reshape


def chain():
    return Graph((Node("a", "relu", ("x",), "h"), Node("b.c", "relu", ("h",), "y")), ("x",), ("y",))


def test_a_graph_knows_producers_consumers_and_last_uses():
    graph = chain()
    assert graph.producers["h"].name == "a"
    assert [node.name for node in graph.consumers["x"]] == ["a"]
    assert graph.consumers["y"] == ()
    assert graph.last_use == {"x": 0, "h": 1}
    assert graph.values == ("x", "h", "y")
    assert graph.node("b.c").output == "y"
    assert len(graph) == 2
    assert "2 nodes: relu; x -> y" in repr(graph)
    assert "b.c" in graph._repr_html_()
    assert pickle.loads(pickle.dumps(graph)).values == graph.values


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "words"),
    [
        ((Node("a", "relu", ("z",), "y"),), ("x",), ("y",), "reads 'z'"),
        ((Node("a", "relu", ("x",), "x"),), ("x",), ("x",), "taken already"),
        ((Node("a", "relu", ("x",), "h"), Node("a", "relu", ("h",), "y")), ("x",), ("y",), "taken already"),
        ((Node("a", "relu", ("x",), "y"),), ("x",), ("q",), "not q"),
        ((Node("a", "relu", ("x",), "y"),), ("x",), (), "nothing"),
        ((), ("x", "x"), ("x",), "its own name"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(nodes, inputs, outputs, words):
    with pytest.raises(IntegerError, match=words):
        Graph(nodes, inputs, outputs)


def test_an_unknown_node_is_answered_with_a_near_one():
    with pytest.raises(IntegerError, match=r"did you mean 'b\.c'"):
        chain().node("c")


def test_nodes_are_changed_by_copy():
    node = Node("a", "linear", ["x"], "y", {"weight": np.ones((2, 2))}, {"k": 1})
    other = node.with_options(k=2).with_constants(bias=np.zeros(2))
    assert node.options == {"k": 1}
    assert other.options == {"k": 2}
    assert set(other.constants) == {"weight", "bias"}
    assert node.inputs == ("x",)


@given(
    st.floats(-1e4, 1e4, allow_subnormal=False),
    st.floats(0, 1e4, allow_subnormal=False),
    st.sampled_from(["int8", "uint8", "int8:symmetric", "int16"]),
    st.lists(st.floats(0, 1), max_size=20),
)
def test_numbers_within_the_range_come_back_within_half_a_step(low, width, coding, places):
    value = value_for_range("v", low, low + width, coding)
    real = np.array([low + place * width for place in places])
    codes = value.quantize(real)
    assert codes.dtype == np.dtype(coding.split(":")[0])
    back = value.dequantize(codes, np.float64)
    # A zero point that is rounded moves both ends by half a step.
    assert np.all(np.abs(back - real) <= value.scale * (1.0 + 1e-5))
    inside = (codes > np.iinfo(codes.dtype).min) & (codes < np.iinfo(codes.dtype).max)
    assert np.all(np.abs(back - real)[inside] <= value.scale * (0.5 + 1e-5))
    assert value.dequantize(value.quantize(np.zeros(1)))[0] == 0.0


@pytest.mark.parametrize(
    "coding", ["power:bits=8,exponent=0.5", "power:bits=8,exponent=0.63", "power:bits=5,exponent=0.4"]
)
@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-0.17, 3.0)])
def test_power_codes_stand_for_16_bit_levels(coding, low, high):
    value = value_for_range("v", low, high, coding)
    assert value.dtype == np.uint8
    assert value.levels is not None
    assert value.levels.dtype == np.int16
    assert value.grid is not None
    real = np.linspace(low, high, 1001)
    codes = value.quantize(real)
    assert codes.max() == 2**value.grid.bits - 1
    axis = real / value.reach + value.offset
    exact = value.grid.levels[value.grid.index(axis)] * (high - low) + low
    # 16-bit levels are all that is added to the grid's own error, and a shifted zero is rounded to one of them.
    assert np.max(np.abs(value.dequantize(codes, np.float64) - exact)) <= 1.6 * value.scale
    assert np.array_equal(value.operand(codes), value.levels[codes])
    assert np.all(np.diff(value.levels[: 2**value.grid.bits].astype(int)) >= 0)


def test_values_that_go_far_below_zero_get_no_power_codes():
    assert value_for_range("v", -1.0, 1.0, "power:bits=8,exponent=0.5").coding == value_for_range("v", -1.0, 1.0).coding


def test_index_values_stand_for_themselves():
    value = Value("tokens", np.dtype(np.int64), index=True)
    tokens = np.array([[3, 1]])
    assert value.quantize(tokens) is tokens or np.array_equal(value.quantize(tokens), tokens)
    assert np.array_equal(value.dequantize(tokens), tokens)
    assert "index" in repr(value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": np.float32}, "integer type"),
        ({"dtype": np.int8, "scale": 0.0}, "above 0"),
        ({"dtype": np.int8, "scale": np.inf}, "finite"),
        ({"dtype": np.int8, "zero_point": 128}, "does not fit int8"),
        ({"dtype": np.int8, "low": 3, "high": 2}, "cannot hold"),
    ],
)
def test_codings_that_do_not_exist_are_refused(arguments, words):
    with pytest.raises(IntegerError, match=words):
        Value("v", **arguments)


def test_a_range_of_zeros_or_none_still_has_a_scale():
    assert value_for_range("v", 0.0, 0.0).scale > 0
    with pytest.raises(IntegerError, match="in order"):
        value_for_range("v", 1.0, -1.0)
    with pytest.raises(IntegerError, match="finite"):
        value_for_range("v", 0.0, np.nan)


def test_operators_have_unique_names_and_unknown_ones_are_named():
    assert all(operator.name == name for name, operator in OPERATORS.items())
    assert register(Reshape()).name == "reshape"  # the same class again is no clash

    class Other(Reshape):
        name = "reshape"

    with pytest.raises(IntegerError, match="already"):
        register(Other())
    with pytest.raises(IntegerError, match="no operator is called 'conv9d'"):
        operator_of("conv9d")
