from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import rounding_oracles as oracles
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import Cancelled, IntegerError, RecipeError, SemanticsError
from workbench.integer import OPERATORS, Graph, IntegerModel, Node, Value, integerize
from workbench.integer.weights import integer_weight, levels_of, with_room_for_bias
from workbench.quantization.recipe import Entry, Recipe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def residual_graph():
    return Graph(
        (
            Node("fc1", "linear", ("x",), "a", {"weight": weights(8, 6), "bias": weights(8)}),
            Node("act", "relu", ("a",), "b"),
            Node("fc2", "linear", ("b",), "c", {"weight": weights(8, 8)}),
            Node("sum", "add", ("b", "c"), "d"),
            Node("rows", "reshape", ("d",), "e", {}, {"shape": (0, 2, 4)}),
            Node("turn", "transpose", ("e",), "f", {}, {"axes": (0, 2, 1)}),
            Node("scores", "matmul", ("f", "e"), "y", {}, {"factor": 0.5}),
        ),
        ("x",),
        ("y",),
    )


GRAPH = residual_graph()


# --- an oracle in Python's own integers -------------------------------------------------------------------------------


def clamp(value, low, high):
    return max(low, min(high, value))


def oracle_linear(row, node, source, output):
    found = []
    for out, weight in enumerate(node.constants["weight"].tolist()):
        total = int(node.constants["bias"][out]) if "bias" in node.constants else 0
        total += sum((code - source.zero_point) * w for code, w in zip(row, weight, strict=True))
        place = min(out, node.constants["multiplier"].size - 1)
        multiplier, shift = int(node.constants["multiplier"][place]), int(node.constants["shift"][place])
        rounded = oracles.double_rounding(total, multiplier, shift) + output.zero_point
        found.append(clamp(rounded, node.options["low"], node.options["high"]))
    return found


def oracle_requantize(row, node, source, output):
    multiplier, shift = int(node.constants["multiplier"][0]), int(node.constants["shift"][0])
    moved = [oracles.double_rounding(code - source.zero_point, multiplier, shift) for code in row]
    return [clamp(value + output.zero_point, node.options["low"], node.options["high"]) for value in moved]


def oracle_add(one, other, node, a, b, output):  # noqa: PLR0917
    multiplier, shift = node.constants["multiplier"].tolist(), node.constants["shift"].tolist()
    left = 2**15 if a.dtype == np.int16 else 2**20
    found = []
    for first, second in zip(one, other, strict=True):
        total = oracles.double_rounding((first - a.zero_point) * left, multiplier[0], shift[0])
        total += oracles.double_rounding((second - b.zero_point) * left, multiplier[1], shift[1])
        rounded = oracles.double_rounding(total, multiplier[2], shift[2]) + output.zero_point
        found.append(clamp(rounded, node.options["low"], node.options["high"]))
    return found


@pytest.mark.parametrize("stream", ["int8", "int16"])
def test_a_whole_run_equals_plain_python_integers(stream):
    recipe = Recipe((Entry("*", activation="int8"),), stream=stream)
    model = integerize(Graph(GRAPH.nodes[:4], ("x",), ("d",)), recipe, X, semantics="tflm")
    run = model.run(X[:5], keep=True)
    values = {name: array.tolist() for name, array in run.codes.items()}
    # The input quantizer, in exact fractions.
    value = model.values["x"]
    for row, codes in zip(X[:5].tolist(), values["x"], strict=True):
        for real, code in zip(row, codes, strict=True):
            exact = Fraction(real) / Fraction(float(value.scale)) + value.zero_point
            assert code == clamp(round(exact), -128, 127)
    for node in model.graph.nodes:
        sources = [model.values[name] for name in node.inputs]
        output = model.values[node.output]
        for row in range(5):
            arrays = [values[name][row] for name in node.inputs]
            step = {"linear": oracle_linear, "requantize": oracle_requantize, "add": oracle_add}[node.operator]
            assert values[node.output][row] == step(*arrays, node, *sources, output), node
    assert {node.operator for node in model.graph.nodes} >= {"linear", "add"}
    assert stream == "int8" or "requantize" in {node.operator for node in model.graph.nodes}


