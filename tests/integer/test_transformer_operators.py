"""Operators of transformers: integers within a stated number of steps of the float definition, masks and indices exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer import integerize
from workbench.integer.graph import Graph, Node
from workbench.integer.model import IntegerModel
from workbench.integer.operator import Kind
from workbench.integer.operators import operator_of
from workbench.quantization.recipe import Recipe

SEEDS = st.integers(0, 2**32 - 1)


def single(
    node: Node, inputs: dict[str, np.ndarray], recipe: Recipe | str = "w8a8", kind: Kind = "table"
) -> IntegerModel:
    """Return an integer model of one node, calibrated on its inputs."""
    return integerize(Graph((node,), tuple(inputs), (node.output,)), recipe, inputs, kind=kind)


def steps_off(model: IntegerModel, inputs: dict[str, np.ndarray]) -> int:
    """Return the largest distance in output steps from the float definition on the same codes, correctly rounded."""
    assert model.float_graph is not None
    run = model.run(inputs, keep=True)
    (node,) = [each for each in model.graph.nodes if each.operator != "requantize"]
    output = model.values[node.output]
    real = [model.values[name].dequantize(run.arrays[name], np.float64) for name in node.inputs]
    wanted = output.quantize(operator_of(node.operator).floating(model.float_graph.node(node.name), real))
    found = run.arrays[node.output]
    assert found.dtype == output.dtype
    assert found.shape == wanted.shape
    return int(np.abs(found.astype(np.int64) - wanted.astype(np.int64)).max(initial=0))


@pytest.mark.parametrize("weight", ["uniform:bits=8", "uniform:bits=4", "power:bits=4,exponent=0.5", "nf4"])
@given(seed=SEEDS, rows=st.integers(1, 9), width=st.integers(1, 20))
def test_embedding_is_its_row_rescaled(weight, seed, rows, width):
    draw = np.random.default_rng(seed)
    table = (draw.standard_normal((rows, width)) * draw.uniform(0.01, 10, (rows, 1))).astype(np.float32)
    tokens = np.arange(rows)[None]
    node = Node("e", "embedding", ("tokens",), "x", {"weight": table}, {"factor": 5.0})
    model = single(node, {"tokens": tokens}, Recipe.of("w8a8").but("e", weight=weight))
    run = model.run({"tokens": tokens})
    prepared = model.node("e")
    held = operator_of("embedding").fake_constants(node, prepared)["weight"].astype(np.float64)
    wanted = np.rint(held[tokens] * 5.0 / model.values["x"].scale)
    assert np.abs(run.codes["x"] - wanted).max() <= 1
    assert run.codes["x"].dtype == np.int16


@pytest.mark.parametrize("tokens", [[[4]], [[-1]], [[0, 9]]])
@pytest.mark.parametrize("mode", ["integer", "float"])
def test_tokens_outside_the_vocabulary_are_refused(tokens, mode):
    node = Node("e", "embedding", ("tokens",), "x", {"weight": np.ones((4, 2), np.float32)})
    model = single(node, {"tokens": np.array([[0, 3]])})
    with pytest.raises(IntegerError, match="rows 0 to 3"):
        model.run({"tokens": np.array(tokens)}, mode=mode)


@pytest.mark.parametrize("kind", ["table", "polynomial"])
@given(seed=SEEDS, width=st.integers(2, 70), rows=st.integers(1, 4))
def test_norms_are_correctly_rounded_but_for_one_step(kind, seed, width, rows):
    draw = np.random.default_rng(seed)
    x = (draw.standard_normal((2, rows, width)) * draw.uniform(0.1, 30)).astype(np.float32)
    weight, bias = draw.normal(1, 0.4, width).astype(np.float32), draw.normal(0, 0.4, width).astype(np.float32)
    rms = Node("n", "rms_norm", ("x",), "y", {"weight": weight}, {"epsilon": 1e-6})
    layer = Node("n", "layer_norm", ("x",), "y", {"weight": weight, "bias": bias}, {"epsilon": 1e-12})
    for node in (rms, layer):
        assert steps_off(single(node, {"x": x}, kind=kind), {"x": x}) <= 1


@given(seed=SEEDS, half=st.integers(1, 9), tokens=st.integers(1, 12), factor=st.sampled_from([1.0, 1.25]))
def test_rotary_turns_by_the_position(seed, half, tokens, factor):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((2, 3, tokens, 2 * half)).astype(np.float32)
    frequencies = (100.0 ** -(np.arange(half) / half)).astype(np.float32)
    options = {"factor": factor, "context": 64}
    node = Node("r", "rotary", ("x", "places"), "y", {"frequencies": frequencies}, options)
    places = draw.permutation(64)[:tokens].astype(np.int64)
    model = single(node, {"x": x, "places": places})
    # int16 in and out: the 15-bit tables of cosine and sine leave two steps.
    assert steps_off(model, {"x": x, "places": places}) <= 4
    with pytest.raises(IntegerError, match="positions 0 to 63"):
        model.run({"x": x, "places": places + 64})


def test_rotary_tables_are_shared():
    x, places = np.ones((1, 3, 4), np.float32), np.arange(3)
    frequencies = np.array([1.0, 0.1], np.float32)
    models = [
        single(
            Node("r", "rotary", ("x", "p"), "y", {"frequencies": frequencies.copy()}, {"factor": 1.0, "context": 9}),
            {"x": x, "p": places},
        )
        for _ in range(2)
    ]
    first, second = (model.node("r").constants["cosine"] for model in models)
    assert first is second


@pytest.mark.parametrize("kind", ["table", "polynomial", "runtime"])
@pytest.mark.parametrize("coding", ["int8", "uint8"])
@given(seed=SEEDS, tokens=st.integers(1, 12), window=st.none() | st.integers(1, 5))
def test_softmax_sees_only_what_the_mask_keeps(kind, coding, seed, tokens, window):
    draw = np.random.default_rng(seed)
    scores = draw.normal(0, 3, (1, 2, tokens, tokens)).astype(np.float32)
    mask = operator_of("causal_mask").floating(
        Node("m", "causal_mask", (), "m", {}, {"window": window}), [np.arange(tokens)]
    )
    node = Node("s", "masked_softmax", ("x", "mask"), "y")
    if kind == "runtime" and coding == "uint8":
        return  # no runtime softmax gives uint8 from int16
    model = single(node, {"x": scores, "mask": mask}, Recipe.of("w8a8").but("s", activation=coding), kind)
    run = model.run({"x": scores, "mask": mask})
    found = run.real("y").astype(np.float64)
    assert run.codes["y"].dtype == (np.uint8 if coding == "uint8" else np.int16)
    assert not np.any(found[..., mask == 0])
    reach = 2.0**-8 if coding == "uint8" else {"table": 2.0**-15, "polynomial": 2e-3, "runtime": 2e-3}[kind]
    wanted = operator_of("masked_softmax").floating(node, [scores.astype(np.float64), mask])
    rounding = model.values["x"].scale  # scores were rounded to half a step on the way in
    assert np.abs(found - wanted).max() <= reach + rounding
    np.testing.assert_allclose(wanted.sum(axis=-1), 1.0)


def test_a_row_without_keys_is_zero():
    scores, mask = np.ones((1, 1, 2, 3), np.float32), np.array([[[[1, 1, 0]]], [[[0, 0, 0]]]], np.uint8)
    node = Node("s", "masked_softmax", ("x", "mask"), "y")
    both = np.concatenate([scores, scores])
    model = single(node, {"x": both, "mask": mask})
    for mode in ("float", "integer"):
        found = model({"x": both, "mask": mask}, mode)
        np.testing.assert_allclose(found[0], [[[0.5, 0.5, 0.0]] * 2], atol=1e-3)
        assert not found[1].any()


@given(tokens=st.integers(1, 20), window=st.none() | st.integers(1, 30), start=st.integers(0, 9))
def test_causal_mask_is_its_definition(tokens, window, start):
    node = Node("m", "causal_mask", ("p",), "m", {}, {"window": window})
    found = operator_of("causal_mask").floating(node, [np.arange(start, start + tokens)])
    assert found.shape == (tokens, start + tokens)
    for row in range(tokens):
        for key in range(start + tokens):
            behind = start + row - key
            assert found[row, key] == (behind >= 0 and (window is None or behind < window))


@pytest.mark.parametrize("kind", ["table", "polynomial"])
@given(seed=SEEDS, cap=st.sampled_from([1.0, 30.0, 50.0]))
def test_soft_cap_bends_within_its_bound(kind, seed, cap):
    draw = np.random.default_rng(seed)
    x = (draw.standard_normal((3, 40)) * cap * draw.uniform(0.1, 3)).astype(np.float32)
    node = Node("c", "soft_cap", ("x",), "y", {}, {"cap": cap})
    model = single(node, {"x": x}, kind=kind)
    found = model({"x": x}).astype(np.float64)
    wanted = cap * np.tanh(x.astype(np.float64) / cap)
    # Interpolating over 128 steps of the input (table), or I-BERT's exponential (polynomial).
    width = 128 * model.values["x"].scale / cap
    bound = (0.77 * width**2 / 8 if kind == "table" else 4e-3) * cap
    assert np.abs(found - wanted).max() <= bound + 2 * model.values["x"].scale + 2 * model.values["y"].scale


@given(seed=SEEDS, sentences=st.integers(1, 4), tokens=st.integers(1, 12), width=st.integers(1, 5))
def test_mean_pool_is_one_exact_division(seed, sentences, tokens, width):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((sentences, tokens, width)).astype(np.float32)
    mask = (np.arange(tokens) < draw.integers(1, tokens + 1, (sentences, 1)))[:, None, None].astype(np.uint8)
    node = Node("p", "mean_pool", ("x", "mask"), "y")
    model = single(node, {"x": x, "mask": mask})
    run = model.run({"x": x, "mask": mask}, keep=True)
    constants, value = model.node("p").constants, model.values["y"]
    codes = run.arrays["x"].astype(object)
    for sentence in range(sentences):
        kept = [place for place in range(tokens) if mask[sentence, 0, 0, place]]
        for column in range(width):
            total = sum(int(codes[sentence, place, column]) for place in kept)
            exact = Fraction(total * int(constants["multiplier"]), int(constants["divisor"]) * len(kept))
            rounded = int(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)
            assert run.codes["y"][sentence, column] == np.clip(rounded, value.low, value.high)
    assert steps_off(model, {"x": x, "mask": mask}) <= 1


def test_padding_mask_names_the_padding_token():
    node = Node("m", "padding_mask", ("t",), "m", {}, {"pad": 7})
    found = operator_of("padding_mask").floating(node, [np.array([[1, 7], [0, 2]])])
    np.testing.assert_array_equal(found[:, 0, 0], [[1, 0], [1, 1]])
