from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from digits import digits
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tflite_zoo import residual

from workbench.errors import IntegerError
from workbench.integer import IntegerModel, integerize
from workbench.integer.graph import Graph, Node
from workbench.integer.model_file import _plain, _unplain

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6)).astype(np.float32)
GRAPH = Graph(
    (
        Node("fc", "linear", ("x",), "a", {"weight": RNG.normal(size=(6, 6)).astype(np.float32)}),
        Node("curve", "gelu", ("a",), "b", {}, {"approximate": "tanh"}),
        Node("rows", "reshape", ("b",), "c", {}, {"shape": (0, 2, 3)}),
        Node("scores", "matmul", ("c", "c"), "y", {}, {"transpose_b": True, "factor": 0.5}),
    ),
    ("x",),
    ("y",),
)


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8-power"])
@pytest.mark.parametrize("floats", [False, True])
def test_a_saved_model_runs_as_before(recipe, floats, tmp_path):
    model = integerize(GRAPH, recipe, X, semantics="tflm", kind="polynomial")
    path = model.save(tmp_path / "model", floats=floats)
    assert path.name == "model.safetensors"
    again = IntegerModel.load(path)
    for name, codes in model.run(X, keep=True).codes.items():
        assert np.array_equal(again.run(X, keep=True).codes[name], codes)
    assert np.array_equal(again(X), model(X))
    assert (again.recipe, again.semantics, again.kind) == (model.recipe, model.semantics, model.kind)
    assert list(tmp_path.iterdir()) == [path]
    if floats:
        assert np.array_equal(again(X, "fake"), model(X, "fake"))
        assert np.array_equal(again(X, "float"), model(X, "float"))
    else:
        with pytest.raises(IntegerError, match="no float twin"):
            again(X, "float")


def test_the_demo_network_survives(tmp_path):
    images = digits()[0]
    model = integerize("demo:tiny-resnet", "w4a8-power", images[:64])
    again = IntegerModel.load(model.save(tmp_path / "net.safetensors"))
    assert np.array_equal(again.run(images[:8]).outputs[0], model.run(images[:8]).outputs[0])
    assert again.stored_bytes == model.stored_bytes


def test_a_decoder_survives_file_and_pickle(tmp_path):
    tokens = np.arange(12)[None] % 7
    model = integerize("demo:tiny-gemma3", "w8a8", tokens)
    expected = model.run(tokens).outputs[0]
    again = IntegerModel.load(model.save(tmp_path / "decoder", floats=True))
    assert np.array_equal(again.run(tokens).outputs[0], expected)
    assert np.array_equal(again(tokens, "float"), model(tokens, "float"))
    pickled = pickle.loads(pickle.dumps(model))
    assert np.array_equal(pickled.run(tokens).outputs[0], expected)
    assert np.array_equal(pickled(tokens, "fake"), model(tokens, "fake"))


def test_a_model_from_tflite_is_read_where_tflite_was_never_imported(tmp_path):
    net, x = residual(0)
    content = net.finish([x])
    model = IntegerModel.from_tflite(content, "tflm")
    path = model.save(tmp_path / "net")
    image = np.random.default_rng(0).integers(-128, 128, x.shape).astype(np.int8)
    np.save(tmp_path / "image.npy", image)
    program = (
        "import sys, numpy; from workbench.integer import IntegerModel; "
        "run = IntegerModel.load(sys.argv[1]).run(numpy.load(sys.argv[2])); numpy.save(sys.argv[3], run.outputs[0])"
    )
    arguments = [str(path), str(tmp_path / "image.npy"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), model.run(image).outputs[0])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple),
    max_leaves=10,
)


@given(plain)
def test_options_survive_json(value):
    tensors = {}
    assert _unplain(json.loads(json.dumps(_plain(value, "place", tensors))), tensors) == value


def test_options_that_no_file_holds_are_named():
    with pytest.raises(IntegerError, match="place is a object"):
        _plain(object(), "place", {})


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(IntegerError, match="there is no integer model"):
        IntegerModel.load(tmp_path / "nothing.safetensors")
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(IntegerError, match="no integer model of this version"):
        IntegerModel.load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("nonsense")
    with pytest.raises(IntegerError, match="is damaged"):
        IntegerModel.load(tmp_path / "text.safetensors")
    with pytest.raises(IntegerError, match="cannot be written to"):
        integerize(GRAPH, "w8a8", X).save(tmp_path / "nowhere" / "model.safetensors")
    path = integerize(GRAPH, "w8a8", X).save(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegerError, match="is damaged"):
        IntegerModel.load(path)


def test_counts_are_those_of_the_shapes():
    model = integerize(GRAPH, "w8a8", X)
    count = model.count(X)
    rows = {each.layer: each for each in count.layers}
    assert rows["fc"].multiplies["8x8"] == 20 * 6 * 6
    assert rows["scores"].multiplies["8x8"] == 20 * 2 * 2 * 3
    assert rows["fc"].bytes["weights"] == 36
    assert rows["curve"].total_multiplies == 0
    assert rows["rows"].bytes["inputs"] == 120
    assert set(rows) == set(model.layers)
    power = integerize(GRAPH, "w8a8-power", X).count(X)
    assert power.look_ups > 0
    assert power.multiplies.get("16x16", 0) + power.multiplies.get("16x8", 0) > 0
