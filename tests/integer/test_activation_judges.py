"""Every input code of every activation, at many scales and zero points, against three outside runtimes: 0 mismatches."""

from __future__ import annotations

import numpy as np
import pytest
from unary_judging import LITE, ONNX, every, lite_model, onnx_chain, ours, random_tensors

from workbench.errors import SemanticsError
from workbench.integer.judges.runners import onnx_model, run_litert, run_onnx, run_tflm

MICRO = [name for name in LITE if not name.startswith("gelu")]
CASES = [
    *(("litert-reference", name, dtype) for name in LITE for dtype in (np.int8, np.uint8)),
    *(("tflm", name, np.int8) for name in MICRO),
    *((runtime, name, np.int16) for runtime in ("litert-reference", "tflm") for name in ("logistic", "tanh", "relu")),
    *((runtime, name, np.int16) for runtime in ("litert-reference", "tflm") for name in ("relu6", "leaky-relu")),
]
PACKAGES = {"litert-reference": "ai_edge_litert", "tflm": "tflite_micro"}


@pytest.mark.parametrize(("runtime", "name", "dtype"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_every_code_as_tensorflow_lite_gives_it(runtime, name, dtype):
    pytest.importorskip(PACKAGES[runtime])
    generator = np.random.default_rng([np.dtype(dtype).itemsize, list(LITE).index(name)])
    codes = every(dtype)[None]
    for _ in range(6 if dtype == np.int16 else 40):
        options, slope = random_tensors(name, dtype, generator)
        run = run_litert if runtime == "litert-reference" else run_tflm
        wanted = run(lite_model(name, codes, options, slope), [codes])[0]
        got = ours(name, codes, slope, semantics=runtime, **options)
        assert got.dtype == wanted.dtype
        assert np.array_equal(got, wanted), (options, slope)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("name", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_every_code_as_onnxruntime_gives_it(name, dtype):
    pytest.importorskip("onnxruntime")
    generator = np.random.default_rng(7)
    codes, function = every(dtype), "logistic" if name == "QLinearSigmoid" else "leaky-relu"
    for _ in range(40):
        options, slope = random_tensors("relu", dtype, generator)
        if function == "logistic":
            options["output_scale"] = float(np.float32(generator.choice([1 / 256, 0.004, 0.0041, 1 / 200])))
        model = onnx_model(
            name,
            {"x": codes},
            {"y": dtype},
            {
                "s": np.float32(options["input_scale"]),
                "z": dtype(options["input_zero_point"]),
                "t": np.float32(options["output_scale"]),
                "o": dtype(options["output_zero_point"]),
            },
            domain="com.microsoft",
            **({} if function == "logistic" else {"alpha": slope}),
        )
        got = ours(function, codes, slope, semantics="onnxruntime", **options)
        assert np.array_equal(got, run_onnx(model, {"x": codes})[0]), (options, slope)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("name", ONNX)
def test_every_code_as_an_onnx_chain_gives_it(name, dtype):
    pytest.importorskip("onnxruntime")
    generator = np.random.default_rng(11)
    codes = every(dtype)
    for _ in range(25):
        options, slope = random_tensors("relu", dtype, generator)
        wanted = run_onnx(onnx_chain(name, codes, options, slope), {"x": codes})[0]
        assert np.array_equal(ours(name, codes, slope, semantics="onnxruntime", **options), wanted), (options, slope)


def test_what_a_runtime_lacks_is_named():
    codes, scales = np.zeros(4, dtype=np.int8), {"input_scale": 0.1, "output_scale": 0.1}
    with pytest.raises(SemanticsError, match=r"tflm has no gelu of its own .* kind='table' or kind='polynomial'"):
        ours("gelu", codes, 0.0, semantics="tflm", **scales)
    with pytest.raises(SemanticsError, match="a TABLE that the compiler fills"):
        ours("tanh", codes, 0.0, semantics="tosa", input_scale=0.1)
    with pytest.raises(SemanticsError, match="hard-swish takes 8-bit tensors"):
        ours("hard-swish", codes.astype(np.int16), 0.0, **scales)
    with pytest.raises(SemanticsError, match="output scale of 1/256"):
        ours("logistic", codes, 0.0, **scales)
    with pytest.raises(SemanticsError, match="output scale 1/32768"):
        ours("logistic", codes.astype(np.int16), 0.0, **scales)
    with pytest.raises(SemanticsError, match="int8 with output scale 1/128"):
        ours("tanh", codes, 0.0, semantics="tflm", **scales)
    with pytest.raises(SemanticsError, match="int8 and int16 tensors"):
        ours("relu", codes.astype(np.uint8), 0.0, semantics="tflm", **scales)
    with pytest.raises(SemanticsError, match="at least 1/128 of the input scale"):
        ours("hard-swish", codes, 0.0, input_scale=1.0, output_scale=1e-3)
    with pytest.raises(SemanticsError, match="gives the input's type"):
        ours("gelu", codes, 0.0, dtype=np.int16, **scales)
