"""Judge: PyTorch's quantized engines (FBGEMM, x86, QNNPACK, oneDNN) on random layers, under ``onnxruntime``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from workbench.integer.convolution import conv2d
from workbench.integer.judges.plan import Plan
from workbench.integer.judges.table import JudgeRow
from workbench.integer.judges.trials import Trial, codes, compare, generator, layer_scales
from workbench.integer.linear import linear

_ENGINES = ("fbgemm", "x86", "qnnpack", "onednn")
_ONEDNN = "oneDNN adds the zero point before it rounds half to even: ties at an odd zero point go the other way"


def torch(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield the rows of every engine that this build of PyTorch has."""
    import torch as package

    before = package.backends.quantized.engine
    present = [each for each in _ENGINES if each in package.backends.quantized.supported_engines]
    try:
        for engine in present:
            package.backends.quantized.engine = engine
            for operator in ("linear", "conv2d", "depthwise conv2d"):
                name = f"{operator} uint8"
                if not plan.wants("onnxruntime", name):
                    continue
                rng = generator(plan.seed, name)
                draw = _linear if operator == "linear" else _convolution
                trials = (
                    draw(rng, number, depthwise=operator.startswith("depthwise")) for number in range(plan.models)
                )
                # The x86 engine hands convolutions to oneDNN, and linear layers to FBGEMM.
                other = engine == "onednn" or (engine == "x86" and operator != "linear")
                row = JudgeRow(f"torch ({engine})", version, "onnxruntime", name, promised=not other)
                found = compare(row, trials)
                yield found.noted(_ONEDNN) if other and found.mismatches and not found.note else found
    finally:
        package.backends.quantized.engine = before


def _tensors(x: np.ndarray, weight: np.ndarray, scales: tuple[Any, np.ndarray, Any], zero: int) -> tuple[Any, Any]:
    import torch as package

    with warnings.catch_warnings():
        # PyTorch says at the first quantized tensor that these are going away.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        quantized = package._make_per_tensor_quantized_tensor(package.from_numpy(x), float(scales[0]), zero)
    wide = scales[1].astype(np.float64)
    stored = package.from_numpy(weight)
    if scales[1].size == 1:
        return quantized, package._make_per_tensor_quantized_tensor(stored, float(wide[0]), 0)
    zeros = package.zeros(len(wide), dtype=package.int64)
    return quantized, package._make_per_channel_quantized_tensor(stored, package.from_numpy(wide), zeros, 0)


def _factor(scales: tuple[Any, np.ndarray, Any]) -> dict[str, Any]:
    """Return what our operator is given: QNNPACK multiplies by the inverse of the output scale, the others divide."""
    import torch as package

    if package.backends.quantized.engine != "qnnpack":
        return {"input_scale": scales[0], "weight_scale": scales[1], "output_scale": scales[2]}
    inverse = np.float32(1) / np.float32(scales[2])
    return {"multiplier": (scales[1] * np.float32(scales[0])) * inverse}


def _linear(rng: np.random.Generator, number: int, *, depthwise: bool) -> Trial:
    del depthwise
    rows, depth, outputs = (int(rng.integers(1, top)) for top in (40, 200, 90))
    # FBGEMM without VNNI saturates sums of two products in 16 bits; 7-bit activations keep clear of that.
    x, weight = codes(rng, (rows, depth), np.uint8) // 2, codes(rng, (outputs, depth), np.int8)
    weight = np.maximum(weight, -127)
    scales = layer_scales(rng, outputs if number % 2 else 1, depth, np.int8, ties=number % 4 > 1)
    zeros = int(rng.integers(0, 128)), int(rng.integers(0, 256))

    def theirs() -> np.ndarray:
        import torch as package

        quantized, stored = _tensors(x, weight, scales, zeros[0])
        packed = package.ops.quantized.linear_prepack(stored, None)
        return package.ops.quantized.linear(quantized, packed, float(scales[2]), zeros[1]).int_repr().numpy()

    def ours(semantics: str) -> np.ndarray:
        return linear(
            x,
            weight,
            **_factor(scales),
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            dtype=np.uint8,
            semantics=semantics,
        )

    return Trial(theirs, ours)


def _convolution(rng: np.random.Generator, number: int, *, depthwise: bool) -> Trial:
    channels, window = int(rng.integers(1, 17)), tuple(int(each) for each in rng.integers(1, 4, 2))
    outputs = channels if depthwise else int(rng.integers(1, 25))
    x = codes(rng, (2, channels, *(int(each) for each in rng.integers(7, 14, 2))), np.uint8) // 2
    weight = np.maximum(codes(rng, (outputs, 1 if depthwise else channels, *window), np.int8), -127)
    depth = window[0] * window[1] * (1 if depthwise else channels)
    scales = layer_scales(rng, outputs if number % 2 else 1, depth, np.int8, ties=number % 4 > 1)
    zeros = int(rng.integers(0, 128)), int(rng.integers(0, 256))
    stride = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    padding = int(rng.integers(0, 2)), int(rng.integers(0, 2))
    groups = channels if depthwise else 1

    def theirs() -> np.ndarray:
        import torch as package

        quantized, stored = _tensors(x, weight, scales, zeros[0])
        place = list(stride), list(padding), [1, 1], groups
        packed = package.ops.quantized.conv2d_prepack(stored, None, *place)
        found = package.ops.quantized.conv2d(quantized, packed, float(scales[2]), zeros[1])
        return np.ascontiguousarray(found.int_repr().numpy())

    def ours(semantics: str) -> np.ndarray:
        return conv2d(
            x,
            weight,
            **_factor(scales),
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            stride=stride,
            padding=((padding[0], padding[0]), (padding[1], padding[1])),
            groups=groups,
            layout="NCHW",
            dtype=np.uint8,
            semantics=semantics,
        )

    return Trial(theirs, ours)
