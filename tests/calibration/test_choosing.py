"""Choosing texts: even shares against one-by-one filling, balance on a skewed pool, odd pools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.calibration.choosing import (
    choose_balanced,
    choose_random,
    cluster_levels,
    even_shares,
    mean_hidden_states,
    sample_hierarchy,
)
from workbench.errors import Cancelled, WorkbenchError


def skewed_pool() -> tuple[list[str], np.ndarray, list[int]]:
    """Return 300 texts of one kind, 30 of another, 10 of a third, with embeddings and kinds."""
    draw = np.random.default_rng(0)
    kinds = [0] * 300 + [1] * 30 + [2] * 10
    centres = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    points = centres[kinds] + draw.normal(0, 0.05, (len(kinds), 3))
    return [f"text {place}" for place in range(len(kinds))], points, kinds


def by_table(points: np.ndarray):
    return lambda texts: points[[int(text.split()[1]) for text in texts]]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(0, 80), st.integers(0, 99))
def test_shares_are_those_of_filling_one_by_one(sizes, count, seed):
    shares = even_shares(sizes, count, np.random.default_rng(seed))
    # Slow definition: give one to each cluster that has one left, round by round.
    rounds, left = np.zeros(len(sizes), int), min(count, sum(sizes))
    while left:
        open_ones = [i for i, size in enumerate(sizes) if rounds[i] < size]
        if left < len(open_ones):
            break
        rounds[open_ones] += 1
        left -= len(open_ones)
    assert shares.sum() == min(count, sum(sizes))
    assert (shares <= sizes).all()
    assert ((shares == rounds) | (shares == rounds + 1)).all()
    assert (shares - rounds).sum() == left


def test_rare_kinds_are_not_drowned():
    texts, points, kinds = skewed_pool()
    chosen = choose_balanced(texts, 30, embed=by_table(points), levels=(24, 3), seed=0)
    counts = np.bincount([kinds[place] for place in chosen], minlength=3)
    assert counts.tolist() == [10, 10, 10]  # a flat draw would expect 26, 3, 1
    chosen = choose_balanced(texts, 60, embed=by_table(points), levels=(24, 3), seed=1)
    assert np.bincount([kinds[place] for place in chosen], minlength=3).tolist() == [25, 25, 10]
    flat = choose_random(texts, 30, seed=0)
    assert np.bincount([kinds[place] for place in flat], minlength=3)[0] > 20


def test_without_levels_and_embedding_rare_texts_are_chosen_more_often_than_evenly():
    words = ["alpha beta gamma delta", "import os sys path", "one two three four"]
    draw = np.random.default_rng(1)
    kinds = [0] * 160 + [1] * 20 + [2] * 20
    texts = [" ".join(draw.permutation(words[kind].split())) + f" {place}" for place, kind in enumerate(kinds)]
    chosen = choose_balanced(texts, 24)
    assert sum(kinds[place] > 0 for place in chosen) > 8  # evenly: 5 expected
    assert chosen == choose_balanced(texts, 24)
    assert chosen != choose_balanced(texts, 24, seed=5)


def test_a_hierarchy_is_sampled_from_the_top_down():
    # Two top clusters: {a: 4 points, b: 1 point} and {c: 1 point}.
    leaves, tops = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 1])
    for seed in range(8):
        chosen = sample_hierarchy([leaves, tops], 3, np.random.default_rng(seed))
        assert 5 in chosen
        # The first top cluster gives two: one of each of its own (they are filled evenly), or where the draw gave it
        # no more, the rule is the same one level lower.
        assert sorted(leaves[chosen].tolist()) == [0, 1, 2]
    assert sorted(sample_hierarchy([leaves, tops], 99, np.random.default_rng(0))) == list(range(6))


def test_levels_are_nested_and_seeded():
    _, points, _ = skewed_pool()
    first, second = cluster_levels(points, (20, 4), 0, lambda *_: None)
    assert len(first) == len(points)
    assert set(first.tolist()) == set(range(len(second)))
    assert set(second.tolist()) == set(range(second.max() + 1))
    assert second.max() < 4
    again = cluster_levels(points, (20, 4), 0, lambda *_: None)
    assert np.array_equal(again[0], first)
    assert np.array_equal(again[1], second)


def test_resampling_spreads_clusters_over_the_support():
    """Centroids follow the support, not the density: the crowded end gets fewer of them than plain k-means gives it."""
    from sklearn.cluster import KMeans

    draw = np.random.default_rng(3)
    points = np.concatenate([draw.uniform(0, 1, 950), draw.uniform(1, 10, 50)])[:, None]
    plain = KMeans(20, n_init="auto", random_state=0).fit(points).cluster_centers_[:, 0]
    (owner,) = cluster_levels(points, (20,), 0, lambda *_: None)
    spread = np.array([points[owner == cluster].mean() for cluster in range(owner.max() + 1)])
    assert (spread < 1).sum() < (plain < 1).sum()


@pytest.mark.parametrize("choose", [choose_random, choose_balanced])
def test_empty_texts_and_repetitions_are_left_out(choose):
    texts = ["", "a b c", "  \n", "d e f", "a b c", " d e f ", "g h i"]
    assert choose(texts, 3) == [1, 3, 6]
    assert choose(texts, 50) == [1, 3, 6]
    two = choose(texts, 2)
    assert len(two) == 2
    assert set(two) < {1, 3, 6}
    assert choose(["same", "same"], 1) == [0]
    assert len(choose(["x", "y"], 1)) == 1


def test_texts_that_look_alike_to_the_embedding_do_not_stop_it():
    texts = [f"text {place}" for place in range(40)]
    chosen = choose_balanced(texts, 7, embed=lambda given: np.zeros((len(given), 2)), levels=(10, 3))
    assert len(set(chosen)) == 7
    assert len(choose_balanced(["!", "?", ";", "..."], 2)) == 2


def test_a_models_own_hidden_states_are_an_embedding():
    import torch

    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(300, 4)

        def forward(self, ids, attention_mask=None, output_hidden_states=False):
            return type("Out", (), {"hidden_states": (self.table(ids),)})()

    class Coded(dict):
        def to(self, device):
            return self

    class Tokenizer:
        pad_token = "p"

        def __call__(self, texts, truncation, max_length, padding, return_tensors):
            rows = [list(text.encode())[:max_length] for text in texts]
            most = max(map(len, rows))
            ids = torch.tensor([row + [0] * (most - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows])
            return Coded(input_ids=ids, attention_mask=mask)

    reader = Reader()
    embed = mean_hidden_states(reader, Tokenizer(), length=5, batch=2)
    found = embed(["abc", "abcdefgh", "z"])
    for row, text in zip(found, ["abc", "abcde", "z"], strict=True):
        table = reader.table.weight.detach().numpy().astype(np.float64)
        np.testing.assert_allclose(row, table[list(text.encode())].mean(axis=0), rtol=1e-6)
    assert len(choose_balanced(["abc", "abd", "xyz", "xyw"], 2, embed=embed, levels=(2,))) == 2


def test_it_tells_and_can_be_cancelled():
    texts, points, _ = skewed_pool()
    told: list[float] = []
    choose_balanced(texts, 9, embed=by_table(points), progress=lambda fraction, label: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0

    def stop(fraction, label):
        if fraction > 0.2:
            raise Cancelled

    with pytest.raises(Cancelled):
        choose_balanced(texts, 9, embed=by_table(points), progress=stop)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"texts": [], "count": 3}, "nothing to choose from: 0 texts"),
        ({"texts": ["", " "], "count": 3}, "all of them empty"),
        ({"texts": "a text", "count": 3}, "a list of texts"),
        ({"texts": [1, 2], "count": 1}, "a list of texts"),
        ({"texts": ["a", "b"], "count": 0}, "at least one text"),
        ({"texts": ["a", "b"], "count": 1, "levels": (2, 2)}, "fall from the finest"),
        ({"texts": ["a", "b"], "count": 1, "levels": ()}, "fall from the finest"),
        ({"texts": ["a", "b"], "count": 1, "embed": lambda texts: np.zeros(2)}, r"finite numbers \(2, width\)"),
        ({"texts": ["a", "b"], "count": 1, "embed": lambda texts: np.full((2, 2), np.nan)}, "NaN"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, said):
    with pytest.raises(WorkbenchError, match=said):
        choose_balanced(**arguments)
