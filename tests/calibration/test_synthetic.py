"""Synthetic text: drawn as the distribution says, seeded row by row, the cache changing nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from workbench import demo_path
from workbench.calibration.decoding import continue_tokens, greedy
from workbench.calibration.synthetic import draw_tokens, generate_texts
from workbench.errors import Cancelled, WorkbenchError


class Bigram(torch.nn.Module):
    """Logits that depend on the token before alone; no cache."""

    def __init__(self, words: int = 9):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn(words, words, generator=generator))
        self.config = type("Config", (), {"vocab_size": words, "bos_token_id": 2, "eos_token_id": 1})()

    def forward(self, ids):
        return self.table[ids]


@pytest.fixture(scope="module")
def gemma():
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    path = demo_path("tiny-gemma3")
    return Gemma3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def test_draws_invert_the_distribution_function():
    logits = np.random.default_rng(0).normal(0, 2, (5, 7))
    logits[:, 3] = -np.inf
    uniform = np.random.default_rng(1).random(5)
    for temperature in (0.5, 1.0, 3.0):
        found = draw_tokens(logits, uniform, temperature)
        for row, u, token in zip(logits, uniform, found, strict=True):
            weights = [np.exp((value - row.max()) / temperature) for value in row]
            rising, expected = 0.0, None
            for place, weight in enumerate(weights):
                rising += weight / sum(weights)
                if rising > u:
                    expected = place
                    break
            assert token == expected
    assert draw_tokens(logits, uniform, 0.0).tolist() == logits.argmax(axis=1).tolist()
    # A uniform number as near to one as there is never names a token that must not be drawn.
    ends = np.array([[0.0, 1.0, -np.inf]])
    assert draw_tokens(ends, np.array([np.nextafter(1.0, 0.0)]), 1.0).tolist() == [1]
    with pytest.raises(WorkbenchError, match="no token can be drawn"):
        draw_tokens(np.full((1, 3), -np.inf), np.zeros(1), 1.0)


def test_texts_have_the_models_own_transitions():
    model = Bigram()
    ids = generate_texts(model, samples=400, length=30, seed=3)
    assert ids.shape == (400, 30)
    assert ids.dtype == np.int64
    assert (ids[:, 0] == 2).all()
    assert not np.isin(ids[:, 1:], [1, 2]).any()  # special tokens are not drawn
    table = model.table.detach().numpy().astype(np.float64)
    table[:, [1, 2]] = -np.inf
    chances = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    drawn = ids[:, 6:]  # behind the fixed ones
    for word in (0, 4, 8):
        after = drawn[:, 1:][drawn[:, :-1] == word]
        expected = chances[word] * len(after)
        kept = expected > 0
        counts = np.bincount(after, minlength=9)
        assert counts[~kept].sum() == 0
        assert stats.chisquare(counts[kept], expected[kept]).pvalue > 1e-4


def test_the_first_tokens_are_likeliest_in_turn():
    model = Bigram()
    ids = generate_texts(model, samples=60, length=12, seed=0)
    masked = model.table.detach().numpy().astype(np.float64)
    masked[:, [1, 2]] = -np.inf
    best = masked.argmax(axis=1)
    for row, text in enumerate(ids):
        fixed = 3 + row % 3
        assert all(text[place + 1] == best[text[place]] for place in range(1, fixed))
    assert len(set(ids[:, 1].tolist())) == 7
    # Where the draws begin, not all are the likeliest.
    assert any(text[3 + row % 3 + 1] != best[text[3 + row % 3]] for row, text in enumerate(ids))


def test_it_is_seeded_row_by_row_and_batches_change_nothing():
    model = Bigram()
    many = generate_texts(model, samples=20, length=15, seed=7, batch=6)
    assert np.array_equal(many, generate_texts(model, samples=20, length=15, seed=7, batch=20))
    assert np.array_equal(many[:5], generate_texts(model, samples=5, length=15, seed=7))
    assert not np.array_equal(many, generate_texts(model, samples=20, length=15, seed=8))
    cold = generate_texts(model, samples=4, length=15, temperature=0.0)
    assert np.array_equal(cold, generate_texts(model, samples=4, length=15, temperature=1e-9))
    begun = generate_texts(model, samples=50, length=3, start="bos")
    assert (begun[:, 0] == 2).all()
    assert len(set(begun[:, 1].tolist())) > 2


def test_the_cache_changes_nothing(gemma):
    """Past the sliding window of 128: token by token with cache, the whole sequence again, transformers' own loop."""
    model, tokenizer = gemma
    ids = np.asarray([tokenizer("def read_lines(path):" * 16)["input_ids"][:120]])

    class Again(torch.nn.Module):
        def forward(self, ids):
            return model(ids, use_cache=False).logits

    found = continue_tokens(model, ids, 16, greedy)
    assert np.array_equal(found, continue_tokens(Again(), ids, 16, greedy))
    with torch.no_grad():
        theirs = model.generate(torch.from_numpy(ids), max_new_tokens=16, do_sample=False, eos_token_id=None)
    assert np.array_equal(found, theirs.numpy())


