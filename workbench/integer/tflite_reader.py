"""TensorFlow Lite files as plain Python: tensors with their codings and contents, operators with their options.

Nothing here trusts the file: every length is checked against the bytes there are, every index against its list, and
whatever the flatbuffer's own reader stumbles over ends in one clear sentence.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import IntegerError

#: Types whose tensors can be read, by the schema's name.
TYPES = {
    "FLOAT32": np.float32,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
#: No axis and no tensor of an honest file is longer (its bytes could not be addressed by a flatbuffer).
LARGEST = 1 << 31

#: The table of options of each operator whose options matter, and its fields.
OPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": (
        "Conv2DOptions",
        ("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction"),
    ),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        (
            "Padding",
            "StrideH",
            "StrideW",
            "DilationHFactor",
            "DilationWFactor",
            "DepthMultiplier",
            "FusedActivationFunction",
        ),
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "KeepNumDims", "WeightsFormat")),
    "ADD": ("AddOptions", ("FusedActivationFunction", "PotScaleInt16")),
    "SUB": ("SubOptions", ("FusedActivationFunction", "PotScaleInt16")),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "BATCH_MATMUL": ("BatchMatMulOptions", ("AdjX", "AdjY")),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "AVERAGE_POOL_2D": (
        "Pool2DOptions",
        ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction"),
    ),
    "MAX_POOL_2D": (
        "Pool2DOptions",
        ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction"),
    ),
    "GATHER": ("GatherOptions", ("Axis", "BatchDims")),
    "MEAN": ("ReducerOptions", ("KeepDims",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "RESHAPE": ("ReshapeOptions", ("NewShape",)),
    "SQUEEZE": ("SqueezeOptions", ("SqueezeDims",)),
    "SPLIT": ("SplitOptions", ("NumSplits",)),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset"),
    ),
}
#: Fields that hold a vector of integers.
VECTORS = {"NewShape", "SqueezeDims"}

_STUMBLES = (
    struct.error,
    IndexError,
    ValueError,
    TypeError,
    OverflowError,
    AttributeError,
    UnicodeDecodeError,
    MemoryError,
    RecursionError,
    AssertionError,
)


@dataclass(frozen=True, eq=False)
class TFLiteTensor:
    """One tensor of a file.

    Attributes:
        index: its place in the list of tensors.
        name: as the file has it; may be empty.
        shape: its axes.
        dtype: numpy's type.
        scale: float32 scales, none where the tensor is not quantized, several where each slice has its own.
        zero_point: int64, as many.
        axis: which axis several scales belong to.
        data: the contents of a constant; None for a value that the run computes.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int
    data: np.ndarray | None

    @property
    def is_quantized(self) -> bool:
        """Whether its codes have a scale."""
        return self.scale.size > 0

    def __str__(self) -> str:
        """Return what a message calls it."""
        return f"tensor {self.index} ({self.name!r}, {self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'})"


@dataclass(frozen=True, eq=False)
class TFLiteOperator:
    """One operator of a file: inputs and outputs by tensor (None for an optional input that is left out)."""

    index: int
    name: str
    inputs: tuple[TFLiteTensor | None, ...]
    outputs: tuple[TFLiteTensor, ...]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """Return what a message calls it."""
        return f"operator {self.index} ({self.name})"


@dataclass(frozen=True, eq=False)
class TFLiteFile:
    """The first graph of a file, its operators in the order of their run."""

    tensors: tuple[TFLiteTensor, ...]
    operators: tuple[TFLiteOperator, ...]
    inputs: tuple[TFLiteTensor, ...]
    outputs: tuple[TFLiteTensor, ...]


