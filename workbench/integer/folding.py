"""Rewriting float graphs: BatchNorm goes into the layer before it, clamps become part of the node before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from workbench.integer.graph import Graph, Node

#: Operators whose output clamp can hold a ReLU.
FUSED = frozenset({"linear", "conv2d", "matmul", "add"})
CLAMPS = frozenset({"relu", "relu6"})


def fold_batch_norm(  # noqa: PLR0917 - the six tensors of the formula, in its order
    weight: np.ndarray,
    bias: np.ndarray | None,
    mean: np.ndarray,
    variance: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of the one layer that equals a layer followed by BatchNorm in evaluation mode.

    ``w' = w * gamma / sqrt(variance + epsilon)`` per output channel, ``b' = (b - mean) * gamma / sqrt(...) + beta``;
    computed in float64, returned as float32. Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2, equation 14.

    Args:
        weight: (outputs, ...).
        bias: (outputs,), or None for zeros.
        mean: running mean (outputs,).
        variance: running variance (outputs,).
        gamma: scale (outputs,), or None for ones.
        beta: shift (outputs,), or None for zeros.
        epsilon: added to the variance.
    """
    outputs = weight.shape[0]
    wide = [np.asarray(part, dtype=np.float64) for part in (weight, mean, variance)]
    scale = np.ones(outputs) if gamma is None else np.asarray(gamma, dtype=np.float64)
    shift = np.zeros(outputs) if beta is None else np.asarray(beta, dtype=np.float64)
    start = np.zeros(outputs) if bias is None else np.asarray(bias, dtype=np.float64)
    factor = scale / np.sqrt(wide[2] + epsilon)
    folded = wide[0] * factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    return folded.astype(np.float32), ((start - wide[1]) * factor + shift).astype(np.float32)


def fold_batch_norms(graph: Graph) -> Graph:
    """Fold every ``batch_norm`` node into the conv2d or linear node that alone feeds it.

    One that cannot be folded becomes a depthwise layer of its own.

    Args:
        graph: ``batch_norm`` nodes hold the constants ``mean``, ``variance``, ``gamma``, ``beta`` and the option
            ``epsilon``.
    """

    def into(before: Node, node: Node) -> Node | None:
        if node.operator != "batch_norm" or before.operator not in {"conv2d", "linear"}:
            return None
        return None if before.options.get("activation") else _folded(before, node)

    return _merge(graph, into, lambda node: _as_depthwise(node) if node.operator == "batch_norm" else node)


def fuse_activations(graph: Graph) -> Graph:
    """Make each ReLU and ReLU6 the output clamp of the node that alone feeds it."""

    def into(before: Node, node: Node) -> Node | None:
        if node.operator not in CLAMPS or before.operator not in FUSED or before.options.get("activation"):
            return None
        return before.with_options(activation=node.operator)

    return _merge(graph, into, lambda node: node)


def _merge(graph: Graph, into: Callable[[Node, Node], Node | None], otherwise: Callable[[Node], Node]) -> Graph:
    """Return the graph with nodes merged into the ones that alone feed them.

    The merged node keeps its name and its value's name (so that a layer's output is found under the layer), except where
    the graph returns the value.
    """
    nodes: list[Node] = []
    places: dict[str, int] = {}
    renamed: dict[str, str] = {}
    reads = {name: len(found) for name, found in graph.consumers.items()}
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        # A value read once and not returned: whoever made it feeds this node alone.
        if node.inputs and reads[original.inputs[0]] == 1 and original.inputs[0] not in graph.outputs:
            place = places.get(node.inputs[0])
            merged = None if place is None else into(nodes[place], node)
            if place is not None and merged is not None:
                if node.output in graph.outputs:
                    merged = replace(merged, output=node.output)
                nodes[place] = merged
                places[merged.output] = place
                renamed[original.output] = merged.output
                continue
        node = otherwise(node)
        places[node.output] = len(nodes)
        nodes.append(node)
    return Graph(tuple(nodes), graph.inputs, graph.outputs)


def _as_depthwise(norm: Node) -> Node:
    """Return a BatchNorm as a 1 x 1 convolution of every channel on its own."""
    channels = len(norm.constants["mean"])
    plain = np.ones((channels, 1, 1, 1), dtype=np.float32)
    start = Node(norm.name, "conv2d", norm.inputs, norm.output, {"weight": plain}, {"groups": channels})
    return _folded(start, norm)


def _folded(before: Node, norm: Node) -> Node:
    weight, bias = fold_batch_norm(
        before.constants["weight"],
        before.constants.get("bias"),
        norm.constants["mean"],
        norm.constants["variance"],
        norm.constants.get("gamma"),
        norm.constants.get("beta"),
        float(norm.options.get("epsilon", 1e-5)),
    )
    return before.with_constants(weight=weight, bias=bias)
