"""Calibration inputs: what is in them, what never is, and the same ones for the same seed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.calibration import Calibration, texts
from workbench.calibration.data import reads_prose, training_digits
from workbench.calibration.docstrings import english
from workbench.calibration.runnable import digits
from workbench.calibration.texts import default_texts, ordered_pieces, pieces_of
from workbench.checkpoints import open_model
from workbench.errors import CheckpointError, WorkbenchError
from workbench.resources import demo_path, held_out_text_path, shared_path

GEMMA = "demo:tiny-gemma3"


@pytest.fixture(scope="module")
def tokenizer():
    import transformers

    return transformers.AutoTokenizer.from_pretrained(demo_path("tiny-gemma3"), local_files_only=True)


def ids_of(calibration):
    return [batch.options["input_ids"] for batch in calibration.batches]


def test_default_texts_are_never_the_held_out_ones():
    found, what = default_texts()
    assert "standard library of Python" in what
    assert len(found) > 300
    held_out = [part for part in held_out_text_path().read_text(encoding="utf-8").split("\f\n") if len(part) > 400]
    assert not set(found) & set(held_out)
    names = json.loads(shared_path("data/text/stdlib_held_out.json").read_text(encoding="utf-8"))
    assert "types.py" in names
    assert not any("Define names for built-in types that aren't directly accessible" in text for text in found)
    assert found == default_texts()[0]


def test_samples_are_full_and_seeded(monkeypatch):
    few = default_texts()[0][:40]
    monkeypatch.setattr("workbench.calibration.data.default_texts", lambda: (few, "a few modules"))
    one = Calibration.from_texts(GEMMA, samples=10, length=64, batch=4)
    assert [tuple(ids.shape) for ids in ids_of(one)] == [(4, 64), (4, 64), (2, 64)]
    assert (one.samples, one.tokens) == (10, 640)
    assert all(bool((ids[:, 0] == 2).all()) for ids in ids_of(one))  # each starts as the tokenizer starts a text
    assert all(bool(batch.options["attention_mask"].all()) for batch in one.batches)
    assert all(batch.options["use_cache"] is False and "token_type_ids" not in batch.options for batch in one.batches)
    assert "a few modules" in one.description
    assert Calibration.from_texts(GEMMA, samples=10, length=64, batch=4).content_key == one.content_key
    for other in ({"seed": 1}, {"choose": "first"}, {"batch": 5}):
        settings = {"samples": 10, "length": 64, "batch": 4, **other}
        assert Calibration.from_texts(GEMMA, **settings).content_key != one.content_key, other
    unique = {tuple(row.tolist()) for ids in ids_of(one) for row in ids}
    assert len(unique) == 10


def test_short_texts_stand_in_batches_of_their_own_length(tokenizer):
    given = ["a = 1", "b = 2", "for each in range(3):\n    print(each)", "x"]
    found = Calibration.from_texts(GEMMA, given, samples=9, length=32)
    expected = sorted(len(tokenizer(text)["input_ids"]) for text in given)
    assert sorted(ids.shape[1] for ids in ids_of(found) for _ in ids) == expected
    assert found.tokens == sum(expected)
    assert len({ids.shape[1] for ids in ids_of(found)}) == len(found.batches)
    read = {tokenizer.decode(row, skip_special_tokens=True) for ids in ids_of(found) for row in ids}
    assert read == set(given)
    # Enough full samples: the short ones stay away.
    long = "".join(f"value_{number} = compute({number})\n" for number in range(200))
    full = Calibration.from_texts(GEMMA, ["x", long], samples=3, length=32)
    assert [tuple(ids.shape) for ids in ids_of(full)] == [(3, 32)]


def test_balanced_choice_comes_first_and_leaves_nothing_out(monkeypatch):
    seen = {}

    def choose(pieces, count, *, seed):
        seen.update(pieces=list(pieces), count=count, seed=seed)
        return [3, 1, 5]

    monkeypatch.setattr("workbench.calibration.choosing.choose_balanced", choose)
    given = [f"def function_{n}(value):\n    return value + {n}\n" * 12 for n in range(6)]
    pieces = ordered_pieces(given, 16, "balanced", 3, 2)
    assert pieces[:3] == [seen["pieces"][n] for n in (3, 1, 5)]
    assert (seen["count"], seen["seed"]) == (3, 2)
    assert set(pieces) == set(ordered_pieces(given, 16, "random", 3, 2))
    assert len(set(pieces)) == len(pieces)  # a repeated piece stands once


def test_a_real_balanced_choice():
    given = [f"def function_{n}(value):\n    return value + {n}\n" * 12 for n in range(12)]
    found = Calibration.from_texts(GEMMA, given, samples=4, length=16, choose="balanced", seed=2)
    assert found.samples == 4 and found.tokens == 64 and "balanced" in found.description


@given(st.text(alphabet="ab \n", max_size=80), st.integers(1, 20))
def test_pieces_make_up_the_text(text, size):
    found = list(pieces_of(text, size))
    assert all(0 < len(piece) <= size and piece.strip() for piece in found)
    place = 0
    for piece in found:  # in order; what is left out between them is blank
        next_place = text.index(piece, place)
        assert not text[place:next_place].strip()
        place = next_place + len(piece)
    assert not text[place:].strip()


def test_first_takes_the_beginning_of_each_text_first(monkeypatch):
    monkeypatch.setattr(texts, "CHARACTERS_PER_TOKEN", 1)
    assert ordered_pieces(["aabb", "ccdd", "e"], 2, "first", 9, 0) == ["aa", "cc", "e", "bb", "dd"]


def test_the_training_digits_are_the_models_own_split():
    sklearn = pytest.importorskip("sklearn.model_selection")
    from sklearn.datasets import load_digits

    train = training_digits()
    assert train.shape == (1347, 1, 8, 8) and train.dtype == np.float32
    answers = load_digits().target
    _, held_out = sklearn.train_test_split(digits(), test_size=0.25, stratify=answers, random_state=20261120)
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in held_out)
    found = Calibration.from_images("demo:tiny-resnet", samples=70, batch=32)
    assert [len(batch.arguments[0]) for batch in found.batches] == [32, 32, 6]
    assert all(image.numpy().tobytes() in seen for batch in found.batches for image in batch.arguments[0])
    assert found.tokens == 0 and found.samples == 70
    assert found.content_key == Calibration.from_images("demo:tiny-resnet", samples=70, batch=32).content_key
    assert found.content_key != Calibration.from_images("demo:tiny-resnet", samples=70, batch=32, seed=1).content_key


def test_given_images_and_loaders():
    images = np.arange(5 * 3 * 2 * 2, dtype=np.float64).reshape(5, 3, 2, 2)
    found = Calibration.from_images(torch.nn.Conv2d(3, 2, 1), images, samples=4, batch=3)
    assert found.samples == 4 and found.batches[0].arguments[0].dtype == torch.float32
    loader = [(np.ones((3, 4), dtype=np.float32), torch.zeros(3)), {"x": torch.ones(3, 4)}, torch.ones(3, 4)]
    whole = Calibration.from_loader(loader)
    assert [len(batch.arguments) for batch in whole.batches] == [2, 0, 1]
    assert whole.samples == 9 and whole.tokens == 0
    cut = Calibration.from_loader(iter(loader), samples=4)
    assert cut.samples == 4 and cut.batches[1].options["x"].shape == (1, 4)
    assert Calibration.from_loader([torch.ones(2, 7, dtype=torch.int64)]).tokens == 14
    assert Calibration.from_loader(whole.batches).content_key == whole.content_key


def test_a_model_writes_its_own_text():
    found = Calibration.synthetic(GEMMA, samples=3, length=12, batch=2, seed=4)
    assert [tuple(ids.shape) for ids in ids_of(found)] == [(2, 12), (1, 12)]
    assert found.tokens == 36 and "wrote itself" in found.description
    assert found.content_key == Calibration.synthetic(GEMMA, samples=3, length=12, batch=2, seed=4).content_key
    assert found.content_key != Calibration.synthetic(GEMMA, samples=3, length=12, batch=2, seed=5).content_key


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Calibration.from_texts(GEMMA, samples=0), "samples of a calibration is a whole number"),
        (lambda: Calibration.from_texts(GEMMA, length=1.5), "length of a calibration is a whole number"),
        (lambda: Calibration.from_texts(GEMMA, batch=True), "batch of a calibration is a whole number"),
        (lambda: Calibration.from_texts(GEMMA, []), "one text or a sequence of texts"),
        (lambda: Calibration.from_texts(GEMMA, ["a", 3]), "one text or a sequence of texts"),
        (lambda: Calibration.from_texts(GEMMA, [" \n"]), "no sample of two tokens"),
        (lambda: Calibration.from_texts(GEMMA, "x = 1", choose="best"), "first, random, balanced, not 'best'"),
        (lambda: Calibration.from_texts(torch.nn.Linear(2, 2), "x"), "brings no tokenizer"),
        (lambda: Calibration.from_texts({"a.weight": np.ones((2, 2), np.float32)}, "x"), "no program to run them with"),
        (lambda: Calibration.from_images(GEMMA), "brings no images"),
        (lambda: Calibration.from_images(GEMMA, np.zeros((2, 3))), "images are real numbers"),
        (lambda: Calibration.from_images(GEMMA, np.zeros((0, 1, 2, 2))), "images are real numbers"),
        (lambda: Calibration.from_loader([]), "gives no batches"),
        (lambda: Calibration.from_loader(["text"]), "not str"),
        (lambda: Calibration.from_loader([{}]), "not nothing"),
    ],
)
def test_bad_input_gets_one_sentence(make, words):
    with pytest.raises(WorkbenchError, match=words) as caught:
        make()
    assert isinstance(caught.value, CheckpointError)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_says_so(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(demo_path("tiny-gemma3") / name)
    with pytest.raises(CheckpointError, match="has no tokenizer beside its weights"):
        Calibration.from_texts(tmp_path, "x = 1")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_path("tiny-gemma3"))
    assert Calibration.from_texts(open_model(tmp_path), "x = 1", tokenizer=tokenizer).samples == 1


#: Without its types: these calls break them on purpose.
MAKERS: Any = Calibration


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MAKERS.from_texts(GEMMA, 5), "one text or a sequence"),
        (lambda: MAKERS.from_texts(GEMMA, {"text": ["one", "two"]}), "one text or a sequence"),
        (lambda: MAKERS.from_texts(GEMMA, ["one two"], seed=-1), "seed"),
        (lambda: MAKERS.from_images("demo:tiny-resnet", "digits"), "images are an array"),
        (lambda: MAKERS.from_images("demo:tiny-resnet", seed=1.5), "seed"),
        (lambda: MAKERS.from_loader(5), "int does not"),
        (lambda: MAKERS.from_loader([torch.ones(2, 3), torch.ones(0, 3)]), "batch 1 of the loader is empty"),
        (lambda: MAKERS.synthetic(GEMMA, seed=-1), "seed"),
    ],
)
def test_odd_inputs_are_refused_in_one_sentence(make, words):
    with pytest.raises(CheckpointError, match=words):
        make()


def test_counts_may_be_numbers_of_numpy():
    five, two, one = np.int64(5), np.int64(2), np.int64(1)
    found = MAKERS.from_images("demo:tiny-resnet", samples=five, batch=two, seed=one)
    assert found.content_key == MAKERS.from_images("demo:tiny-resnet", samples=5, batch=2, seed=1).content_key


def test_short_texts_come_in_the_order_of_the_choice():
    sentences = [
        f"A sentence of {'quite ' * (number % 7)}some words about the number {number}." for number in range(60)
    ]
    one, other = (Calibration.from_texts(GEMMA, sentences, samples=20, length=64, seed=seed) for seed in (0, 1))
    assert one.samples == other.samples == 20
    assert one.content_key != other.content_key
    lengths = [ids.shape[1] for ids in ids_of(one)]
    assert min(lengths) < max(lengths)  # not the longest twenty


@pytest.mark.parametrize(
    ("kind", "architecture", "prose"),
    [
        ("bert", "BertModel", True),
        ("bert", "BertForMaskedLM", True),
        ("bert", "BertLMHeadModel", False),
        ("gemma3_text", "Gemma3ForCausalLM", False),
        ("llama", "LlamaModel", False),
    ],
)
def test_encoders_read_prose(kind, architecture, prose):
    from types import SimpleNamespace

    assert reads_prose(SimpleNamespace(model_type=kind, architectures=[architecture])) is prose
    assert not reads_prose(None)


def test_english_is_what_docstrings_say():
    module = 'def f():\n    """Return what everybody has been waiting for. Short one.\n\n    >>> f()\n    """\n'
    assert english([module, "x = 1\n"]) == ["Return what everybody has been waiting for."]
