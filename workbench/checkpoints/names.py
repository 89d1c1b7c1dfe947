"""What a weight's name and shape say: its kind, its role in the network, and its place in the model's order.

Names differ by family: Llama, Gemma, Mistral, Qwen and Phi (``self_attn.q_proj``), GPT-2 (``attn.c_attn``), GPT-NeoX and
Falcon (``attention.query_key_value``), BERT and ViT (``attention.self.query``), OPT (``fc1``), T5 (``SelfAttention.q``),
ResNet (``layer1.0.conv1``) and llama.cpp's GGUF (``blk.0.attn_q``).
"""

from __future__ import annotations

import re

from workbench.checkpoints.layer import Kind

_BUFFERS = re.compile(
    r"(^|\.)(running_mean|running_var|num_batches_tracked|inv_freq|original_inv_freq|freqs_cis|rope_freqs|position_ids|token_type_ids"
    r"|masked_bias|attn\.bias|attention\.bias|causal_mask|attn_mask|relative_position_index|relative_coords_table|cos_cached|sin_cached"
    r"|embed_scale|std_bias|std_scale)$"
)
_BIAS = re.compile(r"(^|[._])(bias|beta|b|biases)(_ih|_hh|_k|_v)?(_l\d+(_reverse)?)?$|(^|[._])bias_(ih|hh)_l\d+")
_SCALE = re.compile(
    r"(^|[._])(weight|input|output|act|activation|q|k|v|kv)_(global_)?(scale|scale_inv|scale_2|zero_point)$|\.SCB$"
)
_ATTENTION = re.compile(
    r"(^|\.)(self_attn|self_attention|attn|attention|attentions?|mha|SelfAttention|EncDecAttention|cross_attn|encoder_attn|mixer)\."
)
_MLP = re.compile(
    r"(^|\.)(mlp|ffn|feed_forward|ff|block_sparse_moe|experts?|shared_expert|shared_experts|DenseReluDense|intermediate)(\.|$)"
)
_EMBEDDING = re.compile(
    r"(^|[._])(embed(ding|dings|s|_tokens|_in|_positions)?|wte|wpe|tok_embeddings|token_embd|token_types|position_embd|position_embeddings?|pos_embed"
    r"|cls_token|mask_token|dist_token|relative_attention_bias|embeddings?)(\.|$)"
)
_NORM = re.compile(
    r"(norm|(^|[._])(ln|bn)(\d*|_\w+)$|(^|\.)layer_?norm|(^|\.)ln_|downsample\.1$|shortcut\.1$)", re.IGNORECASE
)
_PATCHES = re.compile(r"patch_embed|patch_embedding|patch_embd")

_ROLE_BY_LAST: dict[str, str] = {
    **dict.fromkeys(("q_proj", "query", "attn_q", "wq", "q_lin", "to_q", "q", "query_proj"), "q_proj"),
    **dict.fromkeys(("k_proj", "key", "attn_k", "wk", "k_lin", "to_k", "k", "key_proj"), "k_proj"),
    **dict.fromkeys(("v_proj", "value", "attn_v", "wv", "v_lin", "to_v", "v", "value_proj"), "v_proj"),
    **dict.fromkeys(("o_proj", "attn_output", "wo", "out_lin", "o"), "o_proj"),
    **dict.fromkeys(
        ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "attn_qkv", "qkv", "W_pack", "in_proj_weight"),
        "qkv_proj",
    ),
    **dict.fromkeys(("gate_proj", "ffn_gate", "ffn_gate_exps", "ffn_gate_shexp", "wi_0", "w1"), "gate_proj"),
    **dict.fromkeys(
        (
            "up_proj",
            "ffn_up",
            "ffn_up_exps",
            "ffn_up_shexp",
            "wi_1",
            "wi",
            "w3",
            "fc1",
            "c_fc",
            "dense_h_to_4h",
            "fc_in",
            "lin1",
        ),
        "up_proj",
    ),
    **dict.fromkeys(
        ("down_proj", "ffn_down", "ffn_down_exps", "ffn_down_shexp", "w2", "fc2", "dense_4h_to_h", "fc_out", "lin2"),
        "down_proj",
    ),
    **dict.fromkeys(("gate_up_proj", "ffn_gate_up_exps"), "gate_up_proj"),
    **dict.fromkeys(("router", "ffn_gate_inp", "shared_expert_gate"), "router"),
    **dict.fromkeys(("lm_head", "embed_out", "classifier", "score", "qa_outputs"), "head"),
}
_NEEDS_ATTENTION = frozenset({"q", "k", "v", "o", "query", "key", "value"})
_HEADS = re.compile(
    r"(^|\.)(lm_head(\.decoder)?|embed_out|output|classifier(\.\d+|\.out_proj|\.dense)?|score|fc|head|heads\.head|cls\.predictions\.decoder)$"
)

