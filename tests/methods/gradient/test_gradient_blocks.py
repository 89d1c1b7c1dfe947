"""Whole blocks: all layers learned on the block's output, through coded activations, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import Cancelled, QuantizationError
from workbench.methods import BlockTask, LayerTask, Run, parse_method

PRESETS = ["brecq", "qdrop", "flexround", "autoround", "nupes"]


class Block(torch.nn.Module):
    """A residual pair of linear layers that returns a tuple, as decoder layers may."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(10, 14)
        self.act = torch.nn.GELU()
        self.mlp = torch.nn.ModuleDict({"down": torch.nn.Linear(14, 10, bias=False)})

    def forward(self, x, *, shift=None):
        inner = self.mlp["down"](self.act(self.up(x)))
        return (x + inner if shift is None else x + inner + shift,)


def block_task(grid="uniform:bits=3", *, activation=None, gradients=False, drift=0.05, batches=3):
    torch.manual_seed(0)
    module = Block().eval()
    mixing = torch.randn(10, 10)
    floats = [((torch.randn(2, 9, 10) @ mixing,), {"shift": torch.ones(10)}) for _ in range(batches)]
    inputs = [((x + drift * torch.randn_like(x),), options) for (x,), options in floats]
    with torch.no_grad():
        targets = [module(*given, **options)[0] for given, options in floats]
        first = torch.cat([given[0] for given, _ in inputs]).reshape(-1, 10)
        second = module.act(module.up(first))
    layers = {}
    for name, part, rows in (("b.up", module.up, first), ("b.down", module.mlp["down"], second)):
        layers[name] = LayerTask.of(
            part.weight.detach().numpy(),
            grid,
            statistics=LayerStatistics.from_inputs(name, rows.numpy()),
            bias=None if part.bias is None else part.bias.detach().numpy(),
            name=name,
            activation=activation,
        )
    places = {"b.up": "up", "b.down": "mlp.down"}
    pulled = [torch.randn_like(each) for each in targets] if gradients else None
    return BlockTask("b", module, layers, places, inputs, floats, targets, pulled)


def output_error_of(task, results):
    """Mean squared error of the block's output with the results in place, by hand."""
    module = Block().eval()
    module.load_state_dict(task.module.state_dict())
    total = 0.0
    with torch.no_grad():
        module.up.weight.copy_(torch.from_numpy(results["b.up"].quantized.dequantize()))
        module.mlp["down"].weight.copy_(torch.from_numpy(results["b.down"].quantized.dequantize()))
        if results["b.up"].bias is not None:
            module.up.bias.copy_(torch.from_numpy(results["b.up"].bias))
        for (given, options), target in zip(task.inputs, task.targets, strict=True):
            total += float((module(*given, **options)[0] - target).square().mean())
    return total / len(task.targets)


def of_block(word, **settings):
    return parse_method(word).but(**{"steps": 100, "scope": "block", **settings})


@pytest.mark.parametrize("word", PRESETS)
def test_a_block_is_learned_on_its_own_output(word):
    task = block_task("power:bits=3,exponent=0.8" if word == "nupes" else "uniform:bits=3")
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    results = of_block(word).quantize_block(task)
    start = {name: parse_method("rtn-clip").quantize_layer(layer) for name, layer in task.layers.items()}
    assert output_error_of(task, results) < 0.9 * output_error_of(task, start)
    assert output_error_of(task, results) == pytest.approx(results["b.up"].trace.loss[-1], rel=1e-3)
    assert list(results) == ["b.up", "b.down"]
    for name, value in task.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0.0, atol=0.0)


def test_the_block_beats_its_layers_one_by_one_on_the_blocks_output():
    task = block_task(drift=0.0)
    together = of_block("brecq", steps=300, block_batches=3).quantize_block(task)
    alone = of_block("brecq", steps=300, scope="layer").quantize_block(task)
    assert output_error_of(task, together) < output_error_of(task, alone)


@pytest.mark.parametrize("loss", ["lp", "fisher", "cosine"])
def test_other_losses_of_a_block_fall(loss):
    task = block_task(gradients=True)
    trace = of_block("brecq", loss=loss, block_batches=3).quantize_block(task)["b.up"].trace
    assert trace.loss[-1] < 0.9 * trace.loss[0]


def test_biases_are_learned_where_there_are_some():
    task = block_task()
    results = of_block("brecq", learn_bias=True, scale_rate=0.05).quantize_block(task)
    assert results["b.up"].bias is not None
    assert results["b.down"].bias is None
    assert any("no bias" in note for note in results["b.down"].notes)
    assert output_error_of(task, results) == pytest.approx(results["b.up"].trace.loss[-1], rel=1e-3)


@pytest.mark.parametrize("activation", ["int8@token", "uniform:bits=4", "float"])
@pytest.mark.parametrize("word", ["brecq", "qdrop"])
def test_coded_activations_are_learned_through_and_taken_off_again(word, activation):
    task = block_task(activation=activation)
    results = of_block(word).quantize_block(task)
    trace = results["b.up"].trace
    assert trace.loss[-1] < trace.loss[0]
    assert not task.module.up._forward_pre_hooks
    assert results["b.up"].activation == activation


