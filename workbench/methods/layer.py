"""One layer, one call: quantize it with any method, on the inputs that the model itself gives it."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.calibration.layer_inputs import LayerInputs, layer_inputs
from workbench.calibration.statistics import LayerStatistics
from workbench.checkpoints import Layer, Model, open_model
from workbench.errors import QuantizationError
from workbench.grids.grid import Grid
from workbench.methods.method import Method, parse_method
from workbench.methods.result import LayerResult
from workbench.methods.run import Progress, Run, StepListener
from workbench.methods.runner import _check_device
from workbench.methods.task import LayerTask
from workbench.quantization.granularity import Granularity
from workbench.quantization.scales import ScaleRule
from workbench.resources import resolve_source

#: Input rows that are run through the model for methods that need some and were given none.
ROWS = 1024


def quantize_layer(
    layer: Any,
    method: Method | str = "nupes",
    grid: Grid | str = "power:bits=4",
    *,
    granularity: str | Granularity = "channel",
    scale: str | ScaleRule = "absmax",
    model: Model | str | None = None,
    inputs: Any = None,
    bias: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    on_step: StepListener | None = None,
) -> LayerResult:
    """Quantize one layer with a method.

    Args:
        layer: a ``Layer``, its name in ``model``, an array or a tensor, axis 0 the outputs.
        method: a method or its text form, e.g. ``gptq``, ``nupes:steps=500``; ``all_methods()`` lists them.
        grid: a grid or its text form; ``power:bits=4,exponent=search`` leaves the exponent to the method.
        granularity: what shares a scale: ``tensor``, ``channel``, ``group:128``.
        scale: rule of the starting scale: ``absmax``, ``percentile:99.9``, ``mse``.
        model: the model that the layer is of (a ``Model``, or what ``open_model`` takes): it gives the inputs of methods
            that need some, and the layer's bias.
        inputs: the layer's own inputs: rows (rows, depth), an array or a tensor (for a matrix, axes before the last are
            rows: (batch, tokens, depth) will do), ``LayerInputs``, or ``LayerStatistics``; None runs ``model`` on its
            shipped inputs (``calibration.layer_inputs``) where the method needs some.
        bias: the layer's, float32 (outputs,); None takes the model's where inputs were run.
        seed: of every random choice.
        device: torch device of methods that use torch.
        progress: told the finished fraction and a label; may raise ``Cancelled``.
        on_step: told (name, step, steps, loss) while a method learns; may raise ``Cancelled``.

    Raises:
        QuantizationError: the method needs inputs and nobody can give them, inputs that are no numbers, a device that is not
            there, or a method that cannot use the task; one sentence.
        CheckpointError: the model cannot be run.
        GridError: the grid's text form cannot be read.
        Cancelled: a listener stopped it.

    >>> weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    >>> quantize_layer(weight, "rtn-clip", "uniform:bits=4").gain_db > 0
    True
    """
    chosen = parse_method(method)
    _check_device(device)
    opened = open_model(resolve_source(model) if isinstance(model, str) else model) if model is not None else None
    if isinstance(layer, str):
        if opened is None:
            message = f"a layer's name needs the model that has it: quantize_layer({layer!r}, ..., model=...)"
            raise QuantizationError(message)
        layer = opened[layer]
    statistics = inputs if isinstance(inputs, LayerStatistics) else None
    name = layer.name if isinstance(layer, Layer) else None
    if isinstance(inputs, LayerInputs):
        statistics = _boiled_down(inputs, tuple(layer.shape))
        bias = inputs.bias if bias is None else bias
    elif statistics is None and inputs is not None:
        rows = _rows(inputs, tuple(np.shape(layer)), name or "the layer")
        statistics = LayerStatistics.from_inputs(name or "the layer", rows)
    if statistics is None and chosen.needs:
        statistics, found = _from_model(chosen, layer, opened, progress)
        bias = found if bias is None else bias
    task = LayerTask.of(layer, grid, granularity=granularity, scale=scale, statistics=statistics, bias=bias, name=name)
    nothing = Run()
    run = Run(seed, device, progress or nothing.progress, on_step or nothing.on_step)
    return chosen.quantize_layer(task, run)


def _rows(inputs: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return given inputs as float32 rows; those of a matrix in two axes, since a third would mean a convolution's groups.

    Raises:
        QuantizationError: they are no array of real numbers.
    """
    try:
        values = inputs.detach().cpu().float().numpy() if hasattr(inputs, "detach") else np.asarray(inputs)
        if values.dtype.kind == "c":
            raise TypeError
        values = values.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        message = (
            f"inputs of {name} are rows of real numbers (rows, depth), not {type(inputs).__name__} of other things"
        )
        raise QuantizationError(message) from error
    return values.reshape(-1, values.shape[-1]) if len(shape) == 2 and values.ndim > 2 and values.size else values


def _from_model(
    method: Method, layer: Any, model: Model | None, progress: Progress | None
) -> tuple[LayerStatistics, np.ndarray | None]:
    """Run the model up to the layer and boil down what the layer was given."""
    if "fisher" in method.needs:
        message = f"{method.title} needs gradients of the whole model's loss: quantize_model gives them"
        raise QuantizationError(message)
    if model is None or not isinstance(layer, Layer):
        message = (
            f"{method.title} looks at the layer's inputs: give them as inputs=, or the model they come from as model="
        )
        raise QuantizationError(message)
    found = layer_inputs(model, layer, rows=ROWS, progress=progress)
    return _boiled_down(found, tuple(layer.shape)), found.bias


def _boiled_down(inputs: LayerInputs, shape: tuple[int, ...]) -> LayerStatistics:
    rows = inputs.values
    if inputs.convolution is not None:
        rows = patches(rows, shape, inputs.convolution)
    return LayerStatistics.from_inputs(inputs.layer, rows, keep=ROWS)


def patches(images: np.ndarray, shape: tuple[int, ...], convolution: dict[str, Any]) -> np.ndarray:
    """Return what one output position of a convolution multiplies: (groups, images * positions, depth), float32.

    Args:
        images: (images, channels, height, width).
        shape: of the weight: (outputs, channels / groups, kernel height, kernel width).
        convolution: ``stride``, ``padding``, ``dilation``, ``groups``, as ``LayerInputs`` has them.
    """
    (top, bottom), (left, right) = (_pair(side) for side in convolution["padding"])
    padded = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = shape[2:]
    (down, across), (gap_down, gap_across) = convolution["stride"], convolution["dilation"]
    reach = (gap_down * (height - 1) + 1, gap_across * (width - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))  # pyright: ignore[reportCallIssue, reportArgumentType]
    windows = windows[:, :, ::down, ::across, ::gap_down, ::gap_across]
    count, channels, rows, columns = windows.shape[:4]
    groups = int(convolution["groups"])
    parts = windows.reshape(count, groups, channels // groups, rows, columns, height, width)
    moved = parts.transpose(1, 0, 3, 4, 2, 5, 6)
    return np.ascontiguousarray(moved.reshape(groups, count * rows * columns, -1), dtype=np.float32)


def _pair(side: Any) -> tuple[int, int]:
    return (int(side[0]), int(side[1])) if isinstance(side, tuple | list) else (int(side), int(side))
