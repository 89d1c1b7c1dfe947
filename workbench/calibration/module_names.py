"""Which module of a running model a layer of its checkpoint is, and the bias that goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from workbench.checkpoints import Layer, Model
from workbench.checkpoints.views import RowPieces
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: Modules that hold several projections of the same input, by the parts that a checkpoint may store apart.
_WHOLE = {
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "query", "key", "value"),
        ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "W_pack", "qkv", "wqkv"),
    ),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), ("gate_up_proj", "Wi")),
}


def runs_as_head(model: Model, layer: Layer) -> bool:
    """Say whether an embedding's weight also is the head's (tied), which does multiply."""
    return any(name == layer.name and alias.endswith(_HEADS) for alias, name in model.tied.items())


_HEADS = ("lm_head", "embed_out", "decoder", "output", "head")


def module_of(module: torch.nn.Module, model: Model, layer: Layer) -> str:
    """Return the path of the module whose input a layer has.

    Names are looked up as they are, then with the model's prefix added or taken away, then as the part of a fused module,
    then by their last parts where only one module has them.

    Raises:
        CheckpointError: no module, or several, could be meant.
    """
    paths = {path for path, child in module.named_modules() if path and _multiplies(child)}
    name = layer.name
    if layer.kind == "embedding":
        heads = [alias for alias, home in model.tied.items() if home == layer.name and alias.endswith(_HEADS)]
        name = heads[0]
    prefix = str(getattr(module, "base_model_prefix", "") or "")
    for candidate in _candidates(name, prefix):
        if candidate in paths:
            return candidate
    for candidate in _candidates(name, prefix):
        # By whole name parts: the module's path ends like the layer's name, or the other way round.
        ending = [
            path for path in paths if f".{path}".endswith(f".{candidate}") or f".{candidate}".endswith(f".{path}")
        ]
        if len(ending) == 1:
            return ending[0]
    message = f"no module of {type(module).__name__} is the layer {layer.name}, so its inputs cannot be caught"
    raise CheckpointError(message)


def _candidates(name: str, prefix: str) -> list[str]:
    head, _, last = name.rpartition(".")
    names = [name]
    if head:
        names.append(head)  # the part of a fused projection, whose whole is the module
        names += [f"{head}.{whole}" for whole in _WHOLE.get(last, ())]
    found = []
    for each in names:
        found.append(each)
        if prefix:
            found.append(each.removeprefix(f"{prefix}."))
            found.append(f"{prefix}.{each}")
    return list(dict.fromkeys(found))


def _multiplies(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    word = type(module).__name__
    return weight is not None and getattr(weight, "ndim", 0) >= 2 and "Embedding" not in word


def bias_of(module: torch.nn.Module, model: Model, layer: Layer) -> Float[np.ndarray, " channels"] | None:
    """Return a layer's bias as float32: the module's own, or the rows of it that a part of a fused module has."""
    bias = getattr(module, "bias", None)
    if bias is None or not hasattr(bias, "detach"):
        return None
    values = bias.detach().float().cpu().numpy().astype(np.float32)
    outputs = layer.weight.shape[0]
    if isinstance(layer.weight, RowPieces) and values.shape == (layer.weight.whole.shape[0],):
        pieces = layer.weight
        rows = pieces.first + np.arange(pieces.pieces)[:, None] * pieces.period + np.arange(pieces.length)
        return values[rows.ravel()]
    return values if values.shape == (outputs,) else None
