"""A layer from codes to codes on a GPU: same name and integers as ``workbench.kernels.linear_codes``."""

# ruff: noqa: PLR0917

from __future__ import annotations

import numpy as np

from workbench.kernels.cuda.integer_gemm import DeviceProduct
from workbench.kernels.integer_gemm import ready


def linear_codes(
    x: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    rule: int,
    zero_point: int,
    low: int,
    high: int,
    dtype: np.dtype,
    *,
    weight_zero: np.ndarray | None = None,
) -> tuple[np.ndarray, int, int]:
    """Return codes, how many left the dtype, and how many wrapped before; each sum is rounded where it was added up.

    Args:
        x: int8, uint8 or int16 (rows, depth), or (batches, rows, depth).
        weight: the same types (columns, depth), or (batches, columns, depth).
        offset: int64 (columns,), or (batches, columns).
        multiplier: one or one per column.
        shift: as many.
        rule: one of ``workbench.kernels.fixed_point``.
        zero_point: added after rounding.
        low: smallest code to give.
        high: largest code.
        dtype: integer type of the codes.
        weight_zero: int64 (columns,): zero points of the weight.

    Raises:
        ValueError: shapes or types do not fit.
    """
    stacked = x.ndim == 3
    left, right = ready(x if stacked else x[None], weight if stacked else weight[None])
    rescaling = (offset, multiplier, shift, rule, zero_point, low, high)
    product = DeviceProduct(left, right, output=dtype, rescaling=rescaling, weight_zero=weight_zero).launch()
    codes = product.result()
    return codes if stacked else codes[0], *product.events()
