"""A checkpoint of Gemma 3 27B's shapes, sparse on disk: real headers, an index, shards of 5 GB that take no room."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 262208,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    },
}
SHARD_BYTES = 5_000_000_000


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes as google/gemma-3-27b-it has them."""
    text, vision = CONFIG["text_config"], CONFIG["vision_config"]
    width, inner, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {"language_model.model.embed_tokens.weight": (text["vocab_size"], width)}
    for number in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{number}"
        found |= {
            f"{layer}.self_attn.q_proj.weight": (queries, width),
            f"{layer}.self_attn.k_proj.weight": (keys, width),
            f"{layer}.self_attn.v_proj.weight": (keys, width),
            f"{layer}.self_attn.o_proj.weight": (width, queries),
            f"{layer}.self_attn.q_norm.weight": (head,),
            f"{layer}.self_attn.k_norm.weight": (head,),
            f"{layer}.mlp.gate_proj.weight": (inner, width),
            f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
        }
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            found[f"{layer}.{norm}_layernorm.weight"] = (width,)
    found["language_model.model.norm.weight"] = (width,)
    size, middle = vision["hidden_size"], vision["intermediate_size"]
    tower = "vision_tower.vision_model"
    found |= {
        f"{tower}.embeddings.patch_embedding.weight": (size, 3, 14, 14),
        f"{tower}.embeddings.patch_embedding.bias": (size,),
        f"{tower}.embeddings.position_embedding.weight": (4096, size),
        f"{tower}.post_layernorm.weight": (size,),
        f"{tower}.post_layernorm.bias": (size,),
        "multi_modal_projector.mm_input_projection_weight": (size, width),
        "multi_modal_projector.mm_soft_emb_norm.weight": (size,),
    }
    for number in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{number}"
        for name, shape in {
            "self_attn.q_proj": (size, size),
            "self_attn.k_proj": (size, size),
            "self_attn.v_proj": (size, size),
            "self_attn.out_proj": (size, size),
            "mlp.fc1": (middle, size),
            "mlp.fc2": (size, middle),
            "layer_norm1": (size,),
            "layer_norm2": (size,),
        }.items():
            found[f"{layer}.{name}.weight"] = shape
            found[f"{layer}.{name}.bias"] = shape[:1]
    return found


def write(folder: Path) -> Path:
    """Write the checkpoint; it reads as zeros and takes a few hundred kilobytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in sorted(shapes().items()):  # the order of real files: by name
        size = 2
        for side in shape:
            size *= side
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for name, shape in shard.items():
            size = 2
            for side in shape:
                size *= side
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
