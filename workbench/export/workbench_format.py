"""Quantized models as folders: packed codes, scales, recipe and the numbers of the run; ``open_model`` reads them back.

The layout of a layer's tensors is told in ``checkpoints.prequantized.workbench_format``. Beside the safetensors files stand
``config.json`` (written last: a folder that has it is whole), ``recipe.yaml``, ``quantization.json`` (methods, errors, curves),
and the source's tokenizer and other small files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from workbench import __version__
from workbench.checkpoints import Model, open_model
from workbench.checkpoints.folder import read_json
from workbench.checkpoints.prequantized.workbench_format import METHOD, VERSION, WorkbenchRows
from workbench.checkpoints.safetensors_writer import Outgoing, write_safetensors, write_text
from workbench.checkpoints.tensors import StoredTensor
from workbench.errors import CheckpointError
from workbench.methods.model_result import QuantizedModel
from workbench.methods.model_view import float_view
from workbench.methods.result import LayerResult
from workbench.methods.stored_result import range_of, range_to_list, result_of
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.recipe import Recipe
from workbench.quantization.stored import StoredParts, from_view, to_stored

#: What the run was, beside the weights.
REPORT = "quantization.json"
RECIPE = "recipe.yaml"
#: A shard takes no more bytes than this, unless one tensor does.
SHARD_BYTES = 5_000_000_000
#: Small files of the source that come along.
_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab"})
_LICENSES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_OWN = frozenset({"config.json", REPORT, RECIPE, "quantize_config.json", "quant_config.json", "training.json"})
_MOST_COPIED = 64 << 20
_PIECE = 1 << 22


def save_model(model: QuantizedModel, folder: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a quantized model.

    One layer is in memory at a time where the model's layers are read from files themselves.

    Args:
        model: what ``quantize_model`` gave.
        folder: made if it is missing; one that holds weights or a configuration already is refused.
        shard_bytes: larger models are cut into files of about this size.

    Raises:
        CheckpointError: see above, or a place that cannot be written.
    """
    target = Path(folder)
    held = [path.name for path in target.glob("*.safetensors")] if target.is_dir() else []
    if (target / "config.json").exists() or held:
        message = f"{str(target)!r} already holds a model ({held[0] if held else 'config.json'}); choose another folder"
        raise CheckpointError(message)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{str(target)!r} cannot be made: {error.strerror or error}"
        raise CheckpointError(message) from None
    settings: dict[str, dict[str, Any]] = {}
    outgoing = list(_outgoing(model, settings, _Latest(model)))
    written: list[Path] = []
    try:
        written += _write_shards(target, outgoing, _metadata(model), shard_bytes)
        _copy_small_files(model.source, target)
        model.recipe.save(target / RECIPE)
        write_text(target / REPORT, json.dumps(_report(model), indent=1))
        write_text(target / "config.json", json.dumps(_config(model, settings), indent=2, default=str))
    except (CheckpointError, OSError) as error:
        for path in written:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, CheckpointError):
            raise
        message = f"{str(target)!r} cannot be written: {error.strerror or error}"
        raise CheckpointError(message) from None
    return target


class _Latest:
    """The parts of the layer that was asked for last: writing asks for one layer's parts after another."""

    def __init__(self, model: QuantizedModel) -> None:
        self._model = model
        self._name = ""
        self._parts = StoredParts({}, {})

    def __call__(self, name: str) -> StoredParts:
        """Return a layer's parts."""
        if name != self._name:
            self._name, self._parts = name, to_stored(self._model.layers[name].quantized)
        return self._parts


def _outgoing(model: QuantizedModel, settings: dict[str, dict[str, Any]], latest: _Latest) -> Iterator[Outgoing]:
    """Yield all tensors in the source's order; fill in each layer's settings."""
    plain = float_view(model.source)
    homes = {model.home(name)[0]: name for name in model.layers}
    done: set[str] = set()
    for name, tensor in plain.tensors.items():
        if name in homes:
            yield from _layer(model, homes[name], settings, latest)
        elif name in model.changed:
            yield Outgoing.of(name, np.ascontiguousarray(model.changed[name], dtype=np.float32))
        else:
            yield Outgoing(name, tuple(tensor.shape), tensor.dtype, _pieces(tensor))
        done.add(name)
    for home, name in homes.items():
        if home not in done:  # a head that was tied to the embedding and now has weights of its own
            yield from _layer(model, name, settings, latest)
    for name, values in model.changed.items():
        if name not in done and name not in homes:
            yield Outgoing.of(name, np.ascontiguousarray(values, dtype=np.float32))


def _pieces(tensor: StoredTensor) -> Any:
    def parts() -> Iterator[np.ndarray]:
        for start in range(0, tensor.size, _PIECE):
            yield tensor.elements(start, min(start + _PIECE, tensor.size))

    return parts


