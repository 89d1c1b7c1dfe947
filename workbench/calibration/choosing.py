"""Which texts to calibrate on: random ones, or a balanced choice that does not drown rare kinds in the frequent one.

``choose_balanced`` follows automatic data curation (Vo et al. 2024, arXiv 2405.15613, and its published code): texts are
embedded; k-means groups them into many small clusters, k-means on the centroids groups those into fewer, level by level;
at each level a few rounds of resampling (k-means on the points nearest to each centroid alone, then everything assigned
anew) spread the centroids evenly over the support of the data instead of along its density. Then the count asked for is
divided from the top down as evenly as the clusters' sizes allow, and texts of the finest clusters are drawn at random.
Sizes of the levels for a few thousand texts, unit-length embeddings and TF-IDF are derived for the workbench: the paper
clusters hundreds of millions of images and texts with learned embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import WorkbenchError

#: From texts to one row of numbers each.
Embed = Callable[[list[str]], Any]
Progress = Callable[[float, str], Any]

#: Rounds of resampling at each level (the paper's number at all levels but the first, which is too large for it there).
RESAMPLES = 10
#: Numbers of the default embedding.
WIDTH = 64
#: Most clusters of the finest level by default.
MOST_CLUSTERS = 512


def choose_random(texts: Sequence[str], count: int, *, seed: int = 0) -> list[int]:
    """Return the places of texts drawn evenly, in rising order; empty texts and repetitions of a text are left out.

    Args:
        texts: to choose from.
        count: how many; all that there are where there are fewer.
        seed: of the draw.

    Raises:
        WorkbenchError: nothing to choose from, or a count below 1.
    """
    places = distinct(texts, count)
    if count >= len(places):
        return places
    return sorted(int(each) for each in np.random.default_rng(seed).choice(places, count, replace=False))


def choose_balanced(
    texts: Sequence[str],
    count: int,
    *,
    embed: Embed | None = None,
    levels: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[int]:
    """Return the places of a balanced choice of texts, in rising order (hierarchical k-means, see above).

    Args:
        texts: to choose from; empty ones and repetitions of a text are left out.
        count: how many; all that there are where there are fewer.
        embed: from a list of texts to numbers (texts, width); by default TF-IDF of words and marks, reduced to 64
            numbers by a truncated singular value decomposition. ``mean_hidden_states`` makes one of a model.
        levels: clusters of each level, the finest first, falling. By default a quarter of the texts, at most 4 ``count``
            and 512, then a quarter of each level before, while there are two or more.
        seed: of k-means and of all draws.
        progress: told the finished fraction and a label; may raise ``Cancelled``.

    Raises:
        WorkbenchError: nothing to choose from, a count below 1, levels that do not fall, or embeddings that are no finite
            numbers (texts, width).
    """
    places = distinct(texts, count)
    if count >= len(places):
        return places
    sizes = _default_levels(len(places), count) if levels is None else [int(each) for each in levels]
    if not sizes or min(sizes) < 1 or any(b >= a for a, b in pairwise(sizes)):
        message = f"levels are numbers of clusters that fall from the finest to the coarsest, not {tuple(sizes)}"
        raise WorkbenchError(message)
    tell = progress or (lambda fraction, label: None)
    tell(0.0, "embedding texts")
    points = _embedded([texts[place] for place in places], embed, seed)
    draw = np.random.default_rng(seed)
    hierarchy = cluster_levels(points, sizes, seed, tell)
    members = sample_hierarchy(hierarchy, count, draw)
    tell(1.0, "texts chosen")
    return sorted(places[member] for member in members)


def mean_hidden_states(module: Any, tokenizer: Any, *, length: int = 128, batch: int = 16) -> Embed:
    """Return an embedding for ``choose_balanced``: the mean of a model's last hidden states over each text's tokens.

    Args:
        module: a model of transformers.
        tokenizer: its own.
        length: tokens of each text that count.
        batch: texts that are read at once; they are read one by one where the tokenizer cannot fill up short ones.
    """

    def embed(texts: list[str]) -> Float[np.ndarray, "texts width"]:
        import torch

        device = next((each.device for each in module.parameters()), torch.device("cpu"))
        step = batch if getattr(tokenizer, "pad_token", None) is not None else 1
        rows, was_training = [], module.training
        module.eval()
        try:
            with torch.no_grad():
                for first in range(0, len(texts), step):
                    coded = tokenizer(
                        texts[first : first + step],
                        truncation=True,
                        max_length=length,
                        padding=step > 1,
                        return_tensors="pt",
                    ).to(device)
                    mask = coded["attention_mask"][..., None].float()
                    out = module(coded["input_ids"], attention_mask=coded["attention_mask"], output_hidden_states=True)
                    hidden = out.hidden_states[-1].float()
                    rows.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu().numpy())
        finally:
            module.train(was_training)
        return np.concatenate(rows)

    return embed


def distinct(texts: Sequence[str], count: int) -> list[int]:
    """Return the places of texts that are not empty, each text once (the first of equals).

    Raises:
        WorkbenchError: nothing remains, a count below 1, or something that is no text.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        message = "texts to choose from are a list of texts"
        raise WorkbenchError(message)
    if isinstance(count, bool) or int(count) != count or count < 1:
        message = f"at least one text is chosen, not {count}"
        raise WorkbenchError(message)
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        if text.strip():
            first.setdefault(text.strip(), place)
    if not first:
        message = f"there is nothing to choose from: {len(texts)} texts, all of them empty"
        raise WorkbenchError(message)
    return sorted(first.values())


