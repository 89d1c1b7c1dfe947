"""Quantized TensorFlow Lite models as ``IntegerModel``: every operator a node, every intermediate inspectable.

    model = IntegerModel.from_tflite("person_detect.tflite", semantics="tflm")
    run = model.run(images, keep=True)
    run.codes[model.layers[3]]                            # what the fourth operator gave

With ``litert-reference`` the codes are those of LiteRT with its reference kernels (``BUILTIN_REF``), with ``tflm`` those
of TensorFlow Lite Micro.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.graph import Graph, Node, Value
from workbench.integer.model import IntegerModel
from workbench.integer.operators import register
from workbench.integer.semantics import Semantics, as_semantics
from workbench.integer.tflite_layout import COVERED, FLOAT
from workbench.integer.tflite_reader import TFLiteFile, TFLiteOperator, TFLiteTensor, read_file
from workbench.integer.tflite_site import Site

for _operator in COVERED.values():
    register(_operator)


def read_tflite(
    source: str | os.PathLike[str] | bytes, semantics: Semantics | str = "litert-reference"
) -> IntegerModel:
    """Read an int8 (or int16-activation) TensorFlow Lite model.

    Args:
        source: a path, or the file's bytes.
        semantics: ``litert-reference`` or ``tflm``.

    Raises:
        IntegerError: the file is damaged, or holds something that is not covered: it is named.
        SemanticsError: another semantics.
    """
    named = as_semantics(semantics)
    if named.name not in {"litert-reference", "tflm"}:
        message = f"a TensorFlow Lite model runs as 'litert-reference' or 'tflm' does, not as {str(named)!r}"
        raise SemanticsError(message)
    file = read_file(source)
    missing = sorted({each.name for each in file.operators if each.name not in COVERED})
    if missing:
        message = (
            f"the model needs {', '.join(missing)}, which are not covered; covered are {', '.join(sorted(COVERED))}"
        )
        raise IntegerError(message)
    name = "tflite" if isinstance(source, (bytes, bytearray, memoryview)) else Path(source).stem
    names = _value_names(file)
    nodes: list[Node] = []
    for each in file.operators:
        nodes += _nodes(each, names, named)
    produced = {value for node in nodes for value in (node.output, *node.inputs)}
    for tensor in (*file.inputs, *file.outputs):
        if tensor.data is not None:
            message = f"{tensor} is an end of the model and a constant at once"
            raise IntegerError(message)
        produced.add(names[tensor.index])
    _check_edges(file, nodes, names)
    graph = Graph(
        tuple(nodes),
        tuple(names[each.index] for each in file.inputs),
        tuple(names[each.index] for each in file.outputs),
    )
    values = {names[each.index]: _value(each, names) for each in file.tensors if names.get(each.index) in produced}
    # Shapes of later values, and constants such as a new shape, were made for inputs of this one.
    values |= {names[each.index]: replace(values[names[each.index]], shape=each.shape) for each in file.inputs}
    return IntegerModel(graph, values, named, kind="runtime", name=name)


def _value_names(file: TFLiteFile) -> dict[int, str]:
    """Give every tensor that a run computes a name of its own: the file's, which may be empty or taken."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for each in file.tensors:
        if each.data is not None:
            continue
        name = each.name or f"tensor{each.index}"
        while name in taken:
            name = f"{name}#{each.index}"
        taken.add(name)
        names[each.index] = name
    return names


def _nodes(operator: TFLiteOperator, names: dict[int, str], semantics: Semantics) -> list[Node]:
    site = Site(operator, semantics)
    kind = COVERED[operator.name]
    for each in operator.outputs:
        if each.data is not None:
            raise site.fail(f"it writes {each}, which is a constant")
    if len(operator.outputs) != 1 and operator.name != "SPLIT":
        raise site.fail(f"it gives one output, not {len(operator.outputs)}")
    try:
        built = kind.build(site)
    except IntegerError as error:
        text = str(error)
        if text.startswith(str(operator)):
            raise
        raise site.fail(text) from None
    reads = tuple(names[each.index] for each in built.inputs)
    found = []
    for place, each in enumerate(operator.outputs):
        output = names[each.index]
        options = {**built.options, "part": place} if operator.name == "SPLIT" else built.options
        found.append(Node(output, kind.name, reads, output, built.constants, options))
    return found


def _check_edges(file: TFLiteFile, nodes: list[Node], names: dict[int, str]) -> None:
    """Refuse float32 numbers between operators: they may only enter and leave the model."""
    floats = {names[each.index] for each in file.tensors if each.dtype == FLOAT and each.index in names}
    ends = {names[each.index] for each in file.inputs}, {names[each.index] for each in file.outputs}
    for node in nodes:
        for value in (*node.inputs, node.output):
            at_edge = (value in ends[0] and node.operator == "tflite:QUANTIZE") or (
                value in ends[1] and node.operator == "tflite:DEQUANTIZE"
            )
            if value in floats and not at_edge:
                message = (
                    f"{value!r} is float32 inside the model ({node.operator}): only a model whose float numbers stand "
                    "before its first QUANTIZE or after its last DEQUANTIZE runs in integers"
                )
                raise IntegerError(message)


def _value(tensor: TFLiteTensor, names: dict[int, str]) -> Value:
    name = names[tensor.index]
    if tensor.dtype == FLOAT or not tensor.is_quantized:
        return Value(name, tensor.dtype, index=True)
    if tensor.scale.size != 1:
        message = f"{tensor} is no constant and has {tensor.scale.size} scales: one is covered"
        raise IntegerError(message)
    return Value(name, tensor.dtype, _number(tensor.scale[0]), int(tensor.zero_point[0]))


def _number(scale: Any) -> float:
    return float(np.float32(scale))
