from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.integer.folding import fold_batch_norm, fold_batch_norms, fuse_activations
from workbench.integer.graph import Graph, Node
from workbench.integer.running import float_values


def norm_constants(rng, channels):
    return {
        "mean": rng.normal(size=channels).astype(np.float32),
        "variance": rng.uniform(0.1, 2, channels).astype(np.float32),
        "gamma": rng.normal(size=channels).astype(np.float32),
        "beta": rng.normal(size=channels).astype(np.float32),
    }


@given(st.integers(1, 8), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_folded_layer_equals_torch_s_two_layers(outputs, inputs, bias, affine, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Conv2d(inputs, outputs, 3, bias=bias)
    norm = torch.nn.BatchNorm2d(outputs, affine=affine)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *norm.parameters(), norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        norm.running_var.copy_(torch.rand(outputs, generator=generator) + 0.01)
    both = torch.nn.Sequential(layer, norm).eval().double()
    x = torch.randn(2, inputs, 6, 5, generator=generator, dtype=torch.float64)
    weight, shift = fold_batch_norm(
        layer.weight.detach().numpy(),
        None if layer.bias is None else layer.bias.detach().numpy(),
        norm.running_mean.numpy(),
        norm.running_var.numpy(),
        norm.weight.detach().numpy() if affine else None,
        norm.bias.detach().numpy() if affine else None,
        norm.eps,
    )
    folded = torch.nn.functional.conv2d(x, torch.from_numpy(weight).double(), torch.from_numpy(shift).double())
    expected = both(x)
    assert torch.allclose(folded, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def values_of(graph, x):
    return {name: array for name, array in float_values(graph, x, np.float64) if name in graph.outputs}


def test_graphs_with_and_without_folding_agree():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    graph = Graph(
        (
            Node("conv", "conv2d", ("x",), "a", {"weight": weight}, {"padding": 1}),
            Node("bn", "batch_norm", ("a",), "b", norm_constants(rng, 4), {"epsilon": 1e-3}),
            Node("act", "relu", ("b",), "c"),
            Node("bn2", "batch_norm", ("c",), "d", norm_constants(rng, 4)),
        ),
        ("x",),
        ("d",),
    )
    folded = fold_batch_norms(graph)
    # The second has a ReLU before it and becomes a depthwise layer of its own.
    assert [node.operator for node in folded.nodes] == ["conv2d", "relu", "conv2d"]
    assert folded.nodes[2].options["groups"] == 4
    fused = fuse_activations(folded)
    assert [node.name for node in fused.nodes] == ["conv", "bn2"]
    assert fused.nodes[0].output == "a"
    assert fused.outputs == ("d",)
    x = rng.normal(size=(2, 2, 5, 5))
    layer, first, second = (
        torch.nn.Conv2d(2, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4, eps=1e-3),
        torch.nn.BatchNorm2d(4),
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        for norm, node in ((first, graph.nodes[1]), (second, graph.nodes[3])):
            parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            for target, source in zip(parts, node.constants.values(), strict=True):
                target.copy_(torch.from_numpy(source))
        whole = torch.nn.Sequential(layer, first, torch.nn.ReLU(), second).eval().double()
        expected = whole(torch.from_numpy(x)).numpy()
    for each in (folded, fused):
        np.testing.assert_allclose(values_of(each, x)["d"], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("outputs", [("y",), ("h", "y")])
def test_an_activation_is_fused_only_where_nobody_else_reads_the_sum(outputs):
    weight = np.ones((2, 2), dtype=np.float32)
    graph = Graph(
        (Node("fc", "linear", ("x",), "h", {"weight": weight}), Node("act", "relu6", ("h",), "y")), ("x",), outputs
    )
    fused = fuse_activations(graph)
    assert len(fused) == len(outputs)
    assert fused.outputs == outputs
    x = np.array([[-3.0, 1.0], [4.0, 5.0]])
    for name, array in values_of(graph, x).items():
        assert np.array_equal(values_of(fused, x)[name], array)


def test_two_activations_in_a_row_and_shared_readers():
    weight = np.eye(2, dtype=np.float32)
    graph = Graph(
        (
            Node("fc", "linear", ("x",), "h", {"weight": weight}),
            Node("r", "relu", ("h",), "a"),
            Node("r2", "relu6", ("a",), "b"),
            Node("fc2", "linear", ("b",), "s", {"weight": weight}),
            Node("p", "relu", ("s",), "p"),
            Node("q", "add", ("s", "p"), "y"),
        ),
        ("x",),
        ("y",),
    )
    fused = fuse_activations(graph)
    # One clamp goes into the layer, the second stays; "s" is read twice, so its ReLU stays.
    assert [node.name for node in fused.nodes] == ["fc", "r2", "fc2", "p", "q"]
    x = np.array([[-3.0, 9.0], [4.0, 5.0]])
    assert np.array_equal(values_of(fused, x)["y"], values_of(graph, x)["y"])
