"""The metrics that ``evaluate`` knows: what each is called, of what kind of model, and how its row comes out of a measurement."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.evaluation.accuracy import accuracy, held_out_digits
from workbench.evaluation.divergence import Divergence, class_divergence, divergence
from workbench.evaluation.last_word import last_word
from workbench.evaluation.perplexity import perplexity
from workbench.evaluation.similarity import ordered_share, pair_similarities, sentence_pairs, similarity, spearman
from workbench.evaluation.standard_errors import bootstrap_error
from workbench.evaluation.subject import Kind, Subject


@dataclass(frozen=True)
class Metric:
    """One figure of a model.

    Attributes:
        name: its word.
        title: for people.
        kinds: of models that have it.
        unit: of its value.
        source: the measurement that it is read from; metrics of one measurement cost one run together.
        reference: whether it compares with a reference.
        better: ``lower`` or ``higher``.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    unit: str
    source: str
    reference: bool = False
    better: str = "lower"


_LOGITS: tuple[Kind, ...] = ("causal", "classifier")

METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        Metric("perplexity", "Perplexity", ("causal",), "per token", "tokens"),
        Metric("perplexity_ratio", "Perplexity over the reference's", ("causal",), "ratio", "tokens", True),
        Metric("accuracy", "Accuracy", ("classifier",), "share", "accuracy", better="higher"),
        Metric(
            "accuracy_change", "Accuracy minus the reference's", ("classifier",), "share", "accuracy", True, "higher"
        ),
        Metric("kl", "KL from the reference, mean", _LOGITS, "nats", "tokens", True),
        Metric("kl_median", "KL from the reference, median", _LOGITS, "nats", "tokens", True),
        Metric("kl_99", "KL from the reference, 99 %", _LOGITS, "nats", "tokens", True),
        Metric("kl_max", "KL from the reference, largest", _LOGITS, "nats", "tokens", True),
        Metric("top1", "Same likeliest choice as the reference", _LOGITS, "share", "tokens", True, "higher"),
        Metric("last_word", "Last word foretold", ("causal",), "share", "last_word", better="higher"),
        Metric("last_word_perplexity", "Perplexity of the last word", ("causal",), "per word", "last_word"),
        Metric(
            "neighbours",
            "Neighbouring sentences nearer than strangers",
            ("encoder",),
            "share",
            "pairs",
            better="higher",
        ),
        Metric("sts", "Spearman with given scores", ("encoder",), "correlation", "pairs", better="higher"),
        Metric("cosine", "Cosine to the reference's embedding", ("encoder",), "cosine", "embeddings", True, "higher"),
        Metric("worst_cosine", "Smallest of these cosines", ("encoder",), "cosine", "embeddings", True, "higher"),
        Metric(
            "spearman",
            "Spearman with the reference's similarities",
            ("encoder",),
            "correlation",
            "embeddings",
            True,
            "higher",
        ),
    )
}
"""Metrics by name, in the order of the tables."""

#: Parts of ``data`` that each kind of model is measured on; the first is meant where no part is named.
DATA: dict[Kind, tuple[str, ...]] = {"causal": ("texts", "passages"), "encoder": ("pairs",), "classifier": ("inputs",)}


@dataclass(frozen=True)
class EvaluationRow:
    """One figure.

    Attributes:
        metric: its name, a key of ``METRICS``.
        value: NaN where it is not defined (a correlation of constants).
        standard_error: NaN where a sample cannot tell it (largest and smallest values, a single cluster).
        count: tokens, inputs, passages, sentences or pairs that it is over.
        unit: of the value.
        clusters: what was taken as independent for the standard error, in words.
    """

    metric: str
    value: float
    standard_error: float
    count: int
    unit: str
    clusters: str


@dataclass(frozen=True, eq=False)
class Question:
    """What a measurement is given."""

    model: Subject
    reference: Subject | None
    data: Mapping[str, Any]
    window: int
    limit: int | None
    seed: int
    progress: Callable[[float], None]


