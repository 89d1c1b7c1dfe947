"""Inputs and outputs of linear layers and convolutions, whatever way their weights are stored: scale them, measure them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def is_linear(layer: Any) -> bool:
    """Say whether a layer multiplies a matrix: ``Linear``, or transformers' ``Conv1D`` (stored (in, out))."""
    import torch

    return isinstance(layer, torch.nn.Linear) or is_turned(layer)


def is_turned(layer: Any) -> bool:
    """Say whether a layer stores its matrix (in, out), as GPT-2's ``Conv1D``."""
    return type(layer).__name__ == "Conv1D" and getattr(layer, "weight", None) is not None and layer.weight.ndim == 2


def is_plain_convolution(layer: Any) -> bool:
    """Say whether a layer is a 1-d to 3-d convolution, not transposed."""
    import torch

    return isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)


def rows_of(layer: Any) -> torch.Tensor:
    """Return a linear layer's weight as (outputs, inputs), a view: writing to it changes the layer.

    Of a convolution it is (outputs, the rest), to be read only.
    """
    weight = layer.weight.data
    return weight.T if is_turned(layer) else weight.flatten(1)


def scale_outputs(layer: Any, factors: torch.Tensor, rows: tuple[int, int] | None = None) -> None:
    """Multiply a layer's outputs by factors (outputs,), in place: its rows and its bias.

    Args:
        layer: linear or convolution.
        factors: one for each output, or for each of ``rows``.
        rows: first and last + 1 output that are meant; None for all.
    """
    weight = layer.weight.data.T if is_turned(layer) else layer.weight.data
    first, last = rows or (0, len(weight))
    weight[first:last] *= factors.to(weight).view(-1, *[1] * (weight.ndim - 1))
    if layer.bias is not None:
        layer.bias.data[first:last] *= factors.to(layer.bias)


def scale_inputs(layer: Any, factors: torch.Tensor) -> None:
    """Multiply the weights of each input channel by a factor (inputs,), in place."""
    spread = _per_group(layer, factors.to(layer.weight))
    if spread is None:
        rows_of(layer)[:] *= factors[None].to(layer.weight)
    else:
        layer.weight.data *= spread


def input_absmax(layer: Any) -> torch.Tensor:
    """Return the largest magnitude among the weights of each input channel, (inputs,)."""
    import torch

    weight = layer.weight.data
    if not is_plain_convolution(layer):
        return rows_of(layer).abs().amax(dim=0)
    groups = layer.groups
    inside = weight.abs().flatten(2).amax(dim=2)  # (outputs, inputs of a group)
    return torch.cat([part.amax(dim=0) for part in inside.chunk(groups)])


def output_absmax(layer: Any) -> torch.Tensor:
    """Return the largest magnitude among the weights of each output channel, (outputs,)."""
    return rows_of(layer).abs().amax(dim=1)


def input_count(layer: Any) -> int:
    """Return how many input channels a layer reads."""
    if is_plain_convolution(layer):
        return layer.weight.shape[1] * layer.groups
    return rows_of(layer).shape[1]


def _per_group(layer: Any, factors: torch.Tensor) -> torch.Tensor | None:
    """Return factors in the shape of a convolution's weight (each group of outputs reads inputs of its own)."""
    if not is_plain_convolution(layer):
        return None
    outputs, inside = layer.weight.shape[:2]
    by_group = factors.view(layer.groups, 1, inside).expand(layer.groups, outputs // layer.groups, inside)
    return by_group.reshape(outputs, inside, *[1] * (layer.weight.ndim - 2))
