from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from workbench.errors import IntegerError, SemanticsError
from workbench.integer import integerize
from workbench.integer.cnn import build_graph
from workbench.integer.running import float_values
from workbench.quantization.recipe import Recipe


class Branches(nn.Module):
    """Everything at once: groups, dilation, stride, cat, mul, pools, several activations, reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 1), stride=(2, 1), padding=(1, 0), groups=4, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.act = nn.Hardswish()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Sigmoid())
        self.drop = nn.Dropout(0.5)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.average = nn.AvgPool2d(2)
        self.head = nn.Linear(24 * 2 * 2, 5)

    def forward(self, x):
        x = functional.relu6(self.norm(self.first(x)))
        x = self.act(self.depthwise(self.grouped(x)))
        x = x * self.gate(x)
        both = torch.cat([self.pool(x), functional.max_pool2d(x, 2, ceil_mode=False)], 1)
        both = functional.silu(self.average(both))
        both = self.drop(both) + both
        return self.head(both.view(both.size(0), -1)), both.mean((2, 3), keepdim=True)


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.running_mean.copy_(0.1 * torch.randn(each.num_features, generator=generator))
                each.running_var.copy_(torch.rand(each.num_features, generator=generator) + 0.5)
    return module.eval()


@pytest.fixture(scope="module")
def branches():
    torch.manual_seed(0)
    return randomised(Branches())


IMAGES = np.random.default_rng(0).normal(size=(16, 3, 16, 8)).astype(np.float32)


def test_the_float_graph_equals_the_module(branches):
    graph = build_graph(branches)
    found = {name: array for name, array in float_values(graph, IMAGES, np.float64) if name in graph.outputs}
    with torch.no_grad():
        expected = branches.double()(torch.from_numpy(IMAGES).double())
        branches.float()
    for name, tensor in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-5, atol=1e-5)
    assert {node.operator for node in graph.nodes} >= {
        "conv2d",
        "concat",
        "mul",
        "max_pool2d",
        "average_pool2d",
        "silu",
    }
    assert graph.node("grouped").options["groups"] == 4


@pytest.mark.parametrize("kind", ["table", "polynomial"])
@pytest.mark.parametrize("semantics", ["litert-reference", "tflm", "tosa-double"])
def test_integers_stay_close_to_the_module(branches, semantics, kind):
    model = integerize(branches, "w8a8", IMAGES, semantics=semantics, kind=kind)
    real, fake, integer = (model(IMAGES, mode) for mode in ("float", "fake", "integer"))
    for one, other, third in zip(real, fake, integer, strict=True):
        size = np.sqrt(np.mean(one**2))
        assert np.sqrt(np.mean((third - one) ** 2)) < 0.06 * size
        assert np.sqrt(np.mean((third - other) ** 2)) < 0.05 * size


def test_onnxruntime_semantics_need_8_bit_streams(branches):
    with pytest.raises(SemanticsError, match="stream='int8'"):
        integerize(branches, "w8a8", IMAGES, semantics="onnxruntime")
    recipe = Recipe(Recipe.of("w8a8").entries, stream="int8")
    model = integerize(branches, recipe, IMAGES, semantics="onnxruntime")
    real, integer = model(IMAGES, "float"), model(IMAGES)
    assert np.sqrt(np.mean((real[0] - integer[0]) ** 2)) < 0.1 * np.sqrt(np.mean(real[0] ** 2))


class Shared(nn.Module):
    """One module called twice, a functional linear layer's shape methods, an average over everything inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.act = nn.GELU("tanh")

    def forward(self, x):
        x = self.pool(self.conv(self.act(self.conv(x)))).tanh()
        return torch.flatten(x.relu(), 1).reshape(x.shape[0], 4, -1)


