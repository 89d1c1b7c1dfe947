"""Methods as text, what they refuse, and the result that all of them share."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import CheckpointError, QuantizationError
from workbench.methods import LayerTask, Run, all_methods, parse_method
from workbench.methods.run import Trace
from workbench.quantization import error, quantize


@pytest.fixture
def weight():
    return np.random.default_rng(0).standard_t(5, (24, 40)).astype(np.float32)


@pytest.fixture
def inputs():
    generator = np.random.default_rng(1)
    return (generator.standard_normal((200, 40)) @ generator.standard_normal((40, 40))).astype(np.float32)


@pytest.mark.parametrize("word", list(all_methods()))
def test_text_form_reads_back_equal(word):
    method = all_methods()[word]
    assert method.word == word
    assert parse_method(str(method)) == method
    assert str(method) == word
    assert pickle.loads(pickle.dumps(method)) == method
    assert method.title
    assert method.summary


@pytest.mark.parametrize(
    ("text", "words"), [("rtnn", "did you mean rtn"), ("rtn:steps=3", "no setting 'steps'"), ("", "no method")]
)
def test_nonsense_is_refused_in_one_sentence(text, words):
    with pytest.raises(QuantizationError, match=words):
        parse_method(text)


def test_round_to_nearest_is_quantize(weight):
    found = parse_method("rtn").quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    expected = quantize(weight, "uniform:bits=4")
    np.testing.assert_array_equal(found.quantized.codes, expected.codes)
    assert found.error == pytest.approx(error(weight, expected).mse * weight.shape[1])
    assert found.gain_db == 0.0


def test_output_error_is_that_of_the_outputs(weight, inputs):
    task = LayerTask.of(weight, "uniform:bits=3", statistics=inputs)
    found = parse_method("rtn").quantize_layer(task)
    gap = inputs.astype(np.float64) @ (weight - found.quantized.dequantize()).astype(np.float64).T
    assert found.error == pytest.approx((gap**2).mean(), rel=1e-9)
    truth = inputs.astype(np.float64) @ weight.astype(np.float64).T
    assert found.energy == pytest.approx((truth**2).mean(), rel=1e-9)


def test_grouped_statistics_measure_each_slice(weight):
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((3, 50, 40)).astype(np.float32)
    task = LayerTask.of(weight, "uniform:bits=3", statistics=rows)
    found = parse_method("rtn-clip").quantize_layer(task)
    gap = (weight - found.quantized.dequantize()).astype(np.float64).reshape(3, 8, 40)
    outputs = np.einsum("gnd,god->gno", rows.astype(np.float64), gap)
    assert found.error == pytest.approx((outputs**2).mean(), rel=1e-9)


def test_a_task_checks_what_it_is_given(weight, inputs):
    with pytest.raises(QuantizationError, match="multiplies 40 inputs"):
        LayerTask.of(weight, "uniform:bits=4", statistics=inputs[:, :30])
    with pytest.raises(QuantizationError, match="24 outputs"):
        LayerTask.of(weight, "uniform:bits=4", bias=np.zeros(3))
    with pytest.raises(CheckpointError, match="not finite"):
        LayerTask.of(weight, "uniform:bits=4", statistics=np.full((4, 40), np.nan))
    weight[3, 4] = np.nan
    with pytest.raises(QuantizationError, match="1 NaN or infinite"):
        LayerTask.of(weight, "uniform:bits=4")


def test_an_exponent_to_search_is_searched_for_the_start(weight):
    task = LayerTask.of(weight, "power:bits=4,exponent=search")
    errors = [error(weight, quantize(weight, f"power:bits=4,exponent={a}")).mse for a in (0.3, 0.5, 0.7, 1.0)]
    assert error(weight, task.start).mse <= min(errors)


def test_moments_are_means_over_rows(inputs):
    found = LayerStatistics.from_inputs("l", inputs, keep=10)
    wide = inputs.astype(np.float64)
    np.testing.assert_allclose(found.gram[0], wide.T @ wide / len(wide))
    np.testing.assert_allclose(np.diag(found.gram[0]), found.second[0])
    np.testing.assert_allclose(found.mean[0], wide.mean(axis=0))
    assert found.inputs.shape == (1, 10, 40)
    assert (found.groups, found.depth, found.count) == (1, 40, 200)


def test_a_curve_is_shown_in_a_line():
    assert repr(Trace()) == "Trace(empty)"
    found = Trace(steps=(0, 10, 20), loss=(1.0, 0.75, 0.5), more={"exponent": (1.0, 0.9, 0.8)})
    assert repr(found) == "Trace(3 points, steps 0 to 20, loss 1 to 0.5; exponent)"


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True, None])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(QuantizationError, match="a seed is a whole number of at least 0, not"):
        Run(seed)
    assert Run(np.int64(3)).seed == 3
