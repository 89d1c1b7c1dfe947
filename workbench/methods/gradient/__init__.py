"""Gradient post-training quantization: one optimiser loop with explicit axes, and AdaRound to NUPES as its presets."""
