"""MXFP4 as gpt-oss stores it: ``X_blocks`` (..., out, groups, 16) bytes and ``X_scales`` (..., out, groups) E8M0.

Codes are E2M1, two to a byte, low half first; a group of 32 columns shares the scale 2^(code - 127)
(OCP MX v1.0; gpt-oss, ``torch/weights.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.names import layer_name
from workbench.checkpoints.prequantized.codes import E2M1, BlockScale, PackedCodes, ScaledRows, composed, power_of_two
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

_GROUP_BYTES = 16


def entries(tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Iterator[tuple[Entry, set[str]]]:
    """Yield the pairs of blocks and scales; a stack of experts is seen as (experts * out, in).

    Raises:
        CheckpointError: blocks and scales do not fit together.
    """
    for name, blocks in tensors.items():
        scales = tensors.get(name.removesuffix("_blocks") + "_scales") if name.endswith("_blocks") else None
        if scales is None or blocks.dtype != np.uint8:
            continue
        if len(blocks.shape) < 3 or blocks.shape[-1] != _GROUP_BYTES or scales.shape != blocks.shape[:-1]:
            message = f"MXFP4 blocks {name!r} and scales {scales.name!r} do not fit together"
            raise CheckpointError(message)
        *stack, rows, groups, _ = blocks.shape
        columns, count = groups * _GROUP_BYTES * 2, prod(stack)
        factors = BlockScale(scales, (rows, columns), (1, _GROUP_BYTES * 2), power_of_two)
        factors.check(count, name)
        codes = PackedCodes(blocks, groups * _GROUP_BYTES, 4, columns, table=E2M1)
        weights = ScaledRows((count * rows, columns), codes, factors)
        layer = layer_name(name.removesuffix("_blocks"))
        yield composed(layer, weights, (*stack, rows, columns), "mxfp4", [blocks, scales]), {name, scales.name}
