"""How far quantized weights are from the weights: one small frozen record of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class ErrorReport:
    """Reconstruction error of a weight tensor ``w`` against its quantized values ``w_hat``.

    All sums run in float64 over all weights. ``approximate`` reports come from a sketch: their ``mse`` is within
    ``bound`` (relative) of the exact one; exact reports have ``bound == 0``.

    >>> ErrorReport.from_sums(count=4, error=0.04, weight=4.0, cross=3.9, decoded=3.84, max_abs=0.2, max_steps=0.5)
    ErrorReport(mse=0.01, sqnr=20.00 dB, cosine=0.995105, max=0.2, 0.5 steps, 4 weights)
    """

    mse: float
    """Mean of (w - w_hat)^2, in the square of the weights' unit."""
    sqnr_db: float
    """Signal to quantization noise, 10 log10(sum w^2 / sum (w - w_hat)^2), in dB; ``inf`` when the error is zero."""
    cosine: float
    """Cosine of the angle between w and w_hat, -1 to 1; 1 when both are zero, 0 when one of them is."""
    max_abs: float
    """Largest abs(w - w_hat), in the weights' unit."""
    max_steps: float
    """Largest abs(w - w_hat) in steps, each weight's step being its group's abs(scale) times the widest gap between
    neighbouring levels. At most 0.5 where no weight is clipped and thresholds lie midway (up to 1 for grids that
    round elsewhere, as power grids do); clipping shows as more. ``nan`` when the steps are unknown."""
    count: int
    """How many weights were compared."""
    approximate: bool = False
    """Whether the numbers come from a sketch (``≈``) instead of an exact pass (``=``)."""
    bound: float = 0.0
    """Largest relative error that ``mse`` can have; 0 when exact."""
    per_channel: Float[np.ndarray, " rows"] | None = field(default=None, compare=False)
    """Mean squared error of each row (output channel), or None when it was not asked for."""

    @classmethod
    def from_sums(
        cls,
        *,
        count: int,
        error: float,
        weight: float,
        cross: float,
        decoded: float,
        total: float | None = None,
        max_abs: float = math.nan,
        max_steps: float = math.nan,
        approximate: bool = False,
        bound: float = 0.0,
        per_channel: Float[np.ndarray, " rows"] | None = None,
    ) -> ErrorReport:
        """Make a report from float64 sums over the weights, so that every pass derives its numbers alike.

        Args:
            count: number of weights.
            error: sum (w - w_hat)^2.
            weight: sum w^2.
            cross: sum w * w_hat.
            decoded: sum w_hat^2.
            total: sum of the importances when the sums are weighted; ``count`` otherwise. The mse is error / total.
            max_abs: largest abs(w - w_hat).
            max_steps: the same in steps (see the attribute).
            approximate: whether the sums come from a sketch.
            bound: relative bound on ``error`` when approximate.
            per_channel: mean squared error of each row.
        """
        error = max(float(error), 0.0)
        total = float(count if total is None else total)
        if error == 0.0:
            sqnr = math.inf
        elif weight == 0.0:
            sqnr = -math.inf
        else:
            sqnr = 10.0 * (math.log10(weight) - math.log10(error))
        if weight > 0.0 and decoded > 0.0:
            cosine = min(1.0, max(-1.0, cross / (math.sqrt(weight) * math.sqrt(decoded))))
        else:
            cosine = 1.0 if weight == decoded else 0.0
        return cls(
            mse=error / total if total > 0.0 else 0.0,
            sqnr_db=sqnr,
            cosine=cosine,
            max_abs=float(max_abs),
            max_steps=float(max_steps),
            count=int(count),
            approximate=approximate,
            bound=float(bound),
            per_channel=per_channel,
        )

    @property
    def badge(self) -> str:
        """``≈`` for numbers from a sketch, ``=`` for exact ones."""
        return "≈" if self.approximate else "="

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, in the weights' unit."""
        return math.sqrt(self.mse)

    @property
    def relative(self) -> float:
        """Error energy over weight energy, sum (w - w_hat)^2 / sum w^2 = 10^(-sqnr_db / 10)."""
        return 10.0 ** (-self.sqnr_db / 10.0)

    def to_dict(self) -> dict[str, float | int | bool]:
        """Return the scalar numbers by name (what the CLI writes as JSON)."""
        return {
            "mse": self.mse,
            "sqnr_db": self.sqnr_db,
            "cosine": self.cosine,
            "max_abs": self.max_abs,
            "max_steps": self.max_steps,
            "count": self.count,
            "approximate": self.approximate,
            "bound": self.bound,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return a table: one row of totals, or one row per output channel when the report has ``per_channel``."""
        import pandas as pd

        if self.per_channel is None:
            return pd.DataFrame([self.to_dict()])
        channels = pd.RangeIndex(len(self.per_channel), name="channel")
        return pd.DataFrame({"mse": self.per_channel}, index=channels)

    def __repr__(self) -> str:
        within = f" (within {self.bound:.2g})" if self.approximate else ""
        parts = [f"mse{self.badge}{self.mse:.6g}{within}", f"sqnr={self.sqnr_db:.2f} dB", f"cosine={self.cosine:.6f}"]
        if not math.isnan(self.max_abs):
            parts.append(f"max={self.max_abs:.4g}")
        if not math.isnan(self.max_steps):
            parts.append(f"{self.max_steps:.3g} steps")
        return f"ErrorReport({', '.join(parts)}, {self.count:,} weights)"

    def _repr_html_(self) -> str:
        rows = [
            ("MSE", f"{self.badge} {self.mse:.6g}" + (f" ± {100 * self.bound:.2g} %" if self.approximate else "")),
            ("SQNR", f"{self.sqnr_db:.2f} dB"),
            ("cosine", f"{self.cosine:.6f}"),
            ("largest error", _largest(self.max_abs, self.max_steps)),
            ("weights", f"{self.count:,}"),
        ]
        body = "".join(f"<tr><th style='text-align:left'>{name}</th><td>{value}</td></tr>" for name, value in rows)
        return f"<table class='workbench-error-report'>{body}</table>"


def _largest(max_abs: float, max_steps: float) -> str:
    """Write the largest error in the weights' unit and in steps, as far as they are known."""
    if math.isnan(max_abs):
        return "not measured"
    return f"{max_abs:.4g}" + ("" if math.isnan(max_steps) else f" = {max_steps:.3g} steps")
