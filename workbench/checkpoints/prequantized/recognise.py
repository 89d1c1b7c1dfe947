"""Which quantization a checkpoint was stored with: by its configuration, and by the names and types of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor


@dataclass
class Decoded:
    """The layers of a quantized checkpoint that need decoding."""

    scheme: str = ""
    """The quantization's name, ``""`` for a plain checkpoint."""
    entries: list[Entry] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Names of the tensors that the entries are made of."""


def decode(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Decoded:
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        message = f"its weights are quantized by {settings.get('quant_method')!r}, which is not supported"
        raise CheckpointError(message)
    return Decoded()
