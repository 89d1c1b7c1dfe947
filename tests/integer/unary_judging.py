"""One-operator models of element-wise functions for LiteRT, TensorFlow Lite Micro and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.integer import gelu, hard_swish, leaky_relu, logistic, relu, relu6, tanh
from workbench.integer.judges.tflite_builder import TFLiteModel

LITE = {
    "logistic": "LOGISTIC",
    "tanh": "TANH",
    "gelu": "GELU",
    "gelu-tanh": "GELU",
    "hard-swish": "HARD_SWISH",
    "relu": "RELU",
    "relu6": "RELU6",
    "leaky-relu": "LEAKY_RELU",
}
ONNX = {
    "logistic": "Sigmoid",
    "gelu": "Gelu",
    "gelu-tanh": "Gelu",
    "hard-swish": "HardSwish",
    "relu": "Relu",
    "relu6": "Clip",
    "leaky-relu": "LeakyRelu",
}


def every(dtype: Any) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.arange(limits.min, limits.max + 1).astype(dtype)


def ours(name: str, codes: np.ndarray, slope: float, **options: Any) -> np.ndarray:
    if name == "leaky-relu":
        return leaky_relu(codes, slope=slope, **options)
    if name.startswith("gelu"):
        return gelu(codes, approximate="tanh" if name == "gelu-tanh" else "none", **options)
    return {"logistic": logistic, "tanh": tanh, "hard-swish": hard_swish, "relu": relu, "relu6": relu6}[name](
        codes, **options
    )


def random_tensors(name: str, dtype: Any, generator: np.random.Generator) -> tuple[dict[str, Any], float]:
    """Return scales and zero points that the runtimes accept, and a slope."""
    limits, wide = np.iinfo(dtype), np.dtype(dtype).itemsize == 2
    # Usual scales, and now and then extreme ones.
    low, high = (3e-5, 5e-3) if wide else (1e-3, 0.3)
    if generator.random() < 0.25:
        low, high = (1e-7, 0.3) if wide else (1e-6, 40.0)
    scale = np.float32(np.exp(generator.uniform(np.log(low), np.log(high))))
    if wide and generator.random() < 0.4:
        scale = np.float32(2.0 ** -generator.integers(10, 14))
    zeros = [0, 0] if wide else generator.integers(limits.min, limits.max + 1, 2)
    step = np.float32(scale * np.exp(generator.uniform(-1.0, 0.5)))
    if name == "logistic":
        step, zeros[1] = (np.float32(2.0**-15), 0) if wide else (np.float32(2.0**-8), limits.min)
    if name == "tanh":
        step, zeros[1] = (np.float32(2.0**-15), 0) if wide else (np.float32(2.0**-7), 128 if dtype == np.uint8 else 0)
    options = {
        "input_scale": float(scale),
        "input_zero_point": int(zeros[0]),
        "output_scale": float(step),
        "output_zero_point": int(zeros[1]),
    }
    return options, float(np.float32(generator.uniform(-0.5, 1.0)))


def lite_model(name: str, codes: np.ndarray, options: dict[str, Any], slope: float) -> bytes:
    model = TFLiteModel()
    source = model.tensor("x", codes.shape, codes.dtype, options["input_scale"], options["input_zero_point"])
    result = model.tensor("y", codes.shape, codes.dtype, options["output_scale"], options["output_zero_point"])
    fields = {"leaky-relu": {"alpha": slope}, "gelu-tanh": {"approximate": True}}.get(name, {})
    model.operator(LITE[name], [source], [result], fields)
    return model.finish([source], [result])


def onnx_chain(name: str, codes: np.ndarray, options: dict[str, Any], slope: float) -> Any:
    """Return DequantizeLinear, the function, QuantizeLinear."""
    from onnx import helper, numpy_helper

    kind = codes.dtype.type
    values = {
        "s": np.float32(options["input_scale"]),
        "z": kind(options["input_zero_point"]),
        "t": np.float32(options["output_scale"]),
        "o": kind(options["output_zero_point"]),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    fields = {"leaky-relu": {"alpha": slope}, "gelu-tanh": {"approximate": "tanh"}}.get(name, {})
    element = helper.np_dtype_to_tensor_dtype(codes.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["x", "s", "z"], ["f"]),
            helper.make_node(ONNX[name], ["f", "low", "high"] if name == "relu6" else ["f"], ["g"], **fields),
            helper.make_node("QuantizeLinear", ["g", "t", "o"], ["y"]),
        ],
        name,
        [helper.make_tensor_value_info("x", element, codes.shape)],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
