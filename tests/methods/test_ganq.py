"""GANQ's level update against a dense least-squares solve, and its turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import QuantizationError
from workbench.methods import LayerTask, parse_method
from workbench.methods.ganq import GANQ, best_levels
from workbench.methods.gptq import GPTQ
from workbench.methods.kmeans import KMeans
from workbench.quantization import quantize


def problem(rows=10, depth=24, seed=0, count=150):
    generator = np.random.default_rng(seed)
    weight = (generator.standard_t(4, (rows, depth)) * 0.1).astype(np.float32)
    inputs = (generator.standard_normal((count, depth)) @ generator.standard_normal((depth, depth))).astype(np.float32)
    return weight, inputs


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
def test_levels_solve_the_least_squares_of_the_outputs(granularity):
    weight, inputs = problem()
    task = LayerTask.of(weight, "nf4", granularity=granularity, statistics=inputs)
    found = quantize(weight, "nf4", granularity)
    gram = task.statistics.gram[0]
    levels = best_levels(task, found, [weight.astype(np.float64) @ gram])
    scale = np.broadcast_to(found.scale, (10, found.scale.shape[1])).astype(np.float64)
    wide = np.repeat(scale, found.group_size, axis=1)
    design = np.stack([((found.codes == code) * wide) @ inputs.T.astype(np.float64) for code in range(16)], axis=-1)
    target = (weight.astype(np.float64) @ inputs.T.astype(np.float64)).ravel()
    used = np.isin(np.arange(16), found.codes)
    expected = np.linalg.lstsq(design.reshape(-1, 16)[:, used], target, rcond=None)[0]
    np.testing.assert_allclose(levels[used], expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(levels[~used], found.grid.levels[~used])


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
@pytest.mark.parametrize("bits", [2, 3])
def test_turns_end_below_a_fixed_codebook(granularity, bits):
    weight, inputs = problem(rows=24, depth=40, seed=1)
    task = LayerTask.of(weight, f"uniform:bits={bits}", granularity=granularity, statistics=inputs)
    found = GANQ().quantize_layer(task)
    one = GANQ(iterations=1).quantize_layer(task)
    fixed = KMeans(weighted=True).quantize_layer(task)
    assert found.error <= one.error < fixed.error
    assert found.error == pytest.approx(min(found.trace.loss), rel=1e-9)
    assert np.abs(found.quantized.grid.levels).max() <= 1.0
    refined = GANQ(refine=3, rescale=granularity != "tensor").quantize_layer(task)
    assert refined.error < found.error
    codes = GPTQ(static_groups=True).quantize_layer(replace(task, grid=fixed.quantized.grid))
    assert found.error <= codes.error * (1 + 1e-6)


def test_groups_of_a_convolution_share_the_codebook():
    weight, _ = problem(rows=12, seed=2)
    rows = np.random.default_rng(1).standard_normal((3, 80, 24)) @ np.random.default_rng(2).standard_normal((3, 24, 24))
    task = LayerTask.of(weight, "uniform:bits=2", statistics=rows)
    found = GANQ(iterations=4).quantize_layer(task)
    assert found.gain_db > 0.0
    assert len(found.quantized.grid.levels) == 4


def test_poor_layers_and_repetition():
    weight, inputs = problem(seed=3)
    weight[2], weight[3] = 0.0, 0.2
    inputs[:, 5] = 0.0
    task = LayerTask.of(weight, "uniform:bits=3", statistics=inputs)
    first, second = (GANQ(iterations=3).quantize_layer(task) for _ in range(2))
    np.testing.assert_array_equal(first.quantized.codes, second.quantized.codes)
    assert "always zero" in first.notes[0]
    assert (first.quantized.dequantize()[2] == 0.0).all()
    for nothing in (np.zeros((4, 24), np.float32), np.full((4, 24), 0.5, np.float32)):
        found = GANQ(iterations=2).quantize_layer(LayerTask.of(nothing, "uniform:bits=3", statistics=inputs))
        np.testing.assert_allclose(found.quantized.dequantize(), nothing, atol=1e-6)
    single = GANQ(iterations=2).quantize_layer(LayerTask.of(weight, "uniform:bits=3", statistics=inputs[:1]))
    assert np.isfinite(single.error)


def test_what_cannot_be_done_is_refused():
    weight, inputs = problem()
    with pytest.raises(QuantizationError, match="needs the Gram matrix"):
        GANQ().quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    with pytest.raises(QuantizationError, match="1 to 8 bits"):
        GANQ().quantize_layer(LayerTask.of(weight, "uniform:bits=12", statistics=inputs))
    for text in ("ganq:iterations=0", "ganq:damp=-1", "ganq:refine=-1"):
        with pytest.raises(QuantizationError, match="at least"):
            parse_method(text)
