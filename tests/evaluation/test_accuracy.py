from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import Accuracy, accuracy


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_it_counts_as_a_loop_counts(count, classes, batch, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    found = accuracy(lambda part: logits[part], np.arange(count), labels, batch=batch)
    right = sum(1 for row, label in zip(logits.tolist(), labels.tolist(), strict=True) if row.index(max(row)) == label)
    assert (found.right, found.total) == (right, count)
    assert found.value == right / count
    share = found.value if 0 < right < count else 1 / (count + 1)
    assert found.standard_error == pytest.approx(math.sqrt(share * (1 - share) / count))
    assert found.standard_error > 0


def test_its_text_is_short():
    assert repr(Accuracy(449, 450)) == "Accuracy(99.78 % ± 0.22 %, 449 of 450)"


def test_progress_is_told_and_can_cancel():
    told = []
    accuracy(lambda part: np.zeros((len(part), 2)), np.zeros(10), np.zeros(10, int), batch=4, progress=told.append)
    assert told == [0.4, 0.8, 1.0]

    def stop(fraction):
        raise Cancelled

    with pytest.raises(Cancelled):
        accuracy(lambda part: np.zeros((len(part), 2)), np.zeros(10), np.zeros(10, int), progress=stop)


@pytest.mark.parametrize(
    ("inputs", "labels", "predict", "batch", "words"),
    [
        (np.zeros(0), np.zeros(0, int), None, 4, "one integer label"),
        (np.zeros(3), np.zeros(2, int), None, 4, "one integer label"),
        (np.zeros(3), np.zeros(3), None, 4, "one integer label"),
        (np.zeros(3), np.zeros(3, int), lambda part: part, 4, "logits are"),
        (np.zeros(3), np.zeros(3, int), lambda part: np.zeros((len(part), 2)), 0, "at least one"),
    ],
)
def test_what_cannot_be_counted_is_refused(inputs, labels, predict, batch, words):
    with pytest.raises(WorkbenchError, match=words):
        accuracy(predict, inputs, labels, batch=batch)
