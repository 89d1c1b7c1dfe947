"""tiny-gemma3 loads as any checkpoint does, scores what its card says, and writes recognisable Python."""

from __future__ import annotations

import json
import tokenize
from io import StringIO
from pathlib import Path

import pytest

from workbench.resources import demo_path

ROOT = Path(__file__).resolve().parents[2]
FIRST_MODULES = 2  # enough tokens for a figure that a damaged weight moves, in seconds


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


def test_perplexity_of_the_first_held_out_modules(model, tokenizer, figures):
    import corpus
    import train_tiny_gemma3

    measured = train_tiny_gemma3.perplexity(model, tokenizer, corpus.held_out_texts()[:FIRST_MODULES])
    uniform = model.config.vocab_size
    assert measured["perplexity"] < uniform / 50
    # Modules differ; two of them stay within a factor of the whole that no untrained or damaged model reaches.
    assert figures["perplexity"] / 2 < measured["perplexity"] < figures["perplexity"] * 2


def test_held_out_modules_are_not_in_the_training_text():
    import corpus

    held_out = {text.strip() for text in corpus.held_out_texts()}
    assert not held_out & {text.strip() for text in corpus.training_texts()}


def test_it_writes_recognisable_python(model, tokenizer):
    import train_tiny_gemma3

    for text, prompt in zip(
        train_tiny_gemma3.samples(model, tokenizer, length=100), train_tiny_gemma3.PROMPTS, strict=True
    ):
        written = text[len(prompt) :]
        names = python_names(text)
        assert len(written) > 60, text
        assert {"def", "return", "if", "self", "for", "import", "class", "raise"} & set(python_names(written)), text
        assert len(names) > 12, text
        lines = [line for line in written.splitlines()[:-1] if line.strip()]
        steps_of_four = [line for line in lines if (len(line) - len(line.lstrip(" "))) % 4 == 0]
        assert len(steps_of_four) >= 0.6 * len(lines), text  # the rest are continuation lines


def python_names(text: str) -> list[str]:
    """Return the names and keywords that Python's own tokenizer finds before the text breaks off."""
    names = []
    try:
        for token in tokenize.generate_tokens(StringIO(text).readline):
            names += [token.string] if token.type == tokenize.NAME else []
    except (tokenize.TokenError, IndentationError):
        pass  # a sample ends in the middle of a statement
    return names


def test_the_shipped_data_is_small():
    shipped = sum(
        path.stat().st_size
        for path in (ROOT / "data").rglob("*")
        if path.is_file() and ".training" not in path.parts and "__pycache__" not in path.parts
    )
    assert shipped < 25_000_000
