"""PowerQuant: the exponent that errs least, alone, with a clip, and for a whole model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.checkpoints import open_model
from workbench.errors import QuantizationError
from workbench.grids import PowerGrid, UniformGrid
from workbench.methods import LayerTask, parse_method
from workbench.methods.powerquant import PowerQuant, model_exponent
from workbench.quantization import error, quantize, sketch
from workbench.quantization.scales import BestClip
from workbench.quantization.search import best_clip
from workbench.resources import resolve_source


def heavy(seed=0, shape=(16, 64)):
    return (np.random.default_rng(seed).standard_t(4, shape) * 0.05).astype(np.float32)


def mse(weight, quantized):
    return error(weight, quantized).mse


@pytest.fixture(scope="module")
def gemma():
    return open_model(resolve_source("demo:tiny-gemma3"))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
@pytest.mark.parametrize("rounding", ["power", "nearest"])
def test_the_exponent_is_the_best_of_a_fine_scan(granularity, rounding):
    weight = heavy()
    task = LayerTask.of(weight, f"power:bits=4,exponent=0.5,rounding={rounding}", granularity=granularity)
    found = PowerQuant().quantize_layer(task)
    scan = min(
        mse(weight, quantize(weight, PowerGrid(4, float(exponent), rounding), granularity))
        for exponent in np.arange(0.2, 1.2, 0.01)
    )
    assert mse(weight, found.quantized) <= scan * 1.02  # binned sketches know channel errors to a bound
    assert len(found.trace) > 10
    best = found.trace.more["exponent"][int(np.argmin(found.trace.loss))]
    assert abs(best - found.quantized.grid.exponent) <= 0.021


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 6]), st.sampled_from(["tensor", "channel", "group:16"]))
def test_joint_is_never_above_the_best_clipped_uniform_grid(seed, bits, granularity):
    weight = heavy(seed, (8, 32))
    task = LayerTask.of(weight, f"power:bits={bits}", granularity=granularity)
    joint = PowerQuant(joint=True).quantize_layer(task)
    uniform = UniformGrid(bits=bits)
    clip = best_clip(sketch(weight, granularity), uniform).clip
    assert joint.error <= weight.shape[1] * mse(weight, quantize(weight, uniform, granularity, clip=clip)) * (1 + 1e-12)
    by_group = PowerQuant(joint=True, clip="group").quantize_layer(task)
    best = quantize(weight, uniform, granularity, BestClip())
    assert by_group.error <= weight.shape[1] * mse(weight, best) * (1 + 1e-12)


def test_joint_is_never_above_uniform_on_any_layer_of_a_real_model(gemma):
    bits, uniform = 3, UniformGrid(bits=3)
    layers = [layer for layer in gemma.layers.values() if layer.kind == "linear"]
    assert len(layers) > 20
    for layer in layers:
        found = PowerQuant(joint=True).quantize_layer(LayerTask.of(layer, f"power:bits={bits}"))
        clip = best_clip(sketch(layer), uniform).clip
        there = quantize(layer, uniform, clip=clip)
        assert mse(layer, found.quantized) <= mse(layer, there) * (1 + 1e-12), layer.name


def test_one_exponent_for_a_model(gemma):
    layers = [layer for layer in gemma.layers.values() if layer.kind == "linear"][:6]
    found = model_exponent(layers, 4)
    method = PowerQuant(share="model").for_model([sketch(layer) for layer in layers], 4)
    assert method.exponent == found.exponent
    assert parse_method(str(method)) == method
    grids = {method.quantize_layer(LayerTask.of(layer, "power:bits=4")).quantized.grid for layer in layers}
    assert grids == {PowerGrid(4, found.exponent)}
    joint = PowerQuant(share="model", joint=True).for_model(layers, 4)
    shared = model_exponent(layers, 4, joint=True)
    assert (joint.exponent, joint.clip) == (shared.exponent, repr(shared.clip))
    first = joint.quantize_layer(LayerTask.of(layers[0], "power:bits=4")).quantized
    np.testing.assert_array_equal(first.codes, quantize(layers[0], shared.grid, clip=shared.clip).codes)
    assert joint.for_model(layers, 4) == joint


def test_clips_after_a_given_exponent():
    weight = heavy(3)
    task = LayerTask.of(weight, "power:bits=3", granularity="group:16")
    grid = PowerGrid(3, 0.7)
    given = PowerQuant(exponent=0.7)
    by_rule, by_group, by_number, joint = (
        method.quantize_layer(task).quantized
        for method in (given, replace(given, clip="group"), replace(given, clip="0.5"), replace(given, joint=True))
    )
    np.testing.assert_array_equal(by_rule.codes, quantize(weight, grid, "group:16").codes)
    np.testing.assert_array_equal(by_group.codes, quantize(weight, grid, "group:16", "mse").codes)
    np.testing.assert_array_equal(by_number.codes, quantize(weight, grid, "group:16", clip=0.5).codes)
    assert {each.grid for each in (by_rule, by_group, by_number, joint)} == {grid}
    assert mse(weight, by_group) <= mse(weight, joint) <= mse(weight, by_rule) * 1.01
    alone = PowerQuant(exponent=0.7, joint=True, clip="group").quantize_layer(task).quantized
    np.testing.assert_array_equal(alone.codes, by_group.codes)


def test_poor_weights_and_two_bits():
    weight = heavy(4)
    weight[2], weight[5] = 0.3, 0.0
    for method in (PowerQuant(), PowerQuant(joint=True), PowerQuant(joint=True, clip="group")):
        for bits in (2, 4):
            found = method.quantize_layer(LayerTask.of(weight, f"power:bits={bits}"))
            assert (found.quantized.codes[5] == 0).all()
            assert bool(found.notes) == (bits == 2)
        zeros = method.quantize_layer(LayerTask.of(np.zeros((3, 4), np.float32), "power:bits=4"))
        assert zeros.error == 0.0
    first, second = (PowerQuant(joint=True).quantize_layer(LayerTask.of(weight, "power:bits=4")) for _ in range(2))
    np.testing.assert_array_equal(first.quantized.codes, second.quantized.codes)


def test_what_has_no_exponent_is_refused():
    weight = heavy()
    with pytest.raises(QuantizationError, match=r"write power:bits=4"):
        PowerQuant().quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    with pytest.raises(QuantizationError, match="both signs"):
        PowerQuant().quantize_layer(LayerTask.of(weight, "power:bits=4,shifted=true"))
    for text, words in (
        ("powerquant:share=block", "share=layer"),
        ("powerquant:exponent=3", "at most at 2"),
        ("powerquant:clip=wide", "rule, group"),
        ("powerquant:clip=1.5", "rule, group"),
        ("powerquant:joint=maybe", "true or false"),
    ):
        with pytest.raises(QuantizationError, match=words):
            parse_method(text)
