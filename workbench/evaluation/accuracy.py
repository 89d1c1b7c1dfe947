"""Accuracy of a classifier with its standard error, and of one model's float, fake-quantized and integer runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.integer.running import MODES

if TYPE_CHECKING:
    import pandas as pd

    from workbench.integer.model import IntegerModel


@dataclass(frozen=True)
class Accuracy:
    """How many of some inputs were named rightly.

    >>> Accuracy(449, 450)
    Accuracy(99.78 % ± 0.22 %, 449 of 450)
    """

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share that was right, 0 to 1."""
        return self.right / self.total

    @property
    def standard_error(self) -> float:
        """Root of p (1 - p) / n; where all or none were right, of the share that one more or one fewer would give."""
        share = self.value
        if share in {0.0, 1.0}:
            share = 1.0 / (self.total + 1)
        return math.sqrt(share * (1.0 - share) / self.total)

    def __repr__(self) -> str:
        return f"Accuracy({self.value:.2%} ± {self.standard_error:.2%}, {self.right} of {self.total})".replace(
            "%", " %"
        )


def accuracy(
    predict: Callable[[np.ndarray], np.ndarray],
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    batch: int = 256,
    progress: Callable[[float], None] | None = None,
) -> Accuracy:
    """Return how often the largest logit is the label's.

    Args:
        predict: an ``IntegerModel``, or any function from a batch of inputs to logits (batch, classes).
        inputs: all inputs, the first axis counts them.
        labels: their classes, integers (inputs,).
        batch: how many inputs run at once.
        progress: told the finished fraction after each batch; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no inputs, as many labels as there are not inputs, or logits of another shape.
    """
    answers = np.asarray(labels)
    if len(inputs) == 0 or answers.shape != (len(inputs),) or answers.dtype.kind not in "iu":
        message = (
            f"accuracy needs one integer label for each input, not labels {answers.shape} for {len(inputs)} inputs"
        )
        raise WorkbenchError(message)
    right = 0
    for start, part in _batches(inputs, batch):
        logits = np.asarray(predict(part))
        if logits.ndim != 2 or len(logits) != len(part):
            message = f"logits are (inputs, classes), not {logits.shape} for {len(part)} inputs"
            raise WorkbenchError(message)
        right += int((logits.argmax(axis=1) == answers[start : start + len(part)]).sum())
        if progress is not None:
            progress((start + len(part)) / len(inputs))
    return Accuracy(right, len(inputs))


def compare_accuracy(model: IntegerModel, inputs: np.ndarray, labels: np.ndarray, *, batch: int = 256) -> pd.DataFrame:
    """Return the accuracy of a model's float, fake-quantized and integer run, one row each.

    Args:
        model: what ``integerize`` gave.
        inputs: all inputs.
        labels: their classes.
        batch: how many inputs run at once.
    """
    import pandas as pd

    rows = []
    for mode in reversed(MODES):
        found = accuracy(lambda part, mode=mode: model(part, mode), inputs, labels, batch=batch)
        rows.append(
            {
                "run": mode,
                "accuracy": found.value,
                "standard_error": found.standard_error,
                "right": found.right,
                "inputs": found.total,
            }
        )
    return pd.DataFrame(rows).set_index("run")


def _batches(inputs: Any, size: int) -> Iterator[tuple[int, Any]]:
    if size < 1:
        message = f"a batch holds at least one input, not {size}"
        raise WorkbenchError(message)
    for start in range(0, len(inputs), size):
        yield start, inputs[start : start + size]
