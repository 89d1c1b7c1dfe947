"""bitsandbytes checkpoints: NF4 and FP4 in blocks (with nested scales), and LLM.int8().

4 bits: codes two to a byte, high half first; weight = quant_map[code] * absmax[block]. Nested scales: absmax =
nested_quant_map[absmax code] * nested_absmax[block of blocks] + nested_offset (QLoRA, arXiv 2305.14314, section 3).
8 bits: weight[o, i] = code * SCB[o] / 127 (LLM.int8(), arXiv 2208.07339).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.dtypes import FLOAT32
from workbench.checkpoints.layer import Weights
from workbench.checkpoints.names import layer_name
from workbench.checkpoints.prequantized.codes import BlockScale, ScaledRows, StoredCodes, composed
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class BlockwiseRows(Weights):
    """Rows of a flat tensor of 4-bit codes; blocks of scales run on across rows."""

    shape: tuple[int, int]
    packed: StoredTensor
    quant_map: np.ndarray
    absmax: StoredTensor
    blocksize: int
    nested: NestedScale | None
    dtype: np.dtype = FLOAT32

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start`` to ``stop``."""
        columns = self.shape[1]
        first, last = start * columns, stop * columns
        packed = _bytes(self.packed, first // 2, -(-last // 2))
        codes = np.empty((len(packed), 2), dtype=np.uint8)
        codes[:, 0], codes[:, 1] = packed >> 4, packed & 15
        values = self.quant_map[codes.reshape(-1)[first % 2 : first % 2 + last - first]]
        low, high = first // self.blocksize, -(-last // self.blocksize)
        stored = self.absmax.elements(low, high)
        absmax = stored.astype(np.float32) if self.nested is None else self.nested.decode(stored, low)
        position = np.arange(first, last) // self.blocksize - low
        return np.ascontiguousarray((values * absmax[position]).reshape(-1, columns))


@dataclass(frozen=True, eq=False)
class NestedScale:
    """Scales that are themselves stored as 8-bit codes in blocks."""

    absmax: StoredTensor
    quant_map: np.ndarray
    blocksize: int
    offset: float

    def decode(self, codes: np.ndarray, first: int) -> np.ndarray:
        """Decode the scales of blocks from ``first`` on."""
        blocks = np.arange(first, first + len(codes)) // self.blocksize
        low = int(blocks[0]) if len(blocks) else 0
        outer = self.absmax.elements(low, int(blocks[-1]) + 1 if len(blocks) else 0).astype(np.float32)
        return self.quant_map[codes] * outer[blocks - low] + np.float32(self.offset)


def _bytes(tensor: StoredTensor, first: int, last: int) -> np.ndarray:
    """Read bytes of a tensor that may be stored in a wider type (``bnb_4bit_quant_storage``)."""
    width = tensor.dtype.itemsize
    low, high = first // width, -(-last // width)
    return tensor.elements(low, high).view(np.uint8)[first - low * width : last - low * width]


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the 4-bit and 8-bit layers of a bitsandbytes checkpoint.

    Raises:
        CheckpointError: a layer's quantization state is damaged or does not fit its codes.
    """
    for name in tensors:
        if _STATE in name:
            weight, _, kind = name.partition(_STATE)
            yield _four_bits(weight, kind, name, tensors)
        elif name.endswith(".SCB"):
            stem = name.removesuffix(".SCB")
            weight = tensors.get(stem + ".weight")
            if weight is not None and weight.dtype == np.int8:
                yield _eight_bits(stem, weight, tensors[name], tensors)


def _four_bits(weight: str, kind: str, state_name: str, tensors: Mapping[str, StoredTensor]) -> tuple[Entry, set[str]]:
    state = _state(state_name, tensors[state_name])
    needed = {
        part: tensors.get(f"{weight}.{part}") for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    }
    packed, absmax, quant_map = tensors.get(weight), needed["absmax"], needed["quant_map"]
    shape, blocksize = state.get("shape"), state.get("blocksize")
    if packed is None or absmax is None or quant_map is None or kind not in {"nf4", "fp4"} or quant_map.size != 16:
        message = f"the bitsandbytes {kind} layer {weight!r} lacks its codes, absmax or quant_map of 16 levels"
        raise CheckpointError(message)
    if not isinstance(shape, list) or not shape or not all(type(side) is int and side >= 0 for side in shape):
        message = f"the quantization state of {weight!r} gives no shape"
        raise CheckpointError(message)
    count = prod(shape)
    if (
        not isinstance(blocksize, int)
        or blocksize < 1
        or packed.nbytes < -(-count // 2)
        or absmax.size != -(-count // blocksize)
    ):
        message = (
            f"the codes and scales of bitsandbytes layer {weight!r} do not fit its shape {'x'.join(map(str, shape))}"
        )
        raise CheckpointError(message)
    nested = _nested(weight, state, absmax, needed)
    columns = prod(shape[1:]) if len(shape) > 1 else count
    rows = shape[0] if len(shape) > 1 else 1
    weights = BlockwiseRows((rows, columns), packed, quant_map.read().astype(np.float32), absmax, blocksize, nested)
    parts = [packed, tensors[state_name], *[part for part in needed.values() if part is not None]]
    return composed(layer_name(weight), weights, tuple(shape), f"bnb-{kind}", parts), {part.name for part in parts}


def _nested(
    weight: str, state: Mapping[str, Any], absmax: StoredTensor, needed: Mapping[str, StoredTensor | None]
) -> NestedScale | None:
    outer, table = needed["nested_absmax"], needed["nested_quant_map"]
    if outer is None and absmax.dtype != np.uint8:
        return None
    size, offset = state.get("nested_blocksize"), state.get("nested_offset", 0.0)
    if (
        outer is None
        or table is None
        or not isinstance(size, int)
        or not isinstance(offset, int | float)
        or size < 1
        or table.size != 256
        or absmax.dtype != np.uint8
        or outer.size != -(-absmax.size // size)
    ):
        message = f"the nested scales of bitsandbytes layer {weight!r} do not fit together"
        raise CheckpointError(message)
    return NestedScale(outer, table.read().astype(np.float32), size, float(offset))


def _state(name: str, tensor: StoredTensor) -> dict[str, Any]:
    """Read the JSON text that bitsandbytes packs into a tensor of bytes."""
    if tensor.nbytes > _MAX_STATE_BYTES:
        message = f"the quantization state {name!r} is {tensor.nbytes} bytes long"
        raise CheckpointError(message)
    try:
        state = json.loads(tensor.read().tobytes().decode("utf-8"))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        message = f"the quantization state {name!r} is not readable as JSON"
        raise CheckpointError(message)
    return state


def _eight_bits(
    stem: str, weight: StoredTensor, scale: StoredTensor, tensors: Mapping[str, StoredTensor]
) -> tuple[Entry, set[str]]:
    if len(weight.shape) != 2 or scale.size != weight.shape[0]:
        message = f"the scales of int8 layer {stem!r} do not fit its weights"
        raise CheckpointError(message)
    order = tensors.get(stem + ".weight_format")
    if order is not None and order.size == 1 and int(order.read().reshape(-1)[0]) != 0:
        message = f"int8 layer {stem!r} is stored in a GPU's tile order; save it again in row order"
        raise CheckpointError(message)
    rows, columns = weight.shape
    factors = BlockScale(scale, (rows, columns), (1, columns), _per_127)
    weights = ScaledRows((rows, columns), StoredCodes(weight, columns), factors)
    used = {weight.name, scale.name} | ({order.name} if order is not None else set())
    return composed(stem, weights, weight.shape, "bnb-int8", [weight, scale]), used


def _per_127(stored: np.ndarray) -> np.ndarray:
    """Turn row maxima into scales."""
    return stored.astype(np.float32) / np.float32(127)
