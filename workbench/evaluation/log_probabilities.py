"""Logits as float64 log-probabilities, a few rows at a time: numpy or torch, on whatever device they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import WorkbenchError

#: Rows of logits that are turned into float64 at once: a vocabulary may have a quarter of a million words.
_ROWS = 128


def checked_logits(logits: Any, ids: Int[np.ndarray, "rows tokens"], highest: int = 0) -> Any:
    """Return logits (rows, tokens, vocabulary); refuse others, and a vocabulary without these tokens.

    Args:
        logits: numpy or torch.
        ids: tokens that the model was given.
        highest: largest token that is asked for beside them.

    Raises:
        WorkbenchError: see above.
    """
    found = logits if hasattr(logits, "detach") else np.asarray(logits)
    rows, tokens = ids.shape
    if found.ndim != 3 or tuple(found.shape[:2]) != (rows, tokens):
        message = f"logits of {tokens} tokens are ({rows}, {tokens}, vocabulary), not {tuple(found.shape)}"
        raise WorkbenchError(message)
    if ids.min() < 0 or max(int(ids.max()), highest) >= found.shape[2]:
        largest = max(int(ids.max()), highest)
        message = f"the model knows tokens 0 to {found.shape[2] - 1}; the text holds {ids.min()} to {largest}"
        raise WorkbenchError(message)
    return found


def log_probabilities(logits: Any) -> Iterator[tuple[int, Float[np.ndarray, "part vocabulary"]]]:
    """Yield (first row, log softmax) of parts of the rows, float64.

    Args:
        logits: (rows, vocabulary), numpy or torch.

    Raises:
        WorkbenchError: NaN, or a row without a finite number.
    """
    for start in range(0, len(logits), _ROWS):
        part = logits[start : start + _ROWS]
        if hasattr(part, "detach"):
            part = part.detach()
            # Not every device knows float64; torch's own softmax is the fast one.
            part = part.cpu() if part.device.type == "mps" else part
            found = part.double().log_softmax(-1).cpu().numpy()
        else:
            rows = np.asarray(part, dtype=np.float64)
            top = rows.max(axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                rows = rows - top
                found = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        if np.isnan(found).any():
            message = "the model's logits hold NaN, or rows without a finite number: nothing can be measured on them"
            raise WorkbenchError(message)
        yield start, found


def nats(logits: Any, targets: Int[np.ndarray, " rows"]) -> float:
    """Return -sum log softmax(logits)[target], in float64.

    Args:
        logits: (rows, vocabulary).
        targets: token of each row.

    Raises:
        WorkbenchError: logits with NaN.
    """
    total = 0.0
    for start, found in log_probabilities(logits):
        total -= float(found[np.arange(len(found)), targets[start : start + len(found)]].sum())
    return total


def divergences(
    reference: Float[np.ndarray, "rows classes"], model: Float[np.ndarray, "rows classes"]
) -> Float[np.ndarray, " rows"]:
    """Return KL(reference || model) of each row in nats, never below 0; infinite where the model excludes what can be.

    Args:
        reference: log-probabilities, float64.
        model: likewise.
    """
    with np.errstate(invalid="ignore"):
        terms = np.exp(reference) * (reference - model)
    # 0 log 0 is 0: what the reference excludes adds nothing, whatever the model says of it.
    terms[np.isneginf(reference)] = 0.0
    # A sum of rounded terms may fall below 0 by the last bits; the divergence cannot.
    return np.maximum(terms.sum(axis=1), 0.0)