def read_file(source: str | os.PathLike[str] | bytes) -> TFLiteFile:
    """Read a TensorFlow Lite model.

    Args:
        source: a path, or the file's bytes.

    Raises:
        IntegerError: no such file, no TensorFlow Lite model, a damaged one, or a type or storage that is not covered.
    """
    import tflite

    content = _content(source)
    if len(content) < 8 or content[4:8] != b"TFL3":
        message = f"a TensorFlow Lite model starts with a root offset and 'TFL3', not {content[:8]!r}"
        raise IntegerError(message)
    with _reading("root"):
        model: Any = tflite.Model.GetRootAs(content, 0)
        size = len(content)
        graphs = _length(model.SubgraphsLength(), size)
    if graphs != 1:
        message = f"a model of one graph can be read, this one has {graphs}"
        raise IntegerError(message)
    with _reading("list of operators and tensors"):
        graph = model.Subgraphs(0)
        names = [
            _operator_name(model.OperatorCodes(place)) for place in range(_length(model.OperatorCodesLength(), size))
        ]
        tensors = tuple(
            _tensor(model, graph.Tensors(place), place, size) for place in range(_length(graph.TensorsLength(), size))
        )
        operators = tuple(
            _operator(graph.Operators(place), place, names, tensors, size)
            for place in range(_length(graph.OperatorsLength(), size))
        )
        ends = [
            tuple(_pick(tensors, index, "the graph") for index in _integers(vector, length, size))
            for vector, length in (
                (graph.InputsAsNumpy, graph.InputsLength),
                (graph.OutputsAsNumpy, graph.OutputsLength),
            )
        ]
    return TFLiteFile(tensors, operators, ends[0], ends[1])


def _content(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    try:
        return Path(source).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"the TensorFlow Lite file {source} cannot be read: {reason}"
        raise IntegerError(message) from None


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except IntegerError:
        raise
    except _STUMBLES as error:
        message = f"the TensorFlow Lite file is damaged: its {what} cannot be read ({type(error).__name__})"
        raise IntegerError(message) from None


def _length(count: int, size: int) -> int:
    # Each entry of a vector takes a byte at least.
    if not 0 <= count <= size:
        message = f"the TensorFlow Lite file is damaged: a list of {count} entries in {size} bytes"
        raise IntegerError(message)
    return count


def _integers(vector: Any, length: Any, size: int) -> list[int]:
    if not _length(length(), size):
        return []
    values = np.asarray(vector())
    if values.dtype.kind not in "iu":
        message = "the TensorFlow Lite file is damaged: a list of integers is none"
        raise IntegerError(message)
    return [int(value) for value in values]


@cache
def _words(kind: str) -> dict[int, str]:
    import tflite

    table = getattr(tflite, kind)
    return {value: name for name, value in vars(table).items() if not name.startswith("_") and isinstance(value, int)}


def _word(kind: str, value: int) -> str:
    words = _words(kind)
    if value not in words:
        message = f"the TensorFlow Lite file holds {kind} {value}, which the schema does not have"
        raise IntegerError(message)
    return words[value]


def _operator_name(code: Any) -> str:
    # The older field has 8 bits and says 127 where the code does not fit it.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = _word("BuiltinOperator", number)
    if name == "CUSTOM":
        custom = code.CustomCode() or b""
        return f"CUSTOM {custom.decode('utf-8', 'replace')}"
    return name


def _tensor(model: Any, tensor: Any, place: int, size: int) -> TFLiteTensor:
    name = (tensor.Name() or b"").decode("utf-8", "replace")
    shape = tuple(_integers(tensor.ShapeAsNumpy, tensor.ShapeLength, size))
    kind = _word("TensorType", tensor.Type())
    if kind not in TYPES:
        message = f"tensor {place} ({name!r}) has type {kind}; what can be read is {', '.join(TYPES)}"
        raise IntegerError(message)
    if any(length < 0 for length in shape) or prod(shape) >= LARGEST:
        message = (
            f"tensor {place} ({name!r}) has shape {shape}: every axis must be known, and their product below 2**31"
        )
        raise IntegerError(message)
    if tensor.Sparsity() is not None:
        message = f"tensor {place} ({name!r}) is stored sparse, which is not covered: densify the model first"
        raise IntegerError(message)
    dtype = np.dtype(TYPES[kind])
    scale, zero_point, axis = _quantization(tensor.Quantization(), place, name, shape, size)
    data = _data(model, tensor.Buffer(), place, name, shape, dtype, size)
    return TFLiteTensor(place, name, shape, dtype, scale, zero_point, axis, data)


def _quantization(
    found: Any, place: int, name: str, shape: tuple[int, ...], size: int
) -> tuple[np.ndarray, np.ndarray, int]:
    none = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64), 0
    if found is None or not _length(found.ScaleLength(), size):
        return none
    scale = np.array(found.ScaleAsNumpy(), dtype=np.float32)
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        message = f"tensor {place} ({name!r}) has a scale that is not a finite number above 0"
        raise IntegerError(message)
    zeros = np.zeros(scale.size, dtype=np.int64)
    if _length(found.ZeroPointLength(), size):
        zeros = np.array(found.ZeroPointAsNumpy(), dtype=np.int64)
    axis = found.QuantizedDimension()
    if zeros.size not in {1, scale.size}:
        message = f"tensor {place} ({name!r}) has {scale.size} scales and {zeros.size} zero points"
        raise IntegerError(message)
    if scale.size > 1 and (not 0 <= axis < len(shape) or shape[axis] != scale.size):
        message = f"tensor {place} ({name!r}) of shape {shape} has {scale.size} scales along axis {axis}"
        raise IntegerError(message)
    return scale, np.broadcast_to(zeros, scale.shape).copy(), int(axis)


