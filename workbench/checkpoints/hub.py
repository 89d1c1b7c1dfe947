"""Models by their Hub id: the one place of the workbench that may use the network."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.errors import CheckpointError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,200}}))?")
_FILE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json")


def is_hub_id(text: str) -> bool:
    """Whether a text looks like ``org/name`` (or ``org/name@revision``), and not like a path to a file."""
    match = _HUB_ID.fullmatch(text)
    return bool(match) and ".." not in text and "--" not in match["id"] and not text.endswith(_FILE_SUFFIXES)


def download(hub_id: str) -> Path:
    """Fetch a model's configuration and safetensors, or take them from the local cache; return the folder.

    ``HF_HUB_OFFLINE=1`` keeps it to the cache.

    Raises:
        CheckpointError: the Hub cannot be reached, or has no such model.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    match = _HUB_ID.fullmatch(hub_id)
    if match is None:
        message = f"{hub_id!r} is no Hub id; write org/name"
        raise CheckpointError(message)
    try:
        folder = huggingface_hub.snapshot_download(
            match["id"],
            revision=match["revision"],
            allow_patterns=["*.safetensors", "*.json"],
            ignore_patterns=["original/*", "onnx/*", "openvino/*", "metal/*"],
        )
    except LocalEntryNotFoundError:
        message = (
            f"{hub_id!r} is no local path, and as a Hub id it is neither in the local cache nor can it be fetched "
            "(offline, or HF_HUB_OFFLINE is set); check the path, or go online"
        )
        raise CheckpointError(message) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"{hub_id!r} is no local path, and the Hub does not give it: {reason}"
        raise CheckpointError(message) from None
    return Path(folder)
