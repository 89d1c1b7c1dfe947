"""Perplexity of a language model on texts: torch modules, sources, quantized and integer models, or any function to logits.

    result = perplexity("demo:tiny-gemma3")                        # on the shipped held-out text
    result = perplexity(integer_model, texts, tokenizer)           # an IntegerModel in integers
    float_result = perplexity(functools.partial(integer_model, mode="float"), texts, tokenizer)
    print(result, result.ratio(float_result))

Windows overlap as in Hugging Face's guide to fixed-length models (see ``windows.py``); log-probabilities are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import WorkbenchError
from workbench.evaluation.log_probabilities import checked_logits, nats
from workbench.evaluation.standard_errors import clusters_of, ratio_error
from workbench.evaluation.subject import subject
from workbench.evaluation.windows import Plan, plan_windows
from workbench.resources import held_out_text_path

Clusters = Literal["windows", "documents", "auto"]


@dataclass(frozen=True, repr=False)
class Perplexity:
    """How well a model foretells texts.

    Attributes:
        value: exp of the mean loss per token.
        tokens: how many tokens were scored.
        standard_error: of ``value``, for another draw of windows from the same documents: from the spread of the windows'
            losses (each window one cluster, its tokens are not independent), carried through the exponential.
        bits_per_byte: loss in bits over the bytes of the texts; NaN where the texts were given as tokens.
        losses: nats of each window, summed over its scored tokens.
        counts: scored tokens of each window.
        documents: which text each window comes from.
    """

    value: float
    tokens: int
    standard_error: float
    bits_per_byte: float
    losses: Float[np.ndarray, " windows"] = field(compare=False)
    counts: Int[np.ndarray, " windows"] = field(compare=False)
    documents: Int[np.ndarray, " windows"] = field(compare=False)

    @property
    def document_error(self) -> float:
        """Standard error of ``value`` for another draw of documents; NaN for a single one.

        Documents differ more than windows of one do, so it is the larger one (twice as large on the shipped text), and the
        one to quote for texts of this kind. Few documents give a poor estimate.
        """
        return self.value * ratio_error(self.losses, self.counts, np.unique(self.documents, return_inverse=True)[1])

    def error_by(self, clusters: Clusters = "auto") -> tuple[float, str]:
        """Return the standard error of ``value``, and in words what was taken for a cluster.

        Args:
            clusters: ``windows``, ``documents``, or ``auto``: documents where there are ten or more, else windows.
        """
        owner, words = _owners(self.documents, clusters)
        return self.value * ratio_error(self.losses, self.counts, owner), words

    def ratio(self, other: Perplexity, clusters: Clusters = "windows") -> tuple[float, float]:
        """Return this perplexity over another one on the same windows, and the standard error of that ratio.

        Both models saw the same tokens, so the error of the ratio is far smaller than that of either.

        Args:
            other: of the model to compare with.
            clusters: see ``error_by``.

        Raises:
            WorkbenchError: the two scored different windows.
        """
        if not np.array_equal(self.counts, other.counts) or not np.array_equal(self.documents, other.documents):
            message = "two perplexities can be compared where both scored the same windows of the same texts"
            raise WorkbenchError(message)
        ratio = self.value / other.value
        owner, _ = _owners(self.documents, clusters)
        return ratio, ratio * ratio_error(self.losses - other.losses, self.counts, owner)

    def __repr__(self) -> str:
        return f"Perplexity({self.value:.4f} ± {self.standard_error:.4f}, {self.tokens:,} tokens)"


def perplexity(
    model: Any,
    texts: Any = None,
    tokenizer: Any = None,
    *,
    window: int = 512,
    stride: int | None = None,
    limit: int | None = None,
    batch: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a language model.

    Args:
        model: a source, an opened model, a torch module, a quantized model (anything with ``module()``), an
            ``IntegerModel``, or a function from token ids, int64 (1, tokens), to real logits (1, tokens, vocabulary).
        texts: texts, or sequences of token ids (the first token of each is given, the others are scored). By default the
            shipped held-out text, one document a module.
        tokenizer: turns texts to tokens: called with a text it gives a mapping with ``input_ids``, as those of
            transformers; by default the model's own.
        window: most tokens that the model sees at once.
        stride: how far one window starts behind the one before; half of ``window`` by default.
        limit: stop after the window in which so many tokens are scored; None scores everything.
        batch: windows of one forward pass, of torch modules; by default as many as give 256 MiB of logits, 16 at most.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: texts without tokenizer, nothing to score, windows that leave tokens out, or logits of another shape.
        CheckpointError: a source that cannot be run.
    """
    measured = subject(model, tokenizer=tokenizer, kind="causal")
    given = held_out_documents() if texts is None else texts
    plan = plan_windows(given, measured.tokenizer, window, stride, limit)
    losses = np.zeros(len(plan.windows))
    total, done = int(plan.counts.sum()), 0
    for start, windows in plan.batches(batch or measured.batch_size(window)):
        if progress is not None:
            progress(done / total)
        ids = np.stack([each.ids for each in windows])
        logits = checked_logits(measured.logits(ids), ids)
        for number, each in enumerate(windows):
            losses[start + number] = nats(logits[number, each.first - 1 : -1], each.targets)
            done += len(each.targets)
    return perplexity_of(losses, plan)


def perplexity_of(losses: Float[np.ndarray, " windows"], plan: Plan) -> Perplexity:
    """Return the perplexity of given losses.

    Args:
        losses: nats of each window of the plan.
        plan: the windows.
    """
    counts = plan.counts
    scored = int(counts.sum())
    total = float(losses.sum())
    value = math.exp(min(total / scored, 700.0))
    whole = plan.complete and plan.size > 0
    return Perplexity(
        value,
        scored,
        value * ratio_error(losses, counts),
        total / math.log(2.0) / plan.size if whole else math.nan,
        losses,
        counts,
        plan.documents,
    )


def held_out_documents() -> list[str]:
    """Return the shipped held-out text: standard-library modules that tiny-gemma3 was never trained on, one each."""
    return held_out_text_path().read_text(encoding="utf-8").split("\f\n")


def _owners(documents: Int[np.ndarray, " windows"], clusters: Clusters) -> tuple[Int[np.ndarray, " windows"], str]:
    if clusters == "auto":
        return clusters_of(documents)
    if clusters == "documents":
        owner = np.unique(documents, return_inverse=True)[1]
        return owner, f"{len(set(owner.tolist()))} documents"
    if clusters == "windows":
        return np.arange(len(documents)), f"{len(documents)} windows"
    message = f"clusters are windows, documents or auto, not {clusters!r}"
    raise WorkbenchError(message)