def cluster_levels(
    points: Float[np.ndarray, "points width"], sizes: Sequence[int], seed: int, tell: Progress
) -> list[Int[np.ndarray, " parts"]]:
    """Return for each level to which cluster each part belongs: texts at the first, clusters of the level before after.

    Args:
        points: embeddings, float64.
        sizes: clusters of each level; a level of more clusters than distinct parts gets fewer.
        seed: of k-means.
        tell: told the finished fraction and a label; may raise ``Cancelled``.
    """
    import threadpoolctl

    assignments, parts = [], points
    # One thread: several add up in the order in which they finish, and a sum that rounds otherwise may choose otherwise.
    with threadpoolctl.threadpool_limits(limits=1):
        for level, size in enumerate(sizes):
            wanted = min(size, len(np.unique(parts, axis=0)))
            centroids, owner = _k_means(parts, wanted, seed)
            nearest = max(1, round(len(parts) / wanted / 2))
            for turn in range(RESAMPLES if nearest > 1 and wanted > 1 else 0):
                tell((level + turn / RESAMPLES) / len(sizes), f"grouping texts, level {level + 1} of {len(sizes)}")
                distance = ((parts - centroids[owner]) ** 2).sum(axis=1)
                order = np.lexsort((distance, owner))
                rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
                kept = np.sort(order[rank < nearest])
                centroids, _ = _k_means(parts[kept], min(wanted, len(np.unique(parts[kept], axis=0))), seed + turn + 1)
                owner = _nearest(parts, centroids)
            used, owner = np.unique(owner, return_inverse=True)  # a cluster may have lost all its parts
            assignments.append(owner)
            parts = centroids[used]
    return assignments


def sample_hierarchy(
    assignments: Sequence[Int[np.ndarray, " parts"]], count: int, draw: np.random.Generator
) -> list[int]:
    """Draw points from a hierarchy of clusters, evenly from the top down.

    Args:
        assignments: see ``cluster_levels``.
        count: how many points; all where there are fewer.
        draw: of the points within a finest cluster, and of the clusters that give one more where it does not divide.
    """
    leaves = [np.arange(len(assignments[0]))[assignments[0] == owner] for owner in range(assignments[0].max() + 1)]
    points = [leaves]  # points under each cluster, by level
    for owner in assignments[1:]:
        below = points[-1]
        points.append(
            [np.concatenate([below[i] for i in np.nonzero(owner == top)[0]]) for top in range(owner.max() + 1)]
        )
    shares = even_shares([len(each) for each in points[-1]], count, draw)
    for level in range(len(assignments) - 1, 0, -1):
        owner = assignments[level]
        below = np.zeros(len(owner), dtype=np.int64)
        for top, share in enumerate(shares):
            inside = np.nonzero(owner == top)[0]
            below[inside] = even_shares([len(points[level - 1][i]) for i in inside], int(share), draw)
        shares = below
    return [
        int(point)
        for leaf, share in zip(leaves, shares, strict=True)
        for point in draw.choice(leaf, int(share), replace=False)
    ]


def even_shares(sizes: Sequence[int], count: int, draw: np.random.Generator) -> Int[np.ndarray, " clusters"]:
    """Divide a count over clusters as evenly as their sizes allow: min(cut, size) each, the rest drawn.

    Args:
        sizes: of the clusters.
        count: to divide; where the clusters hold fewer, each gives all.
        draw: which of those that hold more than the cut give one more.
    """
    held = np.asarray(sizes, dtype=np.int64)
    if held.sum() <= count:
        return held
    cut = 0
    while np.minimum(held, cut + 1).sum() <= count:
        cut += 1
    shares = np.minimum(held, cut)
    more = draw.choice(np.nonzero(held > cut)[0], count - int(shares.sum()), replace=False)
    shares[more] += 1
    return shares


def _default_levels(texts: int, count: int) -> list[int]:
    sizes = [max(1, min(texts // 4, 4 * count, MOST_CLUSTERS))]
    while sizes[-1] // 4 >= 2:
        sizes.append(sizes[-1] // 4)
    return sizes


def _embedded(texts: list[str], embed: Embed | None, seed: int) -> Float[np.ndarray, "texts width"]:
    """Return unit-length embeddings (zero where an embedding is zero)."""
    found: Any = _term_embedding(texts, seed) if embed is None else embed(texts)
    if hasattr(found, "detach"):
        found = found.detach().float().cpu().numpy()
    points = np.asarray(found, dtype=np.float64)
    if points.ndim != 2 or len(points) != len(texts) or points.shape[1] == 0 or not np.isfinite(points).all():
        message = f"an embedding gives finite numbers ({len(texts)}, width) for {len(texts)} texts, not {points.shape}"
        raise WorkbenchError(message if np.isfinite(points).all() else f"{message} with NaN or infinite ones")
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length > 0.0, length, 1.0)


def _term_embedding(texts: list[str], seed: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True).fit_transform(texts)
    width = min(WIDTH, *(side - 1 for side in terms.shape))
    if width < 2:
        return terms.toarray()
    return TruncatedSVD(width, random_state=seed).fit_transform(terms)


def _k_means(points: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans

    settings: Any = {"n_init": 1, "max_iter": 50, "random_state": seed}
    found = KMeans(clusters, **settings).fit(points)
    return found.cluster_centers_, np.asarray(found.labels_, dtype=np.int64)


def _nearest(points: np.ndarray, centroids: np.ndarray) -> Int[np.ndarray, " points"]:
    products = points @ centroids.T
    return ((centroids**2).sum(axis=1) - 2.0 * products).argmin(axis=1)
