"""AWQ: scales that are folded exactly, clips against an exhaustive search, and a smaller error at the block's output."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "transforms"))
import block_zoo as zoo

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import QuantizationError
from workbench.methods import LayerTask, Run, parse_method
from workbench.methods.awq import best_output_clips, divided_inputs, folded_tasks
from workbench.methods.transforms.activation_aware import AwqScales, awq_factors
from workbench.methods.transforms.layer_axes import rows_of
from workbench.quantization import quantize


@pytest.fixture
def layer():
    generator = np.random.default_rng(0)
    weight = generator.standard_t(3, (12, 16)).astype(np.float32)
    inputs = (generator.standard_normal((300, 16)) * np.geomspace(0.1, 10, 16)).astype(np.float32)
    return weight, inputs


@pytest.mark.parametrize("grid", ["uniform:bits=3", "uniform:bits=3,range=asymmetric", "power:bits=4,exponent=0.5"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
def test_clips_are_those_of_an_exhaustive_search(layer, grid, granularity):
    weight, inputs = layer
    task = LayerTask.of(weight, grid, granularity=granularity, statistics=inputs)
    clips = (1.0, 0.9, 0.8, 0.7, 0.6)
    found = best_output_clips(task, clips)
    size = found.group_size
    trials = [quantize(weight, grid, granularity, "absmax", clip) for clip in clips]
    wide = inputs.astype(np.float64)
    errors = []
    for trial in trials:
        gap = (trial.dequantize() - weight).astype(np.float64)
        parts = [((wide[:, s : s + size] @ gap[:, s : s + size].T) ** 2).mean(0) for s in range(0, 16, size)]
        whole = np.stack(parts, axis=1)
        errors.append(whole.sum(0, keepdims=True) if granularity == "tensor" else whole)
    best = np.argmin(errors, axis=0)
    np.testing.assert_array_equal(found.clip, np.asarray(clips)[best])
    expected = np.take_along_axis(np.stack([trial.scale for trial in trials]), best[None], 0)[0]
    np.testing.assert_array_equal(found.scale, expected)


def test_a_single_layer_gets_its_clip_searched_and_is_told_so(layer):
    weight, inputs = layer
    task = LayerTask.of(weight, "uniform:bits=3", statistics=inputs)
    found = parse_method("awq").quantize_layer(task)
    assert found.error < found.start_error
    assert "stood alone" in found.notes[0]
    plain = parse_method("awq:clip=false").quantize_layer(task)
    assert plain.error == plain.start_error
    again = parse_method("awq").quantize_layer(replace(task, weight=found.quantized.dequantize()))
    np.testing.assert_array_equal(again.quantized.dequantize(), found.quantized.dequantize())


@pytest.mark.parametrize("grid", ["mxfp4", "nvfp4", "bcq:bits=2", "nf4", "power:bits=4,exponent=search"])
def test_never_worse_than_its_start_on_any_grid(layer, grid):
    weight, inputs = layer
    granularity = {"mxfp4": "group:32", "nvfp4": "group:16"}.get(grid, "channel")
    weight, inputs = np.tile(weight, (1, 2)), np.tile(inputs, (1, 2))
    found = parse_method("awq").quantize_layer(LayerTask.of(weight, grid, granularity=granularity, statistics=inputs))
    assert found.error <= found.start_error
    assert any("not free" in note for note in found.notes) == (grid in {"nvfp4", "bcq:bits=2"})


def test_a_grouped_convolution_is_clipped_slice_by_slice():
    generator = np.random.default_rng(0)
    weight = generator.standard_t(3, (6, 2, 3, 3)).astype(np.float32)
    rows = generator.standard_normal((3, 100, 18)).astype(np.float32)
    task = LayerTask.of(weight, "uniform:bits=3", statistics=LayerStatistics.from_inputs("conv", rows))
    found = parse_method("awq").quantize_layer(task)
    assert found.error < found.start_error
    assert found.quantized.shape == weight.shape


def test_gram_matrices_are_needed(layer):
    weight, inputs = layer
    known = LayerStatistics.from_inputs("layer", inputs, gram=False)
    with pytest.raises(QuantizationError, match="Gram matrix"):
        parse_method("awq").quantize_layer(LayerTask.of(weight, "uniform:bits=3", statistics=known))
    with pytest.raises(QuantizationError, match="two steps"):
        parse_method("awq:clip_points=1")


def test_factors_are_normalised_and_finite():
    factors = awq_factors(torch.tensor([0.0, 0.1, 1.0, 10.0]), 0.5)
    assert bool(factors.isfinite().all())
    assert float(factors.max() * factors.min()) == pytest.approx(1.0)
    assert torch.equal(awq_factors(torch.rand(5), 0.0), torch.ones(5))


def loud_block(family, **settings):
    """A block some of whose channels come out of their norms much larger than others."""
    task = zoo.block_task(family, statistics=False)
    with torch.no_grad():
        for name, part in task.module.named_modules():
            if "norm" in name and getattr(part, "weight", None) is not None and part.weight.numel() == 48:
                part.weight[::9] *= 8.0
    return zoo.task_of(task.module, task.inputs, **settings)


def block_error(task, results, before):
    with torch.no_grad():
        for name, result in results.items():
            rows_of(task.module.get_submodule(name))[:] = torch.from_numpy(result.quantized.dequantize())
    return zoo.moved(task, before)


@pytest.mark.parametrize("family", ["llama-mha", "gpt2", "opt", "qwen3"])
@pytest.mark.parametrize("granularity", ["channel", "group:16"])
def test_the_block_errs_less_than_rounded_to_nearest(family, granularity):
    settings = {"grid": "uniform:bits=3", "granularity": granularity}
    plain, task = loud_block(family, **settings), loud_block(family, **settings)
    before = zoo.outputs(task)
    rounded = {name: parse_method("rtn").quantize_layer(layer) for name, layer in plain.layers.items()}
    results = parse_method("awq").quantize_block(task, Run())
    assert set(results) == set(task.layers)
    assert all(results[name].start_error == pytest.approx(rounded[name].error) for name in results)
    assert zoo.moved(task, before) < 1e-5  # only folds so far
    assert block_error(task, results, before) < block_error(plain, rounded, before)


def test_folded_tasks_are_what_measuring_again_gives():
    task = loud_block("llama-mha")
    folds, _ = AwqScales(points=3).search_and_fold(task)
    assert folds
    found = folded_tasks(task, folds)
    again = zoo.task_of(task.module, task.inputs)
    for name, layer in found.items():
        other = again.layers[name]
        np.testing.assert_allclose(layer.weight, other.weight, rtol=1e-6)
        np.testing.assert_allclose(layer.bias, other.bias, rtol=1e-5, atol=1e-7)
        scale = np.sqrt(np.outer(np.diag(other.statistics.gram[0]), np.diag(other.statistics.gram[0])))
        assert np.abs(layer.statistics.gram[0] - other.statistics.gram[0]).max() < 1e-5 * scale.max()
        np.testing.assert_allclose(layer.statistics.mean_magnitude, other.statistics.mean_magnitude, rtol=1e-5)
        np.testing.assert_allclose(layer.statistics.inputs, other.statistics.inputs, rtol=1e-3, atol=1e-5)


def test_divided_inputs_are_statistics_of_the_quotients(layer):
    _, inputs = layer
    factors = np.geomspace(0.2, 5, 16)
    found = divided_inputs(LayerStatistics.from_inputs("a", inputs), factors)
    expected = LayerStatistics.from_inputs("a", inputs / factors.astype(np.float32))
    for name in ("second", "mean", "mean_magnitude", "absmax", "gram", "inputs"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_a_layer_that_no_input_reached_is_rounded_to_nearest():
    task = loud_block("llama-mha")
    name = "mlp.gate_proj"
    task.layers = {**task.layers, name: replace(task.layers[name], statistics=None)}
    found = parse_method("awq:points=3").quantize_block(task)[name]
    assert any("no input reached" in note for note in found.notes)


def test_the_same_twice():
    first, second = (parse_method("awq:points=4").quantize_block(loud_block("opt")) for _ in range(2))
    for name, result in first.items():
        np.testing.assert_array_equal(result.quantized.codes, second[name].quantized.codes)
