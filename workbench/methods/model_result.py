"""A quantized model: every layer's result, the tensors that changed beside them, and the module that they make."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints import Model
from workbench.checkpoints.tensors import ArrayTensor, StoredTensor
from workbench.methods.activations import ActivationRange, attach
from workbench.methods.model_view import (
    DecodedTensor,
    float_view,
    fresh_module,
    is_turned,
    module_paths,
    overlaid,
    tensor_names,
)
from workbench.methods.result import LayerResult
from workbench.methods.stored_result import report_of
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd
    import torch

_COLUMNS = (
    "method",
    "grid",
    "granularity",
    "activation",
    "bits_per_weight",
    "start_error",
    "error",
    "sqnr_db",
    "gain_db",
    "seconds",
)


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedModel:
    """What ``quantize_model`` gives; ``save`` writes it, ``module()`` runs it.

    Layers that the recipe leaves alone, embeddings and norms stay as the source has them, except those in ``changed``.
    """

    layers: Mapping[str, LayerResult]
    """Results by layer name, in the order of the computation; of a saved model they are read when asked for."""
    recipe: Recipe
    source: Model
    """The float model, or the saved one that this was read from."""
    changed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Float tensors that transforms or methods changed or added (norms, biases), by their names in the checkpoint."""
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    """Calibrated ranges of layers whose inputs are coded with one static scale."""
    seed: int = 0
    calibration: str = ""
    """What it was calibrated on, in words; ``""`` for data-free runs."""
    notes: tuple[str, ...] = ()
    """What a person should know of the whole run."""
    key: Mapping[str, Any] = field(default_factory=dict)
    """What the run depended on, as its resume file says it."""

    @cached_property
    def reports(self) -> dict[str, dict[str, Any]]:
        """The layers' numbers without their codes."""
        given = getattr(self.layers, "reports", None)
        return given() if given is not None else {name: report_of(result) for name, result in self.layers.items()}

    @property
    def bits_per_weight(self) -> float:
        """Bits of everything that is stored of the quantized layers, over the number of their weights."""
        weights = sum(report["weights"] for report in self.reports.values())
        return sum(report["bits"] for report in self.reports.values()) / weights if weights else float("nan")

    @cached_property
    def _other_bytes(self) -> int:
        """Bytes of all tensors that are not quantized, as ``save`` writes them."""
        replaced = {self._homes[name] for name in self.layers}
        others = {
            name: 4 * self.changed[name].size if name in self.changed else tensor.nbytes
            for name, tensor in self._plain.tensors.items()
            if name not in replaced
        }
        others |= {name: 4 * values.size for name, values in self.changed.items() if name not in replaced}
        return sum(others.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the whole model as it is stored: quantized layers by their bits, everything else as it is."""
        return -(-sum(report["bits"] for report in self.reports.values()) // 8) + self._other_bytes

    @cached_property
    def _plain(self) -> Model:
        return float_view(self.source)

    @cached_property
    def _homes(self) -> dict[str, str]:
        """The tensor that each layer is in the checkpoint."""
        homes = tensor_names(self._plain)
        return {name: homes.get(name, f"{name}.weight") for name in self.layers}

    def home(self, name: str) -> tuple[str, bool]:
        """Return the name of the stored tensor that a layer is, and whether the file holds its transpose."""
        if self.source.quantization:
            own = self.source.config.get("quantization_config", {}).get("layers", {}).get(name, {})
            return self._homes[name], bool(own.get("turned"))
        known = name in self._plain and name not in self._plain.tied
        return self._homes[name], known and is_turned(self._plain[name])

    def _has_own_bias(self, name: str) -> bool:
        """Say whether a layer has a bias that the source does not have."""
        return f"{self._homes[name].removesuffix('weight')}bias" in {*self.changed, *self._added}

    @cached_property
    def _added(self) -> set[str]:
        """Biases of a saved model that its methods learned."""
        learned = [name for name, report in self.reports.items() if report["bias"]] if self.source.quantization else []
        return {f"{self._homes[name].removesuffix('weight')}bias" for name in learned}

    def float_model(self) -> Model:
        """Return the model that this one computes: every tensor floating point, quantized ones decoded when read."""
        tensors: dict[str, StoredTensor] = {}
        for name in self.layers:
            home, turned = self.home(name)
            tensors[home] = _decoded(home, self.layers, name, turned=turned)
        tensors |= {name: ArrayTensor(name, values) for name, values in self.changed.items() if name not in tensors}
        return overlaid(self._plain, tensors)

    def module(self) -> torch.nn.Module:
        """Return a new float32 torch module with the dequantized weights, and activations coded as the recipe says.

        Raises:
            CheckpointError: no program is known for the weights (a GGUF file, arrays), or it does not fit into memory.
        """
        view = self.float_model()
        module = fresh_module(view, self._plain)
        special = [name for name in self.layers if name in view.tied or self._has_own_bias(name)]
        coded = [name for name, report in self.reports.items() if report["activation"]]
        paths = module_paths(module, view, dict.fromkeys([*special, *coded]))
        _untie(module, view, paths)
        _add_biases(module, view, paths)
        codings = {paths[name]: self.reports[name]["activation"] for name in coded}
        ranges = {paths[name]: reach for name, reach in self.ranges.items()}
        attach(module, codings, ranges)
        return module

    @property
    def name(self) -> str:
        """A short name for people: the model's and the recipe's."""
        return f"{self.source.name}, {self.recipe.name or 'own recipe'}"

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer beside the model's weights; None where transformers finds none."""
        files = self.source._files
        if not files:
            return None
        import transformers

        try:
            return transformers.AutoTokenizer.from_pretrained(
                files[0].path.parent, local_files_only=True, trust_remote_code=False
            )
        except Exception:  # whatever it is, there is none that can be used
            return None

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per quantized layer."""
        import pandas as pd

        rows = [{**report["row"], "activation": report["activation"] or "float"} for report in self.reports.values()]
        index = pd.Index(list(self.reports), name="layer", dtype=object)
        return pd.DataFrame(rows, index=index, columns=list(_COLUMNS))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write codes, scales, recipe and everything else that ``open_model`` and ``load`` need (``export.workbench_format``).

        Raises:
            CheckpointError: the folder holds another model, or cannot be written.
        """
        return _format().save_model(self, folder)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> QuantizedModel:
        """Read a model that ``save`` wrote; layers are read when asked for.

        Raises:
            CheckpointError: no such folder, or one of another kind.
        """
        return _format().load_model(folder)

    def _summary(self) -> str:
        original = sum(tensor.nbytes for tensor in self._plain.tensors.values()) if not self.source.quantization else 0
        from_size = f" from {original / 2**20:,.1f}" if original else ""
        return (
            f"{len(self.layers)} layers at {self.bits_per_weight:.4g} bits per weight, "
            f"{self.nbytes / 2**20:,.1f} MiB{from_size}"
        )

    def __repr__(self) -> str:
        recipe = self.recipe.name or f"{len(self.recipe.entries)} entries"
        return f"QuantizedModel({self.source.name!r}, {recipe}: {self._summary()})"

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>{escape(note)}" for note in self.notes)
        head = f"<b>{escape(self.source.name)}</b> quantized by {escape(str(self.recipe))}: {escape(self._summary())}"
        table = self.to_frame().to_html(max_rows=60, float_format=lambda value: f"{value:.4g}", border=0)
        return f"<div class='workbench-quantized-model'>{head}{notes}{table}</div>"


def _format() -> Any:
    """Return the module that reads and writes: the export room stands above this one, so it is asked for by name, late."""
    return importlib.import_module("workbench.export.workbench_format")


def _decoded(home: str, layers: Mapping[str, LayerResult], name: str, *, turned: bool) -> DecodedTensor:
    """Return a layer's tensor; one whose layers lie in files is read anew each time somebody wants its numbers."""
    first = layers[name].quantized
    shape = (*first.shape[:-2], first.shape[-1], first.shape[-2]) if turned else first.shape
    held: QuantizedTensor | None = first if isinstance(layers, dict) else None

    def rows(start: int, stop: int) -> np.ndarray:
        quantized = held if held is not None else layers[name].quantized
        return quantized.rows(start, stop)

    return DecodedTensor(home, shape, rows, first.codes.shape, turned)


def _untie(module: torch.nn.Module, view: Model, paths: Mapping[str, str]) -> None:
    """Give a tied head that was quantized its own weight."""
    import torch

    for name, path in paths.items():
        if name in view.tied and f"{name}.weight" in view.tensors:
            values = torch.from_numpy(np.array(view.tensors[f"{name}.weight"].read(), dtype=np.float32))
            module.get_submodule(path)._parameters["weight"] = torch.nn.Parameter(values, requires_grad=False)


def _add_biases(module: torch.nn.Module, view: Model, paths: Mapping[str, str]) -> None:
    """Give layers the biases that the source's program does not know of."""
    import torch

    homes = tensor_names(view)
    for name, path in paths.items():
        bias = f"{homes.get(name, f'{name}.weight').removesuffix('weight')}bias"
        layer: Any = module.get_submodule(path)
        if bias in view.tensors and getattr(layer, "bias", None) is None:
            values = torch.from_numpy(np.array(view.tensors[bias].read(), dtype=np.float32))
            layer.bias = torch.nn.Parameter(values, requires_grad=False)
