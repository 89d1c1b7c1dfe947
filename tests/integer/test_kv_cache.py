"""Decoding with a cache computes the same integers as one run over all tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_decoders import decoder

from workbench import open_model
from workbench.errors import Cancelled, IntegerError
from workbench.integer import integerize
from workbench.integer.graph import Graph, Node
from workbench.integer.kv_cache import KVCache, decode, generate

NAMES = ("llama", "gemma2", "gemma3")


@pytest.fixture(scope="module")
def models():
    tokens = np.random.default_rng(0).integers(3, 99, (2, 40))
    return {name: integerize(open_model(decoder(name)), "w8a8", tokens) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.sets(st.integers(1, 19), max_size=3))
def test_any_way_to_cut_the_tokens_gives_the_same_integers(models, name, seed, cuts):
    model = models[name]
    tokens = np.random.default_rng(seed).integers(3, 99, (2, 20))
    wanted = model.run(tokens).codes["logits"]
    cache, ends = KVCache(), [0, *sorted(cuts), 20]
    parts = [decode(model, tokens[:, a:b], cache, codes=True) for a, b in pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), wanted)
    assert cache.length == 20


@pytest.mark.parametrize("name", NAMES)
def test_token_by_token_from_the_first_one(models, name):
    model = models[name]
    tokens = np.random.default_rng(5).integers(3, 99, (1, 20))
    cache = KVCache()
    parts = [decode(model, tokens[:, place], cache, codes=True) for place in range(20)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), model.run(tokens).codes["logits"])


def test_float_and_fake_runs_have_a_cache_too(models):
    model = models["gemma3"]
    tokens = np.random.default_rng(6).integers(3, 99, (1, 20))
    for mode in ("float", "fake"):
        cache = KVCache()
        parts = [decode(model, tokens[:, a:b], cache, mode=mode) for a, b in ((0, 7), (7, 8), (8, 20))]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), model(tokens, mode), rtol=1e-3, atol=1e-3)


def test_a_cache_holds_eight_bits_a_number(models):
    cache = KVCache()
    decode(models["llama"], np.full((2, 11), 5), cache)
    assert cache.nbytes == 2 * 3 * 2 * 8 * 11 * 2  # keys and values, layers, heads, head size, tokens, sequences
    assert "11 tokens" in repr(cache)


def test_forgetting_goes_back(models):
    model = models["gemma2"]
    tokens = np.random.default_rng(7).integers(3, 99, (1, 20))
    cache = KVCache()
    decode(model, tokens, cache)
    cache.forget(12)
    again = decode(model, tokens[:, 12:], cache, codes=True)
    np.testing.assert_array_equal(again, model.run(tokens).codes["logits"][:, 12:])
    with pytest.raises(IntegerError, match="keeps 0 to 20"):
        cache.forget(21)


def test_other_sequences_are_refused(models):
    cache = KVCache()
    decode(models["llama"], np.full((2, 3), 5), cache)
    for tokens, mode in ((np.full((1, 3), 5), "integer"), (np.full((2, 3), 5), "float")):
        with pytest.raises(IntegerError, match="one cache for one batch"):
            decode(models["llama"], tokens, cache, mode=mode)  # pyright: ignore[reportArgumentType]
    with pytest.raises(IntegerError, match="token ids"):
        decode(models["llama"], np.zeros((1, 2)), cache)


def test_tokens_without_sequences_are_refused(models):
    for mode in ("integer", "float"):
        with pytest.raises(IntegerError, match=r"tokens\[None\] is one sequence"):
            models["llama"].run(np.arange(4), mode=mode)


def test_beyond_the_context_is_refused(models):
    cache = KVCache()
    decode(models["llama"], np.full((1, 64), 5), cache)
    with pytest.raises(IntegerError, match="positions 0 to 63"):
        decode(models["llama"], np.full((1, 1), 5), cache)


def test_only_decoders_have_a_cache():
    graph = Graph((Node("f", "linear", ("x",), "y", {"weight": np.eye(2, dtype=np.float32)}),), ("x",), ("y",))
    model = integerize(graph, "w8a8", np.ones((1, 2), np.float32))
    with pytest.raises(IntegerError, match="no decoder"):
        decode(model, [1], KVCache())


@pytest.mark.parametrize("mode", ["integer", "float"])
def test_greedy_generation_takes_the_likeliest_token_each_time(models, mode):
    model = models["gemma3"]
    prompt = np.random.default_rng(8).integers(3, 99, (2, 6))
    found = generate(model, prompt, 9, mode=mode)
    wanted = prompt
    for _ in range(9):
        run = model.run(wanted, mode=mode)
        last = run.arrays["logits"][:, -1]
        wanted = np.concatenate([wanted, np.argmax(last, axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(found, wanted)


def test_generation_stops_at_a_stop_token(models):
    model = models["llama"]
    prompt = np.array([[5, 9, 11]])
    free = generate(model, prompt, 8)[0, 3:]
    stopped = generate(model, prompt, 8, stop=[int(free[2])])[0, 3:]
    first = int(np.argmax(free == free[2]))
    np.testing.assert_array_equal(stopped, free[: first + 1])
    np.testing.assert_array_equal(generate(model, prompt, 8, stop=int(free[2]))[0, 3:], stopped)
    np.testing.assert_array_equal(generate(model, prompt, 0), prompt)
    for wrong in (-1, 2.5, None):
        with pytest.raises(IntegerError, match="number of tokens to add"):
            generate(model, prompt, wrong)


def test_generation_can_be_cancelled(models):
    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(models["llama"], [5, 6], 10, progress=stop)
