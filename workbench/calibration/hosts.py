"""Which model a stream walks through: read part by part where that is possible, else whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.calibration.lazy_module import LazyModule
from workbench.calibration.runnable import Batch, _folder, _load, _quietly, forget, resnet_module
from workbench.calibration.store import map_tensors
from workbench.calibration.whole_module import WholeModule
from workbench.checkpoints import Model, open_model
from workbench.checkpoints.tensors import digest
from workbench.errors import CheckpointError
from workbench.resources import resolve_source

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def opened(model: Any) -> Model:
    """Open what is not open yet; ``demo:`` names work too.

    Raises:
        CheckpointError: see ``open_model``.
    """
    if isinstance(model, Model):
        return model
    return open_model(resolve_source(model) if isinstance(model, str) else model)


def model_key(model: Model) -> str:
    """Return a text that changes when any stored tensor of a model changes (weights in memory are read for it)."""
    return digest(*(tensor.content_key for tensor in model.tensors.values()), *sorted(map(str, model.config.items())))


def program_of(model: Model) -> tuple[Any, Any, Path]:
    """Return transformers' class and configuration of a model's folder, and the folder; no weights are read.

    Raises:
        CheckpointError: the model is not one that transformers can run.
    """
    folder = _folder(model)
    import transformers

    names = [name for name in model.config.get("architectures") or [] if isinstance(name, str)]
    maker = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    with _quietly():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            message = f"transformers cannot load {model.name}: {reason}"
            raise CheckpointError(message) from error
    return maker, config, folder


def lazy_host(model: Model, batches: Iterable[Batch]) -> LazyModule:
    """Return a transformers model whose parts read their weights when they run.

    Raises:
        CheckpointError: transformers does not know it, or its parameters are not the checkpoint's tensors.
    """
    maker, config, _ = program_of(model)
    import transformers

    def make() -> Any:
        with _quietly():
            try:
                return maker(config) if maker is not None else transformers.AutoModel.from_config(config)
            except Exception as error:
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                message = f"transformers cannot build {model.name}: {reason}"
                raise CheckpointError(message) from error

    return LazyModule(model, make, _tokens(batches))


def whole_host(model: Model) -> WholeModule:
    """Return a model in memory as a whole.

    Raises:
        CheckpointError: it cannot be run, or does not fit into memory.
    """
    if model.module is not None:
        return WholeModule(model, model.module)
    if model.config.get("model_type") == "tiny_resnet":
        return WholeModule(model, resnet_module().load(_folder(model)))
    module, _ = _load(model, _folder(model), lambda *_: None)
    forget()  # this one is the stream's own
    return WholeModule(model, module)


def runs_lazily(model: Model) -> bool:
    """Say whether a model lies in files that transformers may run."""
    return model.module is None and model.config.get("model_type") != "tiny_resnet"


def _tokens(batches: Iterable[Batch]) -> np.ndarray:
    """Return every whole number that the batches hold: the token ids among them are those that will be looked up."""
    import torch

    found: list[np.ndarray] = [np.zeros(1, dtype=np.int64)]

    def note(tensor: torch.Tensor) -> None:
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            found.append(tensor.unique().cpu().numpy().astype(np.int64))

    for batch in batches:
        map_tensors((tuple(batch.arguments), dict(batch.options)), note)
    return np.unique(np.concatenate(found))
