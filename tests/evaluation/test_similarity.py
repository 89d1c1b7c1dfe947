"""Similarity against scipy and hand-made vectors; the sentences are real ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.calibration.docstrings import docstring_sentences
from workbench.errors import WorkbenchError
from workbench.evaluation import sentence_pairs, similarity, spearman
from workbench.evaluation.similarity import ordered_share, pair_similarities


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=40))
def test_spearman_is_scipys_with_ties(pairs):
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)


PAIRS = [("a", "b"), ("a", "c"), ("b", "c")]
VECTORS = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [-1.0, 0.5]}


def embed(sentences: list[str]) -> np.ndarray:
    return np.array([VECTORS[each] for each in sentences])


def test_an_encoder_is_like_itself_whatever_its_length():
    found = similarity(embed, lambda sentences: torch.tensor(3.0 * embed(sentences)), PAIRS)
    assert (found.cosine, found.worst_cosine, found.spearman) == pytest.approx((1.0, 1.0, 1.0))
    assert found.largest_difference < 1e-12
    assert (found.sentences, found.pairs) == (3, 3)


def test_differences_are_those_of_the_cosines():
    turned = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 0.1]}
    found = similarity(embed, lambda sentences: np.array([turned[each] for each in sentences]), PAIRS)
    own = [1.0, math.cos(math.pi / 4), (-1.0 + 0.05) / math.hypot(1, 0.5) / math.hypot(1, 0.1)]
    assert found.cosine == pytest.approx(np.mean(own))
    assert found.worst_cosine == pytest.approx(min(own))
    one, other = found.similarities[:, 0], found.similarities[:, 1]
    np.testing.assert_allclose(one, [0.5**0.5, -1 / math.hypot(1, 0.5), -0.5 / math.sqrt(2) / math.hypot(1, 0.5)])
    np.testing.assert_allclose(other, [0.0, 1 / math.hypot(1, 0.1), 0.1 / math.hypot(1, 0.1)], atol=1e-12)
    assert found.spearman == pytest.approx(stats.spearmanr(one, other)[0])
    assert found.largest_difference == pytest.approx(np.abs(one - other).max())


def test_bad_input_gets_one_sentence():
    with pytest.raises(WorkbenchError, match="two pairs"):
        similarity(embed, embed, PAIRS[:1])
    for wrong in (None, ["abc", "def"], [("a", "b"), ("a", "b", "c")]):
        with pytest.raises(WorkbenchError, match="compares pairs of sentences"):
            similarity(embed, embed, wrong)
    with pytest.raises(WorkbenchError, match="one row for each of 3"):
        similarity(embed, lambda sentences: embed(sentences)[:2], PAIRS)
    with pytest.raises(WorkbenchError, match="one width"):
        similarity(embed, lambda sentences: embed(sentences)[:, :1], PAIRS)
    for count in (1, 100_000):
        with pytest.raises(WorkbenchError, match="pairs of neighbouring"):
            sentence_pairs(count)


def test_pairs_are_sentences_that_people_wrote():
    pairs = sentence_pairs(100)
    assert len(pairs) == 100
    assert pairs == sentence_pairs(100)
    assert pairs != sentence_pairs(100, seed=1)
    for one, other in pairs:
        assert one != other
        for sentence in (one, other):
            assert sentence[0].isupper()
            assert sentence.endswith(".")
            assert 5 <= len(sentence.split()) <= 40


def test_sentences_come_from_docstrings_in_order():
    source = (
        '"""The first sentence has a few words. And the second sentence has some more.\n\n>>> no_code(1)\n"""\n'
        "x = 'This string is no docstring at all.'\n"
        "def f():\n    'Return something that nobody has asked for. Short one.'\n\f\nnot python at all (\n"
    )
    assert docstring_sentences(source) == [
        ["The first sentence has a few words.", "And the second sentence has some more."],
        ["Return something that nobody has asked for."],
    ]


def test_errors_of_cosine_and_rank_correlation():
    draw = np.random.default_rng(0)
    names = [f"s{number}" for number in range(60)]
    vectors = {name: draw.normal(size=6) for name in names}
    noisy = {name: vector + draw.normal(0, 0.3, 6) for name, vector in vectors.items()}
    pairs = [(names[2 * number], names[2 * number + 1]) for number in range(30)]
    found = similarity(
        lambda given: np.array([vectors[each] for each in given]),
        lambda given: np.array([noisy[each] for each in given]),
        pairs,
    )
    assert found.cosine_error == pytest.approx(np.std(found.cosines, ddof=1) / math.sqrt(60))
    assert found.spearman_error() == found.spearman_error()
    assert found.spearman_error() != found.spearman_error(seed=1)
    # The textbook's approximation for rank correlations (Bonett and Wright 2000) is near.
    textbook = math.sqrt((1 + found.spearman**2 / 2) / (30 - 3)) * (1 - found.spearman**2)
    assert 0.4 < found.spearman_error() / textbook < 2.5


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_ordered_share_counts_couples(likely, unlikely):
    found = ordered_share(np.array(likely, float), np.array(unlikely, float))
    if not likely or not unlikely:
        assert math.isnan(found)
        return
    couples = [1.0 if a > b else 0.5 if a == b else 0.0 for a in likely for b in unlikely]
    assert found == pytest.approx(np.mean(couples))


def test_pairs_cosines_are_those_of_their_vectors():
    assert pair_similarities(embed, PAIRS).tolist() == pytest.approx(
        [0.5**0.5, -1 / math.hypot(1, 0.5), -0.5 / math.sqrt(2) / math.hypot(1, 0.5)]
    )
