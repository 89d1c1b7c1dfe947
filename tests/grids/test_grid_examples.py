"""The examples in the docstrings say what the code does."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["uniform", "power", "logarithmic", "additive", "floating", "codebook", "binary_coding", "text"]
)
def test_examples(name):
    outcome = doctest.testmod(importlib.import_module(f"workbench.grids.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
