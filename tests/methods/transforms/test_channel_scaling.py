"""SmoothQuant's and AWQ's factors: what they even out, and that AWQ's alpha is the best of those it tries."""

from __future__ import annotations

import block_zoo as zoo
import numpy as np
import pytest
import torch

from workbench.errors import Cancelled, QuantizationError
from workbench.methods import Run
from workbench.methods.activations import attach
from workbench.methods.transforms import parse_transform
from workbench.methods.transforms.activation_aware import AwqScales, awq_factors
from workbench.methods.transforms.channels import watch_channels
from workbench.methods.transforms.layer_axes import input_absmax, rows_of
from workbench.methods.transforms.pairs import foldable_pairs
from workbench.quantization import quantize

READERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


def loud(family="llama-mha"):
    """A block with a few input channels far larger than the others, as language models have."""
    task = zoo.block_task(family, statistics=False)
    with torch.no_grad():
        task.module.input_layernorm.weight[::13] *= 30.0
    return zoo.task_of(task.module, task.inputs, statistics=False)


def peaks(task):
    inputs = watch_channels(task, READERS[:1])[READERS[0]].absmax
    weights = torch.stack([input_absmax(task.module.get_submodule(path)) for path in READERS]).amax(0)
    return inputs, weights


def test_half_way_inputs_and_weights_share_the_difficulty():
    """With alpha = 1/2 both sides of a channel end at sqrt(max|x| max|w|), whatever they were."""
    task = loud()
    inputs, weights = peaks(task)
    expected = (inputs * weights).sqrt()
    parse_transform("smoothquant:alpha=0.5").apply(task)
    inputs, weights = peaks(task)
    torch.testing.assert_close(inputs, expected, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_one_side_takes_everything(alpha):
    task = loud()
    parse_transform(f"smoothquant:alpha={alpha}").apply(task)
    even = peaks(task)[0 if alpha == 1.0 else 1]
    torch.testing.assert_close(even, torch.ones_like(even), rtol=1e-4, atol=0.0)


def test_a_channel_that_is_always_zero_is_left_alone():
    task = loud()
    with torch.no_grad():
        task.module.input_layernorm.weight[5] = 0.0
        for path in READERS:
            task.module.get_submodule(path).weight[:, 7] = 0.0
    before, norm = zoo.outputs(task), task.module.input_layernorm.weight.detach().clone()
    parse_transform("smoothquant").apply(task)
    assert zoo.moved(task, before) < 1e-5
    assert float(task.module.input_layernorm.weight[7].detach()) == float(norm[7])
    assert bool(task.module.self_attn.q_proj.weight.isfinite().all())


def quantized_error(task, before, weights, activations):
    for path in task.layers:
        rows = rows_of(task.module.get_submodule(path))
        rows[:] = torch.from_numpy(quantize(rows.detach().numpy(), weights).dequantize())
    with attach(task.module, dict.fromkeys(task.layers, activations)):
        return zoo.moved(task, before)


def test_loud_channels_cost_less_after_smoothing():
    plain, smooth = loud(), loud()
    before = zoo.outputs(plain)
    parse_transform("smoothquant").apply(smooth)
    arguments = (before, "uniform:bits=8", "uniform:bits=4@token")
    assert quantized_error(smooth, *arguments) < 0.7 * quantized_error(plain, *arguments)


def test_the_chosen_alpha_is_the_best_of_all():
    task = loud()
    pair = foldable_pairs(task.module)[0]
    magnitude = watch_channels(task, READERS[:1])[READERS[0]].mean_magnitude
    attention = task.module.self_attn
    calls = []
    handle = attention.register_forward_pre_hook(lambda _, a, o: calls.append((a, dict(o))), with_kwargs=True)
    zoo.outputs(task)
    handle.remove()
    with torch.no_grad():
        truth = [attention(*a, **o)[0] for a, o in calls]
        true = {path: rows_of(task.module.get_submodule(path)).clone() for path in READERS}
        errors = []
        for number in range(10):
            factors = awq_factors(magnitude, number / 10)
            for path in READERS:
                scaled = (true[path] * factors).numpy()
                rounded = quantize(scaled, "uniform:bits=4").dequantize()
                rows_of(task.module.get_submodule(path))[:] = torch.from_numpy(rounded) / factors
            found = [attention(*a, **o)[0] for a, o in calls]
            errors.append(sum(float((f - t).double().pow(2).sum()) for f, t in zip(found, truth, strict=True)))
        for path in READERS:
            rows_of(task.module.get_submodule(path))[:] = true[path]
    folds, _ = AwqScales(points=10).search_and_fold(task)
    best = int(np.argmin(errors))
    assert best > 0  # there are loud channels
    assert folds[0].pair == pair
    torch.testing.assert_close(folds[0].factors, awq_factors(magnitude, best / 10))


def test_cancelling_leaves_whole_changes_only():
    task = loud()
    before = zoo.outputs(task)

    def stop(fraction, _label):
        if fraction > 0.0:
            message = "stopped"
            raise Cancelled(message)

    with pytest.raises(Cancelled):
        parse_transform("awq:points=3").apply(task, Run(progress=stop))
    assert zoo.moved(task, before) < 1e-5


def test_inputs_that_are_not_finite_are_refused():
    task = loud()
    with torch.no_grad():
        task.module.input_layernorm.weight[0] = float("nan")
    with pytest.raises(QuantizationError, match="not finite"):
        parse_transform("smoothquant").apply(task)


def test_layers_that_nobody_quantizes_are_not_scaled():
    task = loud()
    task.layers = {name: layer for name, layer in task.layers.items() if "q_proj" not in name}
    folds, _ = AwqScales(points=3).search_and_fold(task)
    assert all("self_attn.q_proj" not in made.pair.consumers for made in folds)
    task.layers = {}
    assert "can take AWQ's scales" in parse_transform("awq").apply(task)[-1]
