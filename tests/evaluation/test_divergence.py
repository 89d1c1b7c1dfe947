"""Divergence against a slow float64 loop; errors against repeated draws; the odd cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import divergence
from workbench.evaluation.divergence import compare_logits, summary
from workbench.evaluation.standard_errors import clusters_of, quantiles, ratio_error, share_error

WORDS = 6
TABLE = np.random.default_rng(0).normal(0, 2, (WORDS, WORDS))
OTHER = TABLE + np.random.default_rng(1).normal(0, 0.5, TABLE.shape)


def sure(ids: np.ndarray) -> np.ndarray:
    return TABLE[ids]


def unsure(ids: np.ndarray) -> np.ndarray:
    return OTHER[ids]


def loop(first: np.ndarray, second: np.ndarray) -> float:
    """KL(first || second) of two rows of logits in Python floats."""
    p, q = ([float(each) for each in row] for row in (first, second))
    p = [math.exp(each) / sum(map(math.exp, p)) for each in p]
    q = [math.exp(each) / sum(map(math.exp, q)) for each in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(2, 50), window=st.integers(2, 20))
def test_it_is_a_loop_over_tokens(seed, length, window):
    ids = np.random.default_rng(seed).integers(0, WORDS, length)
    found = divergence(unsure, sure, [ids], window=window)
    expected = [loop(TABLE[before], OTHER[before]) for before in ids[:-1]]
    assert found.values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.largest == pytest.approx(max(expected))
    assert found.median == pytest.approx(np.quantile(expected, 0.5, method="inverted_cdf"))
    assert found.percentile_99 == pytest.approx(np.quantile(expected, 0.99, method="inverted_cdf"))
    same = [TABLE[before].argmax() == OTHER[before].argmax() for before in ids[:-1]]
    assert found.top1 == pytest.approx(np.mean(same))
    assert found.count == length - 1
    assert found.top1_error > 0 or np.isnan(found.top1_error)


def test_a_model_is_no_distance_from_itself():
    found = divergence(sure, sure, [np.arange(60) % WORDS], window=8)
    assert (found.mean, found.median, found.percentile_99, found.largest, found.top1) == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert found.mean_error == 0.0
    assert found.top1_error == pytest.approx(share_error(59, 59))
    assert found.perplexity == found.reference_perplexity
    assert "top-1 100.00 %" in repr(found)


def test_numpy_torch_and_windows_give_the_same():
    ids = [np.arange(70) % WORDS, np.arange(33)[::-1] % WORDS]
    plain = divergence(unsure, sure, ids, window=16)
    tensors = divergence(lambda rows: torch.tensor(unsure(rows)), lambda rows: torch.tensor(sure(rows)), ids, window=16)
    assert tensors.values.tolist() == pytest.approx(plain.values.tolist(), abs=1e-13)
    assert plain.mean == pytest.approx(divergence(unsure, sure, ids, window=9).mean)


def test_far_logits_and_excluded_tokens():
    far = compare_logits(np.array([[1e5, 0.0, -1e5]]), np.array([[1e5, 0.0, -1e5]]))
    assert far.values.tolist() == [0.0]
    inf = -np.inf
    both = compare_logits(np.array([[0.0, 0.0, inf]]), np.array([[0.0, 1.0, inf]]))
    assert both.values[0] == pytest.approx(loop(np.array([0.0, 1.0]), np.zeros(2)))
    # What the model excludes and the reference does not is infinitely surprising; the mean says so, and has no error.
    lost = compare_logits(np.array([[0.0, inf, 0.0]]), np.zeros((1, 3)))
    assert lost.values[0] == math.inf
    whole = summary(np.array([0.1, math.inf]), np.array([True, False]), np.arange(2), "2 inputs")
    assert whole.mean == math.inf
    assert math.isnan(whole.mean_error)
    for bad in (np.array([[np.nan, 0.0]]), np.full((1, 2), inf)):
        with pytest.raises(WorkbenchError, match="NaN"):
            compare_logits(bad, np.zeros((1, 2)))
        with pytest.raises(WorkbenchError, match="NaN"):
            compare_logits(torch.tensor(bad), np.zeros((1, 2)))


def test_errors_are_what_repeated_measurements_show():
    """Values that come in clusters: each cluster shifts all of its values."""
    draw = np.random.default_rng(5)

    def sample(clusters: int = 40, size: int = 25):
        shift = draw.normal(0, 1, clusters)
        values = np.exp(0.3 * (np.repeat(shift, size) + draw.normal(0, 1, clusters * size)))
        return summary(values, values < 1.2, np.repeat(np.arange(clusters), size), "clusters")

    found = [sample() for _ in range(120)]
    for value, error in (
        ("mean", "mean_error"),
        ("median", "median_error"),
        ("percentile_99", "percentile_99_error"),
        ("top1", "top1_error"),
    ):
        spread = np.std([getattr(each, value) for each in found])
        told = np.mean([getattr(each, error) for each in found])
        assert 0.75 < told / spread < 1.35, value
    # Taking values as independent would tell far too little.
    one = found[0]
    assert ratio_error(one.values, np.ones(len(one.values))) < 0.5 * one.mean_error


def test_clusters_are_documents_where_there_are_enough():
    assert clusters_of(np.repeat(np.arange(12), 3))[1] == "12 documents"
    owner, words = clusters_of(np.repeat([4, 9], 3))
    assert (owner.tolist(), words) == ([0, 1, 2, 3, 4, 5], "6 windows")
    many = divergence(unsure, sure, [np.arange(20) % WORDS] * 10, window=8)
    assert many.clusters == "10 documents"
    assert many.mean_error == pytest.approx(0.0, abs=1e-12)  # ten times the same document
    few = divergence(unsure, sure, [np.arange(9) % WORDS], window=16)
    assert few.clusters == "1 window"
    assert np.isnan([few.mean_error, few.median_error]).all()


def test_quantiles_are_seeded():
    values, owner = np.random.default_rng(0).random(300), np.arange(300) // 10
    assert quantiles(values, (0.5, 0.99), owner, 1) == quantiles(values, (0.5, 0.99), owner, 1)
    assert quantiles(values, (0.5,), owner, 1)[0][1] != quantiles(values, (0.5,), owner, 2)[0][1]
    assert quantiles(values, (1.0, 0.0), owner, 0)[0][0] == values.max()


def test_two_vocabularies_and_cancelling():
    with pytest.raises(WorkbenchError, match="one vocabulary"):
        divergence(lambda ids: np.zeros((*ids.shape, 7)), sure, [[1, 2, 3]])
    with pytest.raises(WorkbenchError, match="two tokens"):
        divergence(unsure, sure, [[1]])

    def stop(fraction):
        if fraction > 0.4:
            raise Cancelled

    with pytest.raises(Cancelled):
        divergence(unsure, sure, [np.zeros(99, int)], window=10, progress=stop)
