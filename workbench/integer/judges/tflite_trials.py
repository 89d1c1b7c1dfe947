"""Random TensorFlow Lite layers, one operator each, and the workbench's call that stands for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.integer import activations, elementwise, pooling
from workbench.integer.convolution import conv2d, geometry
from workbench.integer.judges.tflite_builder import TFLiteModel
from workbench.integer.judges.trials import codes, layer_scales, scale, two, zero_point
from workbench.integer.linear import linear, matmul
from workbench.integer.rescaling import concat, rescale_codes
from workbench.integer.softmax import softmax


@dataclass(frozen=True)
class LiteLayer:
    """A model of one operator, its inputs, and our operator under a named semantics."""

    model: bytes
    inputs: list[np.ndarray]
    ours: Callable[[str], np.ndarray]


Coded = tuple[np.ndarray, Any, int]
"""Codes, their scale, their zero point."""


def _layer(
    name: str,
    inputs: list[Coded],
    output: tuple[tuple[int, ...], Any, Any, int],
    ours: Callable[[str], np.ndarray],
    options: dict[str, Any] | None = None,
    *,
    constants: tuple[tuple[np.ndarray, Any, int], ...] = (),
    version: int = 2,
) -> LiteLayer:
    """Build the model; constants are (values, scales, the axis of the scales)."""
    model = TFLiteModel()
    ends = [model.tensor(f"x{i}", x.shape, x.dtype, s, z) for i, (x, s, z) in enumerate(inputs)]
    fixed = [model.tensor(f"c{i}", v.shape, v.dtype, s, 0, v, axis) for i, (v, s, axis) in enumerate(constants)]
    shape, dtype, out_scale, out_zero = output
    y = model.tensor("y", shape, dtype, out_scale, out_zero)
    model.operator(name, [*ends, *fixed], [y], options or {}, version=version)
    return LiteLayer(model.finish(ends, [y]), [x for x, _, _ in inputs], ours)


def _bias(rng: np.random.Generator, outputs: int, depth: int, dtype: Any) -> np.ndarray:
    reach = int(74 * np.sqrt(depth) * np.iinfo(dtype).max / 4)
    return rng.integers(-reach, reach + 1, outputs).astype(np.int64 if np.dtype(dtype) == np.int16 else np.int32)


def _linear(rng: np.random.Generator, dtype: Any, number: int) -> LiteLayer:
    rows, depth, outputs = (int(rng.integers(1, top)) for top in (40, 200, 90))
    x, weight = codes(rng, (rows, depth), dtype), rng.integers(-127, 128, (outputs, depth), dtype=np.int8)
    # Every fourth model has scales that are powers of two, and with them many ties.
    scales = layer_scales(rng, outputs if number % 2 else 1, depth, dtype, ties=number % 4 > 1)
    bias = _bias(rng, outputs, depth, dtype)
    zeros, relu = (zero_point(rng, dtype), zero_point(rng, dtype)), bool(number % 3 == 2)

    def ours(semantics: str) -> np.ndarray:
        return linear(
            x,
            weight,
            bias,
            input_scale=scales[0],
            weight_scale=scales[1],
            output_scale=scales[2],
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            dtype=dtype,
            low=zeros[1] if relu else None,
            semantics=semantics,
        )

    return _layer(
        "FULLY_CONNECTED",
        [(x, scales[0], zeros[0])],
        ((rows, outputs), dtype, scales[2], zeros[1]),
        ours,
        {"fused_activation_function": "RELU" if relu else "NONE"},
        constants=((weight, scales[1], 0), (bias, scales[0] * scales[1], 0)),
        version=4,
    )


def _convolution(rng: np.random.Generator, dtype: Any, number: int, *, depthwise: bool) -> LiteLayer:
    batch, rows, columns = int(rng.integers(1, 3)), *(int(each) for each in rng.integers(5, 14, 2))
    channels, window = int(rng.integers(1, 17)), two(rng, 5)
    stride, padding = two(rng, 4), ["same", "valid"][number % 2]
    dilation = (1, 1) if number % 3 else two(rng, 3)
    if padding == "valid":
        rows, columns = rows + 4, columns + 4
    times = int(rng.integers(1, 4))
    outputs = channels * times if depthwise else int(rng.integers(1, 25))
    shape = (1, *window, outputs) if depthwise else (outputs, *window, channels)
    x = codes(rng, (batch, rows, columns, channels), dtype)
    weight = rng.integers(-127, 128, shape, dtype=np.int8)
    depth = window[0] * window[1] * (1 if depthwise else channels)
    scales = layer_scales(rng, outputs, depth, dtype, ties=number % 4 > 1)
    bias = _bias(rng, outputs, depth, dtype)
    zeros = zero_point(rng, dtype), zero_point(rng, dtype)
    output, _ = geometry((rows, columns), window, stride, padding, dilation)

    def ours(semantics: str) -> np.ndarray:
        return conv2d(
            x,
            weight,
            bias,
            input_scale=scales[0],
            weight_scale=scales[1],
            output_scale=scales[2],
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=channels if depthwise else 1,
            dtype=dtype,
            semantics=semantics,
        )

    options = {
        "padding": padding.upper(),
        "stride_h": stride[0],
        "stride_w": stride[1],
        "dilation_h_factor": dilation[0],
        "dilation_w_factor": dilation[1],
    }
    return _layer(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [(x, scales[0], zeros[0])],
        ((batch, *output, outputs), dtype, scales[2], zeros[1]),
        ours,
        options | ({"depth_multiplier": times} if depthwise else {}),
        constants=((weight, scales[1], 3 if depthwise else 0), (bias, scales[0] * scales[1], 0)),
        version=3,
    )


def _matmul(rng: np.random.Generator, dtype: Any, number: int) -> LiteLayer:
    batch, rows, depth, columns = (int(rng.integers(1, top)) for top in (4, 20, 60, 20))
    flip = bool(number % 2)
    a = codes(rng, (batch, rows, depth), dtype)
    b = codes(rng, (batch, columns, depth) if flip else (batch, depth, columns), dtype)
    first, second, last = layer_scales(rng, 1, depth, dtype, ties=number % 4 > 1)
    last = np.float32(last * np.iinfo(dtype).max / 127)
    zeros = [zero_point(rng, dtype) for _ in range(3)]

    def ours(semantics: str) -> np.ndarray:
        return matmul(
            a,
            b,
            a_scale=first,
            b_scale=second,
            output_scale=last,
            a_zero_point=zeros[0],
            b_zero_point=zeros[1],
            output_zero_point=zeros[2],
            transpose_b=flip,
            dtype=dtype,
            semantics=semantics,
        )

    return _layer(
        "BATCH_MATMUL",
        [(a, first, zeros[0]), (b, second, zeros[1])],
        ((batch, rows, columns), dtype, last, zeros[2]),
        ours,
        {"adj_y": flip},
        version=3,
    )


def _pair(rng: np.random.Generator, dtype: Any, number: int, *, name: str) -> LiteLayer:
    shape = (2, 6, 5, 16)
    other = [shape, (16,), (1, 1, 1, 16), shape][number % 4]
    a, b = codes(rng, shape, dtype), codes(rng, other, dtype)
    first, second = scale(rng), scale(rng)
    last = np.float32((first + second) * rng.uniform(0.3, 2))
    if name == "mul":
        last = np.float32(first * second * rng.uniform(20, 120) * (256 if np.dtype(dtype) == np.int16 else 1))
    zeros = [zero_point(rng, dtype) for _ in range(3)]
    operator = {"add": elementwise.add, "sub": elementwise.sub, "mul": elementwise.mul}[name]

    def ours(semantics: str) -> np.ndarray:
        return operator(
            a,
            b,
            a_scale=first,
            b_scale=second,
            output_scale=last,
            a_zero_point=zeros[0],
            b_zero_point=zeros[1],
            output_zero_point=zeros[2],
            semantics=semantics,
        )

    options = {"pot_scale_int16": False} if name != "mul" and np.dtype(dtype) == np.int16 else {}
    ends: list[Coded] = [(a, first, zeros[0]), (b, second, zeros[1])]
    return _layer(name.upper(), ends, (shape, dtype, last, zeros[2]), ours, options)


def _pool(rng: np.random.Generator, dtype: Any, number: int, *, average: bool) -> LiteLayer:
    x = codes(rng, (2, *(int(each) for each in rng.integers(5, 12, 2)), int(rng.integers(1, 20))), dtype)
    window, stride = two(rng, 5), two(rng, 4)
    padding = ["same", "valid"][number % 2]
    step, zero = scale(rng), zero_point(rng, dtype)
    output, _ = geometry(x.shape[1:3], window, stride, padding, (1, 1))

    def ours(semantics: str) -> np.ndarray:
        place: dict[str, Any] = {"stride": stride, "padding": padding, "semantics": semantics}
        if average:
            return pooling.average_pool2d(x, window, input_zero_point=zero, **place)
        return pooling.max_pool2d(x, window, **place)

    options = {
        "padding": padding.upper(),
        "stride_h": stride[0],
        "stride_w": stride[1],
        "filter_height": window[0],
        "filter_width": window[1],
    }
    name = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
    return _layer(name, [(x, step, zero)], ((2, *output, x.shape[3]), dtype, step, zero), ours, options)


def _mean(rng: np.random.Generator, dtype: Any, number: int) -> LiteLayer:
    axes = [(1, 2), (1,), (3,), (1, 2, 3)][number % 4]
    x = codes(rng, (2, *(int(each) for each in rng.integers(2, 9, 3))), dtype)
    first = scale(rng)
    last, zeros = np.float32(first * rng.uniform(0.3, 1.2)), (zero_point(rng, dtype), zero_point(rng, dtype))
    shape = tuple(1 if place in axes else length for place, length in enumerate(x.shape))

    def ours(semantics: str) -> np.ndarray:
        return pooling.mean(
            x,
            axes,
            input_scale=first,
            output_scale=last,
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            semantics=semantics,
        )

    constants = ((np.array(axes, dtype=np.int32), None, 0),)
    output = (shape, dtype, last, zeros[1])
    return _layer("MEAN", [(x, first, zeros[0])], output, ours, {"keep_dims": True}, constants=constants)


_FIXED = {"softmax": (2.0**-8, -128), "logistic": (2.0**-8, -128), "tanh": (2.0**-7, 0)}
"""Scale and zero point that the runtimes require of int8 outputs; int16 has 2**-15 and 0."""


def _unary(rng: np.random.Generator, dtype: Any, number: int, *, name: str) -> LiteLayer:
    wide = np.dtype(dtype) == np.int16
    shape = (20, int(rng.integers(1, 60))) if name == "softmax" else (1, 2000)
    x = codes(rng, shape, dtype)
    first = scale(rng, 1e-4, 1e-3) if wide else scale(rng, 0.005, 0.15)
    zero = zero_point(rng, dtype)
    if name in _FIXED:
        last, out_zero = (2.0**-15, 0) if wide else _FIXED[name]
    else:
        last, out_zero = np.float32(first * rng.uniform(0.6, 1.5)), zero_point(rng, dtype)
    slope = float(np.float32(rng.uniform(0.01, 0.4)))
    options: dict[str, Any] = {"leaky_relu": {"alpha": slope}, "softmax": {"beta": 1.0}}.get(name, {})
    if name == "gelu":
        options = {"approximate": bool(number % 2)}

    def ours(semantics: str) -> np.ndarray:
        if name == "softmax":
            return softmax(x, input_scale=first, semantics=semantics)
        coding: dict[str, Any] = {
            "input_scale": first,
            "input_zero_point": zero,
            "output_scale": last,
            "output_zero_point": out_zero,
            "semantics": semantics,
        }
        if name == "leaky_relu":
            coding["slope"] = slope
        if name == "gelu":
            coding["approximate"] = "tanh" if number % 2 else "none"
        return getattr(activations, name)(x, **coding)

    # The reference kernels register hard swish for its first version only.
    version = 1 if name == "hard_swish" else 2
    return _layer(name.upper(), [(x, first, zero)], (shape, dtype, last, out_zero), ours, options, version=version)


def _concat(rng: np.random.Generator, dtype: Any, number: int) -> LiteLayer:
    parts = [codes(rng, (2, 5, int(rng.integers(1, 9))), dtype) for _ in range(2 + number % 3)]
    step, zero = scale(rng), zero_point(rng, dtype)
    width = sum(each.shape[2] for each in parts)
    ends: list[Coded] = [(each, step, zero) for each in parts]
    return _layer(
        "CONCATENATION",
        ends,
        ((2, 5, width), dtype, step, zero),
        lambda semantics: concat(parts, axis=2, semantics=semantics),
        {"axis": 2},
    )


def _quantize(rng: np.random.Generator, dtype: Any, number: int) -> LiteLayer:
    target = [dtype, np.int8, np.int16][number % 3]
    x = codes(rng, (4, 500), dtype)
    first = scale(rng)
    ratio = np.iinfo(dtype).max / np.iinfo(target).max
    last = np.float32(first * ratio * rng.uniform(0.5, 2))
    zeros = zero_point(rng, dtype), zero_point(rng, target)

    def ours(semantics: str) -> np.ndarray:
        return rescale_codes(
            x,
            input_scale=first,
            output_scale=last,
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            dtype=target,
            semantics=semantics,
        )

    return _layer("QUANTIZE", [(x, first, zeros[0])], (x.shape, target, last, zeros[1]), ours)


Draw = Callable[[np.random.Generator, Any, int], LiteLayer]


def _named(function: Any, **options: Any) -> Draw:
    return lambda rng, dtype, number: function(rng, dtype, number, **options)


#: How to draw a layer of each operator, and for which types of activations.
LAYERS: dict[str, tuple[Draw, tuple[type, ...]]] = {
    "linear": (_linear, (np.int8, np.int16)),
    "conv2d": (_named(_convolution, depthwise=False), (np.int8, np.int16)),
    "depthwise conv2d": (_named(_convolution, depthwise=True), (np.int8, np.int16)),
    "matmul": (_matmul, (np.int8, np.int16)),
    "add": (_named(_pair, name="add"), (np.int8, np.int16)),
    "sub": (_named(_pair, name="sub"), (np.int8, np.int16)),
    "mul": (_named(_pair, name="mul"), (np.int8, np.int16)),
    "average_pool2d": (_named(_pool, average=True), (np.int8, np.int16)),
    "max_pool2d": (_named(_pool, average=False), (np.int8, np.int16)),
    "mean": (_mean, (np.int8, np.int16)),
    "softmax": (_named(_unary, name="softmax"), (np.int8, np.int16)),
    "logistic": (_named(_unary, name="logistic"), (np.int8, np.int16)),
    "tanh": (_named(_unary, name="tanh"), (np.int8, np.int16)),
    "hard_swish": (_named(_unary, name="hard_swish"), (np.int8,)),
    "gelu": (_named(_unary, name="gelu"), (np.int8,)),
    "relu": (_named(_unary, name="relu"), (np.int8, np.int16)),
    "relu6": (_named(_unary, name="relu6"), (np.int8,)),
    "leaky_relu": (_named(_unary, name="leaky_relu"), (np.int8, np.int16)),
    "concat": (_concat, (np.int8, np.int16)),
    "rescale": (_quantize, (np.int8, np.int16)),
}
