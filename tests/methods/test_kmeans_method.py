"""The fitted codebook: a Lloyd optimum, better than any fixed grid of its bits, and at peace with poor layers."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import QuantizationError
from workbench.methods import LayerTask, parse_method
from workbench.methods.kmeans import KMeans
from workbench.quantization import error, quantize, sketch
from workbench.quantization.lloyd import lloyd_max


def heavy(seed=0, shape=(12, 64)):
    return (np.random.default_rng(seed).standard_t(5, shape) * 0.1).astype(np.float32)


def mse(weight, quantized):
    return error(weight, quantized).mse


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_the_means_of_their_cells(granularity, bits):
    weight = heavy()
    found = KMeans().quantize_layer(LayerTask.of(weight, f"uniform:bits={bits}", granularity=granularity))
    quantized = found.quantized
    scale = np.broadcast_to(quantized.scale, (12, quantized.scale.shape[1])).astype(np.float64)
    wide = np.repeat(scale, quantized.group_size, axis=1)
    assert len(quantized.grid.levels) == 2**bits
    for code, level in zip(quantized.grid.codes, quantized.grid.levels, strict=True):
        cell = quantized.codes == code
        mean = (weight[cell] * wide[cell]).sum() / (wide[cell] ** 2).sum()
        assert level == pytest.approx(mean, abs=2e-3)
    assert mse(weight, quantized) == pytest.approx(found.trace.loss[-1], rel=1e-4)
    for text in (f"uniform:bits={bits}", f"power:bits={bits},exponent=0.7"):
        assert mse(weight, quantized) < mse(weight, quantize(weight, text, granularity))


def test_it_is_the_codebook_of_a_sketch():
    weight = heavy(shape=(40, 128))
    expected = lloyd_max(sketch(weight, "channel"), 3)
    found = KMeans().quantize_layer(LayerTask.of(weight, "uniform:bits=3"))
    assert mse(weight, found.quantized) == pytest.approx(expected.trace[-1], rel=0.01)


def test_turns_lower_the_error_and_weights_count():
    weight = heavy(1)
    inputs = (
        np.random.default_rng(2).lognormal(0, 1.5, 64) * np.random.default_rng(3).standard_normal((80, 64))
    ).astype(np.float32)
    task = LayerTask.of(weight, "uniform:bits=2", statistics=inputs)
    second = task.statistics.second[0]
    errors = {}
    for text in ("kmeans", "kmeans:turns=6", "kmeans:weighted=true", "kmeans:weighted=true,turns=6"):
        found = parse_method(text).quantize_layer(task)
        gap = (weight.astype(np.float64) - found.quantized.dequantize()) ** 2
        errors[text] = (gap.mean(), (gap * second).mean())
        assert (np.diff(found.trace.loss) < 0.0).all()
        own = errors[text]["weighted" in text]
        assert own == pytest.approx(found.trace.loss[-1], rel=1e-3)
    assert errors["kmeans:turns=6"][0] < errors["kmeans"][0]
    assert errors["kmeans:weighted=true"][1] < errors["kmeans"][1]
    assert errors["kmeans:weighted=true,turns=6"][1] < errors["kmeans:weighted=true"][1]


def test_the_best_clip_is_one_more_chance():
    weight = heavy(4)
    plain, clipped = (
        KMeans().quantize_layer(LayerTask.of(weight, "uniform:bits=3", granularity="group:16", scale=scale))
        for scale in ("absmax", "mse")
    )
    assert mse(weight, clipped.quantized) <= mse(weight, plain.quantized) * (1 + 1e-9)


@pytest.mark.parametrize("value", [0.0, 0.3, -0.3])
def test_layers_of_one_value_are_kept(value):
    weight = np.full((3, 8), value, dtype=np.float32)
    found = KMeans().quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    np.testing.assert_allclose(found.quantized.dequantize(), weight, atol=1e-7)
    mixed = np.vstack([weight, np.zeros((1, 8), np.float32), np.eye(1, 8, dtype=np.float32)])
    found = KMeans(turns=2).quantize_layer(LayerTask.of(mixed, "uniform:bits=4"))
    np.testing.assert_allclose(found.quantized.dequantize(), mixed, atol=1e-6)


def test_few_values_are_kept_and_runs_repeat():
    weight = np.random.default_rng(0).choice(np.array([-0.5, 0.125, 0.25, 1.0], np.float32), (6, 40))
    weight[:, 0] = 1.0
    for granularity in ("tensor", "channel"):
        task = LayerTask.of(weight, "uniform:bits=2,range=full", granularity=granularity)
        first, second = (KMeans().quantize_layer(task) for _ in range(2))
        np.testing.assert_allclose(first.quantized.dequantize(), weight, atol=1e-4)
        np.testing.assert_array_equal(first.quantized.codes, second.quantized.codes)


def test_what_cannot_be_done_is_refused():
    weight = heavy()
    with pytest.raises(QuantizationError, match="1 to 8 bits"):
        KMeans().quantize_layer(LayerTask.of(weight, "uniform:bits=12"))
    with pytest.raises(QuantizationError, match="needs moments"):
        KMeans(weighted=True).quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    for text in ("kmeans:turns=-1", "kmeans:iterations=0"):
        with pytest.raises(QuantizationError, match="at least"):
            parse_method(text)
