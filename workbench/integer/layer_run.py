"""One layer three ways: in float, with fake quantization, and in integers, on the same inputs.

``run_layer`` prepares a linear or convolutional layer on any grid and runs it; the ``LayerRun`` that it returns holds
everything between input codes and output codes, and answers what a person asks next: where do two semantics differ, how
wide must the accumulator be, what was clamped, what does it cost, and how does one number come about (``follow``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import IntegerError
from workbench.integer.accumulator import Accumulator, as_accumulator
from workbench.integer.grid_linear import GridLinear, Method
from workbench.integer.layer_geometry import Window, patches
from workbench.integer.output_stage import Coding, OutputStage
from workbench.integer.power_domain import best_scaled_error
from workbench.integer.semantics import Semantics, as_semantics, outside_linear
from workbench.quantization.metrics import error
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.report import ErrorReport

if TYPE_CHECKING:
    import pandas as pd

    from workbench.checkpoints.layer import Weights
    from workbench.integer.cost import OperationCount
    from workbench.integer.follow import Trace


@dataclass(frozen=True, repr=False, eq=False)
class LayerRun:
    """A layer's outputs in float, fake-quantized and from integers, with every integer between.

    Outputs are matrices (rows, channels). A row is one input row of a linear layer, or one position of a convolution's
    output: row ``(image * height + y) * width + x``; ``shaped`` brings them to (images, channels, height, width).
    """

    name: str
    """The layer's name, or ``weight``."""
    origin: str
    """What the inputs are, in words (``LayerInputs.origin``), or ``given``."""
    weight: QuantizedTensor
    """Codes and scales of the weight."""
    input: QuantizedTensor
    """Codes and scale of the inputs, on the matrix view (rows or images, everything else)."""
    layers: tuple[GridLinear, ...]
    """The prepared integer layer; several where a convolution has groups, one for each."""
    stage: OutputStage
    """Output coding and what follows the layer."""
    semantics: Semantics
    accumulator: Accumulator
    window: Window | None
    """Geometry of a convolution; None for a linear layer."""
    input_shape: tuple[int, ...]
    bias: Float[np.ndarray, " channels"] | None
    """The real bias, float64."""
    real: Float[np.ndarray, "rows channels"]
    """Float64 outputs of the float layer (and what follows it)."""
    fake: Float[np.ndarray, "rows channels"]
    """Fake quantization: float64 arithmetic on the dequantized weights and inputs, rounded to output codes at the same
    places as the integer run (half to even), and dequantized."""
    inputs: Float[np.ndarray, "..."]
    """The real inputs, float32."""
    operand: Int[np.ndarray, "..."]
    """What the method multiplies: integer levels of the inputs, in the inputs' shape."""
    sums: Int[np.ndarray, "rows channels"]
    """The accumulator after the last addition (of every group: (rows, channels, groups)), overflows included."""
    exact_sums: Int[np.ndarray, "rows channels"]
    """The same in an accumulator that is wide enough."""
    combined: Int[np.ndarray, "rows channels"]
    """What requantization takes; the same as ``sums`` unless there are groups, a root or a shift."""
    linear_codes: Int[np.ndarray, "rows channels"]
    """Codes of the layer itself, before what follows it (a ReLU is part of the clamp)."""
    codes: Int[np.ndarray, "rows channels"]
    """The output codes."""
    saturated: int
    """How many outputs of the layer left their integer type and were clamped (a ReLU's clamp not counted)."""
    overflows: int
    """How many additions wrapped or saturated in a narrow accumulator."""
    partial_bits: int
    """Bits that the partial sums took, in a narrow accumulator as it kept them; else those of the final sums."""
    labels: tuple[str, ...] = field(default=())
    """A short text for each input row (a token), where the inputs have one."""
    weight_source: Weights | None = None
    """Where the real weights can be read; None in a run that was pickled."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open checkpoint behind."""
        return {**self.__dict__, "weight_source": None}

    @cached_property
    def integer(self) -> Float[np.ndarray, "rows channels"]:
        """What the output codes stand for, float64."""
        return self.stage.final.real(self.codes)

    @property
    def output(self) -> Coding:
        """Scale, zero point, type and range of the output codes."""
        return self.stage.final

    @property
    def step(self) -> float:
        """Real size of one output step."""
        return self.stage.final.scale

    @property
    def method(self) -> Method:
        """``levels``, ``per-product`` or ``power-domain``."""
        return self.layers[0].method

    @property
    def approximation(self) -> str:
        """What the path approximates, in words with its error; empty where it is the layer itself."""
        if self.method != "power-domain":
            return ""
        plain = self.errors["integer vs fake"]
        left, correlation = best_scaled_error(self.integer, self.fake)
        return (
            f"power-domain sums are another layer: {100 * plain.relative**0.5:.3g} % from the true outputs "
            f"({100 * left:.3g} % after the best scaling, correlation {correlation:.3g})"
        )

    @cached_property
    def errors(self) -> dict[str, ErrorReport]:
        """Error reports: ``integer vs float``, ``fake vs float``, ``integer vs fake``; per channel, in the outputs' unit."""
        one, two, three = (np.ascontiguousarray(part.T) for part in (self.real, self.fake, self.integer))
        return {
            "integer vs float": error(one, three),
            "fake vs float": error(one, two),
            "integer vs fake": error(two, three),
        }

    @cached_property
    def steps_off_fake(self) -> Int[np.ndarray, "rows channels"]:
        """Integer minus fake-quantized outputs, in output steps (int64)."""
        return np.rint((self.integer - self.fake) / self.step).astype(np.int64)

    @cached_property
    def table_error(self) -> float:
        """What the weight's integers miss of the dequantized weight: root of the missed energy over the energy."""
        if self.layers[0].weight.table.exact and not self.layers[0].weight.zero_point.any():
            return 0.0
        missed = energy = 0.0
        first = 0
        for layer in self.layers:
            step = max(1, (1 << 20) // layer.depth)
            for start in range(0, layer.outputs, step):
                stop = min(start + step, layer.outputs)
                exact = self.weight.rows(first + start, first + stop).astype(np.float64)
                missed += float(((layer.weight.real(start, stop) - exact) ** 2).sum())
                energy += float((exact**2).sum())
            first += layer.outputs
        return float(np.sqrt(missed / energy)) if energy > 0 else 0.0

    @property
    def worst_case_bits(self) -> int:
        """Accumulator bits that no input of this coding can exceed, at any partial sum."""
        return max(each.worst_case_bits for each in self.layers)

    @cached_property
    def sums_by_bits(self) -> Int[np.ndarray, " widths"]:
        """At index b, how many final sums need exactly b bits in two's complement."""
        return np.bincount(needed_bits_of(self.exact_sums).ravel(), minlength=2)

    @property
    def observed_bits(self) -> int:
        """Bits that the largest final sum of these inputs needs."""
        counts = self.sums_by_bits
        return int(np.flatnonzero(counts)[-1]) if counts.any() else 1

    @cached_property
    def operations(self) -> OperationCount:
        """What the layer costs on these inputs, by the path it took."""
        from workbench.integer.layer_cost import count_run

        return count_run(self)

    def codes_under(self, semantics: Semantics | str) -> Int[np.ndarray, "rows channels"]:
        """Return the output codes that another runtime would give from the same sums.

        Raises:
            SemanticsError: no such semantics, or it cannot compute what follows the layer by this kind.
        """
        return self.stage.activate(self.linear_under(semantics), as_semantics(semantics))

    def linear_under(self, semantics: Semantics | str) -> Int[np.ndarray, "rows channels"]:
        """Return the codes of the layer itself, before what follows it, as another runtime rounds the same sums."""
        return requantized(self.layers, self.stage, self.combined, self.rounding(semantics))

    def off_by(self, first: Semantics | str, second: Semantics | str) -> dict[int, int]:
        """Return how many outputs differ by how many steps between two semantics: first minus second -> count.

        Raises:
            SemanticsError: see ``codes_under``.
        """
        gap = self.codes_under(first).astype(np.int64) - self.codes_under(second).astype(np.int64)
        steps, counts = np.unique(gap, return_counts=True)
        return {int(step): int(count) for step, count in zip(steps, counts, strict=True)}

    def rounding(self, semantics: Semantics | str | None = None) -> Semantics:
        """Return the rounding of this operator under a semantics (LiteRT's convolutions round twice)."""
        named = self.semantics if semantics is None else as_semantics(semantics)
        return named if self.window is None else outside_linear(named)

    def shaped(self, outputs: np.ndarray) -> np.ndarray:
        """Return a matrix of outputs in the layer's own shape: (..., channels), or (images, channels, height, width)."""
        if self.window is None:
            return outputs.reshape(*self.input_shape[:-1], outputs.shape[-1])
        height, width = self.window.output_size(self.input_shape)
        return np.moveaxis(outputs.reshape(self.input_shape[0], height, width, outputs.shape[-1]), -1, 1)

    def row_of(self, image: int, y: int, x: int) -> int:
        """Return the row of one output position of a convolution.

        Raises:
            IntegerError: the layer is no convolution, or there is no such position.
        """
        if self.window is None:
            message = f"{self.name} is a linear layer; its rows are the input rows"
            raise IntegerError(message)
        height, width = self.window.output_size(self.input_shape)
        if not (0 <= image < self.input_shape[0] and 0 <= y < height and 0 <= x < width):
            message = f"there are {self.input_shape[0]} images of {height} x {width} outputs, no ({image}, {y}, {x})"
            raise IntegerError(message)
        return (image * height + y) * width + x

    def follow(self, row: int, channel: int, semantics: Semantics | str | None = None) -> Trace:
        """Return every step of one output number, with its integers.

        Args:
            row: 0 to rows - 1.
            channel: 0 to channels - 1.
            semantics: another runtime's rounding of the same sum; the run's own by default.

        Raises:
            IntegerError: there is no such output.
        """
        from workbench.integer.follow import follow

        return follow(self, row, channel, semantics)

    def histogram(self, what: str = "codes", bins: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """Return counts and edges: of output codes, of sums, of input codes, or of differences in output steps.

        Args:
            what: ``codes``, ``sums``, ``inputs``, ``integer - float`` or ``integer - fake``.
            bins: at most so many; integers of a smaller range get one bin each.

        Raises:
            IntegerError: no such numbers.
        """
        choices: dict[str, Callable[[], np.ndarray]] = {
            "codes": lambda: self.codes,
            "sums": lambda: self.exact_sums,
            "inputs": lambda: self.input.codes,
            "integer - float": lambda: (self.integer - self.real) / self.step,
            "integer - fake": lambda: self.steps_off_fake,
        }
        if what not in choices:
            message = f"there are histograms of {', '.join(choices)}, not of {what!r}"
            raise IntegerError(message)
        values = choices[what]()
        if values.dtype.kind in "iu" and values.size and int(values.max()) - int(values.min()) < bins:
            edges = np.arange(int(values.min()), int(values.max()) + 2) - 0.5
            return np.histogram(values, bins=edges)
        return np.histogram(values, bins=bins)

    def patch(self, row: int) -> tuple[Int[np.ndarray, "groups depth"], Int[np.ndarray, "groups depth"]]:
        """Return what one output row multiplies, and where it comes from in the flattened inputs (-1: padding)."""
        where = np.arange(int(np.prod(self.input_shape)), dtype=np.int64)
        if self.window is None:
            depth = self.input_shape[-1]
            index = where.reshape(-1, depth)[row][None]
        else:
            index = patches(where.reshape(self.input_shape), self.window, padding=-1, row=row)[:, 0]
        taken = self.operand.reshape(-1)[np.maximum(index, 0)]
        return np.where(index < 0, self.layers[0].padding, taken).astype(self.operand.dtype), index

    def to_frame(self) -> pd.DataFrame:
        """Return the summary as a table with one row: errors, bits, counts."""
        import pandas as pd

        return pd.DataFrame([dict(self._facts())], index=pd.Index([self.name], name="layer"))

    def _facts(self) -> list[tuple[str, Any]]:
        reports = self.errors
        costs = self.operations
        return [
            ("weight grid", str(self.weight.grid)),
            ("input grid", str(self.input.grid)),
            ("semantics", self.semantics.name),
            *[(f"SQNR {name} / dB", report.sqnr_db) for name, report in reports.items()],
            ("outputs", int(self.codes.size)),
            ("off from fake-quant", int((self.steps_off_fake != 0).sum())),
            ("table error", self.table_error),
            ("worst-case bits", self.worst_case_bits),
            ("observed bits", self.observed_bits),
            ("accumulator", str(self.accumulator)),
            ("overflows", self.overflows),
            ("saturated", self.saturated),
            ("multiplies", costs.total_multiplies),
            ("look-ups", costs.look_ups),
            ("bytes", costs.total_bytes),
        ]

    def __repr__(self) -> str:
        rows, channels = self.codes.shape
        report = self.errors["integer vs float"]
        return (
            f"LayerRun({self.name!r}, {rows}x{channels} outputs, {self.weight.grid}, {self.semantics}, "
            f"{report.sqnr_db:.2f} dB from float, {int((self.steps_off_fake != 0).sum())} off from fake-quant)"
        )

    def _repr_html_(self) -> str:
        rows = [(name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in self._facts()]
        if self.approximation:
            rows.insert(0, ("approximation", self.approximation))
        body = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in rows
        )
        return f"<table class='workbench-layer-run'>{body}</table>"


def needed_bits_of(values: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Return the two's complement bits that each integer needs, at least 1.

    >>> needed_bits_of(np.array([0, -1, 1, 127, -128, 128]))
    array([1, 1, 2, 8, 8, 9])
    """
    wide = values.astype(np.int64)
    bits = np.where(wide < 0, ~wide, wide)
    high = bits >> 31  # two halves: float64 holds each exactly
    low_length = np.frexp((bits & ((1 << 31) - 1)).astype(np.float64))[1]
    return np.where(high > 0, np.frexp(high.astype(np.float64))[1] + 31, low_length).astype(np.int64) + 1


def requantized(
    layers: tuple[GridLinear, ...], stage: OutputStage, combined: np.ndarray, semantics: Semantics
) -> Int[np.ndarray, "rows channels"]:
    """Return the layer's codes, conv group by conv group."""
    if len(layers) == 1:
        return stage.requantize(layers[0], combined, semantics)
    parts, first = [], 0
    for layer in layers:
        block = np.ascontiguousarray(combined[:, first : first + layer.outputs])
        parts.append(stage.requantize(layer, block, semantics))
        first += layer.outputs
    return np.concatenate(parts, axis=1)


def run_layer(
    layer: Any,
    inputs: Any,
    *,
    grid: Any = "uniform:bits=8",
    granularity: Any = "channel",
    scale: Any = "absmax",
    clip: float = 1.0,
    activation: Any = "uniform:bits=8,range=asymmetric",
    output: Any = "uniform:bits=8,range=asymmetric",
    semantics: Semantics | str = "litert-reference",
    accumulator: Accumulator | str | None = None,
    then: str | None = None,
    kind: str = "table",
    bias: Any = "own",
    method: Method = "levels",
    level_bits: int = 8,
    window: Window | None = None,
    progress: Callable[..., Any] | None = None,
) -> LayerRun:
    """Run a layer in float, with fake quantization and in integers.

    Args:
        layer: a ``Layer``, an array or a torch tensor: weight (channels, depth) of a linear layer, or
            (channels, channels in / groups, height, width) of a convolution.
        inputs: ``LayerInputs``, or an array (..., depth), or (images, channels, height, width) for a convolution.
        grid: of the weight: any scalar grid or its text form.
        granularity: of the weight's scales: ``tensor``, ``channel`` or ``group:32``.
        scale: the weight's scale rule.
        clip: fraction of the rule's scale to keep.
        activation: grid of the inputs: uniform of up to 16 bits, or any other scalar grid (power grids unsigned where
            inputs are never negative, else shifted); one scale for all inputs, absmax or range.
        output: uniform grid of the outputs, 2 to 16 bits; its range is that of the float outputs.
        semantics: whose rounding.
        accumulator: ``int32``, ``int16:wrap``, ``int16:saturate``, ...; by default 32 bits for 8-bit operands and as
            many as needed for int16 ones.
        then: ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``tanh``, ``logistic``, ``softmax`` (over channels) or None.
        kind: ``table``, ``polynomial`` or ``runtime``: how that function runs in integers.
        bias: real (channels,), None, or ``own``: the one that ``LayerInputs`` brought.
        method: ``levels``, ``per-product`` or ``power-domain`` (see ``workbench.integer.grid_linear``).
        level_bits: width of the weight's integer levels, 8 or 16.
        window: stride, padding, dilation and groups of a convolution; by default what ``LayerInputs`` brought.
        progress: called with the finished fraction and a label; may raise ``Cancelled``.

    Raises:
        IntegerError: shapes do not fit, inputs are negative on an unsigned grid, or an option that does not exist.
        AccumulatorOverflowError: a sum does not fit the accumulator, and it neither wraps nor saturates.
        QuantizationError: weights or inputs that cannot be quantized.
        SemanticsError: no such semantics, or it cannot compute what follows by this kind.

    >>> run = run_layer(np.eye(3, dtype=np.float32), np.array([[1.0, -2.0, 0.5]], dtype=np.float32))
    >>> run.codes, run.off_by("tflm", "onnxruntime")
    (array([[ 127, -128,   84]], dtype=int8), {0: 3})
    """
    from workbench.integer.layer_prepare import run

    return run(
        layer,
        inputs,
        grid=grid,
        granularity=granularity,
        scale=scale,
        clip=clip,
        activation=activation,
        output=output,
        semantics=as_semantics(semantics),
        accumulator=None if accumulator is None else as_accumulator(accumulator),
        then=then,
        kind=kind,
        bias=bias,
        method=method,
        level_bits=level_bits,
        window=window,
        progress=progress or (lambda *_: None),
    )
