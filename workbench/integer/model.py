"""``IntegerModel``: a whole model that runs in integers, beside its float and its fake-quantized run.

model = integerize("demo:tiny-resnet", "w8a8", calibration=images)
logits = model(images)                                # float32, dequantized
run = model.run(images, keep=True)                    # every intermediate
run.codes["stem"], run.real("stem"), model.values["stem"]
model.run(images, mode="fake"), model.run(images, mode="float")
model.run(images, float_nodes=("head",))              # one node back in float
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.cost import OperationCount
from workbench.integer.graph import Graph, Node, Value
from workbench.integer.running import MODES, Mode, Run, Runner
from workbench.integer.semantics import Semantics, as_semantics
from workbench.quantization.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd


class IntegerModel:
    """A graph of integer nodes with the codings of all its values.

    Attributes:
        graph: integer nodes; their constants are integers.
        values: how the codes of each value stand for real numbers, by name.
        semantics: whose rounding.
        float_graph: the same nodes with float32 constants; None for models that were read as integers (TensorFlow Lite).
        recipe: what ``integerize`` was given; None for models that were read.
        kind: how non-linear operators compute.
        name: for people.
    """

    def __init__(
        self,
        graph: Graph,
        values: Mapping[str, Value],
        semantics: Semantics | str = "litert-reference",
        float_graph: Graph | None = None,
        *,
        recipe: Recipe | None = None,
        kind: str = "table",
        name: str = "model",
    ) -> None:
        missing = [value for value in graph.values if value not in values]
        if missing:
            message = f"the value {missing[0]!r} of the graph has no coding"
            raise IntegerError(message)
        if float_graph is not None and [node.name for node in float_graph.nodes] != [node.name for node in graph.nodes]:
            message = "the float graph and the integer graph must hold nodes of the same names in the same order"
            raise IntegerError(message)
        self.graph = graph
        self.values = dict(values)
        self.semantics = as_semantics(semantics)
        self.float_graph = float_graph
        self.recipe = recipe
        self.kind = kind
        self.name = name

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes, in the order in which they run."""
        return tuple(node.name for node in self.graph.nodes)

    def run(
        self,
        inputs: Any,
        *,
        mode: Mode = "integer",
        keep: bool = False,
        float_nodes: Iterable[str] = (),
        watch: bool = False,
        precision: Any = np.float32,
        progress: Callable[[float], None] | None = None,
    ) -> Run:
        """Run the model.

        Args:
            inputs: one array, a tuple in the order of ``graph.inputs``, or a mapping of names. Real numbers are
                quantized; arrays of the coding's own integer type are codes; index inputs (token ids) stay as they are.
            mode: ``integer``; ``fake`` (float arithmetic, every value and weight rounded to its coding); ``float``.
            keep: keep every intermediate; otherwise each is freed after its last use.
            float_nodes: nodes that run in float: in an integer run on dequantized inputs, the result rounded to the
                nearest code of the output; in a fake run without any rounding of weights and result.
            watch: collect what each node observes (saturation, accumulator bits) in ``Run.watched``; costs time.
            precision: float32 or float64, of fake and float runs.
            progress: told the finished fraction before each node; may raise ``Cancelled``.

        Raises:
            IntegerError: inputs, mode or node names that do not fit.
        """
        if mode not in MODES:
            message = f"a run is {', '.join(MODES[:-1])} or {MODES[-1]}, not {mode!r}"
            raise IntegerError(message)
        chosen = frozenset([float_nodes] if isinstance(float_nodes, str) else float_nodes)
        for name in chosen:
            self.graph.node(name)
        places = {name: place / len(self.graph) for place, name in enumerate(self.layers)}
        tell = None if progress is None else (lambda node: progress(places[node.name]))
        return self.runner.run(
            inputs, mode=mode, keep=keep, float_nodes=chosen, watched=watch, precision=precision, on_node=tell
        )

    @property
    def runner(self) -> Runner:
        """What runs the nodes."""
        return Runner(self.graph, self.values, self.semantics, self.float_graph)

    def __call__(self, inputs: Any, mode: Mode = "integer") -> Any:
        """Return the model's outputs as real numbers (one array, or a tuple where the graph has several outputs)."""
        run = self.run(inputs, mode=mode)
        found = tuple(run.real(name) for name in run.output_names)
        return found[0] if len(found) == 1 else found

    def node(self, name: str) -> Node:
        """Return an integer node by its name."""
        return self.graph.node(name)

    def float_twin(self, name: str, codes: list[np.ndarray]) -> np.ndarray:
        """Return what a node's float operator gives for the same codes, as real numbers.

        Args:
            name: of the node.
            codes: of its inputs, in order.

        Raises:
            IntegerError: no such node, or a model without float constants.
        """
        return self.runner.twin_real(self.graph.node(name), codes)

    @staticmethod
    def from_tflite(
        source: str | os.PathLike[str] | bytes, semantics: Semantics | str = "litert-reference"
    ) -> IntegerModel:
        """Read an int8 (or int16-activation) TensorFlow Lite model; see ``workbench.integer.tflite_model``.

        Raises:
            IntegerError: the file is damaged, or an operator or type is not covered; it is named.
        """
        from workbench.integer.tflite_model import read_tflite

        return read_tflite(source, semantics)

    def save(self, path: str | os.PathLike[str], *, floats: bool = False) -> Path:
        """Write the model to one safetensors file, with its float constants on request; return the file's path."""
        from workbench.integer.model_file import save_model

        return save_model(self, path, floats=floats)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> IntegerModel:
        """Read a model that ``save`` wrote.

        Raises:
            IntegerError: no such file, or one of another kind.
        """
        from workbench.integer.model_file import load_model

        return load_model(path)

    def count(self, inputs: Any) -> OperationCount:
        """Count multiplies, adds, look-ups and moved bytes of one run with these inputs (see ``count_model``)."""
        from workbench.integer.model_cost import count_model

        return count_model(self, inputs)

    @property
    def bytes(self) -> int:
        """Bytes of all constants as the run holds them (weights decoded to int8 or int16)."""
        return sum(array.nbytes for node in self.graph.nodes for array in node.constants.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all constants as a file would hold them: weights in the bits of their codes, the rest as it is."""
        total = 0
        for node in self.graph.nodes:
            for name, array in node.constants.items():
                bits = node.options.get("weight_bits") if name == "weight" else None
                total += array.nbytes if bits is None else -(-array.size * int(bits) // 8)
        return total

    def to_frame(self) -> pd.DataFrame:
        """Return one row per node: operator, weight, codings of inputs and output, bytes."""
        import pandas as pd

        return pd.DataFrame([self._row(node) for node in self.graph.nodes]).set_index("layer")

    def _row(self, node: Node) -> dict[str, Any]:
        weight = node.constants.get("weight")
        return {
            "layer": node.name,
            "operator": node.operator,
            "weight": "" if weight is None else f"{'x'.join(map(str, weight.shape))} {weight.dtype}",
            "grid": node.options.get("weight_grid", ""),
            "inputs": ", ".join(_coding_text(self.values[name]) for name in node.inputs),
            "output": _coding_text(self.values[node.output]),
            "scale": np.nan if self.values[node.output].index else float(np.mean(self.values[node.output].scale)),
            "zero_point": self.values[node.output].zero_point,
            "bytes": sum(array.nbytes for array in node.constants.values()),
        }

    def __repr__(self) -> str:
        recipe = f", {self.recipe}" if self.recipe is not None else ""
        return f"IntegerModel({self.name!r}, {len(self.graph)} nodes, {self.semantics}{recipe}, {self.bytes:,} bytes)"

    def _repr_html_(self) -> str:
        heads = ("layer", "operator", "weight", "grid", "inputs", "output", "scale", "zero_point", "bytes")
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(_cell(row[head]))}</td>" for head in heads) + "</tr>"
            for row in map(self._row, self.graph.nodes)
        )
        head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in heads)
        return f"<b>{escape(repr(self))}</b><table class='workbench-integer-model'><tr>{head}</tr>{rows}</table>"


def _coding_text(value: Value) -> str:
    if value.index:
        return f"{value.dtype} index"
    return str(value.dtype) if value.grid is None else f"{value.dtype} {value.grid}"


def _cell(content: Any) -> str:
    return (
        f"{content:.4g}" if isinstance(content, float) else f"{content:,}" if isinstance(content, int) else str(content)
    )
