"""The facts that a model's configuration gives about its weights, under the names that families use for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")
_HEAD_SIZE = ("head_dim", "kv_channels", "attention_head_dim")
_WIDTH = ("hidden_size", "n_embd", "d_model", "embed_dim", "dim", "hidden_dim")
_VISION = ("vision", "visual", "image_encoder", "vit.")


def section_for(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a nested configuration that describes the weight ``name``.

    Multimodal models keep ``text_config`` and ``vision_config`` apart; what a part does not say, the whole may.
    """
    vision = any(mark in name for mark in _VISION)
    inner = config.get("vision_config" if vision else "text_config")
    merged = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    if isinstance(config.get("attn_config"), Mapping):  # MPT, DBRX
        merged.update(config["attn_config"])
    if isinstance(inner, Mapping):
        if vision:
            merged = {}  # the language model's head counts say nothing about the image tower
        merged.update(inner)
    return merged


def model_type(config: Mapping[str, Any], name: str = "") -> str:
    """Return the family's name (``model_type``), or ``""``."""
    value = section_for(config, name).get("model_type") or config.get("model_type")
    return value if isinstance(value, str) else ""


def count(section: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first positive whole number that stands under one of the names."""
    for name in names:
        value = section.get(name)
        if type(value) is int and value > 0:
            return value
    return None


def attention_heads(section: Mapping[str, Any]) -> int | None:
    """Return how many query heads a block has."""
    return count(section, _HEADS)


def key_value_heads(section: Mapping[str, Any]) -> int | None:
    """Return how many key (and value) heads a block has: as many as query heads where nothing else is said."""
    return count(section, _KEY_VALUE_HEADS) or attention_heads(section)


def hidden_size(section: Mapping[str, Any]) -> int | None:
    """Return the width of the residual stream."""
    return count(section, _WIDTH)


def head_size(section: Mapping[str, Any]) -> int | None:
    """Return the width of a head; where it is not said, the hidden size over the heads."""
    size = count(section, _HEAD_SIZE)
    heads, width = attention_heads(section), hidden_size(section)
    if size is None and heads and width and width % heads == 0:
        size = width // heads
    return size


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the configuration says that the output head is the token embedding.

    Gemma's saved configurations leave the key out, and its default there is true.
    """
    value = config.get("tie_word_embeddings")
    if value is None and isinstance(config.get("text_config"), Mapping):
        value = config["text_config"].get("tie_word_embeddings")
    if value is None:
        return model_type(config).startswith("gemma") or config.get("model_type") == "gpt2"
    return value is True
