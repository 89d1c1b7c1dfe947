"""The last word against a loop, LAMBADA's file format, and the shipped passages."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import last_word, shipped_passages
from workbench.evaluation.last_word import LastWord, read_passages

VOCABULARY = 128
TABLE = np.random.default_rng(4).normal(0, 1, (VOCABULARY, VOCABULARY))
# After a space comes "a", then "b", then "s": so the last word "abs" is foretold.
for before, after in ((" ", "a"), ("a", "b"), ("b", "s"), ("t", " ")):
    TABLE[ord(before), ord(after)] = 9.0


def characters(text: str) -> dict[str, list[int]]:
    return {"input_ids": [1, *text.encode("ascii")]}


def model(ids: np.ndarray) -> np.ndarray:
    return TABLE[ids]


def log_softmax(row: np.ndarray) -> list[float]:
    total = math.log(sum(math.exp(float(each)) for each in row))
    return [float(each) - total for each in row]


def test_it_is_a_loop_over_the_words_letters():
    passages = ["one cat abs", "two abs", "a dog as", "the word ab"]
    found = last_word(model, passages, characters)
    expected, hits = [], []
    for passage in passages:
        rest, word = passage.rsplit(" ", 1)
        before, total, hit = rest[-1], 0.0, True
        for letter in " " + word:
            row = TABLE[ord(before)]
            total += log_softmax(row)[ord(letter)]
            hit = hit and int(row.argmax()) == ord(letter)
            before = letter
        expected.append(total)
        hits.append(hit)
    assert found.log_probabilities.tolist() == pytest.approx(expected)
    assert found.hits.tolist() == hits
    assert found.hits.tolist() == [True, False, False, False]  # "o" and "g" are not followed by a space
    assert (found.right, found.total, found.accuracy) == (1, 4, 0.25)
    assert found.perplexity == pytest.approx(math.exp(-np.mean(expected)))
    assert found.perplexity_error == pytest.approx(found.perplexity * np.std(expected, ddof=1) / 2)
    assert found.standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    assert found.words == ("abs", "abs", "as", "ab")
    assert "25.0 %" in repr(found)


def test_a_long_passage_loses_its_beginning_only():
    seen = []

    def watch(ids):
        seen.append(ids.shape)
        return model(ids)

    long = "x" * 50 + " cat abs"
    assert last_word(watch, [long], characters, window=9).hits.tolist() == [True]
    assert seen == [(1, 9)]
    assert last_word(model, [long], characters).log_probabilities == pytest.approx(
        last_word(model, [long], characters, window=9).log_probabilities
    )
    with pytest.raises(WorkbenchError, match="no tokens of its own"):
        last_word(model, ["a " + "b" * 30], characters, window=9)


def test_lambadas_files_are_read(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "other": 1}) for text in ("a cat abs ", "t abs")) + "\n\n")
    from_file = last_word(model, path, characters)
    assert from_file.hits.tolist() == [True, True]
    assert last_word(model, [{"text": "a cat abs"}, "t abs"], characters) == from_file
    assert last_word(model, str(path), characters, limit=1).total == 1
    path.write_text('{"text": "a b"}\nnonsense\n')
    with pytest.raises(WorkbenchError, match=r"line 2 of test\.jsonl is no JSON"):
        read_passages(path)
    path.write_text('{"words": "a b"}\n')
    with pytest.raises(WorkbenchError, match=r"line 1 of test\.jsonl is no passage"):
        read_passages(path)
    with pytest.raises(WorkbenchError, match="cannot be read"):
        read_passages(tmp_path / "none.jsonl")


def test_bad_input_and_cancelling():
    with pytest.raises(WorkbenchError, match="there are none"):
        last_word(model, [], characters)
    with pytest.raises(WorkbenchError, match="passage 2 has one word only"):
        last_word(model, ["a b", "word"], characters)
    with pytest.raises(WorkbenchError, match="passage 1 is no passage"):
        last_word(model, [3], characters)
    with pytest.raises(WorkbenchError, match="tokenizer"):
        last_word(model, ["a b"])

    def stop(fraction):
        raise Cancelled(str(fraction))

    with pytest.raises(Cancelled):
        last_word(model, ["a b"], characters, progress=stop)


def test_a_token_that_ends_texts_is_no_part_of_the_word():
    class Ending:
        eos_token_id = 2

        def __call__(self, text):
            return {"input_ids": [*characters(text)["input_ids"], 2]}

    assert last_word(model, ["one cat abs"], Ending()).hits.tolist() == [True]


def test_shipped_passages_end_in_words():
    passages = shipped_passages()
    assert len(passages) == len(set(passages)) > 150
    assert passages == shipped_passages()
    for passage in passages:
        rest, word = passage.rsplit(" ", 1)
        assert word.isalpha()
        assert len(word) >= 3
        assert len(rest) > 500
    assert read_passages(None) == passages


def found_by(hits, log_probabilities, words=None):
    hits, logs = np.array(hits, bool), np.array(log_probabilities)
    names = words or tuple(f"word{place}" for place in range(len(hits)))
    return LastWord(int(hits.sum()), len(hits), math.nan, math.exp(-logs.mean()), math.nan, hits, logs, names)


def test_two_models_are_compared_passage_by_passage():
    first = found_by([1, 1, 0, 0, 1], [-0.1, -0.2, -3.0, -2.0, -0.5])
    second = found_by([1, 0, 0, 0, 0], [-0.2, -0.9, -3.3, -2.0, -0.5])
    change, error = second.change(first)
    assert change == pytest.approx(-0.4)
    assert error == pytest.approx(np.std([0, -1, 0, 0, -1], ddof=1) / math.sqrt(5))
    ratio, error = second.ratio(first)
    assert ratio == pytest.approx(second.perplexity / first.perplexity)
    assert error == pytest.approx(ratio * np.std([0.1, 0.7, 0.3, 0, 0], ddof=1) / math.sqrt(5))
    assert first.ratio(first) == (1.0, 0.0)
    other = found_by([1], [-0.1], ("elsewhere",))
    for compared in (first.change, first.ratio):
        with pytest.raises(WorkbenchError, match="same passages"):
            compared(other)
