"""Fused projections: the parts that we name are the parts that the model itself computes with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from files_by_hand import save_folder

from workbench import open_model

WIDTH, HEADS = 32, 4
SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def falcon(**kind):
    config = transformers.FalconConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=1, **kind, **SMALL
    )
    model = transformers.FalconForCausalLM(config)
    attention = model.transformer.h[0].self_attention

    def split(states):
        query, key, value = attention._split_heads(attention.query_key_value(states))
        if config.new_decoder_architecture:  # keys and values come repeated for every query head
            repeat = HEADS // config.num_kv_heads
            key, value = key[:, :, ::repeat], value[:, :, ::repeat]
        return [part.flatten(2) for part in (query, key, value)]

    return model, "transformer.h.0.self_attention.query_key_value", split


def bloom():
    model = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=WIDTH, n_head=HEADS, n_layer=1, **SMALL))
    attention = model.transformer.h[0].self_attention

    def split(states):
        return [part.transpose(1, 2).flatten(2) for part in attention._reshape(attention.query_key_value(states))]

    return model, "transformer.h.0.self_attention.query_key_value", split


def persimmon():
    config = transformers.PersimmonConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=1, intermediate_size=64, **SMALL
    )
    model = transformers.PersimmonForCausalLM(config)
    attention = model.model.layers[0].self_attn

    def split(states):
        return [part.flatten(2) for part in attention._split_heads(attention.query_key_value(states))]

    return model, "model.layers.0.self_attn.query_key_value", split


def gpt_neox():
    config = transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=1, intermediate_size=64, **SMALL
    )
    model = transformers.GPTNeoXForCausalLM(config)
    attention = model.gpt_neox.layers[0].attention

    def split(states):  # GPTNeoXAttention.forward
        qkv = attention.query_key_value(states).view(*states.shape[:2], -1, 3 * attention.head_size).transpose(1, 2)
        return [part.transpose(1, 2).flatten(2) for part in qkv.chunk(3, dim=-1)]

    return model, "gpt_neox.layers.0.attention.query_key_value", split


def phi3():
    config = transformers.Phi3Config(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        num_hidden_layers=1,
        intermediate_size=48,
        **SMALL,
    )
    model = transformers.Phi3ForCausalLM(config)
    attention = model.model.layers[0].self_attn

    def split(states):  # Phi3Attention.forward
        size = WIDTH // HEADS
        return attention.qkv_proj(states).split([HEADS * size, 2 * size, 2 * size], dim=-1)

    return model, "model.layers.0.self_attn.qkv_proj", split


def gpt2():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=WIDTH, n_head=HEADS, n_layer=1, **SMALL))
    attention = model.transformer.h[0].attn
    return model, "transformer.h.0.attn.c_attn", lambda states: attention.c_attn(states).split(WIDTH, dim=2)


def bigcode(multi_query: bool):
    config = transformers.GPTBigCodeConfig(n_embd=WIDTH, n_head=HEADS, n_layer=1, multi_query=multi_query, **SMALL)
    model = transformers.GPTBigCodeForCausalLM(config)
    attention = model.transformer.h[0].attn

    def split(states):  # GPTBigCodeAttention.forward
        fused = attention.c_attn(states)
        if multi_query:
            return fused.split((WIDTH, attention.kv_dim, attention.kv_dim), dim=-1)
        heads = fused.view(*states.shape[:2], HEADS, 3 * attention.head_dim)
        return [part.flatten(2) for part in heads.split(3 * [attention.head_dim], dim=3)]

    return model, "transformer.h.0.attn.c_attn", split


FAMILIES = {
    "falcon 7B": lambda: falcon(multi_query=True, new_decoder_architecture=False),
    "falcon 40B": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon RW": lambda: falcon(multi_query=False, new_decoder_architecture=False),
    "bloom": bloom,
    "persimmon": persimmon,
    "gpt_neox": gpt_neox,
    "phi3": phi3,
    "gpt2": gpt2,
    "bigcode": lambda: bigcode(True),
    "bigcode heads": lambda: bigcode(False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_what_the_model_computes_with(family, tmp_path):
    torch.manual_seed(0)
    module, name, split = FAMILIES[family]()
    states = torch.randn(1, 5, WIDTH)
    with torch.no_grad():
        fused = module.get_submodule(name)
        if fused.bias is not None:
            fused.bias.zero_()
        expected = split(states)
    folder = save_folder(
        tmp_path / "m", {key: value.clone() for key, value in module.state_dict().items()}, module.config.to_dict()
    )
    for model in (open_model(module), open_model(folder)):
        assert name not in model.layers
        assert name in model
        for part, due in zip(("q_proj", "k_proj", "v_proj"), expected, strict=True):
            layer = model[f"{name}.{part}"]
            assert (layer.kind, layer.role) == ("linear", part)
            weight = np.asarray(layer.weight)
            np.testing.assert_allclose(states.numpy()[0] @ weight.T, due[0].numpy(), atol=1e-5)
            assert np.array_equal(layer.weight.rows(3, 7), weight[3:7])
        whole = model[name].weight.shape
        assert sum(model[f"{name}.{part}"].weight.shape[0] for part in ("q_proj", "k_proj", "v_proj")) == whole[0]


def test_gate_and_up_of_phi3(tmp_path):
    module, _, _ = phi3()
    model = open_model(module)
    mlp = module.model.layers[0].mlp
    states = torch.randn(3, WIDTH)
    gate, up = mlp.gate_up_proj(states).chunk(2, dim=-1)  # Phi3MLP.forward
    for part, due in (("gate_proj", gate), ("up_proj", up)):
        weight = np.asarray(model[f"model.layers.0.mlp.gate_up_proj.{part}"].weight)
        np.testing.assert_allclose(states.numpy() @ weight.T, due.detach().numpy(), atol=1e-5)


def test_multihead_attention_of_torch():
    attention = torch.nn.MultiheadAttention(16, 4)
    model = open_model(attention)
    assert list(model) == [
        "in_proj_weight.q_proj",
        "in_proj_weight.k_proj",
        "in_proj_weight.v_proj",
        "out_proj",
    ]
    assert np.array_equal(
        np.asarray(model["in_proj_weight.k_proj"].weight), attention.in_proj_weight[16:32].detach().numpy()
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "codegen", "num_attention_heads": 4, "hidden_size": 32},
        {"model_type": "somebody_elses", "num_attention_heads": 4, "hidden_size": 32},
        {"model_type": "phi3", "num_attention_heads": 4, "hidden_size": 64},
        {"model_type": "phi3", "num_attention_heads": 0, "hidden_size": 32},
        {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 3, "hidden_size": 32},
        {"model_type": "phi3", "num_attention_heads": "4", "hidden_size": 32},
    ],
)
def test_unknown_layouts_stay_fused(config, tmp_path):
    folder = save_folder(tmp_path / "m", {"layers.0.attn.qkv_proj.weight": torch.randn(96, 32)}, config)
    model = open_model(folder)
    assert list(model) == ["layers.0.attn.qkv_proj"]
    assert model["layers.0.attn.qkv_proj"].role == "qkv_proj"


def test_image_tower_of_qwen2_vl(tmp_path):
    config = {
        "model_type": "qwen2_vl",
        "hidden_size": 64,
        "num_attention_heads": 8,
        "vision_config": {"num_heads": 4, "embed_dim": 32, "hidden_size": 64},
    }
    weight = torch.randn(96, 32)
    model = open_model(save_folder(tmp_path / "m", {"visual.blocks.0.attn.qkv.weight": weight}, config))
    assert np.array_equal(np.asarray(model["visual.blocks.0.attn.qkv.k_proj"].weight), weight[32:64].numpy())
