"""The digits that the demo network was trained and measured on, with the split of its training script."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "data"


@cache
def digits():
    """Return training images and labels, then the held-out ones, as numpy arrays."""
    if str(DATA) not in sys.path:
        sys.path.insert(0, str(DATA))
    import train_tiny_resnet

    return tuple(tensor.numpy() for tensor in train_tiny_resnet.digits())
