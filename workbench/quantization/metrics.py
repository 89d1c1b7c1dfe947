"""Reconstruction error of a quantized weight, summed in float64 by row blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.errors import QuantizationError
from workbench.quantization.blocks import row_blocks, spread
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.report import ErrorReport
from workbench.quantization.source import Matrix, as_matrix


def error(
    weight: Any,
    quantized: QuantizedTensor | Any,
    input_weights: Float[np.ndarray, " columns"] | None = None,
    *,
    per_channel: bool = True,
) -> ErrorReport:
    """Measure how far quantized weights are from the weights, exactly (float64 sums over all of them).

    Args:
        weight: the original: a ``Layer``, numpy array or torch tensor.
        quantized: what ``quantize`` returned; or plain dequantized weights of the same shape from anywhere (then the
            report's ``max_steps`` is nan, since nobody said what a step is).
        input_weights: importance h of each input column, >= 0 and not all 0: the diagonal of E[x x^T]. Every sum then
            weighs its terms by h, and the mse is sum h err^2 / (rows * sum h): the mean squared output error up to a
            factor when inputs are uncorrelated. The largest errors stay unweighted.
        per_channel: whether to keep the mean squared error of each row.

    Raises:
        QuantizationError: the shapes differ, the importance has a wrong shape or sign, or weights are not finite.

    >>> from workbench.grids import UniformGrid
    >>> from workbench.quantization import quantize
    >>> weight = np.array([[1.0, 0.5, -0.25]], dtype=np.float32)
    >>> error(weight, quantize(weight, UniformGrid(bits=2))).mse
    0.10416666666666667
    """
    matrix = as_matrix(weight)
    other = None if isinstance(quantized, QuantizedTensor) else as_matrix(quantized)
    shape = quantized.shape if other is None else other.shape
    if tuple(shape) != matrix.shape:
        message = f"{matrix.name} has shape {matrix.shape} but its quantized weights have shape {tuple(shape)}"
        raise QuantizationError(message)
    rows, columns = matrix.weights.shape
    importance = _importance(input_weights, columns)
    total = rows * (float(columns) if importance is None else float(importance.sum()))
    channels = np.empty(rows)
    sums = np.zeros(4)
    max_abs = max_steps = 0.0
    for start, block in row_blocks(matrix.weights):
        stop = start + len(block)
        exact = block.astype(np.float64)
        decoded = (quantized.rows(start, stop) if other is None else other.weights.rows(start, stop)).astype(np.float64)
        gap = exact - decoded
        per_row = _row_sums(gap, gap, importance)
        if not np.isfinite(per_row).all():
            raise _not_comparable(matrix)
        channels[start:stop] = per_row
        sums += (
            per_row.sum(),
            _row_sums(exact, exact, importance).sum(),
            _row_sums(exact, decoded, importance).sum(),
            _row_sums(decoded, decoded, importance).sum(),
        )
        np.abs(gap, out=gap)
        max_abs = max(max_abs, float(gap.max()))
        if other is None:
            max_steps = max(max_steps, _largest_in_steps(gap, quantized, start, stop))
    return ErrorReport.from_sums(
        count=rows * columns,
        error=sums[0],
        weight=sums[1],
        cross=sums[2],
        decoded=sums[3],
        total=total,
        max_abs=max_abs,
        max_steps=max_steps if other is None else np.nan,
        per_channel=channels * (rows / total) if per_channel else None,
    )


def _row_sums(left: np.ndarray, right: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Return sum over columns of left * right, weighted by the importance."""
    if importance is None:
        return np.einsum("rc,rc->r", left, right)
    return np.einsum("rc,rc,c->r", left, right, importance)


def _largest_in_steps(gap: np.ndarray, quantized: QuantizedTensor, start: int, stop: int) -> float:
    """Return the largest error of a block in steps of its group (``QuantizedTensor.steps``)."""
    step = np.broadcast_to(spread(quantized.steps(start, stop), gap.shape[1], quantized.group_size), gap.shape)
    steps = np.divide(gap, step, out=np.where(gap > 0.0, np.inf, 0.0), where=step > 0.0)
    return float(steps.max())


def _importance(input_weights: Any, columns: int) -> np.ndarray | None:
    """Check the importance of the input columns."""
    if input_weights is None:
        return None
    if hasattr(input_weights, "detach"):
        input_weights = input_weights.detach().cpu().double().numpy()
    importance = np.asarray(input_weights, dtype=np.float64)
    if importance.shape != (columns,):
        message = f"input_weights holds one importance per input column, shape ({columns},), not {importance.shape}"
        raise QuantizationError(message)
    if not (np.isfinite(importance).all() and (importance >= 0.0).all() and importance.any()):
        message = "input_weights are finite, at least 0 and not all 0: the diagonal of E[x x^T]"
        raise QuantizationError(message)
    return importance


def _not_comparable(matrix: Matrix) -> QuantizationError:
    message = f"{matrix.name} or its quantized weights hold NaN or infinite values; an error needs finite weights"
    return QuantizationError(message)