def _layer(
    model: QuantizedModel, name: str, settings: dict[str, dict[str, Any]], latest: _Latest
) -> Iterator[Outgoing]:
    """Yield the parts of one layer; the numbers are made again when they are written."""
    home, turned = model.home(name)
    stored = latest(name)
    own: dict[str, Any] = {**stored.settings, "tensor": home}
    if turned:
        own["turned"] = True
    report = model.reports[name]
    if report["activation"]:
        own["activation"] = report["activation"]
        reach = model.ranges.get(name)
        if reach is not None:
            own["range"] = range_to_list(reach)
    settings[name] = own
    for part, array in stored.arrays.items():

        def parts(part: str = part) -> Iterator[np.ndarray]:
            yield latest(name).arrays[part]

        yield Outgoing(f"{name}.weight.{part}", array.shape, array.dtype, parts)


def _write_shards(target: Path, outgoing: list[Outgoing], metadata: Mapping[str, str], shard_bytes: int) -> list[Path]:
    shards: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in outgoing:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return [write_safetensors(target / "model.safetensors", shards[0], metadata)]
    written, weight_map = [], {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        written.append(write_safetensors(target / name, shard, metadata))
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in outgoing)}, "weight_map": weight_map}
    write_text(target / "model.safetensors.index.json", json.dumps(index, indent=1))
    return written


def _metadata(model: QuantizedModel) -> dict[str, str]:
    """Return where the numbers come from, as texts without any path."""
    methods = dict.fromkeys(report["method"] for report in model.reports.values())
    return {
        "quantized_by": f"quantization-workbench {__version__}",
        "source": model.source.name,
        "methods": "; ".join(methods),
        "recipe": model.recipe.name or json.dumps(model.recipe.to_dict()),
        "calibration": model.calibration or "none",
        "seed": str(model.seed),
        "bits_per_weight": f"{model.bits_per_weight:.6g}",
    }


def _config(model: QuantizedModel, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = dict(float_view(model.source).config)
    if any(name in model.source.tied for name in settings):
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), Mapping):
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return {**config, "quantization_config": {"quant_method": METHOD, "version": VERSION, "layers": settings}}


def _report(model: QuantizedModel) -> dict[str, Any]:
    return {
        "workbench": __version__,
        "source": model.source.name,
        "seed": model.seed,
        "calibration": model.calibration,
        "notes": list(model.notes),
        "key": dict(model.key),
        "layers": model.reports,
    }


def _copy_small_files(source: Model, target: Path) -> None:
    """Copy tokenizer, generation settings, licences and the like: everything small that is no weights."""
    files = source._files
    if not files:
        return
    folder = files[0].path.parent
    if folder.resolve() == target.resolve():
        return
    for path in sorted([*folder.iterdir(), *folder.glob("*/*.json")]):
        wanted = path.suffix.lower() in _SUFFIXES or path.name.upper().startswith(_LICENSES)
        own = path.name in _OWN and path.parent == folder
        if not path.is_file() or not wanted or own or path.name.endswith(".index.json"):
            continue
        if path.stat().st_size > _MOST_COPIED or path.name.startswith("."):
            continue
        place = target / path.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)


class SavedLayers(Mapping[str, LayerResult]):
    """Layers of a saved model, read when asked for."""

    def __init__(self, model: Model, reports: dict[str, dict[str, Any]]) -> None:
        self._model = model
        self._reports = reports

    def __getitem__(self, name: str) -> LayerResult:
        """Return a layer's result, its codes read now."""
        report = self._reports[name]
        home = self._model.config["quantization_config"]["layers"][name]["tensor"]
        bias = self._model.tensors.get(f"{home.removesuffix('weight')}bias") if report["bias"] else None
        values = None if bias is None else bias.read().astype(np.float32)
        return result_of(name, report, self.quantized(name), values)

    def quantized(self, name: str) -> QuantizedTensor:
        """Return a layer's codes and scales."""
        rows = self._model[name].weight
        assert isinstance(rows, WorkbenchRows)
        return from_view(rows)

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return the layers' numbers without their codes."""
        return self._reports

    def __iter__(self) -> Iterator[str]:
        return iter(self._reports)

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return f"SavedLayers({len(self)} layers of {self._model.name!r}, read when asked for)"


def load_model(folder: str | os.PathLike[str]) -> QuantizedModel:
    """Read a model that ``save_model`` wrote; only headers and settings are read now.

    Raises:
        CheckpointError: no such folder, or one that holds something else; one sentence.
    """
    place = Path(folder)
    if not (place / REPORT).is_file():
        message = f"{str(place)!r} holds no model that the workbench quantized: it has no {REPORT}"
        raise CheckpointError(message)
    model = open_model(place)
    report = read_json(place / REPORT)
    try:
        settings = model.config["quantization_config"]["layers"]
        order = [name for name in (*model.layers, *model.fused) if name in settings]
        reports = {name: report["layers"][name] for name in dict.fromkeys([*order, *settings])}
        return QuantizedModel(
            layers=SavedLayers(model, reports),
            recipe=Recipe.load(place / RECIPE),
            source=model,
            ranges={name: reach for name, own in settings.items() if (reach := range_of(own.get("range"))) is not None},
            seed=int(report["seed"]),
            calibration=str(report["calibration"]),
            notes=tuple(report["notes"]),
            key=report["key"],
        )
    except (KeyError, TypeError, ValueError) as error:
        model.close()
        message = f"{REPORT} of {str(place)!r} does not fit its weights ({type(error).__name__}: {error})"
        raise CheckpointError(message) from None
