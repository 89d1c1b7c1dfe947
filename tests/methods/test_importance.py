"""Scales chosen by weighted error: against brute force over candidates, and never worse than they started."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import QuantizationError
from workbench.grids import parse_grid
from workbench.methods import LayerTask, parse_method
from workbench.methods.importance import Importance, ImportanceRounding
from workbench.quantization import quantize
from workbench.quantization.scales import CANDIDATE_CLIPS

GRIDS = [
    "uniform:bits=3",
    "uniform:bits=4,range=full",
    "uniform:bits=3,range=asymmetric",
    "power:bits=4,exponent=0.6",
    "nf4",
]


def problem(rows=8, depth=32, seed=0):
    generator = np.random.default_rng(seed)
    weight = (generator.standard_t(4, (rows, depth)) * 0.1).astype(np.float32)
    inputs = (generator.standard_normal((60, depth)) * generator.lognormal(0, 1.5, depth)).astype(np.float32)
    return weight, inputs


def weighted(weight, quantized, second):
    return (second * (weight.astype(np.float64) - quantized.dequantize()) ** 2).sum(axis=1)


@pytest.mark.parametrize("text", GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
def test_candidates_are_those_of_brute_force(text, granularity):
    weight, inputs = problem()
    task = LayerTask.of(weight, text, granularity=granularity, statistics=inputs)
    found = ImportanceRounding(turns=0).quantize_layer(task)
    second = task.statistics.second[0]
    gaps = []
    for clip in CANDIDATE_CLIPS:
        there = quantize(weight, text, granularity, clip=clip).dequantize()
        gaps.append(second * (weight.astype(np.float64) - there) ** 2)
    errors = np.array(gaps)
    if granularity == "tensor":
        best = errors.sum(axis=(1, 2)).min()
    elif granularity == "channel":
        best = errors.sum(axis=2).min(axis=0).sum()
    else:
        best = errors.reshape(len(errors), 8, 4, 8).sum(axis=3).min(axis=0).sum()
    assert weighted(weight, found.quantized, second).sum() == pytest.approx(best, rel=1e-9)
    assert found.trace.loss[-1] == pytest.approx(best / 8, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(GRIDS), st.sampled_from(["tensor", "channel", "group:8"]), st.integers(0, 10**6))
def test_turns_only_lower_the_error(text, granularity, seed):
    weight, inputs = problem(seed=seed)
    task = LayerTask.of(weight, text, granularity=granularity, statistics=inputs, scale="mse")
    found = ImportanceRounding().quantize_layer(task)
    second = task.statistics.second[0]
    assert (np.diff(found.trace.loss) < 0.0).all()
    assert weighted(weight, found.quantized, second).mean() == pytest.approx(found.trace.loss[-1], rel=1e-9)
    for start in (task.start, quantize(weight, text, granularity)):
        assert weighted(weight, found.quantized, second).sum() <= weighted(weight, start, second).sum() * (1 + 1e-9)


def test_gradients_weigh_rows_that_share_a_scale():
    weight, inputs = problem()
    task = LayerTask.of(weight, "uniform:bits=2", granularity="tensor", statistics=inputs)
    fisher = np.zeros(8)
    fisher[3] = 2.0
    one = replace(task, statistics=replace(task.statistics, fisher=fisher))
    second = task.statistics.second[0]
    plain, aimed = (ImportanceRounding().quantize_layer(each).quantized for each in (task, one))
    assert weighted(weight, aimed, second)[3] < weighted(weight, plain, second)[3]
    importance = Importance.of(one)
    np.testing.assert_array_equal(importance.rows(2, 4), [second * 0.0, second * 2.0])


def test_slices_of_a_convolution_weigh_their_own_rows():
    weight, _ = problem(rows=6)
    inputs = np.random.default_rng(3).lognormal(0, 1.5, (2, 1, 32)) * np.random.default_rng(4).standard_normal(
        (2, 50, 32)
    )
    whole = ImportanceRounding().quantize_layer(LayerTask.of(weight, "uniform:bits=3", statistics=inputs))
    for number in range(2):
        part = slice(3 * number, 3 * number + 3)
        alone = ImportanceRounding().quantize_layer(
            LayerTask.of(weight[part], "uniform:bits=3", statistics=inputs[number])
        )
        np.testing.assert_array_equal(whole.quantized.codes[part], alone.quantized.codes)


def test_poor_inputs_and_block_formats():
    weight, inputs = problem()
    weight[1], weight[2] = 0.0, -0.5
    for text, granularity in (("mxfp4", "group:32"), ("nvfp4", "group:16"), ("uniform:bits=4", "channel")):
        for rows in (inputs, inputs[:1], np.zeros_like(inputs)):
            task = LayerTask.of(weight, text, granularity=granularity, statistics=rows)
            found = ImportanceRounding().quantize_layer(task)
            second = task.statistics.second[0]
            assert (found.quantized.dequantize()[1] == 0.0).all()
            assert np.isfinite(found.error)
            start = quantize(weight, text, granularity)
            assert weighted(weight, found.quantized, second).sum() <= weighted(weight, start, second).sum() * (1 + 1e-9)
            assert found.quantized.scale_format == start.scale_format


def test_weights_on_the_grid_stay_and_runs_repeat():
    weight, inputs = problem()
    for text in GRIDS:
        before = quantize(weight, text).dequantize()
        task = LayerTask.of(before, text, statistics=inputs)
        first, second = (ImportanceRounding().quantize_layer(task).quantized for _ in range(2))
        np.testing.assert_allclose(first.dequantize(), before, atol=1e-6)
        np.testing.assert_array_equal(first.codes, second.codes)


def test_what_cannot_be_done_is_refused():
    weight, inputs = problem()
    with pytest.raises(QuantizationError, match="needs moments"):
        ImportanceRounding().quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    with pytest.raises(QuantizationError, match="fits its own"):
        ImportanceRounding().quantize_layer(LayerTask.of(weight, "bcq:bits=2", statistics=inputs))
    with pytest.raises(QuantizationError, match="at least 0"):
        parse_method("importance:turns=-1")
    assert parse_grid("nf4").bits == 4
