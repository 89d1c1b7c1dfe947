"""Look-ups by index, and the place of the largest code."""

from __future__ import annotations

import numpy as np
import pytest
from operator_zoo import RUNNERS, codes, scale

from workbench.errors import IntegerError
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.gathering import argmax, embedding
from workbench.integer.rescaling import rescale_codes
from workbench.integer.watch import watch


def test_rows_are_copied():
    table = np.arange(40, dtype=np.int16).reshape(8, 5)
    indices = np.array([[7, 0, 3], [3, 3, 1]])
    assert np.array_equal(embedding(indices, table), table[indices])
    assert embedding(np.empty((2, 0), np.int64), table).shape == (2, 0, 5)


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference", "tosa-single", "onnxruntime"])
def test_rows_are_requantized_by_one_scale_or_by_one_each(semantics):
    rng = np.random.default_rng(1)
    table, indices = codes(rng, (20, 30)), rng.integers(0, 20, (4, 6))
    options = {"table_zero_point": -3, "output_zero_point": 9, "dtype": np.int16, "semantics": semantics}
    expected = rescale_codes(
        table[indices],
        input_scale=0.03,
        output_scale=0.001,
        input_zero_point=-3,
        output_zero_point=9,
        dtype=np.int16,
        semantics=semantics,
    )
    assert np.array_equal(embedding(indices, table, table_scale=0.03, output_scale=0.001, **options), expected)
    scales = np.exp(rng.uniform(-5, -3, 20)).astype(np.float32)
    got = embedding(indices, table, table_scale=scales, output_scale=0.001, **options)
    exact = (table.astype(np.float64) + 3) * scales.astype(np.float64)[:, None] / float(np.float32(0.001)) + 9
    assert np.max(np.abs(got - exact[indices])) <= 0.51
    multiplier, shift = quantize_multiplier(scales.astype(np.float64) / float(np.float32(0.001)), semantics)
    ready = embedding(indices, table, multiplier=multiplier, shift=shift, **options)
    assert np.max(np.abs(ready.astype(int) - got)) <= (1 if semantics == "onnxruntime" else 0)


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference"])
def test_gather_and_argmax_of_tensorflow_lite(semantics):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    from workbench.integer.judges.tflite_builder import TFLiteModel

    rng = np.random.default_rng(2)
    table, indices = codes(rng, (9, 12)), rng.integers(0, 9, 5).astype(np.int32)
    table[2] = 5
    step = scale(rng)
    model = TFLiteModel()
    places = model.tensor("i", (5,), np.int32)
    rows = model.tensor("t", table.shape, np.int8, step, 1, data=table)
    taken = model.tensor("g", (5, 12), np.int8, step, 1)
    model.operator("GATHER", [rows, places], [taken], {"axis": 0}, version=2)
    axis = model.tensor("a", (1,), np.int32, data=np.array([1], np.int32))
    best = model.tensor("b", (5,), np.int32)
    model.operator("ARG_MAX", [taken, axis], [best], {"output_type": "INT32"}, version=2)
    got = RUNNERS[semantics](model.finish([places], [taken, best]), [indices])
    assert np.array_equal(embedding(indices, table), got[0])
    assert np.array_equal(argmax(got[0], 1), got[1])


def test_the_first_of_equal_codes_wins():
    assert argmax(np.array([[3, 7, 7], [-1, -1, -5]], np.int8)).tolist() == [1, 0]
    with watch() as seen:
        argmax(np.zeros((4, 6), np.int32), axis=0)
    assert seen.observations[0].outputs == 6


TABLE = np.zeros((4, 3), np.int8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: embedding(np.array([4]), TABLE), "rows 0 to 3"),
        (lambda: embedding(np.array([-1]), TABLE), "none of index -1"),
        (lambda: embedding(np.array([0.5]), TABLE), "integer indices"),
        (lambda: embedding(np.array([0]), TABLE[0]), "rows, width"),
        (lambda: embedding(np.array([0]), TABLE, dtype=np.int16), "give scales"),
        (lambda: embedding(np.array([0]), TABLE, output_zero_point=1), "give scales"),
        (lambda: embedding(np.array([0]), TABLE, table_scale=0.1), "scale"),
        (lambda: embedding(np.array([0]), TABLE, table_scale=np.ones(3), output_scale=1), "one per row"),
        (lambda: embedding(np.array([0]), TABLE, table_scale=np.ones(4)), "scales"),
        (lambda: argmax(np.array([0.5])), "integers"),
        (lambda: argmax(TABLE, 2), "axis"),
        (lambda: argmax(TABLE[:0], 0), "not empty"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(IntegerError, match=words):
        call()


@pytest.mark.parametrize("shape", [(0,), (1, 0)])
def test_no_indices_give_no_rows(shape):
    found = embedding(np.zeros(shape, dtype=np.int64), np.ones((5, 3), np.int8), table_scale=1.0, output_scale=0.5)
    assert found.shape == (*shape, 3)
