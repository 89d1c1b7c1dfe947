"""Cross-layer equalization: neighbouring layers of a network with ReLU share the spread of their channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import QuantizationError
from workbench.methods.run import Run
from workbench.methods.task import BlockTask
from workbench.methods.transforms.layer_axes import (
    input_absmax,
    input_count,
    is_linear,
    is_plain_convolution,
    output_absmax,
    scale_inputs,
    scale_outputs,
)
from workbench.methods.transforms.pairs import foldable_pairs
from workbench.methods.transforms.transform import Transform, register
from workbench.methods.transforms.verified import change_if_equal

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class Equalization(Transform):
    """Bring the weight ranges of each channel between two layers to the same size on either side.

    Channel i is divided by ``s = sqrt(r1 / r2)`` where it is made and multiplied where it is read (r1, r2: its largest weight
    on either side), over and over until nothing moves. What is between must not mind: a BatchNorm, which is folded into the
    layer before it (the bias stays in it), ReLU, dropout, nothing.

    Source: Nagel et al. 2019, Data-Free Quantization (arXiv 1906.04721), section 4.1, eq. 11 (range taken as the largest
    magnitude).

    Args:
        rounds: passes over all pairs at most.

    Raises:
        QuantizationError: fewer than one round.
    """

    word: ClassVar[str] = "equalization"
    title: ClassVar[str] = "Cross-layer equalization"
    summary: ClassVar[str] = "evens out the weight ranges of channels between layers with ReLU, BatchNorm folded first"

    rounds: int = 20

    def __post_init__(self) -> None:
        if self.rounds < 1:
            message = f"equalization makes at least one round, not {self.rounds}"
            raise QuantizationError(message)

    def apply(self, block: BlockTask, run: Run | None = None) -> tuple[str, ...]:
        """Equalize every pair of the block; see ``Transform.apply``."""
        links = linked_layers(block.module)
        if not links:
            return (f"{block.name} has no two layers with only BatchNorm and ReLU between them: nothing was equalized",)
        note = change_if_equal(block, f"equalizing {block.name}", lambda: equalize(block.module, links, self.rounds))
        return (note,) if note else ()


@dataclass(frozen=True)
class Link:
    """Two layers between which only a BatchNorm and functions stand that positive factors pass through."""

    first: str
    second: str
    norm: str | None = None
    """The BatchNorm between them."""


def linked_layers(block: torch.nn.Module) -> list[Link]:
    """Return the pairs of layers that can be equalized, found by following the block's forward pass (``torch.fx``).

    Where that cannot be followed (most of transformers' blocks), pairs that names promise: OPT's fc1 -> ReLU -> fc2.
    """
    from torch import fx

    try:
        graph = fx.symbolic_trace(block).graph
    except Exception:
        # whatever the module's own code raises when it is handed symbols instead of numbers
        pairs = [pair for pair in foldable_pairs(block) if pair.kind == "relu"]
        return [Link(pair.producer, pair.consumers[0]) for pair in pairs]
    found: list[Link] = []
    node: Any
    place: Any
    for node in graph.nodes:
        if (
            node.op != "call_module"
            or not _is_layer(block.get_submodule(node.target))
            or _calls(graph, node.target) != 1
        ):
            continue
        norm, place = None, node
        while len(place.users) == 1:
            place = next(iter(place.users))
            part = block.get_submodule(place.target) if place.op == "call_module" else None
            if _is_batch_norm(part) and norm is None and place.args[0] is node and _calls(graph, place.target) == 1:
                norm = place.target
            elif part is not None and _is_layer(part):
                if _calls(graph, place.target) == 1 and _channels_match(block.get_submodule(node.target), part):
                    found.append(Link(node.target, place.target, norm))
                break
            elif not _is_homogeneous(place, part):
                break
    return found


def equalize(block: torch.nn.Module, links: Sequence[Link], rounds: int = 20) -> None:
    """Fold the BatchNorms of some links and equalize them, in place, until no factor is further than 1e-3 from 1."""
    import torch

    for link in links:
        if link.norm is not None:
            fold_batch_norm(block.get_submodule(link.first), block.get_submodule(link.norm))
    for _ in range(rounds):
        moved = 0.0
        for link in links:
            first: Any = block.get_submodule(link.first)
            second: Any = block.get_submodule(link.second)
            made, read = output_absmax(first), input_absmax(second)
            factors = torch.where((made > 0.0) & (read > 0.0), (made / read.clamp_min(1e-30)).sqrt(), 1.0)
            factors = factors.clamp(1e-4, 1e4)
            scale_outputs(first, 1.0 / factors)
            if link.norm is not None:
                norm: Any = block.get_submodule(link.norm)
                # the norm adds bias - mean to what the layer gives
                norm.bias.data[:] = (norm.bias - norm.running_mean) / factors.to(norm.bias) + norm.running_mean
            scale_inputs(second, factors)
            moved = max(moved, float((factors - 1.0).abs().max()))
        if moved < 1e-3:
            break


def fold_batch_norm(layer: Any, norm: Any) -> None:
    """Move a BatchNorm's gain and spread into the layer before it, in place; the norm only adds ``bias - mean`` afterwards.

    What is added stays in the norm, so that no layer gets a parameter that its checkpoint does not have; the norm's running
    statistics stay as they are, and its gain becomes the spread that it divides by.
    """
    import torch

    spread = torch.sqrt(norm.running_var + norm.eps)
    gain = norm.weight.data / spread
    scale_outputs(layer, gain)
    norm.bias.data[:] = norm.bias.data - norm.running_mean * gain + norm.running_mean
    norm.weight.data[:] = spread


def _is_layer(part: Any) -> bool:
    return is_linear(part) or is_plain_convolution(part)


def _is_batch_norm(part: Any) -> bool:
    """Say whether a part is a BatchNorm with statistics to fold and a bias to keep."""
    import torch

    kinds = torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d
    return isinstance(part, kinds) and part.affine and part.track_running_stats


def _channels_match(first: Any, second: Any) -> bool:
    return len(output_absmax(first)) == input_count(second)


def _calls(graph: Any, target: str) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.nodes)


def _is_homogeneous(node: Any, part: Any) -> bool:
    """Say whether positive factors per channel pass through a step unchanged."""
    import torch

    homogeneous = torch.nn.ReLU | torch.nn.LeakyReLU | torch.nn.Dropout | torch.nn.Dropout2d | torch.nn.Identity
    if part is not None:
        return isinstance(part, homogeneous)
    functions = {torch.relu, torch.nn.functional.relu, torch.nn.functional.leaky_relu, torch.nn.functional.dropout}
    return (node.op == "call_function" and node.target in functions) or (
        node.op == "call_method" and node.target in {"relu", "relu_", "contiguous"}
    )
