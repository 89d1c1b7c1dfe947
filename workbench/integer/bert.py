"""BERT encoders as graphs, up to the sentence embedding: token embeddings, layers, mean over the tokens.

As for decoders (see ``workbench.integer.decoder``) this is an own walk over configuration and stored weights, so that norms,
softmax, GELU and residual sums are nodes of their own.

    model = integerize("demo:all-MiniLM-L6-v2", "w8a8", calibration=sentences)
    pooled = model(tokens)                                  # (sentences, width)
    pooled / np.linalg.norm(pooled, axis=1, keepdims=True)  # the embedding that sentence-transformers gives

Sentences of several lengths run as one batch, filled up with the padding token: padding is seen by no query and is not in
the mean. The division by the length of the mean vector comes after the last integer, as a softmax after the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.graph import Graph
from workbench.integer.graph_builder import GraphBuilder, token_inputs

if TYPE_CHECKING:
    from workbench.checkpoints import Model

_WORDS = "embeddings.word_embeddings"
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def build_graph(model: Model) -> Graph:
    """Return a BERT's float graph: ``tokens`` int64 (sentences, tokens) -> ``sentence`` (sentences, width), the mean.

    Args:
        model: an opened checkpoint in Hugging Face's layout with its configuration, or a module of transformers.

    Raises:
        IntegerError: a setting or layout that is not covered.
    """
    from transformers import AutoConfig

    config = dict(model.config)
    if config.pop("model_type", None) != "bert":
        message = f"integer encoders cover bert, not {model.config.get('model_type')!r}"
        raise IntegerError(message)
    settings: Any = AutoConfig.for_model("bert", **config)
    position = config.get("position_embedding_type", "absolute")
    if settings.hidden_act not in _ACTIVATIONS or position != "absolute" or settings.is_decoder:
        message = (
            f"integer encoders have GELU, absolute positions and no causal mask; {model.name} has {settings.hidden_act}, "
            f"{position} positions{' and is a decoder' if settings.is_decoder else ''}"
        )
        raise IntegerError(message)
    found = [name for name in model if name == _WORDS or name.endswith(f".{_WORDS}")]
    if len(found) != 1:
        message = f"{model.name} has {len(found)} layers named {_WORDS}; a BERT in Hugging Face's layout has one"
        raise IntegerError(message)
    return _Walk(model, settings, found[0].removesuffix(_WORDS)).graph()


def calibration_inputs(model: Model, calibration: Any) -> list[np.ndarray]:
    """Return calibration inputs as arrays of token ids; texts are cut to the positions that the model has.

    Raises:
        IntegerError: see ``token_inputs``.
    """
    return token_inputs(model, calibration, int(model.config.get("max_position_embeddings", 512)))


def padded(sentences: list[Any], pad: int = 0) -> np.ndarray:
    """Return token ids of several sentences as one array, shorter ones filled up with the padding token.

    Args:
        sentences: lists or arrays of token ids.
        pad: the model's padding token (its configuration's ``pad_token_id``).
    """
    longest = max((len(each) for each in sentences), default=0)
    out = np.full((len(sentences), longest), pad, dtype=np.int64)
    for row, each in zip(out, sentences, strict=True):
        row[: len(each)] = each
    return out


class _Walk:
    """One pass over an encoder's layers."""

    def __init__(self, model: Model, settings: Any, root: str) -> None:
        self.builder = GraphBuilder(model)
        self.settings = settings
        self.root = root

    def graph(self) -> Graph:
        """Walk."""
        builder, root = self.builder, f"{self.root}embeddings"
        words = builder.add(
            f"{root}.word_embeddings", "embedding", "tokens", constants=builder.weights(f"{self.root}{_WORDS}")
        )
        positions = builder.add("positions", "positions", "tokens")
        # Sentences that are embedded are all of the first kind: its one vector is added to every position's beforehand.
        where = builder.tensor(f"{root}.position_embeddings.weight")
        where = where + builder.tensor(f"{root}.token_type_embeddings.weight")[:1]
        places = builder.add(f"{root}.position_embeddings", "embedding", positions, constants={"weight": where})
        self.mask = builder.add("mask", "padding_mask", "tokens", pad=int(self.settings.pad_token_id or 0))
        stream = self._norm(f"{root}.LayerNorm", builder.add(f"{root}.sum", "add", words, places))
        for layer in range(self.settings.num_hidden_layers):
            stream = self._layer(f"{self.root}encoder.layer.{layer}", stream)
        return builder.graph(builder.add("pooling", "mean_pool", stream, self.mask, output="sentence"))

    def _layer(self, name: str, stream: str) -> str:
        builder = self.builder
        inside = builder.linear(f"{name}.attention.output.dense", self._attention(f"{name}.attention.self", stream))
        stream = builder.add(f"{name}.attention.sum", "add", stream, inside)
        stream = self._norm(f"{name}.attention.output.LayerNorm", stream)
        inside = builder.linear(f"{name}.intermediate.dense", stream)
        approximate = _ACTIVATIONS[self.settings.hidden_act]
        inside = builder.add(f"{name}.intermediate.activation", "gelu", inside, approximate=approximate)
        inside = builder.linear(f"{name}.output.dense", inside)
        return self._norm(f"{name}.output.LayerNorm", builder.add(f"{name}.sum", "add", stream, inside))

    def _attention(self, name: str, source: str) -> str:
        heads = self.settings.num_attention_heads
        size = self.settings.hidden_size // heads
        add = self.builder.add
        rows = {}
        for part in ("query", "key", "value"):
            value = self.builder.linear(f"{name}.{part}", source)
            value = add(f"{name}.{part}_heads", "reshape", value, shape=(0, 0, heads, size))
            rows[part] = add(f"{name}.{part}_rows", "transpose", value, axes=(0, 2, 1, 3))
        scores = add(f"{name}.scores", "matmul", rows["query"], rows["key"], transpose_b=True, factor=size**-0.5)
        probabilities = add(f"{name}.probabilities", "masked_softmax", scores, self.mask)
        context = add(f"{name}.context", "attention_context", probabilities, rows["value"])
        context = add(f"{name}.context_rows", "transpose", context, axes=(0, 2, 1, 3))
        return add(f"{name}.context_heads", "reshape", context, shape=(0, 0, heads * size))

    def _norm(self, name: str, source: str) -> str:
        # Checkpoints converted from TensorFlow call weight and bias gamma and beta.
        weight, bias = ("weight", "bias") if self.builder.has(f"{name}.weight") else ("gamma", "beta")
        constants = {
            "weight": self.builder.tensor(f"{name}.{weight}"),
            "bias": self.builder.tensor(f"{name}.{bias}"),
        }
        return self.builder.add(name, "layer_norm", source, constants=constants, epsilon=self.settings.layer_norm_eps)
