"""How far a model's predictions lie from another's: Kullback-Leibler divergence and agreement of the likeliest choice.

    found = divergence(quantized, "demo:tiny-gemma3")          # token by token on the shipped held-out text
    found.mean, found.median, found.percentile_99, found.largest, found.top1

``KL(reference || model)`` in nats, from float64 log-probabilities: what is lost by believing the model where the reference
is right. Perplexity can stay while predictions change; these cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.errors import WorkbenchError
from workbench.evaluation.log_probabilities import checked_logits, divergences, log_probabilities
from workbench.evaluation.perplexity import Perplexity, held_out_documents, perplexity_of
from workbench.evaluation.standard_errors import clusters_of, quantiles, ratio_error, share_error
from workbench.evaluation.subject import Subject, subject
from workbench.evaluation.windows import plan_windows


@dataclass(frozen=True, repr=False)
class Divergence:
    """How far a model's predictions lie from the reference's.

    Attributes:
        mean: mean KL(reference || model) in nats, of a token (or of an input, for classifiers).
        mean_error: its standard error.
        median: half of all lie at or below.
        median_error: its standard error.
        percentile_99: 99 % lie at or below.
        percentile_99_error: its standard error.
        largest: of all; no sample tells its standard error.
        top1: share where both find the same choice likeliest, 0 to 1.
        top1_error: its standard error.
        count: tokens, or inputs.
        clusters: what was taken as independent, in words: documents where there are ten or more, else windows, or inputs.
        values: KL of each token or input.
        agreed: whether the likeliest choice is the same.
        perplexity: of the model on the same tokens; None for classifiers.
        reference_perplexity: of the reference.

    Errors of the means are those of a ratio estimator over clusters; errors of the quantiles a cluster bootstrap's.
    """

    mean: float
    mean_error: float
    median: float
    median_error: float
    percentile_99: float
    percentile_99_error: float
    largest: float
    top1: float
    top1_error: float
    count: int
    clusters: str
    values: Float[np.ndarray, " count"] = field(compare=False)
    agreed: Bool[np.ndarray, " count"] = field(compare=False)
    perplexity: Perplexity | None = None
    reference_perplexity: Perplexity | None = None

    def __repr__(self) -> str:
        error = f" ± {self.mean_error:.2g}" if np.isfinite(self.mean_error) else ""  # of one window none is known
        return (
            f"Divergence(KL {self.mean:.4g}{error} nats, median {self.median:.4g}, "
            f"99 % {self.percentile_99:.4g}, top-1 {100 * self.top1:.2f} % ± {100 * self.top1_error:.2f} %, "
            f"{self.count:,} of {self.clusters})"
        )


def divergence(
    model: Any,
    reference: Any,
    texts: Any = None,
    tokenizer: Any = None,
    *,
    window: int = 512,
    stride: int | None = None,
    limit: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Divergence:
    """Compare two causal language models token by token, on the windows that ``perplexity`` uses.

    Args:
        model: what is measured; all that ``perplexity`` takes.
        reference: what it is compared with, likewise; of the same vocabulary.
        texts: texts, or sequences of token ids; by default the shipped held-out text.
        tokenizer: by default the reference's own.
        window: most tokens that the models see at once.
        stride: how far one window starts behind the one before; half of ``window`` by default.
        limit: stop after the window in which so many tokens are scored.
        batch: windows of one forward pass.
        seed: of the bootstrap.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: see ``perplexity``; or two vocabularies of different size.
        CheckpointError: a source that cannot be run.
    """
    target = subject(reference, tokenizer=tokenizer, kind="causal")
    measured = subject(model, tokenizer=tokenizer, kind="causal", like=target)
    reader = target.tokenizer if target.tokenizer is not None else measured.tokenizer
    plan = plan_windows(held_out_documents() if texts is None else texts, reader, window, stride, limit)
    total, done = int(plan.counts.sum()), 0
    losses = np.zeros((2, len(plan.windows)))
    values, agreed = [], []
    size = batch or min(measured.batch_size(window), target.batch_size(window))
    for start, windows in plan.batches(size):
        if progress is not None:
            progress(done / total)
        ids = np.stack([each.ids for each in windows])
        ours, theirs = (checked_logits(each.logits(ids), ids) for each in (measured, target))
        for number, each in enumerate(windows):
            rows = slice(each.first - 1, len(each.ids) - 1)
            found = compare_logits(ours[number, rows], theirs[number, rows], each.targets)
            values.append(found.values)
            agreed.append(found.agreed)
            losses[:, start + number] = found.losses
            done += len(each.targets)
    owner, words = clusters_of(plan.documents)
    return summary(
        np.concatenate(values),
        np.concatenate(agreed),
        np.repeat(owner, plan.counts),
        words,
        seed=seed,
        perplexity=perplexity_of(losses[0], plan),
        reference_perplexity=perplexity_of(losses[1], plan),
    )


def class_divergence(
    model: Subject,
    reference: Subject,
    inputs: Any,
    *,
    batch: int = 256,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Divergence:
    """Compare two classifiers input by input; inputs are taken as independent.

    Args:
        model: what is measured.
        reference: what it is compared with, of the same classes.
        inputs: all inputs, the first axis counts them.
        batch: how many run at once.
        seed: of the bootstrap.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no inputs, or logits of another shape.
    """
    if len(inputs) == 0:
        message = "two classifiers are compared on inputs, and there are none"
        raise WorkbenchError(message)
    values, agreed = [], []
    for start in range(0, len(inputs), batch):
        if progress is not None:
            progress(start / len(inputs))
        part = inputs[start : start + batch]
        ours, theirs = (np.asarray(each.classify(part)) for each in (model, reference))
        if ours.ndim != 2 or len(ours) != len(part):
            message = f"logits are (inputs, classes), not {ours.shape} for {len(part)} inputs"
            raise WorkbenchError(message)
        found = compare_logits(ours, theirs)
        values.append(found.values)
        agreed.append(found.agreed)
    count = len(inputs)
    return summary(np.concatenate(values), np.concatenate(agreed), np.arange(count), f"{count} inputs", seed=seed)


@dataclass(frozen=True, eq=False)
class Compared:
    """Two models' logits on the same rows."""

    values: Float[np.ndarray, " rows"]
    agreed: Bool[np.ndarray, " rows"]
    losses: tuple[float, float]
    """Nats of the targets: the model's, the reference's; NaN where no targets were given."""


