"""Hand-built TensorFlow Lite models: one flatbuffer from numpy arrays, without TensorFlow.

>>> model = TFLiteModel()
>>> x = model.tensor("x", (1, 8), "int8", scale=0.5)
>>> y = model.tensor("y", (1, 8), "int8", scale=1 / 128)
>>> model.operator("TANH", [x], [y])
>>> content = model.finish([x], [y])
>>> content[4:8]
b'TFL3'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import IntegerError

#: Alignment of a constant's bytes in the file, as the runtimes expect it.
ALIGNMENT = 16

#: The table of options that belongs to an operator, where it is not the operator's own name in camel case.
_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
    "TOPK_V2": "TopKV2Options",
}
#: Options that the schema writes as numbers and people as words.
_WORDS = {
    "padding": "Padding",
    "fused_activation_function": "ActivationFunctionType",
    "in_data_type": "TensorType",
    "out_data_type": "TensorType",
    "output_type": "TensorType",
    "quantized_bias_type": "TensorType",
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int
    data: bytes | None


@dataclass(frozen=True)
class _Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]
    version: int


class TFLiteModel:
    """A model under construction: add tensors, then operators in the order of their run, then ``finish``."""

    def __init__(self) -> None:
        self._tensors: list[_Tensor] = []
        self._operators: list[_Operator] = []

    def tensor(  # noqa: PLR0917 - as the schema's own table orders them
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        scale: Any = None,
        zero_point: Any = 0,
        data: np.ndarray | None = None,
        axis: int | None = None,
    ) -> int:
        """Add a tensor and return its index.

        Args:
            name: shown by the runtimes' own messages.
            shape: its axes.
            dtype: int8, uint8, int16, int32, int64, float32 or bool.
            scale: real scale; an array for one per slice along ``axis``; None for a tensor without quantization.
            zero_point: code of 0; an array of the same length, or one for all slices.
            data: contents of a constant.
            axis: which axis several scales belong to (0 where not given).

        Raises:
            IntegerError: the data's shape or type is not the tensor's.
        """
        kind, axes = np.dtype(dtype), tuple(int(length) for length in shape)
        content = None
        if data is not None:
            values = np.asarray(data)
            if values.shape != axes or values.dtype != kind:
                message = f"the data of {name} is {kind} {axes}, not {values.dtype} {values.shape}"
                raise IntegerError(message)
            content = np.ascontiguousarray(values).astype(kind.newbyteorder("<"), copy=False).tobytes()
        scales = np.empty(0, dtype=np.float32) if scale is None else np.atleast_1d(np.asarray(scale, dtype=np.float32))
        zeros = np.broadcast_to(np.atleast_1d(np.asarray(zero_point, dtype=np.int64)), scales.shape)
        self._tensors.append(_Tensor(name, axes, kind, scales, zeros, axis or 0, content))
        return len(self._tensors) - 1

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, Any] | None = None,
        *,
        version: int = 1,
    ) -> None:
        """Add an operator.

        Args:
            name: as in the schema's ``BuiltinOperator``, e.g. ``"CONV_2D"``.
            inputs: indices of tensors; -1 for an optional one that is left out.
            outputs: indices of tensors.
            options: the schema's names, e.g. ``{"padding": "SAME", "stride_w": 2, "fused_activation_function": "RELU"}``.
            version: the operator's version.

        Raises:
            IntegerError: the schema knows no such operator.
        """
        import tflite

        if not hasattr(tflite.BuiltinOperator, name):
            message = f"TensorFlow Lite's schema has no operator {name!r}"
            raise IntegerError(message)
        self._operators.append(_Operator(name, tuple(inputs), tuple(outputs), dict(options or {}), version))

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the file's bytes, its inputs and outputs in this order."""
        import flatbuffers
        import tflite

        builder = flatbuffers.Builder(1024)
        codes = sorted({(each.name, each.version) for each in self._operators})
        code_offsets = [_operator_code(builder, *code) for code in codes]
        # Buffer 0 is empty by convention: tensors without data refer to it.
        contents = [b"", *(each.data for each in self._tensors if each.data is not None)]
        buffer_offsets = [_buffer(builder, content) for content in contents]
        tensor_offsets, number = [], 0
        for each in self._tensors:
            number += each.data is not None
            tensor_offsets.append(_tensor(builder, each, number if each.data is not None else 0))
        operator_offsets = [
            _operator(builder, each, codes.index((each.name, each.version))) for each in self._operators
        ]
        tensors = _offsets(builder, tensor_offsets)
        operators = _offsets(builder, operator_offsets)
        ends = _integers(builder, inputs), _integers(builder, outputs)
        title = builder.CreateString("main")
        tflite.SubGraphStart(builder)
        tflite.SubGraphAddTensors(builder, tensors)
        tflite.SubGraphAddInputs(builder, ends[0])
        tflite.SubGraphAddOutputs(builder, ends[1])
        tflite.SubGraphAddOperators(builder, operators)
        tflite.SubGraphAddName(builder, title)
        graphs = _offsets(builder, [tflite.SubGraphEnd(builder)])
        code_vector, buffers = _offsets(builder, code_offsets), _offsets(builder, buffer_offsets)
        description = builder.CreateString("built by hand")
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, code_vector)
        tflite.ModelAddSubgraphs(builder, graphs)
        tflite.ModelAddDescription(builder, description)
        tflite.ModelAddBuffers(builder, buffers)
        builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _integers(builder: Any, values: Sequence[int]) -> int:
    return builder.CreateNumpyVector(np.asarray(values, dtype=np.int32))


