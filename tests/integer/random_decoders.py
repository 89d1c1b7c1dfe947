"""Small decoders of every family with random weights, made offline from their configuration."""

from __future__ import annotations

from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

#: By name: transformers' name of the family, and what its configuration says besides the sizes.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3": ("Llama", {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR, "tie_word_embeddings": True}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 9,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "sliding_window": 9,
            "query_pre_attn_scalar": 10,
            "layer_types": _ALTERNATING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}


def decoder(name: str, spread: float = 0.3) -> Any:
    """Return a decoder of transformers whose weights are normal numbers; norms stray from their neutral value too."""
    import transformers

    family, said = DECODERS[name]
    settings = {**_SIZES, **said}
    if family == "Qwen2":
        settings.pop("head_dim")  # Qwen 2 knows only the width over the heads
    kind = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, kind)(**settings, attn_implementation="eager")
    torch.manual_seed(3)
    module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    neutral = 0.0 if family.startswith("Gemma") else 1.0
    for parameter in module.parameters():
        mean = neutral if parameter.ndim == 1 else 0.0
        torch.nn.init.normal_(parameter, mean, spread if parameter.ndim == 1 else spread / 2)
    return module
