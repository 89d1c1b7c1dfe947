"""Accuracy of a classifier with its standard error, and of one model's float, fake-quantized and integer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.errors import WorkbenchError
from workbench.evaluation.standard_errors import change_of_share, share_error
from workbench.evaluation.subject import subject
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
    hits: Bool[np.ndarray, " inputs"] | None = field(default=None, compare=False, repr=False)
    """Whether each input was; None where only the counts are known."""

    @property
    def value(self) -> float:
        """The share that was right, 0 to 1."""
        return self.right / self.total

    @property
    def standard_error(self) -> float:
        """Root of p (1 - p) / n; where all or none were right, of the share that one more or one fewer would give."""
        return share_error(self.right, self.total)

    def change(self, other: Accuracy) -> tuple[float, float]:
        """Return this accuracy minus another one on the same inputs, and the standard error of that difference.

        Both saw the same inputs: see ``standard_errors.change_of_share``.

        Raises:
            WorkbenchError: the two are of different inputs, or their hits are not known.
        """
        if self.hits is None or other.hits is None or len(self.hits) != len(other.hits):
            message = "two accuracies can be compared where the hits of both on the same inputs are known"
            raise WorkbenchError(message)
        return change_of_share(self.hits, other.hits)

    def __repr__(self) -> str:
        return f"Accuracy({self.value:.2%} ± {self.standard_error:.2%}, {self.right} of {self.total})".replace(
            "%", " %"
        )


def accuracy(
    predict: Any,
    inputs: Any = None,
    labels: Any = None,
    *,
    batch: int = 256,
    progress: Callable[[float], None] | None = None,
) -> Accuracy:
    """Return how often the largest logit is the label's.

    Args:
        predict: an ``IntegerModel``, a source, an opened model, a torch module, a quantized model (anything with
            ``module()``), or any function from a batch of inputs to logits (batch, classes).
        inputs: all inputs, the first axis counts them. By default the digits that tiny-resnet was not trained on.
        labels: their classes, integers (inputs,).
        batch: how many inputs run at once.
        progress: told the finished fraction after each batch; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no inputs, as many labels as there are not inputs, or logits of another shape or with NaN.
    """
    if inputs is None and labels is None:
        inputs, labels = held_out_digits()
    answers = np.asarray(labels)
    if inputs is None or len(inputs) == 0 or answers.shape != (len(inputs),) or answers.dtype.kind not in "iu":
        message = (
            f"accuracy needs one integer label for each input, not labels {answers.shape} for "
            f"{0 if inputs is None else len(inputs)} inputs"
        )
        raise WorkbenchError(message)
    measured = subject(predict, kind="classifier")
    hits = np.zeros(len(inputs), dtype=bool)
    for start, part in _batches(inputs, batch):
        logits = measured.classify(part)
        if logits.ndim != 2 or len(logits) != len(part):
            message = f"logits are (inputs, classes), not {logits.shape} for {len(part)} inputs"
            raise WorkbenchError(message)
        if np.isnan(logits).any():  # argmax takes NaN for the largest, which is right wherever the label is 0
            message = (
                f"the model's logits hold NaN (from input {start + int(np.isnan(logits).any(axis=1).argmax())} on)"
            )
            raise WorkbenchError(message)
        hits[start : start + len(part)] = logits.argmax(axis=1) == answers[start : start + len(part)]
        if progress is not None:
            progress((start + len(part)) / len(inputs))
    return Accuracy(int(hits.sum()), len(inputs), hits)


def held_out_digits() -> tuple[Float[np.ndarray, "images 1 8 8"], Int[np.ndarray, " images"]]:
    """Return the 450 handwritten digits that tiny-resnet was not trained on, in 0 to 1, and what they are.

    The split is that of ``data/train_tiny_resnet.py``; calibration takes the others.

    Raises:
        CheckpointError: scikit-learn is not installed.
    """
    from workbench.calibration.data import _DIGITS_HELD_OUT, _DIGITS_SEED
    from workbench.calibration.runnable import digits

    images = digits()
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    answers: Any = load_digits()
    parts = train_test_split(
        images, answers.target, test_size=_DIGITS_HELD_OUT, stratify=answers.target, random_state=_DIGITS_SEED
    )
    return np.ascontiguousarray(parts[1]), np.asarray(parts[3], dtype=np.int64)


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
        found = accuracy(partial(model, mode=mode), inputs, labels, batch=batch)
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
