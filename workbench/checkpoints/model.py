"""An opened model: its layers by name, its tree, its configuration; nothing is read before it is asked for."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from workbench.checkpoints.tree import Tree, short_count
from workbench.errors import LayerNotFoundError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Assembled
    from workbench.checkpoints.files import CheckpointFile
    from workbench.checkpoints.layer import Layer
    from workbench.checkpoints.tensors import StoredTensor


class Model(Mapping[str, "Layer"]):
    """The layers of a checkpoint or of a ``torch.nn.Module``; a mapping of layer names to layers.

    Example:
        model = open_model("data/tiny-gemma3")
        print(model.tree)
        layer = model["model.layers.0.mlp.down_proj"]
        layer.weight[:8]          # eight rows, read now
        model.find("*.mlp.down_proj")

    Use it as a context manager, or call ``close()``, to close its files at a known time.
    """

    def __init__(
        self,
        *,
        name: str,
        source: str,
        format: str,  # noqa: A002 - the word that people use
        assembled: Assembled,
        tensors: Mapping[str, StoredTensor],
        config: Mapping[str, Any] | None = None,
        files: tuple[CheckpointFile, ...] = (),
        quantization: str = "",
    ) -> None:
        self.name = name
        """A short name for people: the folder's, the file's or the module class's."""
        self.source = source
        """What was opened: a path, a Hub id, or the module's class."""
        self.format = format
        """``safetensors``, ``gguf``, ``torch``, ``module`` or ``arrays``."""
        self.quantization = quantization
        """How the stored weights were quantized, e.g. ``gptq``; ``""`` for plain weights. Such layers read as float32."""
        self.config: dict[str, Any] = dict(config or {})
        """The model's configuration (``config.json``, a GGUF file's metadata); ``{}`` where there is none."""
        self.layers: Mapping[str, Layer] = MappingProxyType(assembled.layers)
        """Layers by name, in the order of the computation."""
        self.fused: Mapping[str, Layer] = MappingProxyType(assembled.fused)
        """Whole fused projections (``...qkv_proj``) whose parts (``...qkv_proj.q_proj``) are the layers."""
        self.tied: Mapping[str, str] = MappingProxyType(assembled.tied)
        """Names that share another layer's weights -> that layer."""
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(dict(tensors))
        """Every stored tensor by its name in the source: biases, buffers and scales too."""
        self.module: Any = None
        """The ``torch.nn.Module`` that was opened; None for files and arrays."""
        self._files = files

    @cached_property
    def tree(self) -> Tree:
        """The layers as a nested mapping; ``print(model.tree)`` shows it with repeated blocks collapsed."""
        return Tree.of(self.layers, f"{self.name}  {self._summary}")

    @property
    def parameters(self) -> int:
        """How many weights the layers hold; tied weights count once, biases do not count."""
        return sum(layer.parameters for layer in self.layers.values())

    def __getitem__(self, name: str) -> Layer:
        """Return a layer by its name; tied names give the shared layer, ``a.b.weight`` is ``a.b``.

        Raises:
            LayerNotFoundError: no layer has this name; the message suggests near ones.
        """
        for candidate in (name, name.removesuffix(".weight") if isinstance(name, str) else name):
            for home in (self.layers, self.fused):
                if candidate in home:
                    return home[candidate]
            if candidate in self.tied:
                return self.layers[self.tied[candidate]]
        raise LayerNotFoundError(self._not_found(name))

    def _not_found(self, name: object) -> str:
        known = list(self.layers)
        text = str(name)
        if text in self.tensors:
            return f"{text!r} is a tensor of {self.name} but no weight layer (a bias, a buffer or a scale); read it through model.tensors"
        ending = [candidate for candidate in known if text and candidate.endswith("." + text)]
        near = ending[:3] or difflib.get_close_matches(text, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "model.layers lists the names"
        return f"{self.name} has no layer {text!r}; {hint}"

    def find(self, pattern: str) -> list[Layer]:
        """Return the layers whose names match a shell pattern, e.g. ``*.mlp.down_proj``, in the model's order."""
        return [layer for name, layer in self.layers.items() if fnmatch.fnmatchcase(name, pattern)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, name: object) -> bool:
        return name in self.layers or name in self.fused or name in self.tied

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def close(self) -> None:
        """Close the files; layers that are read afterwards raise ``CheckpointError``."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _summary(self) -> str:
        words = [self.format, f"{len(self.layers)} layers", f"{short_count(self.parameters)} parameters"]
        if self.quantization:
            words.append(f"stored as {self.quantization}")
        family = self.config.get("model_type") or self.config.get("general.architecture")
        return f"({', '.join([str(family), *words] if family else words)})"

    def __repr__(self) -> str:
        return f"Model({self.name!r} {self._summary})"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td style='text-align:left;white-space:pre;font-family:monospace'>{escape(row.branch + row.label)}</td>"
            f"<td style='text-align:left'>{escape(row.description)}</td></tr>"
            for row in self.tree.rows()
        ]
        tied = "".join(f"<br>{escape(alias)} = {escape(name)} (tied)" for alias, name in self.tied.items())
        return f"<b>{escape(self.name)}</b> {escape(self._summary)}{tied}<table>{''.join(rows)}</table>"