HEAD_NAMES = ("lm_head", "cls.predictions.decoder", "lm_head.decoder", "embed_out", "output", "generator_lm_head")
"""Output heads that tied checkpoints share with the token embedding."""
EMBEDDING_NAMES = ("embed_tokens", "wte", "word_embeddings", "embed_in", "token_embd", "tok_embeddings", "shared")
"""Token embeddings, by the last part of their names."""


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is a buffer (statistics, masks, position tables), no weight."""
    return bool(_BUFFERS.search(name)) or ".rotary_emb." in name or ".rotary_pos_emb." in name


def is_bias(name: str) -> bool:
    """Whether a tensor of this name is a bias."""
    return bool(_BIAS.search(name))


def is_scale(name: str) -> bool:
    """Whether a tensor of this name belongs to a quantizer: scales and zero points of weights and activations."""
    return bool(_SCALE.search(name))


def layer_name(tensor_name: str) -> str:
    """Return ``a.b`` for ``a.b.weight``; names that do not end in ``.weight`` stay whole."""
    return tensor_name.removesuffix(".weight") or tensor_name


def is_expert_stack(name: str, dimensions: int) -> bool:
    """Whether a 3-D tensor stacks the matrices of experts (and is no 1-D convolution)."""
    return dimensions == 3 and bool(re.search(r"(^|[._])(experts|exps|chexps)(\.|_|$)", name))


def kind_of(name: str, shape: tuple[int, ...]) -> Kind:
    """Say what a layer is: linear, conv, embedding, norm or other."""
    last = name.rsplit(".", 1)[-1]
    if len(shape) >= 3 and is_expert_stack(name, len(shape)):
        return "linear"
    squeezed = [side for side in shape if side != 1]
    if len(shape) <= 1:
        return "norm" if _NORM.search(name) or last in {"gamma", "norm", "weight"} else "other"
    if _EMBEDDING.search(name) and not _PATCHES.search(name) and not _NORM.search(last) and len(squeezed) <= 2:
        return (
            "embedding"
            if not re.search(r"(^|\.)(embed_out|embedding_projection|embedding_hidden_mapping_in)$", name)
            else "linear"
        )
    if len(shape) in {3, 4, 5}:
        return "conv"
    if len(shape) == 2:
        return "linear"
    return "other"


def role_of(name: str, kind: Kind, shape: tuple[int, ...]) -> str:
    """Say what a layer does in its block (``q_proj`` ... ``down_proj``, ``embedding``, ``head``), or ``""``."""
    if kind == "embedding":
        return "embedding"
    if kind not in {"linear", "conv"}:
        return ""
    last = name.rsplit(".", 1)[-1]
    attention, mlp = bool(_ATTENTION.search(name + ".")), bool(_MLP.search(name))
    if last == "wo" and "DenseReluDense" in name:
        return "down_proj"
    if last == "gate" and mlp:
        return "router"
    if last in {"out_proj", "c_proj", "dense", "proj", "Wo"} or name.endswith(".to_out.0"):
        return _ambiguous_projection(name, attention=attention, mlp=mlp)
    if last == "Wi" and mlp:
        return "gate_up_proj"
    role = _ROLE_BY_LAST.get(last, "")
    if last in _NEEDS_ATTENTION and not attention:
        role = ""
    if role == "head" or (not role and _HEADS.search(name) and len(shape) == 2):
        return "head" if not (attention or mlp) else ""
    return role


def _ambiguous_projection(name: str, *, attention: bool, mlp: bool) -> str:
    """Tell BERT's three ``dense`` layers, GPT-2's two ``c_proj`` and their like apart."""
    if name.endswith(("intermediate.dense", "mlp.fc_in")):
        return "up_proj"
    if attention:
        return "o_proj"
    if name.endswith(".output.dense") or (mlp and name.endswith((".c_proj", ".proj", ".Wo", ".out_proj"))):
        return "down_proj"
    return ""


# The place of a name's parts among their siblings. Within a block: norms before what they feed, q k v o, gate up down.
_RANKS: dict[str, int] = {
    **dict.fromkeys(
        ("wte", "embed_tokens", "word_embeddings", "tok_embeddings", "token_embd", "embed_in", "shared"), 0
    ),
    **dict.fromkeys(("wpe", "position_embeddings", "embed_positions", "position_embd"), 1),
    **dict.fromkeys(
        (
            "token_type_embeddings",
            "token_types",
            "cls_token",
            "patch_embeddings",
            "patch_embed",
            "patch_embedding",
            "token_embd_norm",
        ),
        2,
    ),
    **dict.fromkeys(("embeddings", "embed", "patch_embedder"), 3),
    **dict.fromkeys(("vision_tower", "vision_model", "visual", "encoder"), 10),
    **dict.fromkeys(("multi_modal_projector", "connector"), 12),
    **dict.fromkeys(("model", "transformer", "language_model", "gpt_neox", "bert", "roberta"), 15),
    **dict.fromkeys(
        ("input_layernorm", "ln_1", "attn_norm", "layernorm_before", "self_attn_layer_norm", "norm1", "layer_norm1"), 20
    ),
    **dict.fromkeys(("self_attn", "attn", "attention", "self_attention", "self", "SelfAttention", "mixer"), 25),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn", "Wqkv", "attn_qkv", "qkv", "in_proj_weight"), 26),
    **dict.fromkeys(("q_proj", "query", "attn_q", "wq", "q"), 27),
    **dict.fromkeys(("k_proj", "key", "attn_k", "wk", "k"), 28),
    **dict.fromkeys(("v_proj", "value", "attn_v", "wv", "v"), 29),
    **dict.fromkeys(("q_norm", "attn_q_norm"), 30),
    **dict.fromkeys(("k_norm", "attn_k_norm"), 31),
    **dict.fromkeys(("o_proj", "out_proj", "attn_output", "wo", "o"), 32),
    **dict.fromkeys(
        ("post_attention_layernorm", "ln_2", "post_attention_norm", "layernorm_after", "norm2", "layer_norm2"), 35
    ),
    **dict.fromkeys(("pre_feedforward_layernorm", "ffn_norm"), 36),
    **dict.fromkeys(("router", "gate", "ffn_gate_inp"), 38),
    **dict.fromkeys(("mlp", "ffn", "feed_forward", "intermediate", "block_sparse_moe"), 40),
    **dict.fromkeys(("gate_proj", "ffn_gate", "w1", "wi_0", "gate_up_proj", "ffn_gate_exps"), 41),
    **dict.fromkeys(("up_proj", "ffn_up", "w3", "wi_1", "fc1", "c_fc", "dense_h_to_4h", "ffn_up_exps"), 42),
    **dict.fromkeys(("down_proj", "ffn_down", "w2", "fc2", "dense_4h_to_h", "c_proj", "ffn_down_exps"), 43),
    **dict.fromkeys(("post_feedforward_layernorm", "post_ffw_norm", "layer_output_norm"), 46),
    **dict.fromkeys(("layers", "h", "blk", "blocks", "block", "layer"), 50),
    "decoder": 55,
    **dict.fromkeys(("stem", "conv_stem"), 18),
    **dict.fromkeys(("bn", "bn_stem"), 19),
    "bn_shortcut": 46,
    **dict.fromkeys(
        (
            "norm",
            "ln_f",
            "final_layer_norm",
            "output_norm",
            "layernorm",
            "final_norm",
            "post_layernorm",
            "LayerNorm",
            "layer_norm",
        ),
        80,
    ),
    **dict.fromkeys(("pooler", "cls", "pre_logits"), 85),
    **dict.fromkeys(("lm_head", "embed_out", "classifier", "score", "fc", "head", "qa_outputs"), 90),
}
_MIDDLE = 45
_SEPARABLE = {"depthwise": 1, "pointwise": 2}
"""The halves of a separable convolution, placed as conv1 and conv2."""
_NUMBERED_CONV = re.compile(r"(conv|bn)(\d{1,9})")


def order_key(name: str) -> tuple:
    """Sort key that puts names in the order of the computation: embedding, blocks by number, final norm, head."""
    parts = name.split(".")
    return tuple(_part_key(part, depth) for depth, part in enumerate(parts))


def _part_key(part: str, depth: int) -> tuple:
    numbered = _NUMBERED_CONV.fullmatch(part)
    if numbered:  # ResNet: conv1 bn1 conv2 bn2
        return (20, ((0, int(numbered[2]), numbered[1].replace("bn", "normalization")),))
    if part in _SEPARABLE:
        return (20, ((0, _SEPARABLE[part], "conv"),))
    if part == "output":  # GGUF's head stands at the top, BERT's dense layer inside a block
        return (90 if depth == 0 else 45, natural(part))
    return (_RANKS.get(part, _MIDDLE), natural(part))


def natural(text: str) -> tuple:
    """Sort key in which ``layer10`` comes after ``layer9``."""
    return tuple(
        (0, int(piece), "") if piece.isdecimal() and len(piece) < 19 else (1, 0, piece)
        for piece in re.findall(r"\d+|\D+", text)
    )
