"""Integer means integer: no floating-point array between the input quantizer and the logits.

``tflm`` is the strict case: its multipliers are integers too. ``litert-reference``'s fully-connected layers and
``onnxruntime`` multiply by one floating-point number inside the requantization, as those runtimes do; there the factors
are the only floating-point arrays, and values are checked all the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from digits import digits
from integer_only import check_run, only_integers

from workbench.errors import WorkbenchError
from workbench.integer import integerize
from workbench.integer.graph import Graph, Node
from workbench.integer.operators import OPERATORS
from workbench.resources import demo_path

TEXTS = ["def count(words):\n    return len(words)\n", "The integers are what they are."]


def tiny_resnet(recipe, kind):
    images = digits()[0]
    return integerize("demo:tiny-resnet", recipe, images[:64], semantics="tflm", kind=kind), images[64:72]


def tiny_gemma3(recipe, kind):
    model = integerize("demo:tiny-gemma3", recipe, TEXTS, semantics="tflm", kind=kind)
    return model, np.random.default_rng(0).integers(0, 200, (2, 12))


def minilm(recipe, kind):
    try:
        demo_path("all-MiniLM-L6-v2")
    except WorkbenchError as error:
        pytest.skip(str(error))
    model = integerize("demo:all-MiniLM-L6-v2", recipe, TEXTS, semantics="tflm", kind=kind)
    return model, np.random.default_rng(0).integers(1000, 2000, (2, 12))


FAMILIES = {"tiny-resnet": tiny_resnet, "tiny-gemma3": tiny_gemma3, "all-MiniLM-L6-v2": minilm}


@pytest.mark.parametrize("kind", ["table", "polynomial"])
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8-power"])
@pytest.mark.parametrize(
    "family", [each if each == "tiny-resnet" else pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES]
)
def test_every_array_is_of_integers(family, recipe, kind, monkeypatch):
    model, inputs = FAMILIES[family](recipe, kind)
    check_run(model, inputs, monkeypatch)


def test_the_check_itself_finds_a_float_array(monkeypatch):
    graph = Graph((Node("fc", "linear", ("x",), "y", {"weight": np.eye(2, dtype=np.float32)}),), ("x",), ("y",))
    x = np.ones((1, 2), dtype=np.float32)
    model = integerize(graph, "w8a8", x, semantics="tflm")
    check_run(model, x, monkeypatch)
    operator = OPERATORS["linear"]
    with only_integers(monkeypatch), pytest.raises(AssertionError, match="float32 array"):
        operator.integer(model.node("fc"), [x], model.values, model.semantics)
