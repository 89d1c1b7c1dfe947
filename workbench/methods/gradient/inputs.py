"""Coded activations while learning: a layer's kept inputs as its coding gives them, and quantizers on a block's layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from workbench.calibration.statistics import InputGap, LayerStatistics
from workbench.methods.gradient.moments import mixed_moments
from workbench.methods.task import BlockTask, LayerTask
from workbench.quantization.activations import parse_activation

if TYPE_CHECKING:
    from workbench.methods.activations import ActivationRange, Handles


def coded_task(task: LayerTask, *, of_float: bool = False) -> tuple[LayerTask, list[str]]:
    """Return the task with its inputs coded as its activation says, the uncoded ones as the float inputs; and notes.

    Learning sees W x on the float side and W_hat Q(x) on the other. How the coding changes each input is measured on the
    kept rows; a Gram matrix over all rows follows from that by ``coded_moments``.

    Args:
        task: the layer; without a coding it comes back as it is.
        of_float: whether the float model's inputs are coded instead of those of the model quantized so far.
    """
    from workbench.methods.activations import ActivationQuantizer, activation_range

    known = task.statistics
    coding = None if task.activation is None else parse_activation(task.activation)
    if coding is None or known is None:
        return task, []
    if known.inputs is None:
        return task, [f"learned on inputs that are not coded as {task.activation}: no input rows were kept"]
    if of_float:
        known = float_stream(known)
        assert known.inputs is not None
    import torch

    if len(task.shape) > 2 and coding.dynamic:
        return task, [f"learned on inputs that are not coded as {task.activation}: patches of images share no token"]
    reach = None if coding.dynamic else activation_range(coding, known)
    rows = torch.from_numpy(known.inputs)
    with torch.no_grad():
        coded = ActivationQuantizer(coding, reach)(rows).numpy().astype(np.float32)
    floats = known.inputs if known.float_inputs is None else known.float_inputs
    found = replace(LayerStatistics.from_inputs(known.name, coded), float_inputs=floats, fisher=known.fisher)
    # Without a gap between two streams that differ, there is nothing to put together: all comes from the kept rows.
    if known.gram is not None and (known.gap is not None or known.float_inputs is None):
        found = coded_moments(known, found)
    return replace(task, statistics=found), []


def float_stream(known: LayerStatistics) -> LayerStatistics:
    """Return the statistics of the float model's inputs, as far as learning reads them: moments and kept rows."""
    found = mixed_moments(known, 1.0)
    rows = known.inputs if known.float_inputs is None else known.float_inputs
    second = np.diagonal(found.gram, axis1=1, axis2=2).copy()
    return replace(known, gram=found.gram, mean=found.mean, second=second, inputs=rows, float_inputs=None, gap=None)


def coded_moments(known: LayerStatistics, coded: LayerStatistics) -> LayerStatistics:
    """Return statistics of coded inputs with moments over all rows that calibration saw.

    Of each input the coding's gain and noise are measured on the kept rows (Bussgang: Q(x) = gain x + noise, the noise
    uncorrelated with x and, as is assumed here, between inputs); with them second moments of all rows x become those of
    Q(x). The few kept rows alone would leave the Gram matrix of a deep layer without full rank (derived).

    Args:
        known: of the inputs as they are, with ``gram`` and ``inputs``.
        coded: of the same kept rows, coded.
    """
    assert known.gram is not None and known.inputs is not None and coded.inputs is not None
    rows, after = known.inputs.astype(np.float64), coded.inputs.astype(np.float64)
    energy = (rows**2).mean(axis=1)
    gain = np.divide((rows * after).mean(axis=1), energy, out=np.ones_like(energy), where=energy > 0.0)
    noise = np.maximum((after**2).mean(axis=1) - gain**2 * energy, 0.0)[:, :, None] * np.eye(known.depth)
    gram, left, up = known.gram.astype(np.float64), 1.0 - gain[:, :, None], gain[:, None, :]
    across, among, mean = np.zeros_like(gram), np.zeros_like(gram), np.zeros_like(known.mean)
    if known.gap is not None:
        across, among, mean = known.gap.across, known.gap.among, known.gap.mean
    lost = left * across.transpose(0, 2, 1)  # E[(1 - gain) x d^T]
    gap = InputGap(
        (across + left * gram) * up - noise,
        among + lost + lost.transpose(0, 2, 1) + left * gram * left.transpose(0, 2, 1) + noise,
        mean + left[:, :, 0] * known.mean,
    )
    made = gain[:, :, None] * gram * up + noise
    second = np.diagonal(made, axis1=1, axis2=2).copy()
    return replace(coded, count=known.count, gram=made, gap=gap, mean=gain * known.mean, second=second)


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