def chosen_metrics(
    names: str | Iterable[str] | None, kind: Kind, *, has_reference: bool, has_scores: bool, has_tokenizer: bool
) -> list[Metric]:
    """Return the metrics that are asked for, or those that make sense.

    Raises:
        WorkbenchError: an unknown name, or a metric that this model, or a model without reference, does not have.
    """
    if names is None:
        return [
            each
            for each in METRICS.values()
            if kind in each.kinds
            and (has_reference or not each.reference)
            and (has_tokenizer or each.source != "last_word")
            and (each.name != "sts" or has_scores)
            and (each.name != "neighbours" or not has_scores)
        ]
    found = []
    for name in [names] if isinstance(names, str) else names:
        metric = METRICS.get(str(name))
        if metric is None:
            near = difflib.get_close_matches(str(name), list(METRICS), n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            message = f"no metric is called {str(name)[:40]!r}{meant} (there are {', '.join(METRICS)})"
            raise WorkbenchError(message)
        if kind not in metric.kinds:
            message = f"{name} is measured on {' and '.join(metric.kinds)} models, and this one is of kind {kind}"
            raise WorkbenchError(message)
        if metric.reference and not has_reference:
            message = f"{name} compares with a reference: give reference= the float model"
            raise WorkbenchError(message)
        if metric.name == "sts" and not has_scores:
            message = "sts needs pairs with people's scores: [(one, other, score), ...]"
            raise WorkbenchError(message)
        if metric.name == "neighbours" and has_scores:
            message = "neighbours is of the shipped sentence pairs; pairs with scores are for sts"
            raise WorkbenchError(message)
        found.append(metric)
    if not found:
        message = f"at least one metric is measured (there are {', '.join(METRICS)})"
        raise WorkbenchError(message)
    return list(dict.fromkeys(found))


def measure(source: str, question: Question, metrics: list[Metric]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    """Run one measurement; return rows by metric, and the results that they were read from.

    Args:
        source: ``Metric.source`` of all of ``metrics``.
        question: what is measured on what.
        metrics: that are wanted of it.
    """
    return _MEASURES[question.model.kind, source](question, [each.name for each in metrics])


def _tokens(question: Question, names: list[str]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    texts, options = question.data.get("texts"), {"window": question.window, "limit": question.limit}
    if question.reference is None or names == ["perplexity"]:
        found = perplexity(question.model, texts, progress=question.progress, **options)
        error, words = found.error_by()
        return {"perplexity": _row("perplexity", found.value, error, found.tokens, words)}, {"perplexity": found}
    both = divergence(
        question.model, question.reference, texts, seed=question.seed, progress=question.progress, **options
    )
    rows = _divergence_rows(both)
    if both.perplexity is not None and both.reference_perplexity is not None:
        error, words = both.perplexity.error_by()
        ratio, ratio_error = both.perplexity.ratio(both.reference_perplexity, "auto")
        rows["perplexity"] = _row("perplexity", both.perplexity.value, error, both.count, words)
        rows["perplexity_ratio"] = _row("perplexity_ratio", ratio, ratio_error, both.count, words)
    details = {"divergence": both, "perplexity": both.perplexity, "reference_perplexity": both.reference_perplexity}
    return rows, details


def _divergence_rows(found: Divergence) -> dict[str, EvaluationRow]:
    row = partial(_row, count=found.count, clusters=found.clusters)
    return {
        "kl": row("kl", found.mean, found.mean_error),
        "kl_median": row("kl_median", found.median, found.median_error),
        "kl_99": row("kl_99", found.percentile_99, found.percentile_99_error),
        "kl_max": row("kl_max", found.largest, math.nan),
        "top1": row("top1", found.top1, found.top1_error),
    }


def _last_word(question: Question, names: list[str]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    found = last_word(question.model, question.data.get("passages"), window=question.window, progress=question.progress)
    row = partial(_row, count=found.total, clusters=f"{found.total} passages")
    rows = {
        "last_word": row("last_word", found.accuracy, found.standard_error),
        "last_word_perplexity": row("last_word_perplexity", found.perplexity, found.perplexity_error),
    }
    return rows, {"last_word": found}


def _accuracy(question: Question, names: list[str]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    inputs, labels = labelled(question.data)
    if labels is None:
        message = "accuracy needs labels: give data=(inputs, labels)"
        raise WorkbenchError(message)
    found = accuracy(question.model, inputs, labels, progress=question.progress)
    words = f"{found.total} inputs"
    rows = {"accuracy": _row("accuracy", found.value, found.standard_error, found.total, words)}
    details: dict[str, Any] = {"accuracy": found}
    if "accuracy_change" in names:
        assert question.reference is not None
        details["reference_accuracy"] = accuracy(question.reference, inputs, labels)
        change, error = found.change(details["reference_accuracy"])
        rows["accuracy_change"] = _row("accuracy_change", change, error, found.total, words)
    return rows, details


def _class_divergence(question: Question, names: list[str]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    assert question.reference is not None
    inputs, _ = labelled(question.data)
    found = class_divergence(question.model, question.reference, inputs, seed=question.seed, progress=question.progress)
    return _divergence_rows(found), {"divergence": found}


def _pairs(question: Question, names: list[str]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    pairs = question.data.get("pairs")
    question.progress(0.0)
    rows = {}
    if "sts" in names:
        assert pairs is not None
        scores = np.asarray([float(score) for _, _, score in pairs])
        found = pair_similarities(question.model.embed, [(one, other) for one, other, _ in pairs])
        error = bootstrap_error(len(found), lambda at: spearman(found[at], scores[at]), question.seed)
        rows["sts"] = _row("sts", spearman(found, scores), error, len(found), f"{len(found)} pairs")
    if "neighbours" in names:
        shipped = sentence_pairs(seed=question.seed)
        found = pair_similarities(question.model.embed, shipped)
        near = np.arange(len(found)) < len(found) // 2  # the neighbours come first
        error = bootstrap_error(
            len(found), lambda at: ordered_share(found[at][near[at]], found[at][~near[at]]), question.seed
        )
        value = ordered_share(found[near], found[~near])
        rows["neighbours"] = _row("neighbours", value, error, len(found), f"{len(found)} pairs")
    return rows, {}


def _embeddings(question: Question, names: list[str]) -> tuple[dict[str, EvaluationRow], dict[str, Any]]:
    assert question.reference is not None
    given = question.data.get("pairs")
    pairs = sentence_pairs(seed=question.seed) if given is None else [(each[0], each[1]) for each in given]
    question.progress(0.0)
    found = similarity(question.reference.embed, question.model.embed, pairs)
    sentences, words = found.sentences, f"{found.sentences} sentences"
    rows = {
        "cosine": _row("cosine", found.cosine, found.cosine_error, sentences, words),
        "worst_cosine": _row("worst_cosine", found.worst_cosine, math.nan, sentences, words),
        "spearman": _row(
            "spearman", found.spearman, found.spearman_error(question.seed), found.pairs, f"{found.pairs} pairs"
        ),
    }
    return rows, {"similarity": found}


def labelled(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (inputs, labels or None) of a classifier; by default the digits that tiny-resnet was not trained on."""
    given = data.get("inputs")
    if given is None:
        return held_out_digits()
    return given if isinstance(given, tuple) and len(given) == 2 else (given, None)


def _row(name: str, value: float, standard_error: float, count: int, clusters: str) -> EvaluationRow:
    return EvaluationRow(name, value, standard_error, count, METRICS[name].unit, clusters)


_Measure = Callable[[Question, list[str]], tuple[dict[str, EvaluationRow], dict[str, Any]]]
_MEASURES: dict[tuple[Kind, str], _Measure] = {
    ("causal", "tokens"): _tokens,
    ("causal", "last_word"): _last_word,
    ("classifier", "accuracy"): _accuracy,
    ("classifier", "tokens"): _class_divergence,
    ("encoder", "pairs"): _pairs,
    ("encoder", "embeddings"): _embeddings,
}
