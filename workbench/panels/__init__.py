"""What a person sees: widgets over one ``Session``. Panels watch it and set it; they compute nothing themselves."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME_OF = {
    "Session": "session",
    "Workbench": "workbench",
    "Panel": "panel",
    "Snapshot": "snapshot",
    "LayersPanel": "layers_panel",
    "GridPanel": "grid_panel",
    "WeightsPanel": "weights_panel",
    "OutliersPanel": "outliers_panel",
    "ErrorPanel": "error_panel",
    "EvaluatePanel": "evaluate_panel",
    "IntegerPanel": "integer_panel",
    "MethodsPanel": "methods_panel",
    "RecipePanel": "recipe_panel",
    "FollowPanel": "follow_panel",
    "LiveGrid": "live",
}

__all__ = [
    "ErrorPanel",
    "EvaluatePanel",
    "FollowPanel",
    "GridPanel",
    "IntegerPanel",
    "LayersPanel",
    "LiveGrid",
    "MethodsPanel",
    "OutliersPanel",
    "Panel",
    "RecipePanel",
    "Session",
    "Snapshot",
    "WeightsPanel",
    "Workbench",
]

if TYPE_CHECKING:
    from workbench.panels.error_panel import ErrorPanel
    from workbench.panels.evaluate_panel import EvaluatePanel
    from workbench.panels.follow_panel import FollowPanel
    from workbench.panels.grid_panel import GridPanel
    from workbench.panels.integer_panel import IntegerPanel
    from workbench.panels.layers_panel import LayersPanel
    from workbench.panels.live import LiveGrid
    from workbench.panels.methods_panel import MethodsPanel
    from workbench.panels.outliers_panel import OutliersPanel
    from workbench.panels.panel import Panel
    from workbench.panels.recipe_panel import RecipePanel
    from workbench.panels.session import Session
    from workbench.panels.snapshot import Snapshot
    from workbench.panels.weights_panel import WeightsPanel
    from workbench.panels.workbench import Workbench


def __getattr__(name: str) -> Any:
    """Load a panel on first use: opening a model from a script needs no widgets."""
    if name not in _HOME_OF:
        message = f"module 'workbench.panels' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(f"workbench.panels.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
