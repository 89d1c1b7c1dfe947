"""An integer model as one safetensors file: constants as tensors, the graph and its codings as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import GridError, IntegerError
from workbench.grids import parse_grid
from workbench.integer.graph import Graph, Node, Value
from workbench.quantization.recipe import Recipe

if TYPE_CHECKING:
    from workbench.integer.model import IntegerModel

#: Changes when the file's structure does.
FORMAT = "workbench-integer-model-1"


def save_model(model: IntegerModel, path: str | os.PathLike[str], *, floats: bool = False) -> Path:
    """Write a model to a file that ``load_model`` reads back.

    Args:
        model: any integer model.
        path: of the file; ``.safetensors`` is added where it has no suffix.
        floats: also write the float constants, so that the float and the fake-quantized run come back too.

    Raises:
        IntegerError: an option of a node that is no number, text, type, array, sequence or mapping, or a place that cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = Path(path)
    target = target if target.suffix else target.with_suffix(".safetensors")
    tensors: dict[str, np.ndarray] = {}
    header = {
        "format": FORMAT,
        "name": model.name,
        "kind": model.kind,
        "semantics": str(model.semantics),
        "recipe": None if model.recipe is None else model.recipe.to_dict(),
        "graph": _graph_entry(model.graph, "integer", tensors),
        "float_graph": None,
        "values": [_value_entry(value, tensors) for value in model.values.values()],
    }
    if floats and model.float_graph is not None:
        header["float_graph"] = _graph_entry(model.float_graph, "float", tensors)
    # Written beside the target first: a file is there whole or not at all.
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(tensors, draft, metadata={"workbench": json.dumps(header)})
        draft.replace(target)
    except (OSError, SafetensorError) as error:
        message = f"the integer model cannot be written to {str(target)!r}: {getattr(error, 'strerror', None) or error}"
        raise IntegerError(message) from None
    finally:
        draft.unlink(missing_ok=True)
    return target


def load_model(path: str | os.PathLike[str]) -> IntegerModel:
    """Read a model that ``save_model`` wrote.

    Raises:
        IntegerError: no such file, or one of another kind.
    """
    from safetensors import SafetensorError, safe_open

    from workbench.integer.model import IntegerModel

    source = Path(path)
    if not source.is_file():
        message = f"there is no integer model at {str(source)!r}"
        raise IntegerError(message)
    try:
        with safe_open(source, framework="np") as file:
            header = json.loads((file.metadata() or {}).get("workbench", "{}"))
            if header.get("format") != FORMAT:
                message = f"{source.name} holds no integer model of this version (its header does not say {FORMAT})"
                raise IntegerError(message)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        values = [_value(entry, tensors) for entry in header["values"]]
        floats = header["float_graph"]
        return IntegerModel(
            _graph(header["graph"], tensors),
            {value.name: value for value in values},
            header["semantics"],
            None if floats is None else _graph(floats, tensors),
            recipe=None if header["recipe"] is None else Recipe.from_dict(header["recipe"]),
            kind=header["kind"],
            name=header["name"],
        )
    except (SafetensorError, ValueError, KeyError, TypeError, GridError) as error:
        if isinstance(error, IntegerError):
            raise
        message = f"{source.name} is damaged: {type(error).__name__} {error}"
        raise IntegerError(message) from None


def _graph_entry(graph: Graph, place: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    nodes = []
    for number, node in enumerate(graph.nodes):
        constants = {}
        for name in node.constants:
            constants[name] = f"{place}.{number}.{name}"
            tensors[constants[name]] = np.asarray(node.constants[name], order="C")
        options = {
            name: _plain(value, f"{place}.{number}.options.{name}", tensors) for name, value in node.options.items()
        }
        nodes.append([node.name, node.operator, list(node.inputs), node.output, constants, options])
    return {"nodes": nodes, "inputs": list(graph.inputs), "outputs": list(graph.outputs)}


def _graph(entry: dict[str, Any], tensors: dict[str, np.ndarray]) -> Graph:
    nodes = [
        Node(
            name,
            operator,
            tuple(inputs),
            output,
            {key: tensors[tensor] for key, tensor in constants.items()},
            {key: _unplain(value, tensors) for key, value in options.items()},
        )
        for name, operator, inputs, output, constants, options in entry["nodes"]
    ]
    return Graph(tuple(nodes), tuple(entry["inputs"]), tuple(entry["outputs"]))


def _value_entry(value: Value, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": value.name, "dtype": value.dtype.name, "index": value.index}
    if value.shape is not None:
        entry["shape"] = list(value.shape)
    if value.index:
        return entry
    entry |= {"zero_point": value.zero_point, "low": value.low, "high": value.high}
    entry |= {"reach": float(value.reach), "offset": float(value.offset)}
    entry["grid"] = None if value.grid is None else str(value.grid)
    entry["scale"] = _plain(value.scale, f"value.{value.name}.scale", tensors)
    entry["levels"] = _plain(value.levels, f"value.{value.name}.levels", tensors)
    return entry


def _value(entry: dict[str, Any], tensors: dict[str, np.ndarray]) -> Value:
    rest = {name: each for name, each in entry.items() if name not in {"name", "dtype", "grid", "scale", "levels"}}
    if "shape" in entry:
        rest["shape"] = tuple(entry["shape"])
    if not entry["index"]:
        rest["grid"] = None if entry["grid"] is None else parse_grid(entry["grid"])
        rest["scale"] = _unplain(entry["scale"], tensors)
        rest["levels"] = _unplain(entry["levels"], tensors)
    return Value(entry["name"], np.dtype(entry["dtype"]), **rest)


def _plain(value: Any, place: str, tensors: dict[str, np.ndarray]) -> Any:
    """Return what JSON can hold; arrays become tensors, tuples, mappings, slices and types keep their kind."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        tensors[place] = np.asarray(value, order="C")
        return {"tensor": place}
    if isinstance(value, tuple | list):
        items = [_plain(each, f"{place}.{number}", tensors) for number, each in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _plain(each, f"{place}.{key}", tensors)] for key, each in value.items()]}
    message = f"{place} is a {type(value).__name__}, which a file cannot hold"
    raise IntegerError(message)


def _unplain(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "dtype" in value:
            return np.dtype(value["dtype"])
        if "slice" in value:
            return slice(*value["slice"])
        if "mapping" in value:
            return {key: _unplain(each, tensors) for key, each in value["mapping"]}
        return tuple(_unplain(each, tensors) for each in value["tuple"])
    return [_unplain(each, tensors) for each in value] if isinstance(value, list) else value
