"""What every method gives back for one layer: codes and scales, how it got there, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.grids.text import brief_grid
from workbench.methods.run import Trace
from workbench.quantization.quantize import QuantizedTensor


@dataclass(frozen=True, eq=False, repr=False)
class LayerResult:
    """One layer, quantized.

    ``start_error`` and ``error`` are the mean squared errors of the layer's *outputs* under its calibration inputs
    (``methods.loss.output_error``; of its weights where there are no inputs), for rounding to nearest with the task's
    scale rule and for the result: the same measure for every method, whatever it minimises itself. A method's own loss is
    in ``trace``.
    """

    name: str
    """The layer's name."""
    method: str
    """The method's text form."""
    quantized: QuantizedTensor
    """Codes, scales, grid."""
    start_error: float
    """Output error of round to nearest."""
    error: float
    """Output error of the result."""
    energy: float
    """Mean square of the true outputs, so that ``error / energy`` is relative."""
    seconds: float
    """Wall time that the method took for this layer (its share of a block's)."""
    trace: Trace = field(default_factory=Trace)
    bias: Float[np.ndarray, " outputs"] | None = None
    """The new bias, float32, where the method learns or corrects it; None leaves the layer's own."""
    activation: Any = None
    """Coding of the layer's inputs that was in force (text), or None for float."""
    notes: tuple[str, ...] = ()
    """What a person should know, e.g. ``12 inputs were always zero``."""

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the outputs, dB."""
        if self.error <= 0.0:
            return math.inf
        return 10.0 * math.log10(self.energy / self.error) if self.energy > 0.0 else -math.inf

    @property
    def gain_db(self) -> float:
        """How far the error lies below that of round to nearest, dB (positive is better)."""
        if self.error <= 0.0:
            return math.inf if self.start_error > 0.0 else 0.0
        return 10.0 * math.log10(self.start_error / self.error) if self.start_error > 0.0 else -math.inf

    @property
    def bits_per_weight(self) -> float:
        """Everything that is stored, over the number of weights."""
        return self.quantized.bits_per_weight

    def to_dict(self) -> dict[str, Any]:
        """Return the plain numbers, as a row of a table."""
        return {
            "layer": self.name,
            "method": self.method,
            "grid": str(self.quantized.grid),
            "granularity": str(self.quantized.granularity),
            "bits_per_weight": self.bits_per_weight,
            "start_error": self.start_error,
            "error": self.error,
            "sqnr_db": self.sqnr_db,
            "gain_db": self.gain_db,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        return (
            f"LayerResult({self.name!r}, {self.method}, {brief_grid(self.quantized.grid)}, {self.bits_per_weight:.4g} bits per weight, "
            f"{self.sqnr_db:.2f} dB, {self.gain_db:+.2f} dB over round to nearest, {self.seconds:.2f} s)"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name.replace('_', ' '))}</th>"
            f"<td>{escape(f'{value:.6g}' if isinstance(value, float) else str(value))}</td></tr>"
            for name, value in self.to_dict().items()
        )
        notes = "".join(f"<br>{escape(note)}" for note in self.notes)
        return f"<table class='workbench-layer-result'>{rows}</table>{notes}"
