"""Bias correction: the mean error at every output becomes zero."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import QuantizationError
from workbench.methods.bias_correction import correct_bias
from workbench.quantization import quantize


@pytest.mark.parametrize("groups", [1, 3])
def test_the_mean_output_error_becomes_zero(groups):
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(6, 20)).astype(np.float32)
    rows = generator.exponential(size=(groups, 400, 20)).astype(np.float32)
    bias = generator.normal(size=6).astype(np.float32)
    known = LayerStatistics.from_inputs("layer", rows)
    quantized = quantize(weight, "uniform:bits=2")
    corrected = correct_bias(weight, quantized, known, bias)
    assert corrected.dtype == np.float32
    parts, own = weight.reshape(groups, -1, 20), quantized.dequantize().reshape(groups, -1, 20)
    for number in range(groups):
        wide = rows[number].astype(np.float64)
        rows_of = slice(number * 6 // groups, (number + 1) * 6 // groups)
        true = (wide @ parts[number].T.astype(np.float64)).mean(0) + bias[rows_of]
        found = (wide @ own[number].T.astype(np.float64)).mean(0) + corrected[rows_of]
        np.testing.assert_allclose(found, true, atol=2e-6)
        before = (wide @ own[number].T.astype(np.float64)).mean(0) + bias[rows_of]
        assert np.abs(before - true).max() > 0.05


def test_convolutions_and_layers_without_a_bias():
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(4, 2, 3, 3)).astype(np.float32)
    known = LayerStatistics.from_inputs("conv", generator.normal(size=(50, 18)))
    quantized = quantize(weight, "uniform:bits=3")
    found = correct_bias(weight, quantized, known)
    expected = ((weight - quantized.dequantize()).reshape(4, 18).astype(np.float64) @ known.mean[0]).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_exact_weight_keeps_its_bias():
    weight = np.array([[1.0, -1.0]], dtype=np.float32)
    known = LayerStatistics.from_inputs("layer", np.ones((1, 2)))
    assert correct_bias(weight, quantize(weight, "uniform:bits=4"), known, np.array([0.5])).tolist() == [0.5]


def test_what_does_not_fit_is_refused():
    weight = np.ones((2, 3), dtype=np.float32)
    known = LayerStatistics.from_inputs("layer", np.ones((4, 3)))
    with pytest.raises(QuantizationError, match="what stands for it"):
        correct_bias(weight, np.ones((2, 4)), known)
    with pytest.raises(QuantizationError, match="multiplies 3 inputs"):
        correct_bias(weight, weight, LayerStatistics.from_inputs("layer", np.ones((4, 5))))
    with pytest.raises(QuantizationError, match="2 outputs"):
        correct_bias(weight, weight, known, np.zeros(3))
    with pytest.raises(QuantizationError, match="not finite"):
        correct_bias(weight, np.full((2, 3), np.nan), known)
