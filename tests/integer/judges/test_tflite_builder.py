"""Hand-built models run in the real runtimes, each operator once, and bad ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import IntegerError
from workbench.integer.judges.runners import onnx_model, run_litert, run_onnx, run_tflm
from workbench.integer.judges.tflite_builder import TFLiteModel

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite_micro")

IMAGE = (1, 6, 6, 4)


def unary(operator, dtype="int8", options=None, *, shape=IMAGE, scale=(0.05, 0.05), zero_point=(0, 0), out_shape=None):
    model = TFLiteModel()
    x = model.tensor("x", shape, dtype, scale=scale[0], zero_point=zero_point[0])
    y = model.tensor("y", shape if out_shape is None else out_shape, dtype, scale=scale[1], zero_point=zero_point[1])
    model.operator(operator, [x], [y], options)
    return model.finish([x], [y])


def with_constant(operator, constants, out_shape, *, dtype="int8", options=None, shape=IMAGE):
    model = TFLiteModel()
    x = model.tensor("x", shape, dtype, scale=0.05)
    others = []
    for number, (values, factor, axis) in enumerate(constants):
        others.append(model.tensor(f"c{number}", values.shape, values.dtype, factor, 0, values, axis))
    y = model.tensor("y", out_shape, dtype, scale=0.05)
    model.operator(operator, [x, *others], [y], options)
    return model.finish([x], [y])


def pair(operator, out_shape, *, dtype="int8", options=None, shape=IMAGE, other=IMAGE):
    model = TFLiteModel()
    a = model.tensor("a", shape, dtype, scale=0.05)
    b = model.tensor("b", other, dtype, scale=0.05)
    y = model.tensor("y", out_shape, dtype, scale=0.05)
    model.operator(operator, [a, b], [y], options)
    return model.finish([a, b], [y])


RNG = np.random.default_rng(5)
KERNEL = RNG.integers(-127, 128, (3, 3, 3, 4), dtype=np.int8)
DEPTHWISE = RNG.integers(-127, 128, (1, 3, 3, 8), dtype=np.int8)
DENSE = RNG.integers(-127, 128, (5, 4), dtype=np.int8)
PER_CHANNEL = np.array([0.01, 0.02, 0.015], np.float32)
WINDOW = {"padding": "VALID", "stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2}
STRIDES = {"padding": "SAME", "stride_w": 1, "stride_h": 1, "dilation_w_factor": 1, "dilation_h_factor": 1}
NO_POT = {"pot_scale_int16": False}


def bias(dtype, length, scale):
    return np.arange(length, dtype=np.int64 if dtype == "int16" else np.int32), scale, 0


def conv(dtype):
    return with_constant(
        "CONV_2D",
        [(KERNEL, PER_CHANNEL, 0), bias(dtype, 3, PER_CHANNEL * 0.05)],
        (1, 6, 6, 3),
        dtype=dtype,
        options=STRIDES,
    )


def depthwise(dtype):
    scales = np.linspace(0.01, 0.02, 8).astype(np.float32)
    return with_constant(
        "DEPTHWISE_CONV_2D",
        [(DEPTHWISE, scales, 3), bias(dtype, 8, scales * 0.05)],
        (1, 6, 6, 8),
        dtype=dtype,
        options={**STRIDES, "depth_multiplier": 2},
    )


def dense(dtype):
    return with_constant(
        "FULLY_CONNECTED", [(DENSE, 0.01, 0), bias(dtype, 5, 0.0005)], (3, 5), dtype=dtype, shape=(3, 4)
    )


def cast(source, target):
    model = TFLiteModel()
    x = model.tensor("x", (2, 3), source, scale=None if source == "float32" else 0.05)
    y = model.tensor("y", (2, 3), target, scale=None if target == "float32" else 0.05)
    model.operator("DEQUANTIZE" if target == "float32" else "QUANTIZE", [x], [y])
    return model.finish([x], [y])


def int32(*values):
    return np.array(values, np.int32), None, None


CASES = {
    **{f"conv_{d}": (lambda d=d: conv(d), [IMAGE], d) for d in ("int8", "int16")},
    **{f"depthwise_{d}": (lambda d=d: depthwise(d), [IMAGE], d) for d in ("int8", "int16")},
    **{f"dense_{d}": (lambda d=d: dense(d), [(3, 4)], d) for d in ("int8", "int16")},
    **{
        f"{name.lower()}_{d}": (lambda name=name, d=d, o=o: pair(name, IMAGE, dtype=d, options=o), [IMAGE] * 2, d)
        for name, o in (("ADD", NO_POT), ("SUB", NO_POT), ("MUL", {}))
        for d in ("int8", "int16")
    },
    "concat": (lambda: pair("CONCATENATION", (1, 6, 6, 8), options={"axis": 3}), [IMAGE] * 2, "int8"),
    "average": (lambda: unary("AVERAGE_POOL_2D", options=WINDOW, out_shape=(1, 3, 3, 4)), [IMAGE], "int8"),
    "max": (lambda: unary("MAX_POOL_2D", options=WINDOW, out_shape=(1, 3, 3, 4)), [IMAGE], "int8"),
    "mean": (
        lambda: with_constant("MEAN", [int32(1, 2)], (1, 1, 1, 4), options={"keep_dims": True}),
        [IMAGE],
        "int8",
    ),
    "softmax": (
        lambda: unary("SOFTMAX", options={"beta": 1.0}, scale=(0.05, 1 / 256), zero_point=(0, -128)),
        [IMAGE],
        "int8",
    ),
    "softmax_int16": (
        lambda: unary("SOFTMAX", "int16", {"beta": 1.0}, scale=(1e-3, 1 / 32768)),
        [IMAGE],
        "int16",
    ),
    "logistic": (lambda: unary("LOGISTIC", scale=(0.05, 1 / 256), zero_point=(0, -128)), [IMAGE], "int8"),
    "logistic_int16": (lambda: unary("LOGISTIC", "int16", scale=(1e-3, 1 / 32768)), [IMAGE], "int16"),
    "tanh": (lambda: unary("TANH", scale=(0.05, 1 / 128)), [IMAGE], "int8"),
    "tanh_int16": (lambda: unary("TANH", "int16", scale=(1e-3, 1 / 32768)), [IMAGE], "int16"),
    "hard_swish": (lambda: unary("HARD_SWISH"), [IMAGE], "int8"),
    "relu": (lambda: unary("RELU"), [IMAGE], "int8"),
    "relu6": (lambda: unary("RELU6"), [IMAGE], "int8"),
    "leaky_relu": (lambda: unary("LEAKY_RELU", options={"alpha": 0.1}), [IMAGE], "int8"),
    "gelu": (lambda: unary("GELU", options={"approximate": True}), [IMAGE], "int8"),
    "reshape": (lambda: with_constant("RESHAPE", [int32(4, 36)], (4, 36)), [IMAGE], "int8"),
    "pad": (
        lambda: with_constant(
            "PAD", [(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32), None, None)], (1, 8, 8, 4)
        ),
        [IMAGE],
        "int8",
    ),
    "transpose": (lambda: with_constant("TRANSPOSE", [int32(0, 3, 1, 2)], (1, 4, 6, 6)), [IMAGE], "int8"),
    "quantize": (lambda: cast("float32", "int8"), [(2, 3)], "float32"),
    "requantize": (lambda: cast("int16", "int8"), [(2, 3)], "int16"),
    "dequantize": (lambda: cast("int8", "float32"), [(2, 3)], "int8"),
    "batch_matmul": (
        lambda: pair("BATCH_MATMUL", (2, 3, 5), options={"adj_y": True}, shape=(2, 3, 4), other=(2, 5, 4)),
        [(2, 3, 4), (2, 5, 4)],
        "int8",
    ),
}
NOT_IN_TFLM = {"gelu"}


@pytest.mark.parametrize("name", CASES)
def test_every_operator_runs_in_the_runtimes(name):
    build, shapes, dtype = CASES[name]
    rng = np.random.default_rng(3)
    if dtype == "float32":
        inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    else:
        limits = np.iinfo(dtype)
        inputs = [rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True) for shape in shapes]
    content = build()
    results = [run_litert(content, inputs)[0], run_litert(content, inputs, "default")[0]]
    if name not in NOT_IN_TFLM:
        results.append(run_tflm(content, inputs)[0])
    for each in results:
        assert each.shape == results[0].shape
        assert each.dtype == results[0].dtype
        # The families differ by a step, never by more.
        assert np.abs(each.astype(np.float64) - results[0]).max() <= 1 + (name == "softmax_int16")
    assert len(np.unique(results[0])) > 1


def test_inputs_that_are_not_the_model_s_are_refused():
    content = unary("RELU")
    with pytest.raises(IntegerError, match=r"takes int8 \(1, 6, 6, 4\), not int16"):
        run_litert(content, [np.zeros(IMAGE, np.int16)])
    with pytest.raises(IntegerError, match=r"takes int8"):
        run_tflm(content, [np.zeros((1, 6), np.int8)])
    with pytest.raises(IntegerError, match="'fast'"):
        run_litert(content, [np.zeros(IMAGE, np.int8)], "fast")


def test_what_the_schema_lacks_is_refused():
    model = TFLiteModel()
    x = model.tensor("x", (2,), "int8", 0.1)
    with pytest.raises(IntegerError, match="no operator 'RELUX'"):
        model.operator("RELUX", [x], [x])
    with pytest.raises(IntegerError, match=r"x is int8 \(2,\), not int16 \(3,\)"):
        model.tensor("x", (2,), "int8", 0.1, data=np.zeros(3, np.int16))
    model.operator("SOFTMAX", [x], [x], {"gamma": 1.0})
    with pytest.raises(IntegerError, match="no field 'gamma'"):
        model.finish([x], [x])


def test_onnx_models_run():
    pytest.importorskip("onnxruntime")
    x = np.array([[-3, 5]], np.int8)
    constants = {
        "xs": np.float32(0.5), "xz": np.int8(1), "ys": np.float32(0.25), "yz": np.int8(-2),
    }  # fmt: skip
    model = onnx_model("QLinearSigmoid", {"x": x}, {"y": np.int8}, constants, domain="com.microsoft")
    (result,) = run_onnx(model, {"x": x})
    assert result.tolist() == [[-2 + round(1 / (1 + np.exp(2.0)) / 0.25), -2 + round(1 / (1 + np.exp(-2.0)) / 0.25)]]
