"""Judge: the node test cases that the ``onnx`` package itself generates for its quantization operators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.integer import onnx_operators as ours

#: ONNX operators whose cases are run, and how many cases ``onnx`` 1.23 has for each.
OPERATORS = {
    "QuantizeLinear": 13,
    "DequantizeLinear": 14,
    "DynamicQuantizeLinear": 6,
    "QLinearMatMul": 8,
    "QLinearConv": 1,
    "MatMulInteger": 1,
    "ConvInteger": 2,
}
_ELEMENTS = {"float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2", "float4_e2m1fn": "float4e2m1"}


@dataclass(frozen=True)
class NodeCase:
    """One case: an operator, its inputs and attributes, and what must come out."""

    name: str
    operator: str
    inputs: tuple[np.ndarray | None, ...]
    outputs: tuple[np.ndarray, ...]
    attributes: dict[str, Any]


def node_cases() -> Iterator[NodeCase]:
    """Yield the cases of ``onnx.backend.test.case.node`` whose model is one of ``OPERATORS``, alone or written out."""
    from onnx import TensorProto, helper, numpy_helper
    from onnx.backend.test.case.node import collect_testcases

    def array(value: Any) -> np.ndarray:
        return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The cases of other operators divide by zero on purpose.
        warnings.simplefilter("ignore")
        cases: Any = collect_testcases(None)
    for case in cases:
        nodes = case.model.graph.node
        names = [value.name for value in case.model.graph.input]
        operator, order, attributes = nodes[0].op_type, list(nodes[0].input), {}
        if len(nodes) == 1 and operator in OPERATORS:
            attributes = {each.name: helper.get_attribute_value(each) for each in nodes[0].attribute}
        elif case.name.startswith("test_dynamicquantizelinear"):
            # The same operator written out in simpler ones: its inputs and outputs are the operator's.
            operator, order = "DynamicQuantizeLinear", names
        else:
            continue
        for inputs, outputs in case.data_sets:
            given = dict(zip(names, inputs, strict=True))
            yield NodeCase(
                case.name,
                operator,
                tuple(array(given[name]) if name else None for name in order),
                tuple(array(each) for each in outputs),
                attributes,
            )


def run_case(case: NodeCase) -> tuple[np.ndarray, ...]:
    """Return our outputs of a case, small floats as their bit patterns."""
    inputs, attributes = list(case.inputs), dict(case.attributes)
    if case.operator == "QuantizeLinear":
        x, scale, zero = (*inputs, None)[:3]
        kind = case.outputs[0].dtype.name
        options = {name: attributes[name] for name in ("axis", "block_size") if name in attributes}
        element = _ELEMENTS.get(kind, kind)
        return (ours.quantize_linear(_given(x), scale, _zero(zero), element=element, **options),)
    if case.operator == "DequantizeLinear":
        x, scale, zero = (*inputs, None)[:3]
        kind = _given(x).dtype.name
        options = {name: attributes[name] for name in ("axis", "block_size") if name in attributes}
        element = _ELEMENTS.get(kind, kind)
        return (ours.dequantize_linear(plain(_given(x)), scale, _zero(zero), element=element, **options),)
    if case.operator == "DynamicQuantizeLinear":
        return ours.dynamic_quantize_linear(_given(inputs[0]))
    if case.operator == "QLinearMatMul":
        return (ours.qlinear_matmul(*inputs),)  # pyright: ignore[reportArgumentType]
    if case.operator == "QLinearConv":
        return (ours.qlinear_conv(*inputs, **attributes),)  # pyright: ignore[reportArgumentType]
    numbers = [each for each in inputs if each is not None]
    if case.operator == "MatMulInteger":
        return (ours.matmul_integer(*numbers),)
    return (ours.conv_integer(*numbers, **attributes),)


def plain(values: np.ndarray) -> np.ndarray:
    """Return an array as the workbench has it: small integers one per byte, small floats as bit patterns in uint8."""
    name = values.dtype.name
    if name in _ELEMENTS:
        return values.view(np.uint8)
    if name in {"int2", "int4"}:
        return values.astype(np.int8)
    if name in {"uint2", "uint4"}:
        return values.astype(np.uint8)
    return values


def _given(value: np.ndarray | None) -> np.ndarray:
    if value is None:
        message = "the case leaves out an input that the operator needs"
        raise ValueError(message)
    return value


def _zero(value: np.ndarray | None) -> np.ndarray | int:
    return 0 if value is None else plain(value)
