"""A ``LayerResult`` as arrays and plain numbers, for files: bit for bit back again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.methods.activations import ActivationRange
from workbench.methods.result import LayerResult
from workbench.methods.run import Trace
from workbench.quantization.quantize import QuantizedTensor


def report_of(result: LayerResult) -> dict[str, Any]:
    """Return everything of a result but its tensor and bias, as JSON can hold it; sizes are there to be summed."""
    stored = result.quantized.storage
    return {
        "method": result.method,
        "start_error": result.start_error,
        "error": result.error,
        "energy": result.energy,
        "seconds": result.seconds,
        "trace": {
            "steps": list(result.trace.steps),
            "loss": list(result.trace.loss),
            "more": {name: list(values) for name, values in result.trace.more.items()},
        },
        "activation": None if result.activation is None else str(result.activation),
        "notes": list(result.notes),
        "bias": result.bias is not None,
        "weights": stored.weights,
        "bits": stored.total,
        "row": result.to_dict(),
    }


def result_of(
    name: str, report: Mapping[str, Any], quantized: QuantizedTensor, bias: np.ndarray | None = None
) -> LayerResult:
    """Return the result that ``report_of`` described."""
    trace = report["trace"]
    return LayerResult(
        name=name,
        method=report["method"],
        quantized=quantized,
        start_error=report["start_error"],
        error=report["error"],
        energy=report["energy"],
        seconds=report["seconds"],
        trace=Trace(
            tuple(trace["steps"]),
            tuple(trace["loss"]),
            {word: tuple(values) for word, values in trace["more"].items()},
        ),
        bias=bias,
        activation=report["activation"],
        notes=tuple(report["notes"]),
    )


def range_to_list(reach: ActivationRange | None) -> list[float | None] | None:
    """Return a range as JSON holds it."""
    return None if reach is None else [reach.low, reach.high, reach.exponent]


def range_of(values: Any) -> ActivationRange | None:
    """Return the range that ``range_to_list`` described."""
    return None if values is None else ActivationRange(*values)
