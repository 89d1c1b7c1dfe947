"""Float graphs of opened checkpoints: nodes are added one by one, and weights are read when a node needs them.

A constant that is a weight is read from the checkpoint each time it is asked for, so a graph of a 27B model takes as much
memory as its largest layer in float32 (the token embedding, most often) and not four bytes for every weight. Small
models are kept after the first reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.graph import Graph, Node

if TYPE_CHECKING:
    from workbench.checkpoints import Model

#: Models of at most so many weights stay in memory as float32 once they were read (2 GiB).
HELD_WEIGHTS = 1 << 29


class StoredConstants(Mapping[str, np.ndarray]):
    """A node's constants, each read when it is asked for.

    Args:
        readers: by name, functions that return float32 arrays.
        hold: whether to keep what was read.
    """

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]], *, hold: bool) -> None:
        self._readers = dict(readers)
        self._hold = hold
        self._held: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one constant."""
        if name in self._held:
            return self._held[name]
        array = self._readers[name]()
        if self._hold:
            self._held[name] = array
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what is read: a checkpoint that is open here is not open where it is unpickled."""
        return dict, (dict(self),)

    def __repr__(self) -> str:
        return f"StoredConstants({', '.join(self._readers)})"


class GraphBuilder:
    """Collects nodes whose weights lie in a checkpoint.

    Args:
        model: opened checkpoint or module.
        inputs: names of the graph's inputs.
    """

    def __init__(self, model: Model, inputs: tuple[str, ...] = ("tokens",)) -> None:
        self.model = model
        self.inputs = inputs
        self.nodes: list[Node] = []
        self._hold = model.parameters <= HELD_WEIGHTS
        self._embeddings: dict[str, StoredConstants] = {}

    def add(
        self,
        name: str,
        operator: str,
        *inputs: str,
        constants: Mapping[str, np.ndarray] | None = None,
        output: str | None = None,
        **options: Any,
    ) -> str:
        """Add a node and return its output, which has the node's name where none is given."""
        self.nodes.append(Node(name, operator, inputs, output or name, constants or {}, options))
        return output or name

    def linear(self, name: str, source: str, *, output: str | None = None) -> str:
        """Add the linear layer of a name in the checkpoint, with its bias where it has one.

        Raises:
            IntegerError: the checkpoint has no such layer.
        """
        readers = {"weight": self._weight(name)}
        if self.has(f"{name}.bias"):
            readers["bias"] = self._tensor(f"{name}.bias")
        return self.add(name, "linear", source, constants=StoredConstants(readers, hold=self._hold), output=output)

    def weights(self, name: str) -> StoredConstants:
        """Return the constant ``weight`` of a layer; asked twice, both share what was read.

        Raises:
            IntegerError: the checkpoint has no such layer.
        """
        if name not in self._embeddings:
            self._embeddings[name] = StoredConstants({"weight": self._weight(name)}, hold=self._hold)
        return self._embeddings[name]

    def has(self, tensor: str) -> bool:
        """Return whether the checkpoint has a tensor of this name."""
        return tensor in self.model.tensors

    def tensor(self, name: str) -> np.ndarray:
        """Read one tensor as float32 now.

        Raises:
            IntegerError: the checkpoint has none of this name.
        """
        return self._tensor(name)()

    def graph(self, *outputs: str) -> Graph:
        """Return the graph of all nodes."""
        return Graph(tuple(self.nodes), self.inputs, outputs)

    def _tensor(self, name: str) -> Callable[[], np.ndarray]:
        tensors = self.model.tensors
        if name not in tensors:
            message = f"{self.model.name} has no tensor {name!r}, which its configuration says it must have"
            raise IntegerError(message)
        return lambda: np.asarray(tensors[name]).astype(np.float32)

    def _weight(self, name: str) -> Callable[[], np.ndarray]:
        if name not in self.model:
            message = f"{self.model.name} has no layer {name!r}, which its configuration says it must have"
            raise IntegerError(message)
        layer = self.model[name]
        return lambda: np.asarray(layer.weight).astype(np.float32)


def token_inputs(model: Model, calibration: Any, longest: int) -> list[np.ndarray]:
    """Return calibration inputs as arrays of token ids (sentences, tokens), each run on its own.

    Args:
        model: an opened model; texts need the tokenizer that lies in its folder.
        calibration: one of, or a list of: texts; arrays or lists of token ids, one sequence or a batch of equal lengths.
        longest: texts are cut to so many tokens.

    Raises:
        IntegerError: something else, or a text where there is no tokenizer.
    """
    if calibration is None:
        return []
    if isinstance(calibration, str | Mapping) or hasattr(calibration, "shape"):
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        message = f"a language model is given texts or arrays of token ids, not {type(calibration).__name__}"
        raise IntegerError(message)
    given = [named_tokens(each) for each in calibration]
    if given and all(isinstance(each, int) for each in given):
        given = [given]
    tokenizer = None
    found = []
    for each in given:
        if isinstance(each, str):
            tokenizer = tokenizer or load_tokenizer(model)
            found.append(np.asarray([tokenizer(each)["input_ids"][:longest]], dtype=np.int64))
        else:
            found.append(token_array(each))
    return found


def named_tokens(given: Any) -> Any:
    """Return the token ids of a mapping that holds nothing else; what is no mapping stays as it is.

    Raises:
        IntegerError: a mapping of something else (a mask, say, which graphs make from the tokens themselves).
    """
    if not isinstance(given, Mapping):
        return given
    if set(given) != {"tokens"}:
        message = f"a mapping of a language model's inputs holds 'tokens' alone, not {', '.join(map(repr, given)) or 'nothing'}"
        raise IntegerError(message)
    return given["tokens"]


def token_array(tokens: Any) -> np.ndarray:
    """Return token ids as int64 (sequences, tokens).

    Raises:
        IntegerError: no integers, or of another shape.
    """
    if hasattr(tokens, "detach"):
        tokens = tokens.detach().cpu().numpy()
    try:
        array = np.asarray(tokens)
    except ValueError:
        array = np.empty(0)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.size == 0:
        message = (
            "a language model is given texts, or token ids as integers (sequences, tokens) of equal length, "
            f"not {array.dtype} {array.shape}"
        )
        raise IntegerError(message)
    return array.astype(np.int64)


def load_tokenizer(model: Model) -> Any:
    """Return the tokenizer that lies in a model's folder; nothing is downloaded.

    Raises:
        IntegerError: there is none.
    """
    folder = Path(model.source)
    if not (folder / "tokenizer_config.json").is_file():
        message = f"{model.name} comes without a tokenizer in its folder: give arrays of token ids instead of texts"
        raise IntegerError(message)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
