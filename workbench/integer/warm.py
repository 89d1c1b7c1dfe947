"""Compile the kernels of integer runs, or load them from numba's disk cache, ahead of the first one."""

from __future__ import annotations

import numpy as np


def warm_up() -> None:
    """Run a tiny layer in integers by each path: set-up calls this, so that the first run in a notebook does not wait.

    A linear layer on uniform and power grids, with each kind of function after it, in a wide and in a narrow
    accumulator, under each semantics; and a convolution.
    """
    from workbench.integer.layer_geometry import Window
    from workbench.integer.layer_run import run_layer
    from workbench.integer.semantics import SEMANTICS

    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 32)).astype(np.float32)
    inputs = generator.standard_normal((8, 32)).astype(np.float32)
    for grid in ("uniform:bits=8", "power:bits=4,exponent=0.5", "power:bits=4,exponent=0.55"):
        run = run_layer(weight, inputs, grid=grid, then="gelu")
        for name in SEMANTICS:
            run.off_by(name, "tflm")
    for then, kind in (("gelu", "polynomial"), ("silu", "polynomial"), ("softmax", "table"), ("softmax", "polynomial")):
        run_layer(weight, inputs, then=then, kind=kind)
    for overflow in ("wrap", "saturate"):
        run_layer(weight, inputs, accumulator=f"int10:{overflow}")
    run_layer(weight, inputs, activation="uniform:bits=16")
    run_layer(weight, inputs, granularity="group:16", grid="power:bits=4,exponent=0.55")
    filters = generator.standard_normal((4, 2, 3, 3)).astype(np.float32)
    images = generator.standard_normal((2, 2, 6, 6)).astype(np.float32)
    run_layer(filters, images, window=Window((3, 3), padding=((1, 1), (1, 1))))
