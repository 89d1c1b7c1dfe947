"""What the methods panel keeps of one result: numbers and histograms, so that a session of many results stays small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.checkpoints import Layer
    from workbench.methods.result import LayerResult

#: Bins of the histogram before and after.
BINS = 121


@dataclass(frozen=True, eq=False)
class Outcome:
    """One method on one layer: how good, how long, what the weights look like before and after."""

    layer: str
    method: str
    grid_asked: str
    """Text of the grid that the method was given."""
    granularity: str
    scale: str
    seed: int
    origin: str = ""
    """Why the inputs were not real, or empty."""
    error: str = ""
    """Why there is no result, or empty."""
    title: str = ""
    grid: str = ""
    """Text of the grid that it ended with (its exponent may be learned)."""
    bits_per_weight: float = float("nan")
    sqnr_db: float = float("nan")
    gain_db: float = float("nan")
    output_error: float = float("nan")
    seconds: float = float("nan")
    notes: tuple[str, ...] = ()
    changed: float = float("nan")
    """Share of the weights that stand on another level than after rounding to nearest on the same grid and scale rule."""
    trace_steps: tuple[int, ...] = ()
    trace_loss: tuple[float, ...] = ()
    edges: np.ndarray = field(default_factory=lambda: np.zeros(1))
    before: np.ndarray = field(default_factory=lambda: np.zeros(0))
    after: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Weights in each bin between ``edges``: the true ones, and those of the result."""
    levels: np.ndarray = field(default_factory=lambda: np.zeros(0))
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The result's levels, and the share of the weights on each."""
    nearest_levels: np.ndarray = field(default_factory=lambda: np.zeros(0))
    nearest_shares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The same for rounding to nearest."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells results apart: layer, method, grid asked for, granularity."""
        return (self.layer, self.method, self.grid_asked, self.granularity)

    @staticmethod
    def failure(
        layer: str, method: str, grid: str, *, options: dict[str, Any], error: str, origin: str = ""
    ) -> Outcome:
        """Return what is kept of a method that could not run."""
        from workbench.methods.method import parse_method

        title = parse_method(method).title
        return Outcome(
            layer, method, grid, options["granularity"], options["scale"], options["seed"], origin, error, title
        )

    def numbers(self) -> dict[str, Any]:
        """Return the result as plain data."""
        if self.error:
            return {"layer": self.layer, "method": self.method, "grid": self.grid_asked, "error": self.error}
        return {
            "layer": self.layer,
            "method": self.method,
            "grid": self.grid,
            "granularity": self.granularity,
            "bits_per_weight": self.bits_per_weight,
            "sqnr_db": self.sqnr_db,
            "gain_db": self.gain_db,
            "error": self.output_error,
            "seconds": self.seconds,
            "changed": self.changed,
            "inputs": "gaussian" if self.origin else "real",
            "notes": list(self.notes),
        }


def outcome_of(layer: Layer, result: LayerResult, grid: str, options: dict[str, Any], origin: str = "") -> Outcome:
    """Return what is kept of a result.

    Args:
        layer: the true weights.
        result: what the method made of them.
        grid: text of the grid that it was given.
        options: ``granularity``, ``scale`` and ``seed`` that it was run with.
        origin: why the inputs were not real, or empty.
    """
    from workbench.methods.method import parse_method
    from workbench.methods.task import LayerTask

    quantized = result.quantized
    task = LayerTask.of(layer, grid, granularity=options["granularity"], scale=options["scale"])
    true, made = task.weight, quantized.dequantize().reshape(task.weight.shape)
    start = task.start
    reach = float(max(np.abs(true).max(initial=0.0), np.abs(made).max(initial=0.0))) or 1.0
    edges = np.linspace(-reach, reach, BINS + 1)
    levels, shares = _shares(quantized)
    nearest_levels, nearest_shares = _shares(start)
    same_codes = str(start.grid) == str(quantized.grid) and start.codes.shape == quantized.codes.shape
    method = parse_method(result.method)
    return Outcome(
        layer=layer.name,
        method=result.method,
        grid_asked=grid,
        granularity=options["granularity"],
        scale=options["scale"],
        seed=options["seed"],
        origin=origin,
        title=method.title,
        grid=str(quantized.grid),
        bits_per_weight=result.bits_per_weight,
        sqnr_db=result.sqnr_db,
        gain_db=result.gain_db,
        output_error=result.error,
        seconds=result.seconds,
        notes=tuple(result.notes),
        changed=float((start.codes != quantized.codes).mean()) if same_codes else float("nan"),
        trace_steps=tuple(result.trace.steps),
        trace_loss=tuple(result.trace.loss),
        edges=edges,
        before=np.histogram(true, edges)[0],
        after=np.histogram(made, edges)[0],
        levels=levels,
        shares=shares,
        nearest_levels=nearest_levels,
        nearest_shares=nearest_shares,
    )


def _shares(quantized: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the levels of a quantized tensor and the share of its weights on each; empty where the grid has no one axis."""
    try:
        levels = np.asarray(quantized.grid.levels, dtype=np.float64)
        codes, counts = np.unique(quantized.codes, return_counts=True)
        at = np.searchsorted(levels, np.asarray(quantized.grid.decode(codes), dtype=np.float64) - 1e-12)
    except (WorkbenchError, AttributeError, IndexError):
        return np.zeros(0), np.zeros(0)
    shares = np.zeros(len(levels))
    np.add.at(shares, np.minimum(at, len(levels) - 1), counts / max(quantized.codes.size, 1))
    return levels, shares
