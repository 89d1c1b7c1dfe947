"""Fused projections (``qkv_proj``, ``c_attn``, ``gate_up_proj``) seen as their parts, where the layout is known for sure.

A part is named like a layer inside the fused one: ``...self_attn.qkv_proj.q_proj``. Three layouts exist (rows of the
fused matrix; h heads of d rows, g key-value heads):

- blocks: all of q, then all of k, then all of v (GPT-2, Phi-3, MPT, ModernBERT, GGUF, ``torch.nn.MultiheadAttention``);
- per head: q k v of head 0, q k v of head 1, ... (GPT-NeoX, BLOOM, Persimmon, Falcon-RW);
- per group: h/g query heads and their k and v, group after group (Falcon's new architecture, InternLM2).

A family that is not listed stays fused: a wrong split would show wrong weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.checkpoints import configuration
from workbench.checkpoints.layer import Weights
from workbench.checkpoints.views import RowPieces

_QKV_NAMES = frozenset(
    {"qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "W_pack", "attn_qkv", "qkv", "in_proj_weight"}
)
_BLOCKS = frozenset(
    {
        "gpt2",
        "imagegpt",
        "decision_transformer",
        "openai-gpt",
        "phi3",
        "phi3_v",
        "phi4_multimodal",
        "mpt",
        "dbrx",
        "modernbert",
    }
    | {"nomic_bert", "baichuan", "qwen", "gguf"}
)
_VISION_THIRDS = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
"""Families whose image tower (``visual.blocks.0.attn.qkv``) stacks q, k and v in blocks."""
_PER_HEAD = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "fuyu"})
_PER_GROUP = frozenset({"internlm2"})
_FALCON = frozenset({"falcon", "RefinedWeb", "RefinedWebModel"})
_GATE_THEN_UP = frozenset({"phi3", "phi3_v", "phi4_multimodal", "glm", "glm4", "glm4v"})

Parts = dict[str, Weights]


def split_fused(name: str, weights: Weights, config: Mapping[str, Any], *, conv1d: bool = False) -> Parts | None:
    """Return the parts of a fused projection by name, or None where it is none or its layout is not known.

    Arguments:
        name: the layer's name; its last part tells what it is.
        weights: the view (out, in) on the fused matrix.
        config: the model's configuration.
        conv1d: the matrix is a GPT-2 ``Conv1D``, whose ``c_attn`` is always q, k, v in blocks.
    """
    last = name.rsplit(".", 1)[-1]
    family = configuration.model_type(config, name)
    rows, columns = weights.shape
    if last == "gate_up_proj" and family in _GATE_THEN_UP and rows % 2 == 0:
        half = rows // 2
        return {"gate_proj": _block(weights, 0, half), "up_proj": _block(weights, half, half)}
    if last not in _QKV_NAMES:
        return None
    stacked = last == "in_proj_weight" or (last == "c_attn" and conv1d)
    tower = last == "qkv" and "visual." in name and config.get("model_type") in _VISION_THIRDS
    if (stacked or tower) and rows == 3 * columns:
        return _blocks(weights, columns, columns)
    return _split_by_family(weights, family, configuration.section_for(config, name))


def _split_by_family(weights: Weights, family: str, section: dict[str, Any]) -> Parts | None:
    heads, shared, size = (
        configuration.attention_heads(section),
        configuration.key_value_heads(section),
        configuration.head_size(section),
    )
    if not heads or not shared or not size or heads % shared:
        return None
    layout = _layout(family, section)
    if layout == "one key":
        layout, shared = "blocks", 1
    if layout == "per head":
        shared = heads
    if layout is None or weights.shape[0] != (heads + 2 * shared) * size:
        return None
    if layout == "blocks":
        return _blocks(weights, heads * size, shared * size)
    queries = heads // shared * size
    period = queries + 2 * size
    return {
        "q_proj": RowPieces(weights, 0, queries, period, shared),
        "k_proj": RowPieces(weights, queries, size, period, shared),
        "v_proj": RowPieces(weights, queries + size, size, period, shared),
    }


def _layout(family: str, section: dict[str, Any]) -> str | None:
    if family in _BLOCKS:
        return "blocks"
    if family in _PER_HEAD:
        return "per head"
    if family in _PER_GROUP:
        return "per group"
    if family in _FALCON:
        if section.get("new_decoder_architecture", False):
            return "per group"
        return "one key" if section.get("multi_query", True) else "per head"
    if family == "gpt_bigcode":
        return "one key" if section.get("multi_query", True) else "per head"
    if family == "chatglm" and section.get("multi_query_attention"):
        return "blocks"
    return None


def _block(weights: Weights, first: int, length: int) -> RowPieces:
    return RowPieces(weights, first, length, length, 1)


def _blocks(weights: Weights, queries: int, keys: int) -> Parts:
    return {
        "q_proj": _block(weights, 0, queries),
        "k_proj": _block(weights, queries, keys),
        "v_proj": _block(weights, queries + keys, keys),
    }
