"""8-bit floating weights with scales: per tensor, per row, or per block of rows and columns (DeepSeek-V3).

A weight is its stored E4M3 (or E5M2) number times the scale; ``weight_scale_inv`` is, despite its name, that factor
(DeepSeek-V3, ``inference/kernel.py``: ``weight_dequant``; transformers' ``FineGrainedFP8Config``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from workbench.checkpoints.dtypes import is_float8
from workbench.checkpoints.names import layer_name
from workbench.checkpoints.prequantized.codes import BlockScale, ScaledRows, StoredCodes, composed, scale_reader
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

_DEFAULT_BLOCK = (128, 128)
WORDS = {"float8_e4m3fn": "fp8-e4m3", "float8_e5m2": "fp8-e5m2"}


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the 8-bit floating weights that have a scale beside them.

    Raises:
        CheckpointError: a scale's shape fits no known granularity.
    """
    for name, tensor in tensors.items():
        if not is_float8(tensor.dtype) or len(tensor.shape) < 2:
            continue
        scale = _scale_of(name, tensors, settings)
        if scale is not None:
            yield decode_float8(layer_name(name), tensor, scale, settings), {name, scale.name}


def _scale_of(name: str, tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> StoredTensor | None:
    suffixes = ["_scale_inv", "_scale"]
    candidates = [name + suffix for suffix in suffixes]
    if name.endswith("weight"):
        candidates.append(name.removesuffix("weight") + "scale_weight")
        if settings.get("quant_method") == "fp8":
            candidates.append(name.removesuffix("weight") + "scale")
    return next((tensors[candidate] for candidate in candidates if candidate in tensors), None)


def decode_float8(name: str, tensor: StoredTensor, scale: StoredTensor, settings: Mapping[str, Any]) -> Entry:
    """Make the entry of one weight, (out, in) or (experts, out, in)."""
    stack = prod(tensor.shape[:-2])
    matrix = (tensor.shape[-2], tensor.shape[-1])
    block = block_of(name, matrix, stack, scale, settings)
    factors = BlockScale(scale, matrix, block, scale_reader(scale))
    if scale.size == 1 and stack > 1:  # one scale for all experts
        factors = BlockScale(scale, (stack * matrix[0], matrix[1]), (stack * matrix[0], matrix[1]), scale_reader(scale))
        factors.check(1, name)
    else:
        factors.check(stack, name)
    rows = (stack * matrix[0], matrix[1])
    weights = ScaledRows(rows, StoredCodes(tensor, matrix[1]), factors)
    word = WORDS.get(tensor.dtype.name, tensor.dtype.name)
    return composed(name, weights, tensor.shape, word, [tensor, scale])


def block_of(
    name: str, matrix: tuple[int, int], stack: int, scale: StoredTensor, settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Say which block of weights shares a scale, from the scale's shape and the configured block size.

    Raises:
        CheckpointError: no granularity fits.
    """
    rows, columns = matrix
    if scale.size in {1, stack}:
        return matrix
    if scale.size == stack * rows and (len(scale.shape) < 2 or scale.shape[-1] in {1, rows}):
        return (1, columns)
    for block in _candidate_blocks(settings):
        grid = (ceil(rows / block[0]), ceil(columns / block[1]))
        if scale.shape[-2:] == grid and scale.size == stack * prod(grid):
            return block
    if len(scale.shape) >= 2 and scale.shape[-2] == rows and columns % scale.shape[-1] == 0:
        return (1, columns // scale.shape[-1])
    shape = "x".join(map(str, scale.shape))
    message = (
        f"the scales {scale.name!r} of shape {shape} fit no known granularity of layer {name!r} ({rows}x{columns})"
    )
    raise CheckpointError(message)


def _candidate_blocks(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """List block sizes that the configuration names, and DeepSeek's where it names none."""
    named = [settings.get("weight_block_size")]
    for group in (settings.get("config_groups") or {}).values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            named.append(weights.get("block_structure"))
    found = [
        (block[0], block[1])
        for block in named
        if isinstance(block, list | tuple) and len(block) == 2 and all(type(side) is int and side > 0 for side in block)
    ]
    return found or [_DEFAULT_BLOCK]
