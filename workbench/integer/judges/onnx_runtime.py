"""Judge: ONNX Runtime's quantized operators on random layers, under ``onnxruntime``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from workbench.integer import activations, elementwise, pooling
from workbench.integer import onnx_operators as ours_of
from workbench.integer.judges.plan import Plan
from workbench.integer.judges.runners import onnx_model, run_onnx
from workbench.integer.judges.table import JudgeRow
from workbench.integer.judges.trials import Trial, codes, compare, generator, layer_scales, scale, zero_point
from workbench.integer.rescaling import concat
from workbench.integer.softmax import softmax

MICROSOFT = "com.microsoft"
EIGHT_BITS = (np.int8, np.uint8)


def onnxruntime(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield the rows of ONNX Runtime: 0 mismatches are promised."""
    for operator, (draw, types) in LAYERS.items():
        for dtype in types:
            name = f"{operator} {np.dtype(dtype).name}"
            if not plan.wants("onnxruntime", name):
                continue
            rng = generator(plan.seed, name)
            trials = (draw(rng, dtype, number) for number in range(plan.models))
            yield compare(JudgeRow("onnxruntime", version, "onnxruntime", name), trials)


def _trial(
    operator: str,
    inputs: dict[str, np.ndarray],
    output: Any,
    constants: dict[str, Any],
    ours: Callable[[], np.ndarray],
    **options: Any,
) -> Trial:
    fixed = {name: np.asarray(value) for name, value in constants.items()}
    model = onnx_model(operator, inputs, {"y": output}, fixed, **options)
    return Trial(lambda: run_onnx(model, inputs)[0], lambda semantics: ours())


def _zero(rng: np.random.Generator, dtype: Any) -> Any:
    return np.dtype(dtype).type(zero_point(rng, dtype))


def _half(values: np.ndarray) -> np.ndarray:
    """Keep unsigned codes below 128: without VNNI, pairs of products may saturate 16 bits in ONNX Runtime itself."""
    return values // 2 if values.dtype == np.uint8 else values


def _matmul(rng: np.random.Generator, dtype: Any, number: int, *, batched: bool) -> Trial:
    rows, depth, columns = (int(rng.integers(1, top)) for top in (40, 200, 90))
    lead = (int(rng.integers(1, 4)),) if batched else ()
    a, b = _half(codes(rng, (*lead, rows, depth), dtype)), codes(rng, (*lead, depth, columns), dtype)
    count = columns if number % 2 and not batched else 1
    first, weights, last = layer_scales(rng, count, depth, np.int8, ties=number % 4 > 1)
    zeros = _zero(rng, dtype), codes(rng, (count,), dtype), _zero(rng, dtype)
    weight_coding = (weights, zeros[1]) if count > 1 else (weights[0], zeros[1][0])
    constants = {"as": first, "az": zeros[0], "b": b, "bs": weight_coding[0], "bz": weight_coding[1]}
    return _trial(
        "QLinearMatMul",
        {"a": a},
        dtype,
        constants | {"ys": last, "yz": zeros[2]},
        lambda: ours_of.qlinear_matmul(a, first, zeros[0], b, *weight_coding, last, zeros[2]),
    )


def _convolution(rng: np.random.Generator, dtype: Any, number: int, *, depthwise: bool) -> Trial:
    channels, window = int(rng.integers(1, 17)), [int(each) for each in rng.integers(1, 4, 2)]
    outputs = channels if depthwise else int(rng.integers(1, 25))
    x = _half(codes(rng, (int(rng.integers(1, 3)), channels, *(int(v) for v in rng.integers(7, 14, 2))), dtype))
    weight = codes(rng, (outputs, 1 if depthwise else channels, *window), np.int8)
    depth = window[0] * window[1] * (1 if depthwise else channels)
    count = outputs if number % 2 else 1
    first, weights, last = layer_scales(rng, count, depth, np.int8, ties=number % 4 > 1)
    zeros = _zero(rng, dtype), np.zeros(count, dtype=np.int8), _zero(rng, dtype)
    bias = rng.integers(-5000, 5000, outputs, dtype=np.int32)
    coding = (weights, zeros[1]) if count > 1 else (weights[0], zeros[1][0])
    place = {
        "strides": [int(each) for each in rng.integers(1, 4, 2)],
        "pads": [int(each) for each in rng.integers(0, 3, 4)],
        "dilations": [1, 1] if number % 3 else [int(each) for each in rng.integers(1, 3, 2)],
        "group": channels if depthwise else 1,
    }
    constants = {"xs": first, "xz": zeros[0], "w": weight, "ws": coding[0], "wz": coding[1]}
    return _trial(
        "QLinearConv",
        {"x": x},
        dtype,
        constants | {"ys": last, "yz": zeros[2], "bias": bias},
        lambda: ours_of.qlinear_conv(x, first, zeros[0], weight, *coding, last, zeros[2], bias, **place),
        **place,
    )


