"""The power-domain approximation: multiply and add codes, then take one integer root of the sum.

A power grid has level = (q / n)^(1/a), and powers keep products: level(q_w) * level(q_x) = (q_w q_x / (n_w n_x))^(1/a).
They do not keep sums, so sign(A) (|A| / (n_w n_x))^(1/a) with A = sum q_w q_x is NOT the layer's sum. Papers on
power quantization (PowerQuant, arXiv 2301.09858, algorithm 2) sketch inference like this; the workbench offers it
under its own name, and its result always comes with its error against the true layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import IntegerError
from workbench.integer.grid_linear import prepare_linear
from workbench.integer.level_table import LevelTable
from workbench.integer.power_root import PowerRoot
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics
from workbench.integer.tables import check_scale
from workbench.quantization.quantize import QuantizedTensor


@dataclass(frozen=True, repr=False, eq=False)
class PowerDomain:
    """Output codes of the approximation, and how far they are from the layer that they stand for."""

    codes: Int[np.ndarray, "..."]
    """Output codes."""
    real: Float[np.ndarray, "..."]
    """What they stand for, float64."""
    true: Float[np.ndarray, "..."]
    """The true layer on the same codes: float64 sums of products of levels, and the bias."""
    relative_error: float
    """Root of sum (real - true)^2 / sum true^2."""
    error_after_scaling: float
    """The same after the common factor that suits ``real`` best: what no scale can repair."""
    correlation: float
    root: PowerRoot
    """The root that was taken."""

    def __repr__(self) -> str:
        return (
            f"PowerDomain({'x'.join(map(str, self.codes.shape))} outputs of another layer: "
            f"{100 * self.relative_error:.3g} % off, {100 * self.error_after_scaling:.3g} % after the best scaling, "
            f"correlation {self.correlation:.3g})"
        )


def power_domain(
    codes: Int[np.ndarray, "..."],
    weight: QuantizedTensor,
    bias: Any = None,
    *,
    input_table: LevelTable,
    input_scale: float,
    output_scale: float,
    output_zero_point: int = 0,
    dtype: Any = np.int8,
    semantics: Semantics | str = "litert-reference",
) -> PowerDomain:
    """Run a power-grid layer in the power domain: codes times codes, added, one integer root, requantized.

    Args:
        codes: the input's codes (..., depth), on a power grid of the weight's exponent that is not shifted.
        weight: what ``quantize`` gave, on a power grid, per tensor or channel.
        bias: real (outputs,), or None.
        input_table: integers of the input's grid (its grid is what counts here).
        input_scale: what level 1 of the input's grid stands for.
        output_scale: real scale of the output.
        output_zero_point: code of 0 in the output.
        dtype: integer type of the output.
        semantics: whose rounding.

    Raises:
        IntegerError: other grids, two exponents, a shifted grid, or scales for groups.
        AccumulatorOverflowError: a sum of code products leaves the accumulator.
    """
    layer = prepare_linear(weight, input_table, input_scale, 0.0, bias, method="power-domain")
    assert layer.root is not None
    operand = layer.operand(codes)
    if operand.ndim < 1:
        message = "a layer takes codes (..., depth), not a single one"
        raise IntegerError(message)
    output_scale = check_scale(output_scale, "output")
    rows = operand.reshape(-1, operand.shape[-1])
    out = requantize(
        layer.combine(layer.sums(rows)),
        scale=layer.rescaling(output_scale, semantics),
        zero_point=output_zero_point,
        dtype=dtype,
        semantics=semantics,
        operator="power-domain",
    )
    real = output_scale * (out.astype(np.float64) - output_zero_point)
    inputs = input_scale * input_table.grid.decode(np.asarray(codes).reshape(rows.shape))
    true = inputs @ weight.dequantize().reshape(weight.codes.shape).astype(np.float64).T
    if bias is not None:
        true = true + np.asarray(bias, dtype=np.float64)
    left, correlation = best_scaled_error(real, true)
    energy = float((true * true).sum())
    missed = float(((real - true) ** 2).sum())
    shape = (*operand.shape[:-1], layer.outputs)
    return PowerDomain(
        out.reshape(shape),
        real.reshape(shape),
        true.reshape(shape),
        float(np.sqrt(missed / energy)) if energy else float(missed > 0),
        left,
        correlation,
        layer.root,
    )


def best_scaled_error(approximate: Float[np.ndarray, "..."], true: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Return the relative error that is left after the best common factor, and the correlation.

    Args:
        approximate: outputs of the approximation.
        true: outputs of the layer that it stands for.
    """
    one, other = np.ravel(approximate).astype(np.float64), np.ravel(true).astype(np.float64)
    own, energy, cross = float(one @ one), float(other @ other), float(one @ other)
    if own == 0 or energy == 0:
        return (0.0 if own == energy else 1.0), 0.0
    left = max(energy - cross * cross / own, 0.0)
    return float(np.sqrt(left / energy)), cross / float(np.sqrt(own * energy))
