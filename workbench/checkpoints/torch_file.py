"""State dicts that ``torch.save`` wrote: read with ``weights_only=True`` and mapped, never unpickled freely."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.checkpoints.files import CheckpointFile
from workbench.checkpoints.memory import memory_of, wrap
from workbench.checkpoints.tensors import StoredTensor
from workbench.errors import CheckpointError

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
"""Keys under which training scripts put a model's state dict."""


def read_torch_files(paths: list[Path]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Open state dicts that make one model.

    Returns:
        The tensors in the order of the files, and the names that share another tensor's memory -> that tensor.

    Raises:
        CheckpointError: a file is damaged, holds more than tensors, or two files hold the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    tied: dict[str, str] = {}
    for path in paths:
        with_identity = CheckpointFile(path)  # checks the file and knows git-lfs pointers
        identity = with_identity.identity
        with_identity.close()
        first_name: dict[object, str] = {}
        for name, value in _state_dict(_load(path), path).items():
            tensor = wrap(name, value, identity)
            if tensor is None:
                continue  # counters and settings that some modules put in their state
            if name in tensors or name in tied:
                message = f"tensor {name!r} lies in {path.name!r} and in another file of the model"
                raise CheckpointError(message)
            memory = memory_of(value)
            if memory in first_name:
                tied[name] = first_name[memory]
                continue
            first_name[memory] = name
            tensors[name] = tensor
    return tensors, tied


def _load(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on old formats; what cannot be read is told below
        try:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, ValueError) as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
        except pickle.UnpicklingError as error:
            message = (
                f"{path.name!r} is a pickle that holds more than tensors ({_reason(error)}), and could run code when it is "
                "loaded; save model.state_dict() instead, best as safetensors"
            )
            raise CheckpointError(message) from None
        except Exception as error:
            message = f"{path.name!r} is no readable torch file ({_reason(error)})"
            raise CheckpointError(message) from None


def _reason(error: BaseException) -> str:
    """Pick the telling line out of torch's long explanation."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "Unsupported" in line or "GLOBAL" in line:
            return line.removeprefix("WeightsUnpickler error: ").split(". ")[0][:160].rstrip(".")
    return lines[0][:160].rstrip(".") if lines else type(error).__name__


def _state_dict(value: Any, path: Path) -> Mapping[str, Any]:
    """Find the names and tensors in what the file holds."""
    for _ in range(3):
        if not isinstance(value, Mapping):
            break
        if any(_is_tensor(item) for item in value.values()):
            return {name: item for name, item in value.items() if isinstance(name, str)}
        value = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), Mapping)), None)
    message = f"{path.name!r} holds no state dict (names and tensors); save model.state_dict()"
    raise CheckpointError(message)


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
