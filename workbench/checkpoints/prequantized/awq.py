"""AWQ checkpoints in the GEMM packing: eight 4-bit codes to a word along the outputs, in the order 0 2 4 6 1 3 5 7.

weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]), g = i // group_size (AutoAWQ, ``awq/modules/linear/gemm.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.dtypes import FLOAT32
from workbench.checkpoints.layer import Weights
from workbench.checkpoints.prequantized.codes import composed, unpack
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
"""Nibble ``n`` of a word holds output ``_ORDER[n]`` of its eight."""
_PLACE = np.argsort(_ORDER)
_PER_WORD = 8


@dataclass(frozen=True, eq=False)
class AWQRows(Weights):
    """Rows of outputs, decoded from columns of the packed tensor."""

    shape: tuple[int, int]
    qweight: StoredTensor
    scales: StoredTensor
    qzeros: StoredTensor
    group_size: int
    dtype: np.dtype = FLOAT32

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start`` to ``stop``."""
        groups = np.arange(self.shape[1]) // self.group_size
        codes = _outputs(self.qweight, start, stop).T.astype(np.float32)
        zeros = _outputs(self.qzeros, start, stop).T.astype(np.float32)[:, groups]
        scales = self.scales.columns(start, stop).astype(np.float32).T[:, groups]
        return np.ascontiguousarray((codes - zeros) * scales)


def _outputs(packed: StoredTensor, start: int, stop: int) -> np.ndarray:
    """Unpack outputs ``start`` to ``stop`` of a packed tensor: (rows, outputs)."""
    first, last = start // _PER_WORD, -(-stop // _PER_WORD)
    words = packed.columns(first, last)
    nibbles = unpack(words, 4, (last - first) * _PER_WORD).reshape(len(words), last - first, _PER_WORD)
    outputs = nibbles[:, :, _PLACE].reshape(len(words), -1)
    return outputs[:, start - first * _PER_WORD : stop - first * _PER_WORD]


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the layers of an AWQ checkpoint.

    Raises:
        CheckpointError: the packing is not GEMM's, the bits are not 4, or tensors do not fit together.
    """
    found = [name for name in tensors if name.endswith(".qweight")]
    if not found:
        return
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    bits = settings.get("bits", settings.get("w_bit", 4))
    if version != "gemm" or bits != 4:
        message = (
            f"its AWQ weights have {bits} bits in the packing {version}; only 4 bits in the packing gemm are known"
        )
        raise CheckpointError(message)
    for name in found:
        yield _entry(name.removesuffix(".qweight"), tensors, settings)


def _entry(layer: str, tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> tuple[Entry, set[str]]:
    qweight, scales, qzeros = (tensors.get(f"{layer}.{part}") for part in ("qweight", "scales", "qzeros"))
    if scales is None or qzeros is None or qweight is None:
        message = f"AWQ layer {layer!r} lacks its scales or qzeros"
        raise CheckpointError(message)
    if len(qweight.shape) != 2 or len(scales.shape) != 2:
        message = f"AWQ layer {layer!r} must have two-dimensional qweight and scales"
        raise CheckpointError(message)
    inputs, outputs = qweight.shape[0], qweight.shape[1] * _PER_WORD
    size = settings.get("group_size", settings.get("q_group_size", 128))
    size = size if type(size) is int and size > 0 else inputs
    groups = -(-inputs // size)
    if scales.shape != (groups, outputs) or qzeros.shape != (groups, outputs // _PER_WORD):
        message = (
            f"the scales or zeros of AWQ layer {layer!r} do not fit its {outputs}x{inputs} weights in groups of {size}"
        )
        raise CheckpointError(message)
    parts = [qweight, scales, qzeros]
    weights = AWQRows((outputs, inputs), qweight, scales, qzeros, size)
    return composed(layer, weights, (outputs, inputs), "awq-int4", parts), {part.name for part in parts}
