"""Bias correction: the mean of the error that rounding makes at a layer's outputs is taken off its bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import QuantizationError
from workbench.quantization.quantize import QuantizedTensor


def correct_bias(
    weight: Any,
    quantized: QuantizedTensor | np.ndarray,
    statistics: LayerStatistics,
    bias: Float[np.ndarray, " outputs"] | None = None,
) -> Float[np.ndarray, " outputs"]:
    """Return the bias with which the mean of each output is what it was before rounding: ``b + (W - W_hat) E[x]``.

    Args:
        weight: the true weight, any shape with outputs first.
        quantized: what stands for it.
        statistics: of the layer's inputs; their means are used.
        bias: the layer's own, (outputs,); None for none.

    Returns:
        float32, (outputs,).

    Raises:
        QuantizationError: shapes that do not belong together, or numbers that are not finite.

    Source: Nagel et al. 2019, Data-Free Quantization (arXiv 1906.04721), section 4.2, eq. 16 and 17 (the means taken from
    calibration inputs instead of batch norms).

    >>> known = LayerStatistics.from_inputs("layer", np.array([[1.0, 1.0], [3.0, 1.0]]))
    >>> correct_bias(np.array([[0.5, 0.2]]), np.array([[0.6, 0.2]]), known)
    array([-0.2], dtype=float32)
    """
    true = np.asarray(weight, dtype=np.float64)
    true = true.reshape(len(true), -1)
    stands = quantized.dequantize() if isinstance(quantized, QuantizedTensor) else np.asarray(quantized)
    if stands.size != true.size or len(stands) != len(true):
        message = f"{statistics.name} has a weight {true.shape}, and what stands for it is {stands.shape}"
        raise QuantizationError(message)
    if true.shape[1] != statistics.depth or len(true) % statistics.groups:
        message = f"{statistics.name} multiplies {true.shape[1]} inputs, and its statistics are of {statistics.depth}"
        raise QuantizationError(message)
    own = np.zeros(len(true)) if bias is None else np.asarray(bias, dtype=np.float64)
    if own.shape != (len(true),):
        message = f"{statistics.name} has {len(true)} outputs, and its bias {own.shape}"
        raise QuantizationError(message)
    gap = (true - stands.reshape(true.shape)).reshape(statistics.groups, -1, statistics.depth)
    corrected = own + np.einsum("god,gd->go", gap, statistics.mean).reshape(-1)
    if not np.isfinite(corrected).all():
        message = f"the bias of {statistics.name} cannot be corrected: its weights or means are not finite"
        raise QuantizationError(message)
    return corrected.astype(np.float32)
