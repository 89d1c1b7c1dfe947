from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid, UniformGrid
from workbench.quantization import quantize, sketch
from workbench.quantization.normalised import (
    channel_levels,
    channel_weights,
    normalised_histogram,
    normalised_levels,
    tensor_levels,
)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return (np.random.default_rng(5).laplace(size=(96, 200)) * 0.02).astype(np.float32)


def test_normalised_histogram_lose_no_weight_and_follow_numpy(weights: np.ndarray) -> None:
    found = normalised_histogram(sketch(weights, "channel"), bins=64)
    u = weights.astype(np.float64) / np.abs(weights).max(axis=1, keepdims=True)
    expected, edges = np.histogram(u, bins=64, range=(-1, 1))
    np.testing.assert_array_equal(found.edges, edges)
    assert found.counts.sum() == weights.size
    # a sketch bin that straddles a border may be counted on the other side of it
    assert np.abs(found.counts - expected).max() <= 0.02 * expected.max() + 2


def test_asymmetric_sketch_is_counted_from_zero_to_one(weights: np.ndarray) -> None:
    found = normalised_histogram(sketch(np.abs(weights), "channel", "range"), bins=16)
    assert (found.edges[0], found.edges[-1]) == (0.0, 1.0)
    assert found.counts.sum() == weights.size


@pytest.mark.parametrize("grid", [PowerGrid(bits=4, exponent=0.5), UniformGrid(bits=4, range="asymmetric")])
@pytest.mark.parametrize("clip", [1.0, 0.7])
def test_levels_are_where_quantize_puts_the_weights(weights: np.ndarray, grid, clip: float) -> None:
    one = quantize(weights, grid, "tensor", clip=clip)
    levels = tensor_levels(sketch(weights, "tensor", grid.normalization), grid, clip)
    used = np.unique(one.dequantize().astype(np.float64))
    assert np.abs(used[:, None] - levels[None, :]).min(axis=1).max() < 1e-8

    row = quantize(weights, grid, "channel", clip=clip)
    levels = channel_levels(weights, 17, grid, clip=clip)
    used = np.unique(row.dequantize()[17].astype(np.float64))
    assert np.abs(used[:, None] - levels[None, :]).min(axis=1).max() < 1e-8


def test_normalised_levels_shrink_with_the_clip() -> None:
    np.testing.assert_allclose(normalised_levels(UniformGrid(bits=3), 0.5), np.linspace(-0.5, 0.5, 7))
    found = normalised_levels(UniformGrid(bits=3, range="asymmetric"), 0.5)
    assert (found[0], found[-1]) == (0.25, 0.75)


@pytest.mark.parametrize("axis", ["output", "input"])
def test_one_channel_alone(weights: np.ndarray, axis) -> None:
    channel = weights[7] if axis == "output" else weights[:, 7]
    np.testing.assert_array_equal(channel_weights(weights, 7, axis), channel)


def test_unknown_channels_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(QuantizationError, match="output channels 0 to 95"):
        channel_weights(weights, 96)
    with pytest.raises(QuantizationError, match=r"output \(rows\) or input"):
        channel_weights(weights, 0, "sideways")  # type: ignore[arg-type]
