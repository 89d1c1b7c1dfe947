"""Cross-layer equalization: ranges meet, BatchNorm is folded first, the network computes the same."""

from __future__ import annotations

import block_zoo as zoo
import pytest
import torch

from workbench.calibration.runnable import resnet_module
from workbench.methods.transforms import parse_transform
from workbench.methods.transforms.equalization import Link, fold_batch_norm, linked_layers
from workbench.methods.transforms.layer_axes import input_absmax, output_absmax, scale_inputs, scale_outputs
from workbench.resources import demo_path


@pytest.fixture
def resnet():
    return resnet_module().load(demo_path("tiny-resnet"))


def task_for(module, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = [((torch.randn(shape, generator=generator),), {}) for _ in range(2)]
    return zoo.task_of(module, inputs, statistics=False)


def test_every_block_of_the_resnet_is_equalized(resnet):
    shapes = [(2, 32, 8, 8), (2, 32, 8, 8), (2, 64, 4, 4), (2, 64, 4, 4)]
    for block, shape in zip(resnet.blocks, shapes, strict=True):
        task = task_for(block, shape)
        before = zoo.outputs(task)
        buffers = {name: value.clone() for name, value in block.named_buffers()}
        (link,) = linked_layers(block)
        assert link.norm == "bn1"
        assert {link.first, link.second} in ({"conv1", "conv2"}, {"depthwise", "pointwise"})
        assert parse_transform("equalization").apply(task) == ()
        assert zoo.moved(task, before) < 5e-6
        assert all(value.equal(buffers[name]) for name, value in block.named_buffers())
        made, read = output_absmax(block.get_submodule(link.first)), input_absmax(block.get_submodule(link.second))
        alive = (made > 0) & (read > 0)
        torch.testing.assert_close(made[alive], read[alive], rtol=1e-3, atol=0.0)


def test_a_folded_batch_norm_only_adds_a_bias():
    generator = torch.Generator().manual_seed(0)
    layer, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        value.data = torch.randn(4, generator=generator)
    norm.running_var.data = torch.rand(4, generator=generator) + 0.1
    x = torch.randn(2, 3, 6, 6, generator=generator)
    before = norm(layer(x))
    fold_batch_norm(layer, norm)
    torch.testing.assert_close(norm(layer(x)), before)
    torch.testing.assert_close(norm(layer(x)), layer(x) + (norm.bias - norm.running_mean)[:, None, None])


def test_a_chain_of_linear_layers_converges_and_dead_channels_stay():
    torch.manual_seed(0)
    chain = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.LeakyReLU(), torch.nn.Linear(8, 3)
    )
    with torch.no_grad():
        chain[0].weight[2] = 0.0
        chain[2].weight[:, 5] = 0.0
        chain[0].weight[1] *= 1000.0
    task = task_for(chain, (16, 6))
    before = zoo.outputs(task)
    assert linked_layers(chain) == [Link("0", "2"), Link("2", "4")]
    assert parse_transform("equalization").apply(task) == ()
    assert zoo.moved(task, before) < 1e-5
    made, read = output_absmax(chain[0]), input_absmax(chain[2])
    alive = (made > 0) & (read > 0)
    assert alive.sum() == 6
    torch.testing.assert_close(made[alive], read[alive], rtol=5e-3, atol=0.0)


class Branching(torch.nn.Module):
    """The first layer's output is read twice; the second pair has a function in between that is not homogeneous."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.c(torch.sigmoid(self.b(y))) + y


def test_what_is_read_twice_or_bent_is_left_alone():
    task = task_for(Branching(), (5, 4))
    assert linked_layers(task.module) == []
    (note,) = parse_transform("equalization").apply(task)
    assert "nothing was equalized" in note


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_channels_of_grouped_convolutions(groups):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6, 12, 3, groups=groups)
    x, factors = torch.randn(2, 6, 5, 5), torch.rand(6) + 0.5
    before = layer(x)
    peaks = input_absmax(layer)
    scale_inputs(layer, factors)
    torch.testing.assert_close(layer(x / factors[:, None, None]), before)
    torch.testing.assert_close(input_absmax(layer), peaks * factors)
    scale_outputs(layer, torch.full((12,), 2.0))
    torch.testing.assert_close(layer(x / factors[:, None, None]), 2 * before)