def _matmul_integer(rng: np.random.Generator, dtype: Any, number: int) -> Trial:
    rows, depth, columns = (int(rng.integers(1, top)) for top in (30, 200, 60))
    a, b = _half(codes(rng, (rows, depth), dtype)), codes(rng, (depth, columns), dtype)
    zeros = _zero(rng, dtype), codes(rng, (columns,), dtype) if number % 2 else _zero(rng, dtype)
    constants = {"b": b, "az": zeros[0], "bz": zeros[1]}
    return _trial("MatMulInteger", {"a": a}, np.int32, constants, lambda: ours_of.matmul_integer(a, b, *zeros))


def _conv_integer(rng: np.random.Generator, dtype: Any, number: int) -> Trial:
    x = codes(rng, (2, 3, 9, 8), dtype)
    weight = codes(rng, (int(rng.integers(1, 9)), 3, 3, 2), dtype)
    zeros = _zero(rng, dtype), _zero(rng, dtype)
    place = {"strides": [int(each) for each in rng.integers(1, 3, 2)], "pads": [int(v) for v in rng.integers(0, 2, 4)]}
    constants = {"w": weight, "xz": zeros[0], "wz": zeros[1]}
    return _trial(
        "ConvInteger", {"x": x}, np.int32, constants, lambda: ours_of.conv_integer(x, weight, *zeros, **place), **place
    )


def _pair(rng: np.random.Generator, dtype: Any, number: int, *, name: str) -> Trial:
    shape = (3, 7, 40)
    a, b = codes(rng, shape, dtype), codes(rng, [shape, (40,), (1,)][number % 3], dtype)
    first, second = scale(rng), scale(rng)
    last = np.float32((first + second) * rng.uniform(0.3, 2))
    if name == "mul":
        last = np.float32(first * second * rng.uniform(20, 120))
    zeros = [_zero(rng, dtype) for _ in range(3)]
    operator = elementwise.add if name == "add" else elementwise.mul
    return _trial(
        f"QLinear{name.title()}",
        {"a": a, "b": b},
        dtype,
        {"as": first, "az": zeros[0], "bs": second, "bz": zeros[1], "ys": last, "yz": zeros[2]},
        lambda: operator(
            a,
            b,
            a_scale=first,
            b_scale=second,
            output_scale=last,
            a_zero_point=int(zeros[0]),
            b_zero_point=int(zeros[1]),
            output_zero_point=int(zeros[2]),
            semantics="onnxruntime",
        ),
        order=["a", "as", "az", "b", "bs", "bz", "ys", "yz"],
        domain=MICROSOFT,
    )


def _unary(rng: np.random.Generator, dtype: Any, number: int, *, name: str) -> Trial:
    x, first = codes(rng, (4, 500) if number % 2 else (20, 37), dtype), scale(rng, 0.005, 0.15)
    zeros = _zero(rng, dtype), _zero(rng, dtype)
    last = np.float32(first * rng.uniform(0.6, 1.5) if name == "leaky_relu" else 1 / 255 * rng.uniform(0.7, 1.5))
    slope = float(np.float32(rng.uniform(0.01, 0.4)))
    options: dict[str, Any] = {"slope": slope} if name == "leaky_relu" else {}
    operator = activations.leaky_relu if name == "leaky_relu" else activations.logistic
    return _trial(
        "QLinearLeakyRelu" if name == "leaky_relu" else "QLinearSigmoid",
        {"x": x},
        dtype,
        {"xs": first, "xz": zeros[0], "ys": last, "yz": zeros[1]},
        lambda: operator(
            x,
            input_scale=first,
            input_zero_point=int(zeros[0]),
            output_scale=last,
            output_zero_point=int(zeros[1]),
            semantics="onnxruntime",
            **options,
        ),
        domain=MICROSOFT,
        **({"alpha": slope} if name == "leaky_relu" else {}),
    )


def _softmax(rng: np.random.Generator, dtype: Any, number: int) -> Trial:
    x, first = codes(rng, (20, int(rng.integers(1, 90))), dtype), scale(rng, 0.005, 0.15)
    zeros = _zero(rng, dtype), np.dtype(dtype).type(np.iinfo(dtype).min)
    last = np.float32(1 / 256)
    return _trial(
        "QLinearSoftmax",
        {"x": x},
        dtype,
        {"xs": first, "xz": zeros[0], "ys": last, "yz": zeros[1]},
        lambda: softmax(
            x, input_scale=first, output_scale=last, output_zero_point=int(zeros[1]), semantics="onnxruntime"
        ),
        domain=MICROSOFT,
        opset=21,
        axis=-1,
    )