def test_the_shipped_model_writes_something_like_its_text(gemma):
    model, tokenizer = gemma
    ids = generate_texts(model, tokenizer, samples=4, length=48, seed=0)
    assert ids.shape == (4, 48)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert not np.isin(ids[:, 1:], tokenizer.all_special_ids).any()
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits[:, 4:-1].double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids)[:, 5:].flatten())
    assert float(losses) < 5.0  # random tokens: about log 4096 = 8.3 or more
    assert not model.training


def test_it_tells_and_can_be_cancelled():
    told: list[float] = []
    generate_texts(Bigram(), samples=5, length=8, batch=2, progress=lambda fraction, label: told.append(fraction))
    assert told == sorted(told)
    assert told[0] == 0.0

    def stop(fraction, label):
        if fraction > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate_texts(Bigram(), samples=5, length=8, batch=2, progress=stop)


def test_continuing_can_end_early_and_start_from_nothing_is_refused():
    model = Bigram()
    found = continue_tokens(model, np.array([[3]]), 50, greedy, finished=lambda ids: ids.shape[1] == 4)
    assert found.shape == (1, 4)
    assert continue_tokens(model, np.array([[3]]), 0, greedy).tolist() == [[3]]
    for wrong in (np.zeros((0, 3), int), np.zeros((1, 0), int), np.zeros(3, int), np.zeros((1, 1))):
        with pytest.raises(WorkbenchError, match="starts from token ids"):
            continue_tokens(model, wrong, 3, greedy)
    with pytest.raises(WorkbenchError, match="gives logits"):
        continue_tokens(torch.nn.Identity(), np.array([[3]]), 1, greedy)
    model.table.data[:] = torch.nan
    with pytest.raises(WorkbenchError, match="NaN"):
        continue_tokens(model, np.array([[3]]), 1, greedy)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"samples": 0}, "at least one"),
        ({"length": 1}, "of at least 2 tokens"),
        ({"temperature": -1.0}, "0 .* or more"),
        ({"temperature": float("nan")}, "0 .* or more"),
        ({"start": "middle"}, "not 'middle'"),
    ],
)
def test_bad_settings_get_one_sentence(arguments, said):
    with pytest.raises(WorkbenchError, match=said):
        generate_texts(Bigram(), **arguments)


def test_a_model_that_cannot_do_it_says_so(gemma):
    with pytest.raises(WorkbenchError, match="of 2 to 512 tokens"):
        generate_texts(*gemma, samples=1, length=513)
    model = Bigram()
    del model.config
    with pytest.raises(WorkbenchError, match="give its tokenizer"):
        generate_texts(model)
    with pytest.raises(WorkbenchError, match="no token that begins texts"):
        generate_texts(model, start="bos")
