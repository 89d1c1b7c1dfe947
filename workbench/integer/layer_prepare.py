"""The work behind ``run_layer``: quantize, prepare the integers, run three ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from workbench.calibration.layer_inputs import LayerInputs
from workbench.errors import IntegerError
from workbench.grids import Grid, parse_grid
from workbench.integer.accumulator import Accumulator
from workbench.integer.arguments import real_numbers, shown
from workbench.integer.grid_linear import GridLinear, prepare_linear
from workbench.integer.layer_geometry import Window, patches
from workbench.integer.layer_run import LayerRun, requantized
from workbench.integer.level_table import LevelTable, level_table
from workbench.integer.level_tensor import LevelTensor, preferred_table
from workbench.integer.output_stage import ACTIVATIONS, OutputStage, make_stage
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import Watch, watch
from workbench.quantization.blocks import row_blocks
from workbench.quantization.quantize import QuantizedTensor, quantize
from workbench.quantization.scales import GivenScale
from workbench.quantization.source import Matrix, as_matrix

#: Patches of a convolution that would take more than this are refused.
MOST_PATCH_BYTES = 1 << 30


def run(
    layer: Any,
    inputs: Any,
    *,
    grid: Any,
    granularity: Any,
    scale: Any,
    clip: float,
    activation: Any,
    output: Any,
    semantics: Semantics,
    accumulator: Accumulator | None,
    then: str | None,
    kind: str,
    bias: Any,
    method: Any,
    level_bits: int,
    window: Window | None,
    progress: Callable[..., Any],
) -> LayerRun:
    """Do what ``run_layer`` says (arguments there)."""
    matrix = as_matrix(layer)
    values, window = _inputs(matrix, inputs, window)
    offset = _bias(bias, inputs, matrix.weights.shape[0])
    progress(0.0, f"quantizing {matrix.name}")
    quantized = quantize(layer, grid, granularity, scale=scale, clip=clip)
    coded = quantize_inputs(values, parse_grid(activation))
    progress(0.15, f"{matrix.name} in float")
    plain, fake = _float_outputs(matrix, quantized, values, coded, window, offset, progress)
    stage = make_stage(plain, output, then, kind)
    progress(0.6, f"{matrix.name} in integers")
    if not isinstance(level_bits, int) or level_bits not in {8, 16}:
        message = f"integer levels have 8 or 16 bits, not {shown(level_bits)}"
        raise IntegerError(message)
    prepared = prepare_linear(
        quantized,
        preferred_table(coded.grid),
        float(coded.scale[0, 0]) or 1.0,
        float(coded.offset[0, 0]),
        offset,
        method=method,
        weight_table=_weight_table(quantized, level_bits),
    )
    layers = _conv_groups(prepared, 1 if window is None else window.groups)
    rounding = semantics if window is None else outside_linear(semantics)
    operand = prepared.operand(coded.codes).reshape(values.shape)
    rows = _rows(operand, window, prepared.padding)
    with watch() as seen:
        sums = _stacked([each.sums(block, accumulator) for each, block in zip(layers, rows, strict=True)])
        progress(0.75)
        combined = _combined(layers, sums)
        linear_codes = requantized(layers, stage, combined, rounding)
    narrow = accumulator is not None and accumulator.overflow != "error"
    exact = sums
    if narrow and any(each.overflows for each in seen.observations):
        exact = _stacked([each.sums(block) for each, block in zip(layers, rows, strict=True)])
    progress(0.9)
    codes = stage.activate(linear_codes, semantics)
    return LayerRun(
        name=matrix.name,
        origin=inputs.origin if isinstance(inputs, LayerInputs) else "given",
        weight=quantized,
        input=coded,
        layers=layers,
        stage=stage,
        semantics=semantics,
        accumulator=accumulator or Accumulator(_used_bits(seen)),
        window=window,
        input_shape=values.shape,
        bias=offset,
        real=plain if then is None else ACTIVATIONS[then](plain),
        fake=_fake_codes(stage, fake),
        inputs=values,
        operand=operand,
        sums=sums,
        exact_sums=exact,
        combined=combined,
        linear_codes=linear_codes,
        codes=codes,
        saturated=_beyond(layers, stage, combined, rounding),
        overflows=sum(each.overflows for each in seen.observations if each.accumulator_bits),
        partial_bits=max((each.observed_bits for each in seen.observations), default=0),
        labels=inputs.labels if isinstance(inputs, LayerInputs) else (),
        weight_source=matrix.weights,
    )


def _weight_table(quantized: QuantizedTensor, bits: int) -> LevelTable:
    """Return the integers that suit this weight's own codes best."""
    grid = quantized.grid
    real_offset = grid.normalization == "range" and not grid.integer_zero_point
    width: Literal[8, 16] = 16 if real_offset or bits == 16 else 8
    even = level_table(grid, width)
    if even.exact:
        return even
    least = int(grid.codes.min())
    counts = np.bincount(quantized.codes.ravel().astype(np.int64) - least, minlength=int(grid.codes.max()) - least + 1)
    return level_table(grid, width, occupancy=counts[grid.codes - least])


