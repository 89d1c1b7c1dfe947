"""Sentence embeddings of a quantized encoder against those of the float one, on sentences that people wrote.

pairs = sentence_pairs(200)                             # from the docstrings of the held-out text
result = similarity(embed_float, embed_integer, pairs)
result.cosine, result.spearman
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.calibration.docstrings import docstring_sentences
from workbench.errors import WorkbenchError
from workbench.evaluation.standard_errors import bootstrap_error
from workbench.resources import held_out_text_path


@dataclass(frozen=True, repr=False)
class Similarity:
    """How near a quantized encoder stays to the float one.

    Attributes:
        cosine: mean cosine between both embeddings of the same sentence.
        worst_cosine: the smallest of them.
        spearman: rank correlation of the pairs' similarities, quantized against float: 1 where both order all pairs alike.
        largest_difference: of a pair's similarity.
        sentences: how many distinct sentences.
        pairs: how many pairs.
        similarities: of each pair: float, quantized.
        cosines: between both embeddings of each sentence.
    """

    cosine: float
    worst_cosine: float
    spearman: float
    largest_difference: float
    sentences: int
    pairs: int
    similarities: Float[np.ndarray, "pairs 2"] = field(compare=False)
    cosines: Float[np.ndarray, " sentences"] = field(compare=False)

    @property
    def cosine_error(self) -> float:
        """Standard error of the mean cosine, sentences taken as independent; NaN for fewer than two."""
        count = len(self.cosines)
        return float(self.cosines.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan

    def spearman_error(self, seed: int = 0) -> float:
        """Return the rank correlation's standard error: a bootstrap over pairs, which are taken as independent."""
        both = self.similarities
        return bootstrap_error(len(both), lambda drawn: spearman(both[drawn, 0], both[drawn, 1]), seed)

    def __repr__(self) -> str:
        return (
            f"Similarity(cosine {self.cosine:.5f}, worst {self.worst_cosine:.5f}, Spearman {self.spearman:.5f}, "
            f"{self.pairs} pairs of {self.sentences} sentences)"
        )


def similarity(
    reference: Callable[[list[str]], Any], quantized: Callable[[list[str]], Any], pairs: Sequence[tuple[str, str]]
) -> Similarity:
    """Compare two encoders on pairs of sentences.

    Args:
        reference: from sentences to embeddings (sentences, width), of any length; cosines divide it out.
        quantized: likewise.
        pairs: two pairs or more.

    Raises:
        WorkbenchError: no pairs or fewer than two, or embeddings of another shape.
    """
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        message = "similarity compares pairs of sentences: [(one, other), ...]"
        raise WorkbenchError(message)
    if len(pairs) < 2:
        message = f"a rank correlation needs two pairs of sentences or more, not {len(pairs)}"
        raise WorkbenchError(message)
    places = {sentence: place for place, sentence in enumerate(dict.fromkeys(one for pair in pairs for one in pair))}
    sentences = list(places)
    first, second = (_unit_rows(embed(sentences), len(sentences)) for embed in (reference, quantized))
    if first.shape != second.shape:
        message = f"two encoders of one model give embeddings of one width, not {first.shape} and {second.shape}"
        raise WorkbenchError(message)
    own = (first * second).sum(axis=1)
    left = np.asarray([places[one] for one, _ in pairs])
    right = np.asarray([places[other] for _, other in pairs])
    both = np.stack([(unit[left] * unit[right]).sum(axis=1) for unit in (first, second)], axis=1)
    return Similarity(
        float(own.mean()),
        float(own.min()),
        spearman(both[:, 0], both[:, 1]),
        float(np.abs(both[:, 0] - both[:, 1]).max()),
        len(sentences),
        len(pairs),
        both,
        own,
    )


def pair_similarities(
    embed: Callable[[list[str]], Any], pairs: Sequence[tuple[str, str]]
) -> Float[np.ndarray, " pairs"]:
    """Return the cosine of both embeddings of every pair of sentences.

    Args:
        embed: from sentences to embeddings (sentences, width).
        pairs: of sentences.

    Raises:
        WorkbenchError: embeddings of another shape.
    """
    sentences = list(dict.fromkeys(one for pair in pairs for one in pair))
    rows = dict(zip(sentences, _unit_rows(embed(sentences), len(sentences)), strict=True))
    return np.asarray([float(rows[one] @ rows[other]) for one, other in pairs])


def ordered_share(likely: Float[np.ndarray, " n"], unlikely: Float[np.ndarray, " m"]) -> float:
    """Return the share of (likely, unlikely) couples in which the likely one is larger; equal ones count half.

    This is the area under the receiver operating characteristic (Mann and Whitney's U over n m); NaN where one is empty.
    """
    if len(likely) == 0 or len(unlikely) == 0:
        return math.nan
    ranks = _ranks(np.concatenate([likely, unlikely]))[: len(likely)]
    return float(ranks.sum() - len(likely) * (len(likely) + 1) / 2.0) / (len(likely) * len(unlikely))


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Return Spearman's rank correlation; equal numbers share their mean rank. NaN where one side is constant."""
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y))
    first, second = first - first.mean(), second - second.mean()
    spread = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / spread if spread > 0.0 else math.nan


def sentence_pairs(count: int = 200, seed: int = 0) -> list[tuple[str, str]]:
    """Return pairs of English sentences from the docstrings of the held-out text: alternately neighbours and strangers.

    Args:
        count: how many pairs.
        seed: of the draw.

    Raises:
        WorkbenchError: the text holds fewer.
    """
    documents = docstring_sentences(held_out_text_path().read_text(encoding="utf-8"))
    every = [sentence for sentences in documents for sentence in sentences]
    neighbours = [(a, b) for sentences in documents for a, b in pairwise(sentences) if a != b]
    near = count // 2
    if near > len(neighbours) or count < 2:
        message = f"the held-out text has {len(neighbours)} pairs of neighbouring sentences: ask for 2 to {2 * len(neighbours)}"
        raise WorkbenchError(message)
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(len(neighbours))[:near]
    pairs = [neighbours[place] for place in chosen]
    while len(pairs) < count:
        one, other = draw.choice(len(every), 2, replace=False)
        if every[one] != every[other]:
            pairs.append((every[one], every[other]))
    return pairs


def _unit_rows(embeddings: Any, rows: int) -> np.ndarray:
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    array = np.asarray(embeddings, dtype=np.float64)
    if array.ndim != 2 or len(array) != rows:
        message = f"an encoder gives one row for each of {rows} sentences, not {array.shape}"
        raise WorkbenchError(message)
    length = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(length > 0.0, length, 1.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[place]
