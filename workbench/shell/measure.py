"""Measure layers for the command line: one plain record a layer, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.checkpoints import Layer, Model
    from workbench.grids import Grid

QUANTIZED_KINDS = ("linear", "conv", "embedding")
"""Kinds of layers that are quantized in practice; norms and other vectors keep their own precision."""


def choose_layers(model: Model, pattern: str | None) -> list[Layer]:
    """Return the layers whose name matches a pattern such as ``*.mlp.down_proj`` (all without one).

    Raises:
        WorkbenchError: nothing matches.
    """
    if pattern is None:
        return list(model.layers.values())
    found = list(model.find(pattern))
    if not found:
        examples = ", ".join(list(model.layers)[:3])
        raise WorkbenchError(
            f"no layer of {model.name} matches {pattern!r}; names are like {examples} and * stands for any text"
        )
    return found


def describe(layer: Layer) -> dict[str, Any]:
    """Return what the header says of a layer."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "role": layer.role,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
        "parameters": layer.parameters,
    }


def measure_layer(layer: Layer, grid: Grid, granularity: str) -> dict[str, Any]:
    """Return a layer's description, the statistics of its weights, and its exact error on the grid.

    Errors and bits are None for norms and other vectors. A layer that cannot be measured (weights that are not finite,
    say) carries the sentence that says so under ``problem`` instead of numbers.
    """
    from workbench.quantization import bits_per_weight, exact_error, weight_statistics

    record = describe(layer)
    numbers = dict.fromkeys(
        ("mean", "std", "absmax", "max_over_sigma", "kurtosis", "mse", "sqnr_db", "bits_per_weight")
    )
    try:
        statistics = weight_statistics(layer)
        numbers |= {
            "mean": statistics.mean,
            "std": statistics.std,
            "absmax": statistics.absmax,
            "max_over_sigma": statistics.max_over_sigma,
            "kurtosis": statistics.kurtosis,
        }
        if layer.kind in QUANTIZED_KINDS:
            report = exact_error(layer, grid, granularity=granularity)
            numbers |= {
                "mse": report.mse,
                "sqnr_db": report.sqnr_db,
                "bits_per_weight": bits_per_weight(grid, granularity, layer.weight.shape),
            }
    except WorkbenchError as error:
        return {**record, **numbers, "problem": str(error)}
    return {**record, **numbers}


def measure_model(
    layers: list[Layer], grid: Grid, granularity: str, progress: Callable[[int, Layer], None] | None = None
) -> list[dict[str, Any]]:
    """Measure layers one after another; ``progress(parameters, layer)`` is called after each."""
    records = []
    for layer in layers:
        records.append(measure_layer(layer, grid, granularity))
        if progress is not None:
            progress(layer.parameters, layer)
    return records


def totals(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return sums over layers: parameters, the quantized share of them, mse and bits per weight over that share."""
    quantized = [record for record in records if record.get("mse") is not None]
    weights = sum(record["parameters"] for record in quantized)
    total: dict[str, Any] = {
        "layers": len(records),
        "parameters": sum(record["parameters"] for record in records),
        "quantized_parameters": weights,
        "mse": None,
        "bits_per_weight": None,
    }
    if weights:
        for key in ("mse", "bits_per_weight"):
            total[key] = math.fsum(record[key] * record["parameters"] for record in quantized) / weights
    return total


def measure_error(
    layer: Layer, grid: Grid, granularity: str, scale: str = "absmax", clip: float = 1.0
) -> dict[str, Any]:
    """Return the exact error of one layer on one grid, with everything that it depends on."""
    from workbench.quantization import bits_per_weight, exact_error
    from workbench.quantization.granularity import parse_granularity

    parsed = parse_granularity(granularity)
    report = exact_error(layer, grid, granularity=str(parsed), scale=scale, clip=clip)
    return {
        **describe(layer),
        "grid": str(grid),
        "granularity": str(parsed),
        "scale": scale,
        "clip": clip,
        **report.to_dict(),
        "bits_per_weight": bits_per_weight(grid, parsed, layer.weight.shape),
    }


def json_ready(value: Any) -> Any:
    """Return the value with numpy scalars as Python's own and infinite or undefined numbers as None.

    JSON knows neither infinity (the signal-to-noise ratio of an error of zero) nor NaN.
    """
    if isinstance(value, dict):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