def quantize_inputs(values: np.ndarray, grid: Grid) -> QuantizedTensor:
    """Quantize a layer's inputs under one positive scale.

    Args:
        values: float32, any shape; the first axis is the rows of the codes.
        grid: any scalar grid.

    Raises:
        IntegerError: negative inputs on a grid that has no negative levels.
        QuantizationError: inputs that are not finite, or empty.
    """
    if grid.normalization == "absmax" and grid.levels[0] >= 0 and (values < 0).any():
        message = (
            f"{grid} has no negative levels and {int((values < 0).sum()):,} of the layer's {values.size:,} inputs are "
            "negative: use a signed grid, or shifted=true"
        )
        raise IntegerError(message)
    rows = values.reshape(values.shape[0], -1) if values.ndim > 1 else values.reshape(1, -1)
    if grid.normalization == "signed":
        # A scale with the sign of the largest input is for weights: inputs get the plain int8 range, +absmax clipped.
        most = float(np.abs(rows).max(initial=0.0))
        return quantize(rows, grid, "tensor", scale=GivenScale(np.full((1, 1), most, dtype=np.float32)))
    return quantize(rows, grid, "tensor")


def _inputs(matrix: Matrix, inputs: Any, window: Window | None) -> tuple[np.ndarray, Window | None]:
    values = inputs.values if isinstance(inputs, LayerInputs) else inputs
    try:
        with np.errstate(over="ignore"):  # what is infinite in float32 is refused as that
            values = np.ascontiguousarray(np.asarray(_plain(values), dtype=np.float32))
    except (TypeError, ValueError):
        message = f"{matrix.name} takes an array of real inputs, not {type(values).__name__} (layer_inputs runs a model on texts)"
        raise IntegerError(message) from None
    if len(matrix.shape) == 2:
        if values.ndim < 1 or values.shape[-1] != matrix.shape[1] or values.size == 0:
            message = f"{matrix.name} takes inputs (..., {matrix.shape[1]}), at least one row, not {values.shape}"
            raise IntegerError(message)
        if window is not None:
            message = f"{matrix.name} is a linear layer: a window belongs to a convolution"
            raise IntegerError(message)
        return (values if values.ndim > 1 else values[None]), None
    if len(matrix.shape) != 4:
        message = f"{matrix.name} has shape {matrix.shape}: a layer that runs in integers is linear (2 axes) or a 2-d convolution (4 axes)"
        raise IntegerError(message)
    if window is None and isinstance(inputs, LayerInputs) and inputs.convolution is not None:
        window = Window(kernel=matrix.shape[2:], **inputs.convolution)  # type: ignore[arg-type]
    if window is not None and not isinstance(window, Window):
        message = f"a window is a Window, not {type(window).__name__}"
        raise IntegerError(message)
    window = window or Window(kernel=matrix.shape[2:])  # type: ignore[arg-type]
    if window.kernel != matrix.shape[2:]:
        message = f"{matrix.name} has kernels of {matrix.shape[2:]}, the window is for {window.kernel}"
        raise IntegerError(message)
    if values.ndim != 4 or values.shape[1] != matrix.shape[1] * window.groups or values.size == 0:
        message = (
            f"{matrix.name} takes images (images, {matrix.shape[1] * window.groups}, height, width), not {values.shape}"
        )
        raise IntegerError(message)
    if matrix.shape[0] % window.groups:
        message = f"{matrix.name} has {matrix.shape[0]} channels, which do not divide into {window.groups} groups"
        raise IntegerError(message)
    height, width = window.output_size(values.shape)
    need = 8 * values.shape[0] * height * width * window.groups * matrix.weights.shape[1]
    if need > MOST_PATCH_BYTES:
        message = f"the patches of {matrix.name} would take {need / 2**30:.1f} GiB: give fewer images"
        raise IntegerError(message)
    return values, window


