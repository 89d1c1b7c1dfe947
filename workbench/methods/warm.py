"""Compile every kernel that a method needs, or load it from numba's disk cache, ahead of time."""

from __future__ import annotations

import numpy as np

from workbench.errors import QuantizationError
from workbench.methods.method import all_methods
from workbench.methods.task import LayerTask

_GRIDS = ("uniform:bits=4", "uniform:bits=4,range=asymmetric", "power:bits=4,exponent=search")


def warm_up() -> None:
    """Quantize a tiny layer with every method, on the grids that each of them takes."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 32)).astype(np.float32)
    inputs = generator.standard_normal((64, 32)).astype(np.float32)
    for method in all_methods().values():
        quick = method.but(steps=2) if hasattr(method, "steps") else method
        for grid in _GRIDS:
            for granularity in ("channel", "group:16"):
                try:
                    quick.quantize_layer(LayerTask.of(weight, grid, granularity=granularity, statistics=inputs))
                except QuantizationError:  # not every method takes every grid
                    continue
