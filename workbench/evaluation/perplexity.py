"""Perplexity of a language model on texts: any function from token ids to logits, so float, fake-quantized and integer alike.

    result = perplexity(model, texts, tokenizer)            # an IntegerModel in integers
    float_result = perplexity(functools.partial(model, mode="float"), texts, tokenizer)
    print(result, result.ratio(float_result))

Windows overlap as in Hugging Face's guide to fixed-length models: each text is cut into windows that start ``stride`` tokens
apart, and each token is scored once, in the first window that holds it; the first token of a text is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import WorkbenchError

#: Rows of logits whose softmax is taken at once (float64).
_ROWS = 64


@dataclass(frozen=True, repr=False)
class Perplexity:
    """How well a model foretells texts.

    Attributes:
        value: exp of the mean loss per token.
        tokens: how many tokens were scored.
        standard_error: of ``value``: from the spread of the windows' losses (each window one cluster, its tokens are not
            independent), carried through the exponential.
        bits_per_byte: loss in bits over the bytes of the texts; NaN where the texts were given as tokens.
        losses: nats of each window, summed over its scored tokens.
        counts: scored tokens of each window.
    """

    value: float
    tokens: int
    standard_error: float
    bits_per_byte: float
    losses: Float[np.ndarray, " windows"] = field(compare=False)
    counts: Int[np.ndarray, " windows"] = field(compare=False)

    def ratio(self, other: Perplexity) -> tuple[float, float]:
        """Return this perplexity over another one on the same windows, and the standard error of that ratio.

        Both models saw the same tokens, so the error of the ratio is far smaller than that of either.

        Raises:
            WorkbenchError: the two scored different windows.
        """
        if not np.array_equal(self.counts, other.counts):
            message = "two perplexities can be compared where both scored the same windows of the same texts"
            raise WorkbenchError(message)
        ratio = self.value / other.value
        return ratio, ratio * _standard_error(self.losses - other.losses, self.counts)

    def __repr__(self) -> str:
        return f"Perplexity({self.value:.4f} ± {self.standard_error:.4f}, {self.tokens:,} tokens)"


def perplexity(
    logits: Callable[[np.ndarray], Any],
    texts: Sequence[Any],
    tokenizer: Any = None,
    *,
    window: int = 512,
    stride: int | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a language model.

    Args:
        logits: from token ids, int64 (1, tokens), to real logits (1, tokens, vocabulary); numpy or torch.
        texts: texts, or sequences of token ids (the first token of each is given, the others are scored).
        tokenizer: turns texts to tokens: called with a text it gives a mapping with ``input_ids``, as those of transformers.
        window: most tokens that the model sees at once.
        stride: how far one window starts behind the one before; half of ``window`` by default.
        limit: stop after the window in which so many tokens are scored; None scores everything.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: texts without tokenizer, nothing to score, windows that leave tokens out, or logits of another shape.
    """
    step = window // 2 if stride is None else stride
    if window < 2 or not 1 <= step < window:
        message = f"windows of {window} tokens start 1 to {max(window - 1, 1)} tokens apart, not {step}"
        raise WorkbenchError(message)
    sequences, size = _token_sequences(texts, tokenizer)
    plan = [(ids, *place) for ids in sequences for place in _windows(len(ids), window, step)]
    if not plan:
        message = "perplexity needs a text of two tokens or more: the first is given, the others are scored"
        raise WorkbenchError(message)
    total = sum(end - first for _, _, first, end in plan)
    losses, counts = [], []
    for ids, begin, first, end in plan:
        if progress is not None:
            progress(sum(counts) / total)
        found = _checked(np.asarray(_as_numpy(logits(ids[None, begin:end]))), ids[begin:end])
        losses.append(_nats(found[first - begin - 1 : end - begin - 1], ids[first:end]))
        counts.append(end - first)
        if limit is not None and sum(counts) >= limit:
            break
    all_losses, all_counts = np.asarray(losses), np.asarray(counts)
    scored = int(all_counts.sum())
    mean = float(all_losses.sum()) / scored
    whole = scored == total and size > 0
    value = math.exp(min(mean, 700.0))
    return Perplexity(
        value,
        scored,
        value * _standard_error(all_losses, all_counts),
        float(all_losses.sum()) / math.log(2.0) / size if whole else math.nan,
        all_losses,
        all_counts,
    )


def _token_sequences(texts: Sequence[Any], tokenizer: Any) -> tuple[list[np.ndarray], int]:
    """Return token ids of every text, and the bytes of all texts (0 where tokens were given)."""
    if isinstance(texts, str) or getattr(texts, "ndim", 0) == 1:
        texts = [texts]
    if not isinstance(texts, Iterable):
        message = f"perplexity takes texts, or sequences of token ids, not {type(texts).__name__}"
        raise WorkbenchError(message)
    texts = list(texts)
    if any(isinstance(text, str) for text in texts):
        if tokenizer is None:
            message = "texts need a tokenizer: give one, or give token ids"
            raise WorkbenchError(message)
        if not all(isinstance(text, str) for text in texts):
            message = "give texts, or token ids, not both"
            raise WorkbenchError(message)
        sequences = [np.asarray(tokenizer(text)["input_ids"], dtype=np.int64) for text in texts]
        return sequences, sum(len(text.encode()) for text in texts)
    return [_token_ids(ids) for ids in texts], 0


def _token_ids(ids: Any) -> Int[np.ndarray, " tokens"]:
    """Return one sequence of token ids, int64."""
    found = np.asarray(_as_numpy(ids))
    if found.size == 0:
        return np.zeros(0, dtype=np.int64)
    if found.dtype.kind not in "iu" or found.ndim == 0 or found.size != found.shape[-1]:
        message = f"a sequence of token ids is integers (tokens,), not {found.dtype} {found.shape}"
        raise WorkbenchError(message)
    return found.reshape(-1).astype(np.int64)


def _checked(logits: np.ndarray, ids: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, "tokens vocabulary"]:
    """Refuse logits that are not one row for each token, or a vocabulary without these tokens."""
    if logits.ndim != 3 or logits.shape[:2] != (1, len(ids)):
        message = f"logits of {len(ids)} tokens are (1, {len(ids)}, vocabulary), not {logits.shape}"
        raise WorkbenchError(message)
    if ids.min() < 0 or ids.max() >= logits.shape[2]:
        message = f"the model knows tokens 0 to {logits.shape[2] - 1}; the text holds {ids.min()} to {ids.max()}"
        raise WorkbenchError(message)
    return logits[0]


def _windows(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (begin, first scored token, end) of each window."""
    places, scored = [], 1
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        if end <= scored:
            break
        places.append((begin, scored, end))
        scored = end
    return places


def _nats(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return -sum log softmax(logits)[target], in float64."""
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = targets[start : start + _ROWS]
        total += float(np.log(np.exp(rows).sum(axis=1)).sum() - rows[np.arange(len(chosen)), chosen].sum())
    return total


def _standard_error(losses: np.ndarray, counts: np.ndarray) -> float:
    """Return the standard error of sum(losses) / sum(counts), windows as clusters (ratio estimator)."""
    clusters = len(losses)
    if clusters < 2:
        return math.nan
    residuals = losses - losses.sum() / counts.sum() * counts
    return math.sqrt(clusters / (clusters - 1) * float((residuals**2).sum())) / float(counts.sum())


def _as_numpy(values: Any) -> Any:
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") and values.is_floating_point() else values
