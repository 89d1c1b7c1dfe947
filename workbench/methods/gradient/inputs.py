"""Coded activations while learning: a layer's kept inputs as its coding gives them, and quantizers on a block's layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from workbench.calibration.statistics import LayerStatistics
from workbench.methods.task import BlockTask, LayerTask
from workbench.quantization.activations import parse_activation

if TYPE_CHECKING:
    from workbench.methods.activations import ActivationRange, Handles


def coded_task(task: LayerTask) -> tuple[LayerTask, list[str]]:
    """Return the task with its inputs coded as its activation says, the uncoded ones as the float inputs; and notes.

    The Gram matrix is then that of the kept rows. Learning sees W x on the float side and W_hat Q(x) on the other.

    Args:
        task: the layer; without a coding it comes back as it is.
    """
    from workbench.methods.activations import ActivationQuantizer, activation_range

    known = task.statistics
    coding = None if task.activation is None else parse_activation(task.activation)
    if coding is None or known is None:
        return task, []
    if known.inputs is None:
        return task, [f"learned on inputs that are not coded as {task.activation}: no input rows were kept"]
    import torch

    if len(task.shape) > 2 and coding.dynamic:
        return task, [f"learned on inputs that are not coded as {task.activation}: patches of images share no token"]
    reach = None if coding.dynamic else activation_range(coding, known)
    rows = torch.from_numpy(known.inputs)
    with torch.no_grad():
        coded = ActivationQuantizer(coding, reach)(rows).numpy().astype(np.float32)
    floats = known.inputs if known.float_inputs is None else known.float_inputs
    found = LayerStatistics.from_inputs(known.name, coded)
    return replace(task, statistics=replace(found, float_inputs=floats, fisher=known.fisher)), []


def attached(task: BlockTask) -> Handles | None:
    """Put quantizers on the inputs of the block's layers that are coded; None where none is.

    Raises:
        QuantizationError: a static coding of a layer without statistics to take its range from.
    """
    from workbench.methods.activations import activation_range, attach

    codings: dict[str, str] = {}
    ranges: dict[str, ActivationRange] = {}
    for name, layer in task.layers.items():
        coding = None if layer.activation is None else parse_activation(layer.activation)
        if coding is None or layer.activation is None:
            continue
        codings[task.places[name]] = layer.activation
        if not coding.dynamic and layer.statistics is not None:
            ranges[task.places[name]] = activation_range(coding, layer.statistics)
    return attach(task.module, codings, ranges) if codings else None
