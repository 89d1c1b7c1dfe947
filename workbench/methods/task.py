"""What a method is given: one layer with its inputs boiled down, or a whole block with the tensors that flow through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.grids.grid import Grid
from workbench.methods.loss import output_energy, output_error
from workbench.methods.result import LayerResult
from workbench.methods.run import Trace
from workbench.quantization.granularity import Granularity, PerAxis, parse_granularity
from workbench.quantization.quantize import QuantizedTensor, quantize
from workbench.quantization.recipe import weight_grid
from workbench.quantization.scales import AbsMax, ScaleRule, parse_scale_rule
from workbench.quantization.search import search_exponent
from workbench.quantization.source import as_matrix

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LayerTask:
    """One layer to be quantized; make it with ``LayerTask.of``."""

    name: str
    weight: Float[np.ndarray, "rows depth"]
    """float32, the true weight on its matrix view; finite."""
    shape: tuple[int, ...]
    """The weight's own shape."""
    grid: Grid
    search: bool = False
    """Whether the recipe leaves the exponent of a power grid to be searched (``exponent=search``)."""
    granularity: Granularity = field(default_factory=lambda: PerAxis(0))
    scale: ScaleRule = field(default_factory=AbsMax)
    """Rule of the starting scale."""
    statistics: LayerStatistics | None = None
    """The layer's inputs; None where nobody calibrated."""
    bias: Float[np.ndarray, " rows"] | None = None
    """float32; None where the layer has none."""
    activation: str | None = None
    """Text form of the coding of the layer's inputs; None for float."""

    @staticmethod
    def of(
        weight: Any,
        grid: Grid | str,
        *,
        granularity: str | Granularity = "channel",
        scale: str | ScaleRule = "absmax",
        statistics: LayerStatistics | np.ndarray | None = None,
        bias: np.ndarray | None = None,
        name: str | None = None,
        activation: str | None = None,
    ) -> LayerTask:
        """Check everything once and return the task.

        Args:
            weight: a ``Layer``, array or tensor, axis 0 the outputs.
            grid: a grid or its text form; ``power:bits=4,exponent=search`` leaves the exponent to the method.
            granularity: what shares a scale.
            scale: rule of the starting scale.
            statistics: of the inputs; an array of input rows (rows, depth) is made into them.
            bias: the layer's.
            name: for people; the layer's own by default.
            activation: coding of the inputs.

        Raises:
            QuantizationError: weights that are not finite, an unknown granularity or rule, or inputs of another depth.
            GridError: the grid's text form cannot be read.
            CheckpointError: inputs that are not finite.
        """
        chosen, search = (grid, False) if isinstance(grid, Grid) else weight_grid(grid)
        matrix = as_matrix(weight)
        label = name or matrix.name
        values = np.ascontiguousarray(matrix.weights[:], dtype=np.float32)
        bad = int((~np.isfinite(values)).sum())
        if bad:
            message = (
                f"{label} holds {bad:,} NaN or infinite weights of {values.size:,}; nothing can be learned from them"
            )
            raise QuantizationError(message)
        if isinstance(statistics, np.ndarray):
            statistics = LayerStatistics.from_inputs(label, statistics)
        if statistics is not None and (statistics.depth != values.shape[1] or len(values) % statistics.groups):
            message = f"{label} multiplies {values.shape[1]} inputs, and its statistics are of {statistics.depth}" + (
                f" in {statistics.groups} groups" if statistics.groups > 1 else ""
            )
            raise QuantizationError(message)
        if bias is not None and np.shape(bias) != (len(values),):
            message = f"{label} has {len(values)} outputs, and its bias {np.shape(bias)}"
            raise QuantizationError(message)
        return LayerTask(
            name=label,
            weight=values,
            shape=tuple(matrix.shape),
            grid=chosen,
            search=search,
            granularity=parse_granularity(granularity),
            scale=parse_scale_rule(scale),
            statistics=statistics,
            bias=None if bias is None else np.asarray(bias, dtype=np.float32),
            activation=activation,
        )

    @cached_property
    def start_grid(self) -> Grid:
        """The grid to start from: the task's, with the exponent that errs least on the weights where it is to be searched."""
        if not (self.search and isinstance(self.grid, PowerGrid)):
            return self.grid
        found = search_exponent(self.weight, self.grid.bits, self.granularity, rounding=self.grid.rounding)
        return replace(self.grid, exponent=found.exponent)

    def round_to_nearest(self, grid: Grid | None = None, scale: ScaleRule | None = None) -> QuantizedTensor:
        """Return the weight rounded to nearest: with the task's scale rule and starting grid, unless others are given."""
        found = quantize(self.weight, grid or self.start_grid, self.granularity, scale or self.scale)
        return replace(found, shape=self.shape, name=self.name)

    @cached_property
    def start(self) -> QuantizedTensor:
        """The weight rounded to nearest: what every method is measured against."""
        return self.round_to_nearest()

    def error_of(self, quantized: QuantizedTensor) -> float:
        """Return the output error of a quantized weight under the task's inputs."""
        approximate = quantized.dequantize().reshape(self.weight.shape)
        return output_error(self.weight, approximate, self.statistics)

    def result(
        self,
        method: Any,
        quantized: QuantizedTensor,
        *,
        seconds: float,
        trace: Trace | None = None,
        bias: np.ndarray | None = None,
        notes: Sequence[str] = (),
    ) -> LayerResult:
        """Put the result together, with the errors that make methods comparable."""
        start_error = self.error_of(self.start)
        return LayerResult(
            name=self.name,
            method=str(method),
            quantized=quantized,
            start_error=start_error,
            error=start_error if quantized is self.start else self.error_of(quantized),
            energy=output_energy(self.weight, self.statistics),
            seconds=seconds,
            trace=trace or Trace(),
            bias=bias,
            activation=self.activation,
            notes=tuple(notes),
        )


#: Positional and named arguments of a block's forward pass.
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(eq=False)
class BlockTask:
    """One block to be quantized as a whole; its module still holds the float weights."""

    name: str
    module: torch.nn.Module
    """The block, float32, on the run's device, in evaluation mode."""
    layers: Mapping[str, LayerTask]
    """Its layers by name, in the order of the computation."""
    places: Mapping[str, str]
    """Path inside ``module`` of each layer's submodule (``""``: the module itself)."""
    inputs: Sequence[Arguments]
    """One entry per batch: what the model quantized so far gives the block."""
    float_inputs: Sequence[Arguments]
    """The same batches in the float model; the very same object where nothing before was quantized."""
    targets: Sequence[torch.Tensor]
    """The float block's outputs on ``float_inputs``, one tensor per batch."""
    target_gradients: Sequence[torch.Tensor] | None = None
    """The loss's gradient at each target, for Fisher-weighted losses; None where it was not asked for."""
