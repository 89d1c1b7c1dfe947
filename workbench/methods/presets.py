"""Every method that ``parse_method`` knows, imported in the order in which lists show them."""

# ruff: noqa: I001, RUF022 - the order is that of the lists

from __future__ import annotations

from workbench.methods import (
    nearest,
    powerquant,
    hqq,
    kmeans,
    importance,
    gptq,
    ganq,
    awq,
)
from workbench.methods.gradient import presets as gradient

__all__ = ["nearest", "powerquant", "hqq", "kmeans", "importance", "gptq", "ganq", "awq", "gradient"]
