"""A small model on disk, and sessions that close with their test."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from workbench.panels import Session


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Four layers and a norm as bfloat16 safetensors, heavy-tailed as real weights are."""
    generator = np.random.default_rng(3)
    shapes = {
        "model.embed_tokens": (96, 32),
        "model.layers.0.mlp.up_proj": (64, 32),
        "model.layers.0.mlp.down_proj": (32, 64),
        "model.layers.1.mlp.up_proj": (64, 32),
        "model.layers.1.mlp.down_proj": (32, 64),
    }
    tensors = {
        f"{name}.weight": (0.05 * generator.standard_t(4, shape)).astype(np.float32).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    tensors["model.norm.weight"] = np.ones(32, dtype=np.float32).astype(ml_dtypes.bfloat16)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def session(checkpoint):
    """A session on the small model, idle."""
    opened = Session(checkpoint)
    assert opened.wait(300)
    yield opened
    opened.close()
