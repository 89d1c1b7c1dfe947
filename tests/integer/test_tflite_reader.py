"""Reading TensorFlow Lite files: what stands in them, and damaged ones that end in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tflite_zoo import mobile_net_like, residual

from workbench.errors import WorkbenchError
from workbench.integer.judges.tflite_builder import TFLiteModel
from workbench.integer.model import IntegerModel
from workbench.integer.tflite_reader import read_file


def small():
    model = TFLiteModel()
    x = model.tensor("x", (1, 4, 4, 2), np.int8, 0.5, -3)
    weight = np.arange(-12, 12, dtype=np.int8).reshape(3, 2, 2, 2)
    w = model.tensor("w", weight.shape, np.int8, np.array([0.1, 0.2, 0.3]), 0, data=weight, axis=0)
    b = model.tensor("b", (3,), np.int32, np.array([0.05, 0.1, 0.15]), 0, data=np.array([1, -2, 3], np.int32), axis=0)
    y = model.tensor("y", (1, 2, 2, 3), np.int8, 0.25, 7)
    options = {"padding": "VALID", "stride_h": 2, "stride_w": 1, "fused_activation_function": "RELU6"}
    model.operator("CONV_2D", [x, w, b], [y], options, version=3)
    return model.finish([x], [y]), weight


def test_everything_is_read():
    content, weight = small()
    file = read_file(content)
    assert [tensor.name for tensor in file.tensors] == ["x", "w", "b", "y"]
    x, w, b, y = file.tensors
    assert (x.shape, x.dtype, x.data) == ((1, 4, 4, 2), np.int8, None)
    assert x.scale.tolist() == [0.5]
    assert x.zero_point.tolist() == [-3]
    assert np.array_equal(w.data, weight)
    assert not w.data.flags.writeable
    assert w.scale.dtype == np.float32
    assert w.axis == 0
    assert w.zero_point.tolist() == [0, 0, 0]
    assert b.data.tolist() == [1, -2, 3]
    (operator,) = file.operators
    assert operator.name == "CONV_2D"
    assert operator.inputs == (x, w, b)
    assert operator.outputs == (y,)
    assert operator.options["Padding"] == "VALID"
    assert (operator.options["StrideH"], operator.options["StrideW"]) == (2, 1)
    assert operator.options["DilationHFactor"] == 1
    assert operator.options["FusedActivationFunction"] == "RELU6"
    assert (file.inputs, file.outputs) == ((x,), (y,))


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(WorkbenchError, match="cannot be read: No such file"):
        read_file(tmp_path / "absent.tflite")


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\x00" * 100, b"PK\x03\x04TFL3", b"\x10\x00\x00\x00GGUF" + b"\x00" * 64]
)
def test_what_is_no_model(content):
    with pytest.raises(WorkbenchError, match=r"TFL3|damaged"):
        read_file(content)


def test_a_truncated_file_is_refused():
    content, _ = small()
    for length in range(0, len(content) - 1, 7):
        try:
            read_file(content[:length])
        except WorkbenchError as error:
            assert len(str(error)) < 400
        # A cut within trailing padding may leave a whole model.


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(data):
    which = data.draw(st.sampled_from([0, 1, 2]))
    content = bytearray(CONTENTS[which])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = (
            data.draw(st.sampled_from([0, 1, 127, 128, 255]))
            if data.draw(st.booleans())
            else data.draw(st.integers(0, 255))
        )
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    try:
        model = IntegerModel.from_tflite(bytes(content))
    except WorkbenchError as error:
        assert 0 < len(str(error)) < 1500
        return
    assert len(model.graph) >= 0


def _flips(content, width):
    """Every aligned field once with an absurd value."""
    for place in range(0, len(content) - width, width):
        changed = bytearray(content)
        changed[place : place + width] = b"\xff" * (width - 1) + b"\x7f"
        yield bytes(changed)


@pytest.mark.parametrize("width", [2, 4])
def test_every_field_in_turn_with_an_absurd_value(width):
    outcomes = {"read": 0, "refused": 0}
    for changed in _flips(CONTENTS[0], width):
        try:
            IntegerModel.from_tflite(changed)
            outcomes["read"] += 1
        except WorkbenchError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20


CONTENTS = [small()[0]]
for _build in (mobile_net_like, residual):
    _net, _x = _build(0)
    CONTENTS.append(_net.finish([_x], _net.ends[-1:]))