def _pool(rng: np.random.Generator, dtype: Any, number: int, *, whole: bool) -> Trial:
    x = codes(rng, (2, int(rng.integers(1, 20)), *(int(v) for v in rng.integers(6, 12, 2))), dtype)
    first, last = scale(rng), scale(rng)
    zeros = _zero(rng, dtype), _zero(rng, dtype)
    constants = {"xs": first, "xz": zeros[0], "ys": last, "yz": zeros[1]}
    coding: dict[str, Any] = {
        "input_scale": first,
        "output_scale": last,
        "input_zero_point": int(zeros[0]),
        "output_zero_point": int(zeros[1]),
        "layout": "NCHW",
        "semantics": "onnxruntime",
    }
    if whole:
        return _trial(
            "QLinearGlobalAveragePool",
            {"x": x},
            dtype,
            constants,
            lambda: pooling.global_average_pool(x, **coding),
            domain=MICROSOFT,
            channels_last=0,
        )
    window, stride = ([int(v) for v in rng.integers(1, top, 2)] for top in (5, 4))
    pads = [int(rng.integers(0, size)) for size in (*window, *window)]
    place: dict[str, Any] = {
        "stride": (stride[0], stride[1]),
        "padding": ((pads[0], pads[2]), (pads[1], pads[3])),
        "count_padding": bool(number % 2),
    }
    return _trial(
        "QLinearAveragePool",
        {"x": x},
        dtype,
        constants,
        lambda: pooling.average_pool2d(x, (window[0], window[1]), **place, **coding),
        domain=MICROSOFT,
        kernel_shape=window,
        strides=stride,
        pads=pads,
        count_include_pad=number % 2,
    )


def _concat(rng: np.random.Generator, dtype: Any, number: int) -> Trial:
    count = 2 + number % 3
    parts = {f"x{i}": codes(rng, (3, int(rng.integers(1, 7)), 20), dtype) for i in range(count)}
    steps, zeros = [scale(rng) for _ in range(count + 1)], [_zero(rng, dtype) for _ in range(count + 1)]
    constants = {f"{key}{i}": values[i] for i in range(count + 1) for key, values in (("s", steps), ("z", zeros))}
    order = [f"s{count}", f"z{count}", *(name for i in range(count) for name in (f"x{i}", f"s{i}", f"z{i}"))]
    return _trial(
        "QLinearConcat",
        parts,
        dtype,
        constants,
        lambda: concat(
            list(parts.values()),
            input_scales=steps[:count],
            output_scale=steps[count],
            input_zero_points=[int(each) for each in zeros[:count]],
            output_zero_point=int(zeros[count]),
            axis=1,
            semantics="onnxruntime",
        ),
        order=order,
        domain=MICROSOFT,
        axis=1,
    )


def _dynamic(rng: np.random.Generator, dtype: Any, number: int) -> Trial:
    x = (rng.standard_normal((30, 40)) * scale(rng, 0.01, 100)).astype(np.float32)
    model = onnx_model("DynamicQuantizeLinear", {"x": x}, {"y": np.uint8, "s": np.float32, "z": np.uint8})

    def joined(parts: Any) -> np.ndarray:
        y, step, zero = parts
        return np.concatenate([np.ravel(y).astype(np.float64), [float(step), float(zero)]])

    return Trial(
        lambda: joined(run_onnx(model, {"x": x})), lambda semantics: joined(ours_of.dynamic_quantize_linear(x))
    )


Draw = Callable[[np.random.Generator, Any, int], Trial]


def _named(function: Any, **options: Any) -> Draw:
    return lambda rng, dtype, number: function(rng, dtype, number, **options)


#: How to draw a layer of each operator, and for which types of activations.
LAYERS: dict[str, tuple[Draw, tuple[type, ...]]] = {
    "linear": (_named(_matmul, batched=False), EIGHT_BITS),
    "conv2d": (_named(_convolution, depthwise=False), EIGHT_BITS),
    "depthwise conv2d": (_named(_convolution, depthwise=True), EIGHT_BITS),
    "matmul": (_named(_matmul, batched=True), EIGHT_BITS),
    "accumulate": (_matmul_integer, EIGHT_BITS),
    "convolve": (_conv_integer, (np.uint8,)),
    "add": (_named(_pair, name="add"), EIGHT_BITS),
    "mul": (_named(_pair, name="mul"), EIGHT_BITS),
    "average_pool2d": (_named(_pool, whole=False), EIGHT_BITS),
    "global_average_pool": (_named(_pool, whole=True), EIGHT_BITS),
    "softmax": (_softmax, EIGHT_BITS),
    "logistic": (_named(_unary, name="logistic"), EIGHT_BITS),
    "leaky_relu": (_named(_unary, name="leaky_relu"), EIGHT_BITS),
    "concat": (_concat, EIGHT_BITS),
    "dynamic quantize": (_dynamic, (np.uint8,)),
}
