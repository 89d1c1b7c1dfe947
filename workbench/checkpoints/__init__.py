"""Checkpoints: open a model of any size and format lazily; read a layer's weight only when asked, by row slices."""

from __future__ import annotations

from workbench.checkpoints.layer import Kind, Layer, Weights
from workbench.checkpoints.model import Model
from workbench.checkpoints.opening import open_model
from workbench.checkpoints.tree import Tree, TreeRow

__all__ = ["Kind", "Layer", "Model", "Tree", "TreeRow", "Weights", "open_model"]
