"""Decoders as graphs: Llama, Mistral, Qwen 2 and 3, Gemma 1, 2 and 3, from their configuration and weights.

This is an own walk over the layers and not transformers' attention interface. That interface hands over queries, keys
and values and nothing else: norms, rotary embedding, gated layers, residual sums, caps and the head would stay inside
``nn.Module`` code that computes in floats, and each would have to be patched, per family and per version of
transformers. The order was that every array between input quantizer and logits has an integer type, and that each can
be looked at. A walk of two hundred lines over stored tensors gives a graph in which every one of them is a node with a
name; it needs no module (so no float copy of the weights), runs a checkpoint layer by layer, and serves the
float, the fake-quantized and the integer run alike. Its price is that a new family must be added here; that the float run equals
transformers' logits is tested for every family above.

    graph = build_graph(open_model("data/tiny-gemma3"))
    model = integerize("demo:tiny-gemma3", "w8a8", calibration=texts)
    model(tokens)                                           # logits (sequences, tokens, vocabulary)

Sequences in a batch have one length and no padding. Values by name, for layer i: ``layers.i.self_attn.q_proj`` and so on as
in the checkpoint, ``...self_attn.scores``, ``.probabilities``, ``.context``; ``layers.i.attention_sum`` and ``layers.i.sum`` are
the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.decoder_shape import DecoderShape
from workbench.integer.graph import Graph
from workbench.integer.graph_builder import GraphBuilder, token_inputs

if TYPE_CHECKING:
    from workbench.checkpoints import Model

_EMBEDDING = "embed_tokens"


def build_graph(model: Model) -> Graph:
    """Return a decoder's float graph: ``tokens`` int64 (sequences, tokens) -> ``logits`` (sequences, tokens, vocabulary).

    Args:
        model: an opened checkpoint in Hugging Face's layout with its configuration, or a module of transformers.

    Raises:
        IntegerError: a family, setting or layout that is not covered.
    """
    return _Walk(model).graph()


def calibration_inputs(model: Model, calibration: Any) -> list[np.ndarray]:
    """Return calibration inputs as arrays of token ids; texts are cut to the context (at most 512 tokens).

    Raises:
        IntegerError: see ``token_inputs``.
    """
    return token_inputs(model, calibration, min(512, DecoderShape.of(model.config).context))


class _Walk:
    """One pass over a decoder's layers, in the order of the computation."""

    def __init__(self, model: Model) -> None:
        self.shape = DecoderShape.of(model.config)
        self.builder = GraphBuilder(model)
        found = [name for name in model if name == _EMBEDDING or name.endswith(f".{_EMBEDDING}")]
        if len(found) != 1:
            message = (
                f"{model.name} has {len(found)} layers named {_EMBEDDING}; a decoder in Hugging Face's layout has one"
            )
            raise IntegerError(message)
        self.embedding = found[0]
        self.root = found[0].removesuffix(_EMBEDDING)
        self.stored = model[self.embedding].dtype
        self._masks: dict[int | None, str] = {}

    def graph(self) -> Graph:
        """Walk."""
        shape, builder = self.shape, self.builder
        stream = builder.add(
            self.embedding,
            "embedding",
            "tokens",
            constants=builder.weights(self.embedding),
            factor=_rounded(shape.embedding_factor, self.stored),
        )
        self.positions = builder.add("positions", "positions", "tokens")
        for layer in range(shape.layers):
            stream = self._layer(layer, f"{self.root}layers.{layer}", stream)
        logits = self._head(self._norm(f"{self.root}norm", stream))
        return builder.graph(logits)

    def _layer(self, layer: int, name: str, stream: str) -> str:
        inside = self._norm(f"{name}.input_layernorm", stream)
        inside = self._attention(layer, f"{name}.self_attn", inside)
        if self.shape.sandwiched:
            inside = self._norm(f"{name}.post_attention_layernorm", inside)
        stream = self.builder.add(f"{name}.attention_sum", "add", stream, inside)
        before = "pre_feedforward_layernorm" if self.shape.sandwiched else "post_attention_layernorm"
        inside = self._gated(f"{name}.mlp", self._norm(f"{name}.{before}", stream))
        if self.shape.sandwiched:
            inside = self._norm(f"{name}.post_feedforward_layernorm", inside)
        return self.builder.add(f"{name}.sum", "add", stream, inside)

    def _norm(self, name: str, source: str) -> str:
        """Gemma's norms store ``w`` and multiply by ``1 + w``; the graph holds what is multiplied."""
        weight = self.builder.tensor(f"{name}.weight") + np.float32(self.shape.weight_offset)
        return self.builder.add(name, "rms_norm", source, constants={"weight": weight}, epsilon=self.shape.epsilon)

    def _attention(self, layer: int, name: str, source: str) -> str:
        """Heads that share a key stand on an axis of their own: (sequences, key heads, sharers, tokens, head size)."""
        shape, add = self.shape, self.builder.add
        shared = shape.heads // shape.key_value_heads
        projected = {}
        for part, sharers in (("q", shared), ("k", 1), ("v", 1)):
            value = self.builder.linear(f"{name}.{part}_proj", source)
            heads = (0, 0, shape.key_value_heads, sharers, shape.head_size)
            value = add(f"{name}.{part}_heads", "reshape", value, shape=heads)
            if shape.normed_heads and part != "v":
                value = self._norm(f"{name}.{part}_norm", value)
            value = add(f"{name}.{part}_rows", "transpose", value, axes=(0, 2, 3, 1, 4))
            if part != "v":
                rotary = shape.rotary[layer]
                value = add(
                    f"{name}.{part}_rotated",
                    "rotary",
                    value,
                    self.positions,
                    constants={"frequencies": rotary.frequencies},
                    factor=rotary.factor,
                    context=shape.context,
                )
            if part != "q":
                value = add(f"{name}.{part}_cache", "cache", value)
            projected[part] = value
        scores = add(
            f"{name}.scores",
            "matmul",
            projected["q"],
            projected["k"],
            transpose_b=True,
            factor=shape.score_factor,
        )
        if shape.score_cap is not None:
            scores = add(f"{name}.capped_scores", "soft_cap", scores, cap=shape.score_cap)
        probabilities = add(f"{name}.probabilities", "masked_softmax", scores, self._mask(shape.windows[layer]))
        context = add(f"{name}.context", "attention_context", probabilities, projected["v"])
        context = add(f"{name}.context_rows", "transpose", context, axes=(0, 3, 1, 2, 4))
        context = add(f"{name}.context_heads", "reshape", context, shape=(0, 0, shape.heads * shape.head_size))
        return self.builder.linear(f"{name}.o_proj", context)

    def _mask(self, window: int | None) -> str:
        if window not in self._masks:
            name = "mask" if window is None else f"mask.{window}"
            self._masks[window] = self.builder.add(name, "causal_mask", self.positions, window=window)
        return self._masks[window]

    def _gated(self, name: str, source: str) -> str:
        gate = self.builder.linear(f"{name}.gate_proj", source)
        up = self.builder.linear(f"{name}.up_proj", source)
        kind = self.shape.activation
        options: dict[str, Any] = {}
        if kind.startswith("gelu"):
            options["approximate"] = "tanh" if kind == "gelu_tanh" else "none"
        gate = self.builder.add(f"{name}.activation", kind.partition("_")[0], gate, **options)
        return self.builder.linear(f"{name}.down_proj", self.builder.add(f"{name}.product", "mul", gate, up))

    def _head(self, source: str) -> str:
        builder, cap = self.builder, self.shape.logit_cap
        name = "logits" if cap is None else "uncapped_logits"
        own = [layer for layer in ("lm_head", f"{self.root}lm_head") if layer in builder.model.layers]
        if own:
            logits = builder.linear(own[0], source, output=name)
        elif self.shape.tied:
            logits = builder.add("lm_head", "linear", source, constants=builder.weights(self.embedding), output=name)
        else:
            message = f"{builder.model.name} has no lm_head, and its configuration does not tie it to the embeddings"
            raise IntegerError(message)
        return logits if cap is None else builder.add("logit_cap", "soft_cap", logits, cap=cap, output="logits")


def _rounded(factor: float, stored: str) -> float:
    """Return the embedding factor in the weights' own type, as transformers multiplies with it."""
    if factor == 1.0:
        return factor
    if stored == "bfloat16":
        import ml_dtypes

        return float(ml_dtypes.bfloat16(factor))
    return float(np.float16(factor)) if stored == "float16" else float(np.float32(factor))
