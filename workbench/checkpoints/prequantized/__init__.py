"""Checkpoints whose weights are stored quantized: recognised, and dequantized to float32 by row slices, or refused by name."""

from __future__ import annotations

from workbench.checkpoints.prequantized.recognise import Decoded, decode

__all__ = ["Decoded", "decode"]
