"""The Quantization Workbench: see what quantization does to a neural network, live and exactly, on real weights.

    from workbench import Workbench, demo_path, open_model

    Workbench(open_model(demo_path("tiny-gemma3")))

Names load on first use: importing ``workbench`` imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "open_model": "workbench.checkpoints",
    "Layer": "workbench.checkpoints",
    "Model": "workbench.checkpoints",
    "AdditivePowerGrid": "workbench.grids",
    "BinaryCodingGrid": "workbench.grids",
    "CodebookGrid": "workbench.grids",
    "FloatGrid": "workbench.grids",
    "Grid": "workbench.grids",
    "LogGrid": "workbench.grids",
    "PowerGrid": "workbench.grids",
    "UniformGrid": "workbench.grids",
    "parse_grid": "workbench.grids",
    "ErrorReport": "workbench.quantization",
    "QuantizedTensor": "workbench.quantization",
    "Sketch": "workbench.quantization",
    "best_clip": "workbench.quantization",
    "bits_per_weight": "workbench.quantization",
    "error": "workbench.quantization",
    "exact_error": "workbench.quantization",
    "landscape": "workbench.quantization",
    "quantize": "workbench.quantization",
    "search_exponent": "workbench.quantization",
    "sketch": "workbench.quantization",
    "sketch_error": "workbench.quantization",
    "Recipe": "workbench.quantization.recipe",
    "IntegerModel": "workbench.integer",
    "integerize": "workbench.integer",
    "LayerRun": "workbench.integer",
    "level_table": "workbench.integer",
    "run_layer": "workbench.integer",
    "run_judges": "workbench.integer.judges",
    "JudgeTable": "workbench.integer.judges",
    "LayerInputs": "workbench.calibration.layer_inputs",
    "layer_inputs": "workbench.calibration.layer_inputs",
    "ErrorBudget": "workbench.evaluation",
    "accuracy": "workbench.evaluation",
    "error_budget": "workbench.evaluation",
    "Calibration": "workbench.calibration.data",
    "LayerStatistics": "workbench.calibration.statistics",
    "LayerResult": "workbench.methods",
    "LayerTask": "workbench.methods",
    "Method": "workbench.methods",
    "all_methods": "workbench.methods",
    "parse_method": "workbench.methods",
    "quantize_layer": "workbench.methods.layer",
    "quantize_model": "workbench.methods.runner",
    "QuantizedModel": "workbench.methods.model_result",
    "evaluate": "workbench.evaluation",
    "divergence": "workbench.evaluation",
    "generate_side_by_side": "workbench.evaluation",
    "last_word": "workbench.evaluation",
    "lm_eval_model": "workbench.evaluation",
    "perplexity": "workbench.evaluation",
    "similarity": "workbench.evaluation",
    "compare": "workbench.evaluation",
    "Evaluation": "workbench.evaluation",
    "RecipeError": "workbench.errors",
    "Session": "workbench.panels",
    "Workbench": "workbench.panels",
    "demo_path": "workbench.resources",
    "WorkbenchError": "workbench.errors",
}

__all__ = [*sorted(_HOME_OF), "__version__"]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from workbench.calibration.data import Calibration
    from workbench.calibration.layer_inputs import LayerInputs, layer_inputs
    from workbench.calibration.statistics import LayerStatistics
    from workbench.checkpoints import Layer, Model, open_model
    from workbench.errors import RecipeError, WorkbenchError
    from workbench.evaluation import (
        ErrorBudget,
        Evaluation,
        accuracy,
        compare,
        divergence,
        error_budget,
        evaluate,
        generate_side_by_side,
        last_word,
        lm_eval_model,
        perplexity,
        similarity,
    )
    from workbench.grids import (
        AdditivePowerGrid,
        BinaryCodingGrid,
        CodebookGrid,
        FloatGrid,
        Grid,
        LogGrid,
        PowerGrid,
        UniformGrid,
        parse_grid,
    )
    from workbench.integer import IntegerModel, LayerRun, integerize, level_table, run_layer
    from workbench.integer.judges import JudgeTable, run_judges
    from workbench.methods import LayerResult, LayerTask, Method, all_methods, parse_method
    from workbench.methods.layer import quantize_layer
    from workbench.methods.model_result import QuantizedModel
    from workbench.methods.runner import quantize_model
    from workbench.panels import Session, Workbench
    from workbench.quantization import (
        ErrorReport,
        QuantizedTensor,
        Sketch,
        best_clip,
        bits_per_weight,
        error,
        exact_error,
        landscape,
        quantize,
        search_exponent,
        sketch,
        sketch_error,
    )
    from workbench.quantization.recipe import Recipe
    from workbench.resources import demo_path


def __getattr__(name: str) -> Any:
    """Load a public name from its room on first use."""
    if name not in _HOME_OF:
        message = f"module 'workbench' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
