"""Model folders as Hugging Face lays them out: config.json beside one weight file, or shards with an index."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from workbench.checkpoints.files import CheckpointFile
from workbench.checkpoints.safetensors_file import read_safetensors
from workbench.checkpoints.tensors import StoredTensor
from workbench.errors import CheckpointError

MAX_JSON_BYTES = 200_000_000
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_TORCH_INDEX = "pytorch_model.bin.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            message = f"{path.name!r} is {path.stat().st_size} bytes long, too long for a configuration"
            raise CheckpointError(message)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"{str(path)!r} is not readable as JSON ({error})"
        raise CheckpointError(message) from None
    if not isinstance(value, dict):
        message = f"{str(path)!r} must hold a JSON object, not a {type(value).__name__}"
        raise CheckpointError(message)
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, and the quantization settings that older tools kept in a file of their own; {} if there is none."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "quantization_config" not in config and "compression_config" not in config:
        for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
            if (folder / name).is_file():
                config["quantization_config"] = {"quant_method": method, **read_json(folder / name)}
                break
        else:
            if (folder / "hf_quant_config.json").is_file():
                config["quantization_config"] = {
                    "quant_method": "modelopt",
                    **read_json(folder / "hf_quant_config.json"),
                }
    return config


def title(folder: Path) -> str:
    """Return what a person would call the model in this folder: its name, not a cache's hash and not just ``model``."""
    path = folder.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def find_weights(folder: Path) -> tuple[str, list[Path], dict[str, str] | None]:
    """Say what a folder holds.

    Returns:
        The format (``safetensors``, ``torch`` or ``gguf``), its files, and the index (tensor -> file) where there is one.

    Raises:
        CheckpointError: the folder holds no weights, or several models.
    """
    for index, kind in ((_INDEX, "safetensors"), (_TORCH_INDEX, "torch")):
        if kind == "torch" and any(folder.glob("*.safetensors")):
            continue
        found = folder / index
        if not found.is_file():
            others = sorted(folder.glob("*" + index.partition("model")[2])) if kind == "safetensors" else []
            found = others[0] if len(others) == 1 else found
        if found.is_file():
            weight_map = _weight_map(found)
            return kind, [_inside(folder, name, found.name) for name in dict.fromkeys(weight_map.values())], weight_map
    for suffixes, kind in (
        ((".safetensors",), "safetensors"),
        ((".gguf",), "gguf"),
        ((".bin", ".pt", ".pth"), "torch"),
    ):
        files = sorted(path for path in folder.iterdir() if path.suffix in suffixes and _is_model_file(path))
        if files:
            return kind, _one_model(folder, files, kind), None
    message = f"the folder {str(folder)!r} holds no weights: no .safetensors, .gguf, .bin or .pt file"
    raise CheckpointError(message)


def _is_model_file(path: Path) -> bool:
    """Leave out what trainers put beside the weights."""
    name = path.name
    return path.is_file() and not name.startswith(
        (".", "training_args", "optimizer", "scheduler", "rng_state", "scaler", "adapter_")
    )


def _one_model(folder: Path, files: list[Path], kind: str) -> list[Path]:
    """Take all shards of one model; among whole models take the one with the standard name."""
    stems = {_SHARD.sub("", path.stem) for path in files}
    if len(files) == 1 or (len(stems) == 1 and all(_SHARD.search(path.stem) for path in files)):
        return files
    standard = [path for path in files if path.name in {"model.safetensors", "pytorch_model.bin"}]
    if standard:
        return standard
    if kind == "safetensors" and all(path.name.startswith("model") for path in files):
        return files
    listing = ", ".join(path.name for path in files[:4]) + (", ..." if len(files) > 4 else "")
    message = f"the folder {str(folder)!r} holds {len(files)} {kind} files ({listing}) and no index; open one of them by its path"
    raise CheckpointError(message)


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(value, str) for value in weight_map.values())
    ):
        message = f"the index {path.name!r} must have a weight_map of tensor names to file names"
        raise CheckpointError(message)
    return weight_map


def _inside(folder: Path, name: str, index: str) -> Path:
    """Return the path of a shard, after checking that it lies in the folder.

    A snapshot of the Hub cache links into the ``blobs`` of the same repository; no other link may leave the folder.
    """
    path = folder / name
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        allowed.append(root.parent.parent / "blobs")
    escapes = "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name
    if escapes or not any(path.resolve().is_relative_to(place) for place in allowed):
        message = (
            f"the index {index!r} points to {name[:80]!r}, outside the model's folder; shards must lie beside the index"
        )
        raise CheckpointError(message)
    if not path.is_file():
        message = f"the shard {name!r} that {index!r} names is missing; download the model again"
        raise CheckpointError(message)
    return path


def read_shards(
    paths: list[Path], weight_map: dict[str, str] | None
) -> tuple[list[CheckpointFile], dict[str, StoredTensor]]:
    """Read the headers of safetensors files that make one model.

    Raises:
        CheckpointError: a file is damaged, two files hold the same tensor, or the index does not fit the shards.
    """
    files: list[CheckpointFile] = []
    tensors: dict[str, StoredTensor] = {}
    home: dict[str, str] = {}
    try:
        for path in paths:
            file, found, _ = read_safetensors(path)
            files.append(file)
            for tensor in found:
                if tensor.name in tensors:
                    message = f"tensor {tensor.name!r} lies in both {home[tensor.name]!r} and {path.name!r}"
                    raise CheckpointError(message)
                tensors[tensor.name] = tensor
                home[tensor.name] = path.name
        for name, shard in (weight_map or {}).items():
            if home.get(name) != Path(shard).name:
                message = f"the index says that tensor {name!r} is in {shard!r}, but it is not there"
                raise CheckpointError(message)
    except CheckpointError:
        for file in files:
            file.close()
        raise
    return files, tensors