def _data(  # noqa: PLR0917
    model: Any, number: int, place: int, name: str, shape: tuple[int, ...], dtype: np.dtype, size: int
) -> np.ndarray | None:
    if number == 0:
        return None
    if number >= _length(model.BuffersLength(), size):
        message = f"tensor {place} ({name!r}) refers to buffer {number} of {model.BuffersLength()}"
        raise IntegerError(message)
    buffer = model.Buffers(number)
    if buffer.Offset() > 1:
        message = f"tensor {place} ({name!r}) is stored outside the flatbuffer, which is not covered"
        raise IntegerError(message)
    length = _length(buffer.DataLength(), size)
    if not length:
        return None
    if length != prod(shape) * dtype.itemsize:
        message = f"tensor {place} ({name!r}) of {dtype} {shape} has {length} bytes"
        raise IntegerError(message)
    content = np.asarray(buffer.DataAsNumpy(), dtype=np.uint8)
    data = content.view(dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    data.flags.writeable = False
    return data


def _pick(tensors: tuple[TFLiteTensor, ...], index: int, who: str) -> TFLiteTensor:
    if not 0 <= index < len(tensors):
        message = f"the TensorFlow Lite file is damaged: {who} refers to tensor {index} of {len(tensors)}"
        raise IntegerError(message)
    return tensors[index]


def _operator(found: Any, place: int, names: list[str], tensors: tuple[TFLiteTensor, ...], size: int) -> TFLiteOperator:
    code = found.OpcodeIndex()
    if not 0 <= code < len(names):
        message = f"the TensorFlow Lite file is damaged: operator {place} has code {code} of {len(names)}"
        raise IntegerError(message)
    who = f"operator {place} ({names[code]})"
    inputs = tuple(
        None if index == -1 else _pick(tensors, index, who)
        for index in _integers(found.InputsAsNumpy, found.InputsLength, size)
    )
    outputs = tuple(_pick(tensors, index, who) for index in _integers(found.OutputsAsNumpy, found.OutputsLength, size))
    return TFLiteOperator(place, names[code], inputs, outputs, _options(found, names[code], who, size))


def _options(found: Any, name: str, who: str, size: int) -> dict[str, Any]:
    import tflite

    if name not in OPTIONS:
        return {}
    table, fields = OPTIONS[name]
    holder = getattr(tflite, table)()
    kind, place = found.BuiltinOptionsType(), found.BuiltinOptions()
    if kind and kind != getattr(tflite.BuiltinOptions, table):
        message = f"{who} has options of another operator"
        raise IntegerError(message)
    if not kind or place is None:
        return {}
    holder.Init(place.Bytes, place.Pos)
    values: dict[str, Any] = {}
    for each in fields:
        if each in VECTORS:
            values[each] = tuple(_integers(getattr(holder, f"{each}AsNumpy"), getattr(holder, f"{each}Length"), size))
        elif each == "FusedActivationFunction":
            values[each] = _word("ActivationFunctionType", holder.FusedActivationFunction())
        elif each == "Padding":
            values[each] = _word("Padding", holder.Padding())
        else:
            values[each] = getattr(holder, each)()
    return values