def compare_logits(model: Any, reference: Any, targets: Int[np.ndarray, " rows"] | None = None) -> Compared:
    """Compare rows of logits, a few at a time, in float64.

    Args:
        model: (rows, classes), numpy or torch.
        reference: likewise.
        targets: the right class of each row, for the losses.

    Raises:
        WorkbenchError: other shapes, or NaN.
    """
    if tuple(model.shape) != tuple(reference.shape):
        message = (
            f"two models are compared over one vocabulary, not logits {tuple(model.shape)} and {tuple(reference.shape)}"
        )
        raise WorkbenchError(message)
    values, agreed = np.empty(len(model)), np.empty(len(model), dtype=bool)
    losses = [0.0, 0.0] if targets is not None else [math.nan, math.nan]
    for (start, ours), (_, theirs) in zip(log_probabilities(model), log_probabilities(reference), strict=True):
        rows = slice(start, start + len(ours))
        values[rows] = divergences(theirs, ours)
        agreed[rows] = ours.argmax(axis=1) == theirs.argmax(axis=1)
        if targets is not None:
            for place, found in enumerate((ours, theirs)):
                losses[place] -= float(found[np.arange(len(found)), targets[rows]].sum())
    return Compared(values, agreed, (losses[0], losses[1]))


def summary(
    values: Float[np.ndarray, " count"],
    agreed: Bool[np.ndarray, " count"],
    clusters: Int[np.ndarray, " count"],
    words: str,
    *,
    seed: int = 0,
    perplexity: Perplexity | None = None,
    reference_perplexity: Perplexity | None = None,
) -> Divergence:
    """Sum up divergences of single tokens or inputs.

    Args:
        values: KL of each.
        agreed: whether both find the same choice likeliest.
        clusters: which cluster each belongs to, from 0.
        words: what the clusters are.
        seed: of the bootstrap.
        perplexity: passed on.
        reference_perplexity: passed on.
    """
    ones = np.ones(len(values))
    (median, median_error), (high, high_error) = quantiles(values, (0.5, 0.99), clusters, seed)
    right = int(agreed.sum())
    top1_error = ratio_error(agreed.astype(np.float64), ones, clusters)
    if right in {0, len(agreed)}:
        top1_error = share_error(right, len(agreed))
    # An infinite divergence has an infinite mean and no error that says anything.
    mean_error = ratio_error(values, ones, clusters) if np.isfinite(values).all() else math.nan
    return Divergence(
        float(values.mean()),
        mean_error,
        median,
        median_error,
        high,
        high_error,
        float(values.max()),
        right / len(agreed),
        top1_error,
        len(values),
        words,
        values,
        agreed,
        perplexity,
        reference_perplexity,
    )
