"""tiny-gemma3 loads as any checkpoint does, scores what its card says, and writes recognisable Python."""

from __future__ import annotations

import builtins
import json
import keyword
import re
from pathlib import Path

import pytest

from workbench.resources import demo_path

ROOT = Path(__file__).resolve().parents[2]
FIRST_CHARACTERS = 6000  # of the first held-out module: enough for a figure that a damaged weight moves, in seconds


@pytest.fixture(scope="module")
def folder():
    return demo_path("tiny-gemma3")


@pytest.fixture(scope="module")
def model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def figures(folder):
    return json.loads((folder / "training.json").read_text())["figures"]


def test_it_is_a_gemma3_with_all_its_parts(model):
    assert type(model).__name__ == "Gemma3ForCausalLM"
    config = model.config
    assert config.sliding_window < config.max_position_embeddings
    assert {"sliding_attention", "full_attention"} == set(config.layer_types)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    attention = model.model.layers[0].self_attn
    assert hasattr(attention, "q_norm")
    assert hasattr(attention, "k_norm")


def test_the_stored_weights_are_bfloat16(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert kinds == {"BF16"}


def test_the_card_states_the_measured_figures(folder, figures):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{figures['perplexity']:.3f}" in card
    assert f"{figures['training_loss']:.3f}" in card
    assert f"{figures['parameters']:,}" in card
    assert "PSF licence" in card


@pytest.mark.slow
def test_held_out_perplexity_is_what_the_card_says(model, tokenizer, figures):
    import corpus
    import train_tiny_gemma3

    measured = train_tiny_gemma3.perplexity(model, tokenizer, corpus.held_out_texts())
    assert measured["tokens"] == figures["held_out_tokens"]
    assert measured["perplexity"] == pytest.approx(figures["perplexity"], rel=1e-3)


def test_perplexity_of_a_held_out_beginning(model, tokenizer, figures):
    import corpus
    import train_tiny_gemma3

    measured = train_tiny_gemma3.perplexity(model, tokenizer, [corpus.held_out_texts()[0][:FIRST_CHARACTERS]])
    assert measured["perplexity"] < model.config.vocab_size / 50
    # Modules differ; the beginning of one stays within a factor of the whole that no damaged model reaches.
    assert figures["perplexity"] / 2 < measured["perplexity"] < figures["perplexity"] * 2


def test_held_out_modules_are_not_in_the_training_text():
    import corpus

    held_out = {text.strip() for text in corpus.held_out_texts()}
    assert not held_out & {text.strip() for text in corpus.training_texts()}


def test_it_writes_recognisable_python(model, tokenizer):
    """Most lines are indented by fours, keywords and known names are frequent, and brackets of finished lines match."""
    import train_tiny_gemma3

    prompts = train_tiny_gemma3.PROMPTS
    texts = train_tiny_gemma3.samples(model, tokenizer, length=80)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    written = "\n".join(text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True))
    lines = [line for line in written.splitlines() if line.strip()]
    assert len(lines) >= 12, written
    by_four = [line for line in lines if (len(line) - len(line.lstrip(" "))) % 4 == 0]
    assert len(by_four) >= 0.6 * len(lines), written  # the rest are continuation lines and prose in docstrings
    words = re.findall(r"[A-Za-z_]+", written)
    python = [word for word in words if keyword.iskeyword(word) or hasattr(builtins, word) or word == "self"]
    assert len(python) >= 0.05 * len(words), written
    assert {"def", "return", "self"} & set(python), written
    for opening, closing in ("()", "[]", "{}"):
        assert abs(written.count(opening) - written.count(closing)) <= len(texts) + 2, written  # each may break off


def test_the_shipped_data_is_small():
    shipped = sum(
        path.stat().st_size
        for path in (ROOT / "data").rglob("*")
        if path.is_file() and ".training" not in path.parts and "__pycache__" not in path.parts
    )
    assert shipped < 25_000_000
