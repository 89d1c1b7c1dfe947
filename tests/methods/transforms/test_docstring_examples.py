"""The examples in the docstrings of transforms and activation codings run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "quantization.activations",
    "methods.activations",
    "methods.bias_correction",
    "methods.transforms.hadamard",
    "methods.transforms.activation_aware",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    outcome = doctest.testmod(importlib.import_module(f"workbench.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
