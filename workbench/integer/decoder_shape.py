"""What a decoder's configuration says about its arithmetic: norms, heads, windows, rotary frequencies, caps.

Defaults that a saved configuration leaves out are transformers' own (``AutoConfig``), so that a model read here means what
it means there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import IntegerError

#: Families whose decoder layers ``workbench.integer.decoder`` walks, by ``model_type``.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3")

_ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary position embedding of one kind of layer: ``angle = position * frequencies``.

    Attributes:
        frequencies: float32 (head size / 2,), radians per position, all scaling applied.
        factor: what cosine and sine are multiplied with (YaRN's; 1 elsewhere).
    """

    frequencies: np.ndarray
    factor: float


@dataclass(frozen=True, eq=False)
class DecoderShape:
    """The arithmetic of a decoder, layer by layer where layers differ.

    Attributes:
        family: ``model_type`` of the language model.
        width: of the residual stream.
        layers: how many.
        heads: query heads.
        key_value_heads: key and value heads.
        head_size: width of each head.
        vocabulary: how many tokens there are.
        context: positions that the model was made for.
        epsilon: of every RMSNorm.
        weight_offset: what is added to RMSNorm weights: 1 in Gemma, 0 elsewhere.
        embedding_factor: what token embeddings are multiplied with: sqrt(width) in Gemma, before rounding to a stored type.
        score_factor: what query-key products are multiplied with.
        score_cap: soft cap of attention scores (Gemma 2), or None.
        logit_cap: soft cap of the logits (Gemma 2), or None.
        activation: ``gelu_tanh``, ``gelu`` or ``silu``, of the gated layer.
        normed_heads: whether queries and keys pass an RMSNorm per head.
        sandwiched: whether attention and gated layer have a norm behind them too.
        windows: of each layer: how many newest keys a query sees (itself included), or None for all.
        rotary: of each layer.
        tied: whether the logits are made with the token embeddings.
    """

    family: str
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    weight_offset: float
    embedding_factor: float
    score_factor: float
    score_cap: float | None
    logit_cap: float | None
    activation: str
    normed_heads: bool
    sandwiched: bool
    windows: tuple[int | None, ...]
    rotary: tuple[Rotary, ...]
    tied: bool

    @staticmethod
    def of(config: Mapping[str, Any]) -> DecoderShape:
        """Read a model's configuration (the language part of one with images).

        Raises:
            IntegerError: no configuration, a family that is not covered, or a setting in it that is not.
        """
        family = str(config.get("model_type", ""))
        if family not in FAMILIES:
            what = f"{family!r} models" if family else "a model without config.json (GGUF files have none)"
            message = f"integer decoders cover {', '.join(FAMILIES)}, not {what}"
            raise IntegerError(message)
        settings = _complete(config)
        family = str(settings.model_type)
        gemma = family.startswith("gemma")
        heads = int(settings.num_attention_heads)
        size = int(getattr(settings, "head_dim", None) or settings.hidden_size // heads)
        scalar = getattr(settings, "query_pre_attn_scalar", None)
        name = getattr(settings, "hidden_activation", None) or getattr(settings, "hidden_act", None)
        if name == "gelu" and family == "gemma":
            name = "gelu_pytorch_tanh"  # old Gemma configurations say gelu and mean its tanh form
        if name not in _ACTIVATIONS:
            message = f"gated layers use {', '.join(_ACTIVATIONS)}, not {name!r}"
            raise IntegerError(message)
        if getattr(settings, "use_bidirectional_attention", False):
            message = "integer decoders look back only: use_bidirectional_attention is not covered"
            raise IntegerError(message)
        kinds = _layer_kinds(settings)
        rotary = {kind: _rotary(settings, kind, size) for kind in dict.fromkeys(kinds)}
        return DecoderShape(
            family=family,
            width=int(settings.hidden_size),
            layers=int(settings.num_hidden_layers),
            heads=heads,
            key_value_heads=int(getattr(settings, "num_key_value_heads", None) or heads),
            head_size=size,
            vocabulary=int(settings.vocab_size),
            context=int(settings.max_position_embeddings),
            epsilon=float(settings.rms_norm_eps),
            weight_offset=1.0 if gemma else 0.0,
            embedding_factor=float(settings.hidden_size) ** 0.5 if gemma else 1.0,
            score_factor=float(scalar if scalar is not None and family != "gemma" else size) ** -0.5,
            score_cap=_cap(settings, "attn_logit_softcapping") if family == "gemma2" else None,
            logit_cap=_cap(settings, "final_logit_softcapping"),
            activation=_ACTIVATIONS[str(name)],
            normed_heads=family in {"gemma3_text", "qwen3"},
            sandwiched=family in {"gemma2", "gemma3_text"},
            windows=tuple(int(settings.sliding_window) if kind == "sliding_attention" else None for kind in kinds),
            rotary=tuple(rotary[kind] for kind in kinds),
            tied=bool(settings.tie_word_embeddings),
        )


def _complete(config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of the language model, defaults filled in."""
    from transformers import AutoConfig

    given = {key: value for key, value in config.items() if key != "model_type"}
    whole = AutoConfig.for_model(str(config["model_type"]), **given)
    return whole.get_text_config()


def _cap(settings: Any, name: str) -> float | None:
    value = getattr(settings, name, None)
    return None if value is None else float(value)


def _layer_kinds(settings: Any) -> list[str]:
    given = getattr(settings, "layer_types", None)
    window = getattr(settings, "sliding_window", None)
    if given is None or settings.model_type == "mistral":
        return ["full_attention" if window is None else "sliding_attention"] * int(settings.num_hidden_layers)
    kinds = [str(kind) for kind in given]
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        message = f"integer decoders have full and sliding attention layers, not {sorted(unknown)[0]!r}"
        raise IntegerError(message)
    return kinds


def _rotary(settings: Any, kind: str, size: int) -> Rotary:
    """Return the frequencies of one kind of layer: transformers' own functions, one description for every scaling."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = settings.rope_parameters
    nested = kind in parameters
    chosen = parameters[kind] if nested else parameters
    scaling = str(chosen.get("rope_type", "default"))
    if scaling == "default":
        steps = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        return Rotary((1.0 / np.float32(chosen["rope_theta"]) ** steps).astype(np.float32), 1.0)
    if scaling not in {"linear", "llama3", "yarn"}:
        message = (
            f"rotary frequencies that are fixed can be tabulated (default, linear, llama3, yarn), not {scaling!r} ones"
        )
        raise IntegerError(message)
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling](settings, None, layer_type=kind if nested else None)
    if len(frequencies) != size // 2:
        message = f"rotary embedding of whole heads is covered, not of {2 * len(frequencies)} of {size} numbers"
        raise IntegerError(message)
    return Rotary(frequencies.numpy().astype(np.float32), float(factor))
