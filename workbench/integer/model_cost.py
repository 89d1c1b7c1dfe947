"""What one run of an integer model costs: the products of every layer, and the bytes that every node moves."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegerError
from workbench.grids import parse_grid
from workbench.integer.cost import LayerCost, OperationCount, Path, operation_count
from workbench.integer.graph import Node, Value
from workbench.integer.weights import is_wide, levels_of

if TYPE_CHECKING:
    from workbench.integer.model import IntegerModel

#: Multiplies (32 bits, of the rescaling) and additions per output of nodes without weights.
_PER_OUTPUT = {"requantize": (1, 3), "relu": (1, 3), "relu6": (1, 3), "add": (3, 6), "mul": (2, 4)}


def count_model(model: IntegerModel, inputs: Any) -> OperationCount:
    """Count what one run does with inputs of these shapes.

    Layers and matrix products are counted in full by ``operation_count``, sums, products and rescalings by their formula.
    Of norms, softmax, curves, pools and moves only the bytes are counted, not their arithmetic.

    Args:
        model: any integer model; it is run once for the shapes.
        inputs: as ``IntegerModel.run`` takes them.

    Raises:
        IntegerError: a model that was read from a TensorFlow Lite file.
    """
    foreign = next((node.operator for node in model.graph.nodes if node.operator.startswith("tflite:")), None)
    if foreign is not None:
        message = f"operations are counted in models that integerize made; {model.name} has {foreign}, read from a file"
        raise IntegerError(message)
    codes = model.run(inputs, keep=True).codes
    return sum((_node(model, node, codes) for node in model.graph.nodes), OperationCount())


def _node(model: IntegerModel, node: Node, codes: Any) -> OperationCount:
    arrays, result = [codes[name] for name in node.inputs], codes[node.output]
    sources, output = [model.values[name] for name in node.inputs], model.values[node.output]
    if node.operator in {"linear", "conv2d"}:
        return _layer(node, arrays[0], result, sources[0], output)
    if node.operator in {"matmul", "attention_context"}:
        a, b = sources
        depth = arrays[0].shape[-1]
        rows = prod(result.shape[:-1])
        return operation_count(
            rows,
            depth,
            result.shape[-1],
            layer=node.name,
            weight_bits=8 * b.dtype.itemsize,
            weight_level_bits=_multiplied_bits(b),
            input_bits=8 * a.dtype.itemsize,
            input_level_bits=_multiplied_bits(a),
            output_bits=8 * output.dtype.itemsize,
            accumulator_bits=64 if is_wide(a, b) else 32,
            scales=1,
        )
    multiplies, adds = _PER_OUTPUT.get(node.operator, (0, 0))
    look_ups = 0
    if "table" in node.constants and node.operator == "requantize":
        multiplies, adds, look_ups = 0, 0, result.size
    moved = {
        "inputs": sum(array.nbytes for array in arrays),
        "outputs": result.nbytes,
        "tables": sum(array.nbytes for array in node.constants.values()),
    }
    counts = {"32x32": multiplies * result.size} if multiplies else {}
    sums = {"32": adds * result.size} if adds else {}
    return OperationCount((LayerCost(node.name, node.operator, counts, sums, look_ups, 0, moved),))


def _layer(node: Node, x: np.ndarray, result: np.ndarray, source: Value, output: Value) -> OperationCount:
    weight = node.constants["weight"]
    grid = parse_grid(str(node.options["weight_grid"]))
    path: Path = "uniform"
    if grid.family != "uniform":
        recipe = levels_of(grid, 8 if weight.dtype.itemsize == 1 else 16).recipe
        path = {"codes": "uniform", "q*|q|": "q*|q|", "table": "level table"}[recipe]  # pyright: ignore[reportAssignmentType]
    outputs = weight.shape[0]
    return operation_count(
        result.size // max(outputs, 1),
        prod(weight.shape[1:]),
        outputs,
        path=path,
        layer=node.name,
        weight_bits=int(node.options["weight_bits"]),
        weight_level_bits=8 * weight.dtype.itemsize,
        input_bits=8 * source.dtype.itemsize,
        input_level_bits=_multiplied_bits(source),
        output_bits=8 * output.dtype.itemsize,
        accumulator_bits=64 if is_wide(source, weight) else 32,
        weight_zero_points="weight_zero_point" in node.constants,
        input_table_entries=0 if source.levels is None else source.levels.size,
        decode_inputs="none" if source.levels is None else "look-up",
        input_numbers=x.size,
    )


def _multiplied_bits(value: Value) -> int:
    return 8 * (value.dtype if value.levels is None else value.levels.dtype).itemsize
