"""``open_model``: one door for every source of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checkpoints import folder as folders
from workbench.checkpoints import hub, prequantized
from workbench.checkpoints.assemble import assemble, tensor_entries
from workbench.checkpoints.memory import read_module, wrap_mapping
from workbench.checkpoints.model import Model
from workbench.checkpoints.names import layer_name
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.checkpoints.files import CheckpointFile
    from workbench.checkpoints.tensors import StoredTensor

_TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt"})


def open_model(source: str | os.PathLike[str] | torch.nn.Module | Mapping[str, Any] | Model) -> Model:
    """Open a model; headers only, weights are read when they are asked for.

    Arguments:
        source: one of

            - a folder with config.json and (sharded) safetensors, GGUF, or torch ``.bin`` files;
            - a ``.safetensors`` file (a config.json beside it is used), a ``.gguf`` file, a ``.pt``/``.pth``/``.bin``
              state dict (read with ``weights_only=True``; anything that needs more is refused);
            - a ``torch.nn.Module``, or a mapping of names to arrays;
            - a Hub id ``org/name`` or ``org/name@revision``: the only case in which something may be downloaded, and
              only if no such path exists.

    Raises:
        CheckpointError: the source is missing, damaged, unsafe, or quantized in a way that is not known; one sentence.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, str | os.PathLike):
        return _open_place(os.fspath(source))
    if isinstance(source, Mapping):
        return _build("arrays", "arrays", "arrays", wrap_mapping(source), {}, sort=False)
    if _is_module(source):
        return _open_module(source)
    message = (
        f"open_model takes a path, a Hub id, a torch.nn.Module or a mapping of arrays, not a {type(source).__name__}"
    )
    raise CheckpointError(message)


def _open_place(text: str | bytes) -> Model:
    text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        message = "the source is empty; give a path, or a Hub id such as org/name"
        raise CheckpointError(message)
    try:
        path = Path(text).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        message = f"{text[:200]!r} cannot be used as a path: {error}"
        raise CheckpointError(message) from None
    if exists:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    if hub.is_hub_id(text) and not (path.parent.exists() and path.parent != Path(path.anchor or ".")):
        folder = hub.download(text)
        return _open_folder(folder, name=text.rsplit("/", 1)[-1], source=text)
    if len(text) > 200:
        text = text[:200] + "..."
    message = f"there is no file or folder {text!r}, and it is no Hub id of the form org/name"
    raise CheckpointError(message)


def _open_folder(folder: Path, name: str = "", source: str = "") -> Model:
    kind, paths, weight_map = folders.find_weights(folder)
    name, source = name or folders.title(folder), source or str(folder)
    if kind == "gguf":
        return _open_gguf(paths, name, source)
    config = folders.read_config(folder)
    if kind == "torch":
        return _open_torch(paths, name, source, config)
    files, tensors = folders.read_shards(paths, weight_map)
    return _build(name, source, kind, tensors, config, files=files)


def _open_file(path: Path) -> Model:
    if not path.is_file():
        message = f"{str(path)!r} is neither a file nor a folder"
        raise CheckpointError(message)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        files, tensors = folders.read_shards([path], None)
        return _build(path.stem, str(path), "safetensors", tensors, folders.read_config(path.parent), files=files)
    if suffix == ".gguf":
        return _open_gguf([path], path.stem, str(path))
    if suffix in _TORCH_SUFFIXES:
        return _open_torch([path], path.stem, str(path), folders.read_config(path.parent))
    if path.name.endswith(".index.json"):
        return _open_folder(path.parent)
    message = (
        f"{path.name!r} is of no known kind; open a .safetensors, .gguf, .pt, .pth or .bin file, or a model's folder"
    )
    raise CheckpointError(message)


def _open_gguf(paths: list[Path], name: str, source: str) -> Model:
    from workbench.checkpoints.gguf_file import gguf_entries, gguf_facts, read_gguf

    files, tensors, config = read_gguf(paths)
    try:
        facts = gguf_facts(config, tensors)
        assembled = assemble(gguf_entries(tensors.values(), facts), facts)
    except CheckpointError:
        _close(files)
        raise
    title = config.get("general.name")
    return Model(
        name=title if isinstance(title, str) and title.strip() and len(paths) > 1 else name,
        source=source,
        format="gguf",
        assembled=assembled,
        tensors=tensors,
        config=config,
        files=tuple(files),
    )


def _open_torch(paths: list[Path], name: str, source: str, config: dict[str, Any]) -> Model:
    from workbench.checkpoints.torch_file import read_torch_files

    tensors, tied = read_torch_files(paths)
    shared = {layer_name(alias): layer_name(first) for alias, first in tied.items()}
    return _build(name, source, "torch", tensors, config, sort=len(paths) > 1, tied=shared)


def _open_module(module: torch.nn.Module) -> Model:
    contents = read_module(module)
    settings: Any = getattr(module, "config", None)
    config = settings.to_dict() if hasattr(settings, "to_dict") else {}
    decoded = prequantized.decode(contents.tensors, config)
    skipped = decoded.used | contents.buffers
    parameters = [tensor for name, tensor in contents.tensors.items() if name not in skipped]
    entries = [*tensor_entries(parameters, config, conv1d=contents.conv1d, kinds=contents.kinds), *decoded.entries]
    kept = {entry.name for entry in entries}
    tied = {layer_name(alias): layer_name(name) for alias, name in contents.tied.items()}
    untied = {**config, "tie_word_embeddings": False}  # the module itself says what is shared
    title = type(module).__name__
    model = Model(
        name=title,
        source=title,
        format="module",
        assembled=assemble(
            entries, untied, sort=False, tied={alias: name for alias, name in tied.items() if name in kept}
        ),
        tensors=contents.tensors,
        config=config,
        quantization=decoded.scheme,
    )
    model.module = module
    return model


def _build(
    name: str,
    source: str,
    kind: str,
    tensors: Mapping[str, StoredTensor],
    config: dict[str, Any],
    *,
    files: list[CheckpointFile] | None = None,
    sort: bool = True,
    tied: dict[str, str] | None = None,
) -> Model:
    """Assemble a model from tensors by name, dequantizing what the configuration says is quantized."""
    try:
        decoded = prequantized.decode(tensors, config)
        plain = [tensor for tensor in tensors.values() if tensor.name not in decoded.used]
        entries = [*tensor_entries(plain, config), *decoded.entries]
        assembled = assemble(entries, config, sort=sort or bool(decoded.entries), tied=tied)
    except CheckpointError as error:
        _close(files or [])
        message = f"{name} cannot be opened: {error}"
        raise CheckpointError(message) from None
    return Model(
        name=name,
        source=source,
        format=kind,
        assembled=assembled,
        tensors=tensors,
        config=config,
        files=tuple(files or ()),
        quantization=decoded.scheme,
    )


def _close(files: list[CheckpointFile]) -> None:
    for file in files:
        file.close()


def _is_module(source: object) -> bool:
    return any(
        base.__module__ == "torch.nn.modules.module" and base.__name__ == "Module" for base in type(source).__mro__
    )
