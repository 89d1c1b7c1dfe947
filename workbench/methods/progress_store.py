"""Finished layers of a run on disk, each whole or not at all, so that a run goes on after a kill where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checkpoints.folder import read_json
from workbench.checkpoints.safetensors_file import read_safetensors
from workbench.checkpoints.safetensors_writer import Outgoing, write_safetensors, write_text
from workbench.checkpoints.tensors import digest
from workbench.errors import CheckpointError, QuantizationError
from workbench.methods.result import LayerResult
from workbench.methods.stored_result import report_of, result_of
from workbench.quantization.stored import from_stored, to_stored

#: The folder inside the output folder, and the file that says which run it belongs to.
PARTIAL = "partial"
RUN = "run.json"
_PART = "part."


class ProgressStore:
    """What a run has finished so far.

    Args:
        folder: the run's output folder; ``partial`` is made inside it.
        key: what the run depends on, by words for people (``model``, ``recipe``, ``calibration``, ``seed``, ...).

    Raises:
        QuantizationError: the folder holds an unfinished run with another key; nothing is changed.
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder / PARTIAL
        self.key = json.loads(json.dumps(dict(key)))
        run = self.folder / RUN
        if run.is_file():
            known = read_json(run)
            other = [word for word in self.key if known.get(word) != self.key[word]]
            if other:
                message = (
                    f"{str(folder)!r} holds an unfinished run with another {' and '.join(other)}: continue that one, "
                    f"delete {str(self.folder)!r}, or choose another folder"
                )
                raise QuantizationError(message)
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                message = f"{str(folder)!r} cannot be written: {error.strerror or error}"
                raise CheckpointError(message) from None
            write_text(run, json.dumps(self.key, indent=1))

    def _layer_path(self, name: str) -> Path:
        return self.folder / f"layer-{digest(name)[:20]}.safetensors"

    def _block_path(self, name: str) -> Path:
        return self.folder / f"block-{digest(name)[:20]}.safetensors"

    def __contains__(self, name: str) -> bool:
        """Say whether a layer is finished."""
        return self._layer_path(name).is_file()

    def save_layer(self, result: LayerResult) -> None:
        """Keep a finished layer."""
        parts = to_stored(result.quantized)
        arrays = {f"{_PART}{part}": array for part, array in parts.arrays.items()}
        if result.bias is not None:
            arrays["bias"] = np.asarray(result.bias, dtype=np.float32)
        about = {"name": result.name, "settings": parts.settings, "report": report_of(result)}
        self._write(self._layer_path(result.name), arrays, about)

    def load_layer(self, name: str) -> LayerResult:
        """Return a finished layer.

        Raises:
            CheckpointError: it is not there, or damaged.
        """
        arrays, about = self._read(self._layer_path(name))
        parts = {key.removeprefix(_PART): array for key, array in arrays.items() if key.startswith(_PART)}
        quantized = from_stored(parts, about["settings"], name)
        return result_of(name, about["report"], quantized, arrays.get("bias"))

    def report(self, name: str) -> dict[str, Any]:
        """Return a finished layer's numbers without its codes."""
        return self._read(self._layer_path(name), arrays=False)[1]["report"]

    def save_block(self, name: str, changed: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Mark a block whose layers are all finished, with the other tensors that it changed."""
        self._write(self._block_path(name), changed, {"name": name, **about})

    def load_block(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return what ``save_block`` kept; None where the block is not finished."""
        path = self._block_path(name)
        return self._read(path) if path.is_file() else None

    @staticmethod
    def _write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        tensors = [Outgoing.of(name, np.ascontiguousarray(array)) for name, array in arrays.items()]
        write_safetensors(path, tensors, {"workbench": json.dumps(about)})

    @staticmethod
    def _read(path: Path, *, arrays: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        file, tensors, metadata = read_safetensors(path)
        try:
            return {tensor.name: tensor.read() for tensor in tensors} if arrays else {}, json.loads(
                metadata["workbench"]
            )
        except (KeyError, ValueError) as error:
            message = f"{path.name!r} of an unfinished run is damaged ({error}); delete it and run again"
            raise CheckpointError(message) from None
        finally:
            file.close()

    def remove(self) -> None:
        """Delete everything: the run is finished and its result is elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


class StoredLayers(Mapping[str, LayerResult]):
    """Finished layers by name, read when asked for: memory holds those that somebody holds.

    Args:
        store: where they are.
        names: which ones, in order.
    """

    def __init__(self, store: ProgressStore, names: list[str]) -> None:
        self._store = store
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> LayerResult:
        """Return a finished layer."""
        if name not in self._names:
            raise KeyError(name)
        return self._store.load_layer(name)

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return the layers' numbers without their codes."""
        return {name: self._store.report(name) for name in self._names}

    def __repr__(self) -> str:
        return f"StoredLayers({len(self)} layers, read when asked for)"

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
