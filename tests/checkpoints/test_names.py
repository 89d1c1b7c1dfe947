"""Kinds, roles and order from names, over the families that people open."""

from __future__ import annotations

import random

import pytest

from workbench.checkpoints import names

LINEAR = (8, 8)
ROLES = {
    "model.layers.0.self_attn.q_proj": "q_proj",
    "model.layers.0.self_attn.o_proj": "o_proj",
    "model.layers.0.mlp.gate_proj": "gate_proj",
    "model.layers.0.mlp.down_proj": "down_proj",
    "model.layers.0.self_attn.q_a_proj": "",
    "model.layers.0.mlp.gate": "router",
    "model.layers.0.block_sparse_moe.experts.3.w1": "gate_proj",
    "model.layers.0.block_sparse_moe.experts.3.w2": "down_proj",
    "model.layers.0.block_sparse_moe.experts.3.w3": "up_proj",
    "model.layers.0.mlp.shared_expert.up_proj": "up_proj",
    "transformer.h.0.attn.c_attn": "qkv_proj",
    "transformer.h.0.attn.c_proj": "o_proj",
    "transformer.h.0.mlp.c_fc": "up_proj",
    "transformer.h.0.mlp.c_proj": "down_proj",
    "gpt_neox.layers.0.attention.query_key_value": "qkv_proj",
    "gpt_neox.layers.0.attention.dense": "o_proj",
    "gpt_neox.layers.0.mlp.dense_h_to_4h": "up_proj",
    "gpt_neox.layers.0.mlp.dense_4h_to_h": "down_proj",
    "transformer.h.0.self_attention.dense": "o_proj",
    "bert.encoder.layer.0.attention.self.query": "q_proj",
    "bert.encoder.layer.0.attention.output.dense": "o_proj",
    "bert.encoder.layer.0.intermediate.dense": "up_proj",
    "bert.encoder.layer.0.output.dense": "down_proj",
    "bert.pooler.dense": "",
    "vit.encoder.layer.0.attention.attention.key": "k_proj",
    "vit.encoder.layer.0.output.dense": "down_proj",
    "model.decoder.layers.0.self_attn.out_proj": "o_proj",
    "model.decoder.layers.0.fc1": "up_proj",
    "model.decoder.layers.0.fc2": "down_proj",
    "model.layers.0.self_attn.dense": "o_proj",
    "encoder.block.0.layer.0.SelfAttention.q": "q_proj",
    "encoder.block.0.layer.1.DenseReluDense.wo": "down_proj",
    "encoder.block.0.layer.1.DenseReluDense.wi_0": "gate_proj",
    "distilbert.transformer.layer.0.attention.q_lin": "q_proj",
    "distilbert.transformer.layer.0.ffn.lin2": "down_proj",
    "blocks.0.attn.qkv": "qkv_proj",
    "blocks.0.attn.proj": "o_proj",
    "layers.0.attention.wo": "o_proj",
    "layers.0.feed_forward.w2": "down_proj",
    "blk.3.attn_q": "q_proj",
    "blk.3.attn_output": "o_proj",
    "blk.3.ffn_gate": "gate_proj",
    "blk.3.ffn_down_exps": "down_proj",
    "blk.3.ffn_gate_inp": "router",
    "lm_head": "head",
    "output": "head",
    "embed_out": "head",
    "fc": "head",
    "classifier": "head",
    "score": "head",
    "cls.predictions.decoder": "head",
    "model.visual.merger.mlp.0": "",
    "blk.0.attn_norm.q": "",
}