def _bias(bias: Any, inputs: Any, outputs: int) -> np.ndarray | None:
    if isinstance(bias, str):
        if bias != "own":
            message = f"a bias is an array, None or 'own', not {bias!r}"
            raise IntegerError(message)
        bias = inputs.bias if isinstance(inputs, LayerInputs) else None
    if bias is None:
        return None
    values = real_numbers(_plain(bias), "a bias")
    if values.shape != (outputs,) or not np.isfinite(values).all():
        message = f"a bias has one finite number for each of the {outputs} channels, not shape {values.shape}"
        raise IntegerError(message)
    return values


def _plain(values: Any) -> Any:
    """Bring a torch tensor to the host."""
    return values.detach().cpu().double().numpy() if hasattr(values, "detach") else values


def _rows(values: np.ndarray, window: Window | None, padding: float) -> np.ndarray:
    """Return (groups, rows, depth)."""
    if window is None:
        return values.reshape(1, -1, values.shape[-1])
    return patches(values, window, padding)


def _float_outputs(  # noqa: PLR0917
    matrix: Matrix,
    quantized: QuantizedTensor,
    values: np.ndarray,
    coded: QuantizedTensor,
    window: Window | None,
    bias: np.ndarray | None,
    progress: Callable[..., Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 outputs of the layer and of its dequantized twin, without what follows."""
    groups = 1 if window is None else window.groups
    plain_rows = _rows(values.astype(np.float64), window, 0.0)
    fake_rows = _rows(coded.dequantize().reshape(values.shape).astype(np.float64), window, 0.0)
    outputs = matrix.weights.shape[0]
    plain = np.empty((plain_rows.shape[1], outputs))
    fake = np.empty_like(plain)
    each = outputs // groups
    for start, block in row_blocks(matrix.weights):
        stop = start + len(block)
        decoded = quantized.rows(start, stop).astype(np.float64)
        exact = block.astype(np.float64)
        for group in range(start // each, (stop - 1) // each + 1):
            first, last = max(start, group * each), min(stop, (group + 1) * each)
            part = slice(first - start, last - start)
            plain[:, first:last] = plain_rows[group] @ exact[part].T
            fake[:, first:last] = fake_rows[group] @ decoded[part].T
        progress(0.15 + 0.45 * stop / outputs)
    if not np.isfinite(plain).all():
        message = f"the float outputs of {matrix.name} are not finite"
        raise IntegerError(message)
    return (plain, fake) if bias is None else (plain + bias, fake + bias)


def _fake_codes(stage: OutputStage, fake: np.ndarray) -> np.ndarray:
    real = stage.linear.real(stage.linear.encode(fake))
    if not stage.separate:
        return real
    assert stage.then is not None
    return stage.final.real(stage.final.encode(ACTIVATIONS[stage.then](real)))


def _conv_groups(layer: GridLinear, groups: int) -> tuple[GridLinear, ...]:
    """Cut a prepared layer into the groups of its convolution."""
    if groups == 1:
        return (layer,)
    each = layer.outputs // groups
    return tuple(_cut(layer, group * each, (group + 1) * each) for group in range(groups))


def _cut(layer: GridLinear, start: int, stop: int) -> GridLinear:
    def part(array: Any) -> Any:
        return array if array is None or len(array) == 1 else array[start:stop]

    whole = layer.weight
    weight: LevelTensor = dataclasses.replace(
        whole,
        codes=whole.codes[start:stop],
        values=whole.values[start:stop],
        zero_point=part(whole.zero_point),
        scale=part(whole.scale),
    )
    return dataclasses.replace(
        layer,
        weight=weight,
        bias=None if layer.bias is None else layer.bias[start:stop],
        accumulator_scale=part(layer.accumulator_scale),
        group_multiplier=None if layer.group_multiplier is None else layer.group_multiplier[start:stop],
    )


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _combined(layers: tuple[GridLinear, ...], sums: np.ndarray) -> np.ndarray:
    first, parts = 0, []
    for layer in layers:
        parts.append(layer.combine(sums[:, first : first + layer.outputs]))
        first += layer.outputs
    return _stacked(parts)


def _beyond(layers: tuple[GridLinear, ...], stage: OutputStage, combined: np.ndarray, rounding: Semantics) -> int:
    first, total = 0, 0
    for layer in layers:
        total += stage.beyond(layer, np.ascontiguousarray(combined[:, first : first + layer.outputs]), rounding)
        first += layer.outputs
    return total


def _used_bits(seen: Watch) -> int:
    bits = [each.accumulator_bits for each in seen.observations if each.accumulator_bits]
    return max(bits) if bits else 62