def _offsets(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _operator_code(builder: Any, name: str, version: int) -> int:
    import tflite

    code = getattr(tflite.BuiltinOperator, name)
    tflite.OperatorCodeStart(builder)
    # The old field has 8 bits; codes that do not fit it say so there and stand in the new one.
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(code, 127))
    tflite.OperatorCodeAddVersion(builder, version)
    tflite.OperatorCodeAddBuiltinCode(builder, code)
    return tflite.OperatorCodeEnd(builder)


def _buffer(builder: Any, content: bytes) -> int:
    import tflite

    data = None
    if content:
        builder.StartVector(1, len(content), ALIGNMENT)
        # As flatbuffers' own CreateByteVector, which cannot align by more than one byte.
        builder.head = builder.head - len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
    tflite.BufferStart(builder)
    if data is not None:
        tflite.BufferAddData(builder, data)
    return tflite.BufferEnd(builder)


def _tensor(builder: Any, each: _Tensor, buffer: int) -> int:
    import tflite

    quantization = None
    if each.scale.size:
        scale, zero_point = builder.CreateNumpyVector(each.scale), builder.CreateNumpyVector(each.zero_point.copy())
        tflite.QuantizationParametersStart(builder)
        tflite.QuantizationParametersAddScale(builder, scale)
        tflite.QuantizationParametersAddZeroPoint(builder, zero_point)
        tflite.QuantizationParametersAddQuantizedDimension(builder, each.axis)
        quantization = tflite.QuantizationParametersEnd(builder)
    shape, name = _integers(builder, each.shape), builder.CreateString(each.name)
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, shape)
    tflite.TensorAddType(builder, getattr(tflite.TensorType, each.dtype.name.upper()))
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddName(builder, name)
    if quantization is not None:
        tflite.TensorAddQuantization(builder, quantization)
    return tflite.TensorEnd(builder)


def _operator(builder: Any, each: _Operator, code: int) -> int:
    import tflite

    inputs, outputs = _integers(builder, each.inputs), _integers(builder, each.outputs)
    table = _OPTIONS.get(each.name) or _camel(each.name) + "Options"
    kind = getattr(tflite.BuiltinOptions, table, 0)
    if not kind and each.options:
        message = f"{each.name} has no options"
        raise IntegerError(message)
    options = _options(builder, table, each) if kind else None
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, code)
    tflite.OperatorAddInputs(builder, inputs)
    tflite.OperatorAddOutputs(builder, outputs)
    if options is not None:
        tflite.OperatorAddBuiltinOptionsType(builder, kind)
        tflite.OperatorAddBuiltinOptions(builder, options)
    return tflite.OperatorEnd(builder)


def _options(builder: Any, table: str, each: _Operator) -> int:
    import tflite

    values: dict[str, Any] = {}
    for name, value in each.options.items():
        adder = f"{table}Add{_camel(name)}"
        if not hasattr(tflite, adder):
            message = f"{table} has no field {name!r}"
            raise IntegerError(message)
        if isinstance(value, str):
            value = getattr(getattr(tflite, _WORDS[name]), value)  # noqa: PLW2901
        elif np.ndim(value):
            value = _integers(builder, value)  # noqa: PLW2901
        values[adder] = value
    getattr(tflite, f"{table}Start")(builder)
    for adder, value in values.items():
        getattr(tflite, adder)(builder, value)
    return getattr(tflite, f"{table}End")(builder)


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