@pytest.mark.parametrize("name", ROLES)
def test_roles(name):
    assert names.kind_of(name, LINEAR) == "linear"
    assert names.role_of(name, "linear", LINEAR) == ROLES[name]


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.embed_tokens", (100, 8), "embedding"),
        ("transformer.wte", (100, 8), "embedding"),
        ("transformer.wpe", (100, 8), "embedding"),
        ("gpt_neox.embed_in", (100, 8), "embedding"),
        ("embeddings.word_embeddings", (100, 8), "embedding"),
        ("vit.embeddings.position_embeddings", (1, 197, 8), "embedding"),
        ("vit.embeddings.patch_embeddings.projection", (8, 3, 16, 16), "conv"),
        ("token_embd", (100, 8), "embedding"),
        ("embed_out", (100, 8), "linear"),
        ("shared", (100, 8), "linear"),
        ("model.norm", (8,), "norm"),
        ("h.0.ln_1", (8,), "norm"),
        ("bn1", (8,), "norm"),
        ("layer1.0.downsample.1", (8,), "norm"),
        ("features.3", (8,), "other"),
        ("encoder.layer.0.output.LayerNorm", (8,), "norm"),
        ("blk.0.attn_norm", (8,), "norm"),
        ("model.layers.0.A_log", (8,), "other"),
        ("conv1", (8, 3, 3, 3), "conv"),
        ("audio.conv", (8, 3, 5), "conv"),
        ("video.conv", (8, 3, 5, 5, 5), "conv"),
        ("mlp.experts.gate_up_proj", (4, 8, 8), "linear"),
        ("blk.0.ffn_up_exps", (4, 8, 8), "linear"),
    ],
)
def test_kinds(name, shape, kind):
    assert names.kind_of(name, shape) == kind


@pytest.mark.parametrize(
    ("name", "buffer", "bias"),
    [
        ("bn.running_mean", True, False),
        ("a.num_batches_tracked", True, False),
        ("model.rotary_emb.inv_freq", True, False),
        ("h.0.attn.bias", True, True),
        ("h.0.attn.c_attn.bias", False, True),
        ("LayerNorm.beta", False, True),
        ("LayerNorm.gamma", False, False),
        ("lstm.bias_ih_l0", False, True),
        ("in_proj_bias", False, True),
        ("attention.relative_attention_bias", False, True),
        ("a.weight", False, False),
        ("rope_freqs.weight", False, False),
    ],
)
def test_biases_and_buffers(name, buffer, bias):
    assert names.is_buffer(name) is buffer
    assert names.is_bias(name) is bias


ORDERS = [
    ["model.embed_tokens", "model.layers.0.input_layernorm", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj",
     "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.post_attention_layernorm", "model.layers.0.mlp.gate_proj",
     "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.2.mlp.up_proj", "model.layers.10.mlp.up_proj", "model.norm", "lm_head"],
    ["token_embd", "blk.0.attn_norm", "blk.0.attn_q", "blk.0.attn_output", "blk.0.ffn_norm", "blk.0.ffn_gate", "blk.0.ffn_down", "blk.11.attn_q",
     "output_norm", "output"],
    ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.0.downsample.0", "layer2.0.conv1", "fc"],
    ["stem", "bn", "blocks.1.depthwise", "blocks.1.bn1", "blocks.1.pointwise", "blocks.1.bn2", "blocks.1.shortcut", "blocks.1.bn_shortcut", "head"],
    ["transformer.wte", "transformer.wpe", "transformer.h.0.ln_1", "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "transformer.h.0.ln_2",
     "transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj", "transformer.h.1.ln_1", "transformer.ln_f"],
    ["embeddings.word_embeddings", "encoder.layer.0.attention.self.query", "encoder.layer.0.attention.output.dense", "encoder.layer.0.intermediate.dense",
     "encoder.layer.0.output.dense", "encoder.layer.0.output.LayerNorm", "pooler.dense"],
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
def test_order_is_the_computations(order):
    shuffled = list(order)
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=names.order_key) == order


def test_any_names_can_be_ordered():
    odd = ["", ".", "conv1", "conv", "norm1", "1", "9" * 6000, "a.9", "a.10", "layers.٣", "bn2.x", "output.output", "²"]
    assert sorted(odd, key=names.order_key).index("a.9") < sorted(odd, key=names.order_key).index("a.10")


def test_scales_are_no_layers():
    assert names.is_scale("a.weight_scale")
    assert names.is_scale("a.self_attn.k_scale")
    assert names.is_scale("experts.down_proj.weight_scale_inv")
    assert not names.is_scale("a.layer_scale")
    assert not names.is_scale("a.logit_scale.weight")


def test_layer_names():
    assert names.layer_name("a.b.weight") == "a.b"
    assert names.layer_name("weight") == "weight"
    assert names.layer_name("a.weight_g") == "a.weight_g"
    assert names.layer_name(".weight") == ".weight"