# --- three runs over one graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["w8a8", "w8a16", "w4a8", "w8a8-power", "w4a8-power"])
@pytest.mark.parametrize("semantics", ["litert-reference", "tflm", "tosa-single", "tosa-double"])
def test_integers_follow_the_fake_quantized_run(recipe, semantics):
    model = integerize(GRAPH, recipe, X, semantics=semantics)
    real, fake, integer = (model(X, mode) for mode in ("float", "fake", "integer"))
    size = np.sqrt(np.mean(real**2))
    # Where the two round a value differently, a step of 8 bits passes on; most values agree.
    assert np.sqrt(np.mean((integer - fake) ** 2)) < 0.02 * size
    bound = 0.25 if recipe.startswith("w4") else 0.03
    assert np.sqrt(np.mean((fake - real) ** 2)) < bound * size
    assert np.abs(model.values["y"].dequantize(model.run(X).codes["y"]) - integer).max() == 0


def test_every_value_is_kept_on_request_and_only_then():
    model = integerize(GRAPH, "w8a8", X)
    kept, plain = model.run(X, keep=True), model.run(X)
    assert set(kept.codes) == set(model.graph.values)
    assert set(plain.codes) == {"y"}
    for name, codes in kept.codes.items():
        assert codes.dtype == model.values[name].dtype
        assert kept.real(name).dtype == np.float32
    assert np.array_equal(kept.outputs[0], plain.outputs[0])
    with pytest.raises(IntegerError, match="keep=True"):
        plain.real("x")
    with pytest.raises(IntegerError, match="no codes"):
        _ = model.run(X, mode="float").codes
    assert "more values kept" in repr(kept)


def test_values_that_move_without_arithmetic_share_a_coding():
    model = integerize(GRAPH, "w8a8", X)
    assert model.values["d"].coding == model.values["e"].coding
    assert model.values["d"].dtype == np.int8  # only a product reads it
    # "a" (its ReLU fused) is read by a product and by the sum: kept in int16, 8 bits are made for the product.
    assert model.values["a"].dtype == np.int16
    assert [node.output for node in model.graph.nodes if node.operator == "requantize"] == ["a.int8"]
    # With power codes both operands of the product get their own look-up node, made from int16.
    power = integerize(GRAPH, "w8a8-power", X)
    assert power.values["e"].dtype == np.int16


def test_float_nodes_return_to_the_float_result():
    model = integerize(GRAPH, "w4a8", X)
    fake_float = model.run(X, mode="fake", float_nodes=model.layers, keep=True)
    real = model.run(X, mode="float", keep=True)
    # All nodes in float: only the input quantizer is left.
    assert np.sqrt(np.mean((fake_float.real("y") - real.real("y")) ** 2)) < 0.02 * np.abs(real.real("y")).max()
    run, plain = model.run(X, float_nodes=("fc1",), keep=True), model.run(X, keep=True)
    twin = model.float_twin("fc1", [plain.codes["x"]])
    assert np.array_equal(run.codes["a"], model.values["a"].quantize(twin))
    assert not np.array_equal(run.codes["a"], plain.codes["a"])
    assert run.codes["a"].dtype == plain.codes["a"].dtype


def test_codes_can_be_given_instead_of_real_numbers():
    model = integerize(GRAPH, "w8a8", X)
    codes = model.values["x"].quantize(X)
    assert np.array_equal(model.run(codes).outputs[0], model.run(X).outputs[0])
    assert np.array_equal(model.run({"x": X.astype(np.float64)}).outputs[0], model.run((X,)[0]).outputs[0])
    np.testing.assert_allclose(model.run(codes, mode="fake").real("y"), model(X, "fake"), rtol=1e-5)
    with pytest.raises(IntegerError, match="int8 codes"):
        model.run(codes.astype(np.int32))


def test_a_batch_of_none_gives_none():
    model = integerize(GRAPH, "w8a8-power", X)
    for mode in ("integer", "fake", "float"):
        assert model(X[:0], mode).shape == (0, 4, 4)


