from __future__ import annotations

import pickle

import pytest

from workbench.errors import SemanticsError
from workbench.integer.semantics import LITERT_REFERENCE, SEMANTICS, as_semantics, outside_linear


def test_every_semantics_is_found_by_its_own_text_and_says_where_it_comes_from():
    assert list(SEMANTICS) == ["tflm", "litert-reference", "tflite-single", "onnxruntime", "tosa-single", "tosa-double"]
    for name, each in SEMANTICS.items():
        assert str(each) == each.name == name
        assert as_semantics(name) is each
        assert as_semantics(each) is each
        assert each.source
        assert pickle.loads(pickle.dumps(each)) == each


def test_aliases_name_runtimes_that_round_alike():
    found = {alias: as_semantics(alias).name for alias in ("tosa", "litert", "cmsis-nn", "xnnpack")}
    assert found == {"tosa": "tosa-single", "litert": "litert-reference", "cmsis-nn": "tflm", "xnnpack": "onnxruntime"}


@pytest.mark.parametrize("name", ["tensorrt", "", "TFLM", None, 3])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(SemanticsError, match="tflm, litert-reference, tflite-single, onnxruntime"):
        as_semantics(name)


def test_only_litert_rounds_differently_outside_fully_connected_layers():
    for name, each in SEMANTICS.items():
        outside = outside_linear(name)
        assert outside.name == name
        assert (outside == each) == (each is not LITERT_REFERENCE)
        assert outside_linear(outside) == outside
    assert (LITERT_REFERENCE.rounding, outside_linear("litert").rounding) == ("float64", "double")
