"""The evaluate panel: what it shows is what ``evaluate`` and ``generate_side_by_side`` give for float and recipe."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from PIL import Image

from workbench.evaluation import evaluate
from workbench.evaluation.evaluate import Evaluation
from workbench.evaluation.generation import Generated
from workbench.evaluation.last_word import LastWord
from workbench.evaluation.metrics import EvaluationRow
from workbench.methods.runner import quantize_model
from workbench.panels import Session
from workbench.panels.evaluate_panel import EvaluatePanel
from workbench.panels.evaluate_state import kind_of
from workbench.panels.evaluate_table import shown, table_lines, written_html
from workbench.resources import demo_path


@pytest.fixture(scope="module")
def session():
    opened = Session(demo_path("tiny-resnet"), sweep=False)
    assert opened.wait(120)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def panel(session):
    made = EvaluatePanel(session)
    made.state.recipe.recipe = "w4-rtn-clip"
    made.run_bar.run.click()
    assert made.wait(240)
    assert made.state.status == "done", made.state.doing
    yield made
    made.close()


def cells(panel):
    return {row[0][0]: [cell[0] for cell in row] for row, _ in panel.table.rows}


def test_it_shows_the_figures_of_both_models_with_their_errors(panel, session):
    judge = evaluate(
        quantize_model(session.model, "w4-rtn-clip"), reference=session.model, metrics=["accuracy", "kl", "top1"]
    )
    plain = evaluate(session.model, metrics=["accuracy"])
    table = cells(panel)
    accuracy, expected = table["Accuracy"], judge["accuracy"]
    assert accuracy[1] == shown(plain["accuracy"].value, plain["accuracy"].standard_error, "share")
    assert accuracy[2] == shown(expected.value, expected.standard_error, "share")
    assert "±" in accuracy[2]
    kl = table["KL from the reference, mean"]
    assert kl[1] == "the reference"
    assert kl[2] == shown(judge["kl"].value, judge["kl"].standard_error, "nats")
    assert "450" in accuracy[5]


def test_the_difference_is_of_pairs(panel):
    theirs, ours = panel.state.float_figures.details["accuracy"], panel.state.figures.details["accuracy"]
    change, error = ours.change(theirs)
    text = cells(panel)["Accuracy"][3]
    assert text.lstrip("+") == shown(change, error, "share")


def test_a_changed_recipe_says_that_the_figures_are_of_another(panel):
    state = panel.state
    state.recipe.recipe = "w8a8"
    try:
        assert "figures below are of" in panel.about.value
        assert "not quantized yet" in panel.about.value
        assert len(panel.table.rows) == 3
    finally:
        state.recipe.recipe = "w4-rtn-clip"
    assert "figures below" not in panel.about.value
    assert "bits per weight" in panel.about.value


def test_a_model_that_reads_no_text_has_no_prompt(panel):
    assert panel.writing.layout.display == panel.limit.layout.display == "none"
    panel.write.click()
    assert "only a language model" in panel.error_text
    assert not panel.state.running


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", 3), ("limit", "many"), ("tokens", 0), ("tokens", 1.5), ("prompt", 7), ("metrics", ["perplexity"])],
)
def test_nonsense_changes_nothing_and_is_answered(panel, session, name, value):
    before = getattr(panel.state, name)
    session.message = ""
    setattr(panel.state, name, value)
    assert getattr(panel.state, name) == before
    assert session.message


def test_nothing_picked_is_refused_and_figures_stay(panel):
    before = panel.state.metrics
    for box in panel.boxes.values():
        box.value = False
    panel.run_bar.run.click()
    assert "choose at least one figure" in panel.error_text
    assert len(panel.table.rows) == 3
    panel.state.metrics = before
    assert [name for name, box in panel.boxes.items() if box.value] == list(before)


def test_code_runs_and_gives_the_panel_s_numbers(panel):
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(panel.code(), namespace)
    for name, found in (("float", panel.state.float_figures), ("recipe", panel.state.figures)):
        for row in found.rows:
            assert namespace["figures"][name][row.metric].value == row.value


def test_snapshot_has_both_columns(panel):
    snapshot = panel.snapshot()
    assert Image.open(io.BytesIO(snapshot.png)).width >= 900
    assert set(snapshot.numbers["figures"]) == {"float", "recipe"}


def test_without_a_model_it_says_what_is_missing():
    session = Session()
    try:
        panel = EvaluatePanel(session)
        assert kind_of(None) == ""
        assert all(box.layout.display == "none" for box in panel.boxes.values())
        panel.run_bar.run.click()
        assert "open a model first" in panel.error_text
        panel.close()
    finally:
        session.close()


def test_tokens_that_differ_are_marked_by_more_than_colour_and_text_is_escaped():
    found = Generated("<p>", (1, 2), (1, 3), ("same", "<b>"), ("same", "&"), 1, (False, True), (False, True))
    text = written_html(found)
    assert "<mark>&lt;b&gt;</mark>" in text
    assert "<mark>&amp;</mark>" in text
    assert "&lt;p&gt;" in text
    assert "underline" in text
    assert "first difference is token 2" in text
    same = Generated("p", (1,), (1,), ("a",), ("a",), None, (False,), (False,))
    assert "The same 1 token." in written_html(same)
    assert "No text yet" in written_html(None)


def test_values_have_as_many_digits_as_their_errors_allow():
    assert shown(12.3456, 0.034, "per token") == "12.346 ± 0.034"
    assert shown(-0.5, np.nan, "nats") == "−0.5"
    assert shown(np.nan, np.nan, "nats") == "–"
    assert shown(0.25, 0.0, "share") == "25"


def test_differences_of_last_words_are_of_pairs():
    generator = np.random.default_rng(0)
    logs = generator.uniform(-3.0, -0.1, 40)
    hits = generator.random(40) < 0.4
    words = tuple(f"word{place}" for place in range(40))
    found = [
        LastWord(int(h.sum()), 40, 0.08, math.exp(-each.mean()), 0.3, h, each, words)
        for each, h in ((logs, hits), (logs - generator.uniform(0.0, 0.1, 40), hits & (np.arange(40) != hits.argmax())))
    ]
    plain, coded = (
        Evaluation(
            "model",
            "causal",
            (
                EvaluationRow("last_word", each.accuracy, each.standard_error, 40, "share", "40 passages"),
                EvaluationRow("last_word_perplexity", each.perplexity, 0.3, 40, "per word", "40 passages"),
            ),
            {"last_word": each},
        )
        for each in found
    )
    lines = table_lines(["last_word", "last_word_perplexity"], plain, coded)
    share, perplexity = (line.cells[3].text for line in lines)
    assert share == shown(*found[1].change(found[0]), "share")
    ratio, error = found[1].ratio(found[0])
    assert perplexity == "+" + shown(found[0].perplexity * (ratio - 1.0), found[0].perplexity * error, "per word")
    assert "±" in share and "±" in perplexity