def test_watching_shows_what_each_node_observed():
    model = integerize(GRAPH, "w8a8", X)
    run = model.run(100 * X, watch=True)
    assert run.watched["fc1"].observations[0].accumulator_bits == 32
    assert run.saturation()["sum"] > 0 or run.saturation()["scores"] > 0
    assert model.run(X).watched == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.run(X, mode="int"), "a run is integer, fake or float"),
        (lambda model: model.run(X, float_nodes=("fc",)), "no node 'fc'; did you mean 'fc"),
        (lambda model: model.run({"z": X}), "inputs are x, not z"),
        (lambda model: model.run(np.array(["a"])), "array of numbers"),
        (lambda model: model.node("fc9"), "no node 'fc9'"),
        (lambda model: IntegerModel(model.graph, {}), "has no coding"),
        (lambda model: IntegerModel(model.graph, model.values, float_graph=GRAPH), "same names"),
        (lambda model: IntegerModel(model.graph, model.values).run(X, mode="fake"), "no float twin"),
        (lambda model: model.run((X, X)), "inputs are x; a tuple of 2"),
        (lambda model: model.run([[1.0, 2.0], [3.0]]), "rows of different length"),
        (lambda model: model.run(np.where(X > 1, np.nan, X)), "'x' holds NaN"),
        (lambda model: model.run(np.full_like(X, np.inf), mode="fake"), "'x' holds NaN or infinite"),
        (lambda model: model.run(X[:, :3], mode="float"), r"'fc1' \(linear\) cannot take inputs of shape \(\d+, 3\)"),
    ],
)
def test_what_cannot_run_is_refused(call, words):
    model = integerize(GRAPH, "w8a8", X)
    with pytest.raises(IntegerError, match=words):
        call(model)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"calibration": None}, IntegerError, "needs calibration inputs"),
        ({"calibration": []}, IntegerError, "needs calibration inputs"),
        ({"calibration": 3}, IntegerError, "arrays of numbers, not int"),
        ({"calibration": "a text"}, IntegerError, "arrays of numbers, not str"),
        ({"calibration": X[:, :3]}, IntegerError, "'fc1' .linear. cannot take inputs of shape"),
        ({"recipe": "w3a3"}, RecipeError, "no recipe is called"),
        ({"recipe": Recipe.of("w8a8").but("fc9", weight="nf4")}, RecipeError, "did you mean 'fc"),
        ({"recipe": Recipe.of("w8a8").but("fc1", granularity="group:2")}, IntegerError, "one weight scale per tensor"),
        ({"recipe": Recipe.of("w8a8").but("fc1", method="gptq")}, IntegerError, "asks for 'gptq'"),
        ({"recipe": Recipe.of("w8a8").but("fc1", weight="bcq:bits=3")}, IntegerError, "fits levels of its own"),
        ({"semantics": "cuda"}, SemanticsError, "no semantics"),
        ({"kind": "float"}, IntegerError, "table or polynomial"),
        ({"calibration": np.full((2, 6), np.nan, dtype=np.float32)}, Exception, "2 numbers|12 numbers"),
    ],
)
def test_what_cannot_be_integerized_is_refused(arguments, error, words):
    given_arguments = {"recipe": "w8a8", "calibration": X} | arguments
    with pytest.raises(error, match=words):
        integerize(GRAPH, **given_arguments)


def test_integers_stand_for_themselves_while_calibrating():
    graph = Graph(
        (Node("fc", "linear", ("x",), "y", {"weight": np.full((2, 6), 0.25, dtype=np.float32)}),), ("x",), ("y",)
    )
    pixels = RNG.integers(0, 255, (8, 6)).astype(np.uint8)
    model, twin = (integerize(graph, "w8a8", each) for each in (pixels, pixels.astype(np.float32)))
    assert model.values["y"].coding == twin.values["y"].coding
    assert np.array_equal(model((pixels.astype(np.float32),)), twin(pixels.astype(np.float32)))


def test_one_float_node_may_be_named_alone():
    model = integerize(GRAPH, "w8a8", X)
    alone, listed = model.run(X, float_nodes="fc1"), model.run(X, float_nodes=["fc1"])
    assert np.array_equal(alone.outputs[0], listed.outputs[0])


