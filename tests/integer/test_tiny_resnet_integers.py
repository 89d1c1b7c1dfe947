"""The demo network, end to end: accuracy on the held-out digits in float, fake-quantized and in integers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from digits import digits

from workbench import demo_path, integerize, open_model
from workbench.evaluation import accuracy, compare_accuracy
from workbench.quantization.recipe import Recipe

TRAIN, _, IMAGES, LABELS = digits()


@pytest.fixture(scope="module")
def w8a8():
    return integerize("demo:tiny-resnet", "w8a8", TRAIN[:256])


def test_the_float_run_scores_what_the_model_card_says(w8a8):
    figures = json.loads((demo_path("tiny-resnet") / "training.json").read_text())["figures"]
    found = accuracy(lambda part: w8a8(part, "float"), IMAGES, LABELS)
    assert found.total - found.right == pytest.approx(figures["held_out_errors"], abs=1)


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8-power", pytest.param("w8a8-power", marks=pytest.mark.slow)])
def test_integers_stay_within_one_percent_of_float(recipe):
    model = integerize("demo:tiny-resnet", recipe, TRAIN[:256])
    table = compare_accuracy(model, IMAGES, LABELS)
    assert list(table.index) == ["float", "fake", "integer"]
    assert table.loc["integer", "accuracy"] >= table.loc["float", "accuracy"] - 0.01
    assert table.loc["fake", "accuracy"] >= table.loc["float", "accuracy"] - 0.01


@pytest.mark.parametrize("semantics", ["tflm", "tosa-single", "onnxruntime"])
@pytest.mark.parametrize("stream", ["int8", "int16"])
def test_every_semantics_runs_it(semantics, stream, w8a8):
    if semantics == "onnxruntime" and stream == "int16":
        pytest.skip("onnxruntime has no addition of int16")
    model = integerize(open_model(demo_path("tiny-resnet")), Recipe(stream=stream), TRAIN[:256], semantics=semantics)
    part = IMAGES[:64]
    real, integer = model(part, "float"), model(part)
    assert np.array_equal(real.argmax(1), integer.argmax(1))
    assert np.sqrt(np.mean((integer - real) ** 2)) < (0.05 if stream == "int16" else 0.12)
    if stream == "int16":
        # Another rounding moves some codes by one; it does not move the network.
        assert np.abs(integer - w8a8(part)).max() < 0.2


def test_batches_give_the_same_codes(w8a8):
    whole = w8a8.run(IMAGES[:10]).outputs[0]
    parts = [w8a8.run(IMAGES[:10][start : start + 3]).outputs[0] for start in range(0, 10, 3)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_module_and_its_checkpoint_give_the_same_integers(w8a8):
    import tiny_resnet

    model = integerize(tiny_resnet.load(demo_path("tiny-resnet")), "w8a8", TRAIN[:256])
    assert np.array_equal(model.run(IMAGES[:20]).outputs[0], w8a8.run(IMAGES[:20]).outputs[0])


def test_weights_take_a_quarter_of_the_float_ones(w8a8):
    floats = sum(array.nbytes for node in w8a8.float_graph.nodes for array in node.constants.values())
    assert w8a8.bytes < 0.27 * floats
    four = integerize("demo:tiny-resnet", "w4a8", TRAIN[:64])
    assert four.stored_bytes < 0.15 * floats
