"""The operation counts of a layer that was run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.integer.cost import LayerCost, OperationCount, Path, operation_count
from workbench.integer.layer_run import LayerRun, run_layer

if TYPE_CHECKING:
    import pandas as pd


def path_of(run: LayerRun) -> Path:
    """Return which path a run took, in the words of ``operation_count``."""
    layer = run.layers[0]
    if layer.method != "levels":
        return layer.method
    recipes = {layer.weight.table.recipe, layer.input_table.recipe}
    if "table" in recipes:
        return "level table"
    return "q*|q|" if "q*|q|" in recipes else "uniform"


def count_run(run: LayerRun, decode: str = "load") -> OperationCount:
    """Count what a run did, conv groups and the function that follows included.

    Args:
        run: the run.
        decode: whether weights are decoded when the layer is loaded (``load``) or in every pass (``run``).
    """
    path = path_of(run)
    total = OperationCount()
    numbers = int(np.prod(run.input_shape)) // len(run.layers)
    weight_bits, input_bits = run.weight.grid.bits, run.input.grid.bits
    for layer in run.layers:
        tables = (layer.weight.table, layer.input_table)
        steps = 0
        if layer.root is not None:
            steps = layer.root.steps(run.sums)
        code_decode = "none"
        if layer.method == "levels" and tables[1].recipe != "codes":
            code_decode = "look-up" if tables[1].look_up else "multiply"
        total += operation_count(
            run.codes.shape[0],
            layer.depth,
            layer.outputs,
            path=path,
            layer=run.name,
            weight_bits=weight_bits,
            weight_level_bits=8 * layer.weight.values.dtype.itemsize,
            input_bits=input_bits,
            input_level_bits=8 * tables[1].values.dtype.itemsize,
            output_bits=8 * run.stage.linear.dtype.itemsize,
            accumulator_bits=run.accumulator.bits,
            groups=layer.weight.groups,
            scales=layer.weight.scale.size,
            weight_zero_points=bool(layer.weight.zero_point.any()),
            decode="run" if decode == "run" else "load",
            weight_table_entries=len(tables[0].values) if tables[0].look_up else 0,
            input_table_entries=len(tables[1].values) if tables[1].look_up and layer.method == "levels" else 0,
            decode_inputs=code_decode,
            product_entries=0 if layer.products is None else layer.products.size,
            newton_steps=steps,
            input_numbers=numbers,
        )
    merged = _merged(total, run.name, path)
    if run.stage.separate and run.stage.linear.dtype.itemsize == 1 and run.stage.then != "softmax":
        # One look-up for each output code, in a table of 256 entries.
        after = LayerCost(
            f"{run.name}, {run.stage.then}",
            "level table",
            look_ups=int(run.codes.size),
            bytes={"inputs": int(run.codes.size), "tables": 256, "outputs": int(run.codes.size)},
        )
        merged += OperationCount((after,))
    return merged


def compare_layers(layer: Any, inputs: Any, choices: Mapping[str, Mapping[str, Any]], **options: Any) -> pd.DataFrame:
    """Run one layer in several ways and return cost against error, one row for each.

    Args:
        layer: what ``run_layer`` takes.
        inputs: what it takes.
        choices: name -> options of ``run_layer``, e.g. ``{"W4 power": {"grid": "power:bits=4,exponent=0.5"}}``.
        **options: shared by all.

    Raises:
        IntegerError: see ``run_layer``.
    """
    import pandas as pd

    frames = []
    for name, choice in choices.items():
        run = run_layer(layer, inputs, **{**options, **choice})
        frame = run.to_frame()
        frame.insert(0, "path", path_of(run))
        frame.index = pd.Index([name], name="choice")
        frames.append(frame)
    return pd.concat(frames) if frames else pd.DataFrame()


def _merged(total: OperationCount, name: str, path: str) -> OperationCount:
    """Make one layer of the groups of a convolution."""
    if len(total.layers) == 1:
        return total
    return OperationCount(
        (LayerCost(name, path, total.multiplies, total.adds, total.look_ups, total.newton_steps, total.bytes),)
    )