def test_progress_is_told_and_can_cancel():
    told = []
    model = integerize(GRAPH, "w8a8", [X, X], progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0

    def stop(fraction):
        if fraction > 0.3:
            raise Cancelled

    for call in (lambda: integerize(GRAPH, "w8a8", [X, X], progress=stop), lambda: model.run(X, progress=stop)):
        with pytest.raises(Cancelled):
            call()


def test_the_table_and_the_sizes_say_what_the_model_holds():
    model = integerize(GRAPH, "w4a8-power", X)
    frame = model.to_frame()
    assert list(frame.index) == list(model.layers)
    assert frame.loc["fc1", "grid"].startswith("power:bits=4,exponent=0.")
    assert frame["bytes"].sum() == model.bytes
    assert model.bytes - model.stored_bytes == (48 + 64) // 2
    assert "fc1" in model._repr_html_()
    assert repr(model).startswith("IntegerModel('graph', ")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight",
    [
        "uniform:bits=8",
        "uniform:bits=4,range=full",
        "uniform:bits=8,range=full",
        "uniform:bits=4,range=asymmetric",
        "power:bits=4,exponent=0.5",
        "power:bits=8,exponent=0.6",
        "power:bits=4,exponent=search",
        "power:bits=4,exponent=0.6,shifted=true",
        "nf4",
        "e2m1",
        "apot:bits=4",
        "log:bits=4",
    ],
)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_integer_weights_stand_for_what_quantize_gives(weight, granularity):
    from workbench.quantization import quantize

    real = np.random.default_rng(1).normal(size=(5, 3, 4)).astype(np.float32)
    found = integer_weight(real, Entry("w", weight=weight, granularity=granularity, scale="absmax"))
    expected = quantize(real, found.grid, granularity).dequantize()
    assert found.integers.shape == real.shape
    table = 0.0 if weight.startswith("uniform") else float(levels_of(found.grid, 8 if found.bits <= 4 else 16).scale)
    slack = np.abs(real).max() * (0.6 * table + 2e-6) * (1 + np.ptp(found.zero_point))
    assert np.abs(found.real() - expected).max() <= slack + found.scale.max() * (0.5 if "shifted" in weight else 0)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(-12, 3))
def test_a_large_bias_beside_tiny_weights_fits(seed, size):
    rng = np.random.default_rng(seed)
    real = (rng.normal(size=(3, 4)) * 10.0**size).astype(np.float32)
    real[1] = 0
    bias = rng.normal(size=3).astype(np.float32)
    weight = integer_weight(real, Entry("w", weight="uniform:bits=8", granularity="channel", scale="absmax"))
    moved, codes = with_room_for_bias(weight, bias, 0.01, wide=False)
    assert codes is not None
    assert codes.dtype == np.int32
    assert np.all(np.abs(codes.astype(np.int64)) <= 2**30 * (1 + 1e-6))
    np.testing.assert_allclose(codes * (0.01 * moved.scale.astype(np.float64)), bias, atol=0.01 * moved.scale.max())


def test_a_layer_of_zeros_gives_its_bias():
    graph = Graph(
        (Node("fc", "linear", ("x",), "y", {"weight": np.zeros((3, 6), np.float32), "bias": weights(3)}),),
        ("x",),
        ("y",),
    )
    model = integerize(graph, "w8a8", X)
    np.testing.assert_allclose(model(X), model(X, "float"), atol=2 * float(model.values["y"].scale))


def test_fixed_codings_are_kept_and_joined_values_are_brought_together():
    graph = Graph(
        (
            Node("fc", "linear", ("x",), "a", {"weight": weights(6, 6)}),
            Node("gate", "logistic", ("x",), "g"),
            Node("both", "concat", ("a", "g"), "c", {}, {"axis": 1}),
            Node("head", "linear", ("c",), "y", {"weight": weights(2, 12)}),
        ),
        ("x",),
        ("y",),
    )
    model = integerize(graph, "w8a8", X, kind="runtime")
    assert (model.values["g"].scale, model.values["g"].zero_point) == (2.0**-8, -128)
    assert model.values["a"].coding == model.values["c"].coding != model.values["g"].coding
    assert "g.int8" in model.layers
    real, integer = model(X, "float"), model(X)
    assert np.sqrt(np.mean((integer - real) ** 2)) < 0.03 * np.sqrt(np.mean(real**2))


def test_operators_that_move_numbers_keep_codes_and_reals_in_step():
    value = Value("x", np.dtype(np.int8), 0.5, 3)
    codes = RNG.integers(-128, 128, (2, 4, 3), dtype=np.int8)
    nodes = (
        Node("n", "slice", ("x",), "y", {}, {"axis": 1, "start": 1, "step": 2}),
        Node("n", "repeat", ("x",), "y", {}, {"axis": 1, "times": 3}),
        Node("n", "flatten", ("x",), "y", {}, {"start": 1}),
        Node("n", "concat", ("x", "x"), "y", {}, {"axis": 2}),
        Node("n", "transpose", ("x",), "y", {}, {"axes": (2, 0, 1)}),
    )
    for node in nodes:
        operator = OPERATORS[node.operator]
        arrays = [codes] * len(node.inputs)
        moved = operator.integer(node, arrays, {"x": value, "y": value.named("y")}, "tflm")
        real = operator.floating(node, [value.dequantize(array) for array in arrays])
        assert moved.dtype == np.int8
        assert np.array_equal(value.dequantize(moved), real)