def test_a_layer_alone_learns_on_coded_inputs():
    task = block_task(activation="uniform:bits=3").layers["b.down"]
    coded = parse_method("adaround").but(steps=100).quantize_layer(task)
    plain = parse_method("adaround").but(steps=100).quantize_layer(replace(task, activation=None))
    assert coded.trace.loss[0] > plain.trace.loss[0]  # the error of the coded inputs is in it
    assert coded.trace.loss[-1] < coded.trace.loss[0]
    assert (coded.quantized.codes != plain.quantized.codes).any()
    rowless = replace(task, statistics=replace(task.statistics, inputs=None))
    noted = parse_method("adaround").but(steps=5).quantize_layer(rowless)
    assert any("not coded" in note for note in noted.notes)


def test_same_seed_same_block():
    found = [of_block("qdrop", steps=20).quantize_block(block_task(), Run(seed=3)) for _ in range(2)]
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name].quantized.codes, found[1][name].quantized.codes)
    assert found[0]["b.up"].trace == found[1]["b.up"].trace
    other = of_block("qdrop", steps=20).quantize_block(block_task(), Run(seed=4))
    assert other["b.up"].trace.loss != found[0]["b.up"].trace.loss


@pytest.mark.parametrize("word", PRESETS)
def test_zero_steps_and_wild_steps_leave_the_start(word):
    task = block_task()
    for settings in ({"steps": 0}, {"steps": 4, "learning_rate": 1e6, "learn_scale": True, "scale_rate": 1e3}):
        results = of_block(word, start="task", **settings).quantize_block(task)
        loss = results["b.up"].trace.loss
        assert loss[-1] <= loss[0]
        if settings["steps"] == 0:
            for name, layer in task.layers.items():
                np.testing.assert_array_equal(results[name].quantized.codes, layer.start.codes)


def test_weights_on_the_grid_keep_their_codes_in_a_block():
    task = block_task(drift=0.0)
    starts = {name: layer.start for name, layer in task.layers.items()}
    with torch.no_grad():
        for name, place in task.places.items():
            part = task.module.get_submodule(place)
            part.weight.copy_(torch.from_numpy(starts[name].dequantize()))
        task.targets = [task.module(*given, **options)[0] for given, options in task.inputs]
    task.layers = {name: replace(layer, weight=starts[name].dequantize()) for name, layer in task.layers.items()}
    for word in PRESETS:
        results = of_block(word, steps=10).quantize_block(task)
        for name, start in starts.items():
            np.testing.assert_array_equal(results[name].quantized.codes, start.codes)


def test_what_a_block_refuses():
    task = block_task()
    with pytest.raises(QuantizationError, match="without them"):
        of_block("brecq", loss="fisher").quantize_block(task)
    task.places = {"b.up": "up", "b.down": "mlp"}
    with pytest.raises(QuantizationError, match=r"b\.down has shape \(10, 14\).*holds nothing at 'mlp.weight'"):
        of_block("brecq").quantize_block(task)
    empty = block_task(batches=3)
    empty.targets, empty.inputs, empty.float_inputs = [], [], []
    with pytest.raises(QuantizationError, match="no batches"):
        of_block("brecq").quantize_block(empty)

    def stop(name, step, steps, loss):
        if step:
            raise Cancelled("enough")

    coded = block_task(activation="int8@token")
    with pytest.raises(Cancelled):
        of_block("brecq", steps=100_000).quantize_block(coded, Run(on_step=stop))
    assert not coded.module.up._forward_pre_hooks  # also after it was stopped


class Conv1D(torch.nn.Module):
    """GPT-2's layer: a linear one whose weight is stored (inputs, outputs)."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight.detach().T.contiguous())
        self.bias = linear.bias

    def forward(self, x):
        return x @ self.weight + (0.0 if self.bias is None else self.bias)


@pytest.mark.parametrize("word", ["brecq", "autoround"])
def test_layers_stored_transposed_learn_the_same_codes(word):
    plain, turned = block_task(), block_task()
    turned.module.up = Conv1D(turned.module.up)
    turned.module.mlp["down"] = Conv1D(turned.module.mlp["down"])
    expected = of_block(word, steps=20).quantize_block(plain)
    found = of_block(word, steps=20).quantize_block(turned)
    for name, result in expected.items():
        assert found[name].error == pytest.approx(result.error, rel=1e-3)
        np.testing.assert_allclose(found[name].trace.loss, result.trace.loss, rtol=1e-3)


class Answer(dict):
    """What transformers' models return: values by name."""


def test_a_block_that_answers_by_name_is_learned_like_one_that_answers_in_a_tuple():
    class Named(Block):
        def forward(self, x, *, shift=None):
            return Answer(last_hidden_state=super().forward(x, shift=shift)[0])

    plain, named = block_task(), block_task()
    module = Named().eval()
    module.load_state_dict(named.module.state_dict())
    expected = of_block("brecq", steps=10).quantize_block(plain)
    found = of_block("brecq", steps=10).quantize_block(replace(named, module=module))
    assert {name: each.error for name, each in found.items()} == {name: each.error for name, each in expected.items()}
