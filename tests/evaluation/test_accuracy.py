from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import Accuracy, accuracy, held_out_digits


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


def test_changes_count_only_where_two_models_differ():
    labels = np.zeros(10, int)
    right, wrong = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])

    def model(hits):
        table = np.concatenate([right if hit else wrong for hit in hits])
        return accuracy(lambda part: table[part], np.arange(10), labels)

    first, second = model([1, 1, 1, 1, 1, 1, 0, 0, 0, 0]), model([1, 1, 1, 1, 0, 0, 1, 0, 0, 0])
    change, error = second.change(first)
    difference = np.array([0, 0, 0, 0, -1, -1, 1, 0, 0, 0], float)
    assert change == pytest.approx(difference.mean())
    assert error == pytest.approx(difference.std(ddof=1) / math.sqrt(10))
    same, least = first.change(first)
    assert same == 0.0
    assert least == pytest.approx(1 / math.sqrt(9 * 10))  # not 0: one input more might have differed
    with pytest.raises(WorkbenchError, match="same inputs"):
        first.change(Accuracy(5, 10))


def test_the_shipped_classifier_scores_what_its_card_says():
    assert repr(accuracy("demo:tiny-resnet")) == "Accuracy(99.78 % ± 0.22 %, 449 of 450)"


def test_held_out_digits_are_none_of_those_that_are_calibrated_on():
    from workbench.calibration.data import training_digits

    images, labels = held_out_digits()
    assert images.shape == (450, 1, 8, 8)
    assert sorted(set(labels.tolist())) == list(range(10))
    assert not {each.tobytes() for each in images} & {each.tobytes() for each in training_digits()}


def test_logits_that_are_no_numbers_are_not_taken_for_class_0():
    logits = np.zeros((6, 3))
    logits[4, 2] = np.nan
    with pytest.raises(WorkbenchError, match="NaN"):
        accuracy(lambda part: logits[part], np.arange(6), np.zeros(6, dtype=int), batch=4)
