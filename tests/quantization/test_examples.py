"""The examples in the docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = [
    "granularity",
    "source",
    "report",
    "blocks",
    "ranges",
    "scale_formats",
    "scales",
    "bits",
    "quantize",
    "metrics",
    "binary_coding",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"workbench.quantization.{name}")
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