def test_a_module_called_twice_has_two_nodes():
    module = Shared().eval()
    graph = build_graph(module)
    assert [node.name for node in graph.nodes if node.operator == "conv2d"] == ["conv", "conv.2"]
    x = IMAGES[:, :2, :4, :4]
    (found,) = [array for name, array in float_values(graph, x) if name in graph.outputs]
    np.testing.assert_allclose(found, module(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    model = integerize(module, "w8a16", x)
    assert np.abs(model(x) - found).max() < 0.02


def seq(*layers):
    return nn.Sequential(*layers).eval()


class Weird(nn.Module):
    def forward(self, x):
        return torch.einsum("bchw->bc", x)


class Depends(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Parameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


class MeanOverRows(nn.Module):
    def forward(self, x):
        return x.mean(2)


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def half_trained():
    module = seq(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    module[1].train()
    return module


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(3, 4, 3).half()])
def test_a_single_layer_is_a_network(layer):
    model = integerize(layer.eval(), "w8a8", IMAGES)
    expected = layer.float()(torch.from_numpy(IMAGES)).detach().numpy()
    assert np.abs(model(IMAGES, "float") - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("function", [functional.max_pool2d, functional.avg_pool2d])
@pytest.mark.parametrize("arguments", [(2,), (3, 2), ((3, 2), (2, 1))])
def test_pooling_functions_take_their_arguments_by_place(function, arguments):
    model = integerize(seq(Call(lambda x: function(x, *arguments))), "w8a8", IMAGES)
    expected = function(torch.from_numpy(IMAGES), *arguments).numpy()
    np.testing.assert_allclose(model(IMAGES, "float"), expected, rtol=1e-5, atol=1e-6)


def test_a_graph_that_differs_from_its_module_is_refused():
    def forward(x):
        first = torch.tanh(x)
        return torch.relu_(first) + first

    with pytest.raises(IntegerError, match="differs from the module by"):
        integerize(seq(Call(forward)), "w8a8", IMAGES)
    with pytest.raises(IntegerError, match="cannot run on these inputs"):
        integerize(seq(nn.Conv2d(3, 3, 3)), "w8a8", IMAGES[:, :2])


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (half_trained(), r"Sequential \(1\) is in training mode"),
        (nn.Linear(3, 3, device="meta").eval(), "meta device"),
        (nn.LSTM(3, 3).eval(), r"LSTM\) is not covered"),
        (seq(Call(lambda x: torch.add(x, x, alpha=2))), "factor alpha of 2"),
        (seq(Call(functional.dropout)), "even in evaluation mode"),
        (seq(Call(lambda x: functional.max_pool2d(x, 3, 2, 0, 1, True))), "ceil_mode"),
        (seq(Call(lambda x: functional.max_pool2d(x, 3, 2, 0, 2))), "dilation"),
        (seq(Call(lambda x: functional.avg_pool2d(x, 3, 2, 1, False))), "count_include_pad"),
        (seq(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), "pads with reflect"),
        (seq(nn.AvgPool2d(2, padding=1)), "count_include_pad=False"),
        (seq(nn.MaxPool2d(2, ceil_mode=True)), "ceil_mode"),
        (seq(nn.MaxPool2d(2, dilation=2)), "dilation"),
        (seq(nn.AdaptiveAvgPool2d(2)), "1 x 1"),
        (seq(nn.BatchNorm2d(3, track_running_stats=False)), "no running statistics"),
        (seq(nn.InstanceNorm2d(3)), r"0 \(InstanceNorm2d\) is not covered"),
        (seq(nn.ConvTranspose2d(3, 3, 2)), "ConvTranspose2d"),
        (seq(Weird()), "einsum"),
        (seq(Depends()), "must not depend on the data"),
        (seq(Parameter()), "reads its parameter"),
        (seq(MeanOverRows()), r"dim=\(2, 3\)"),
        (nn.Sequential(nn.ReLU()), "training mode"),
    ],
)
def test_what_is_not_covered_is_named(module, words):
    with pytest.raises(IntegerError, match=words):
        build_graph(module)
