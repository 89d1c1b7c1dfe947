from __future__ import annotations

import json

import pytest

from workbench.cli import main
from workbench.integer.judges import JudgeRow, JudgeTable
from workbench.shell import judge as shown
from workbench.shell.show import make_console

pytest.importorskip("gguf")


def test_judges_print_a_table_and_succeed(capsys):
    assert main(["judge", "--judge", "gguf", "--operator", "Q4_0", "--models", "1", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    for words in ("1 random models per row, seed 3", "Q4_0 scales", "Q4_0 decode", "mismatches", "have none"):
        assert words in out
    assert "Q8_0" not in out


def test_judges_write_json_and_nothing_else(capsys):
    assert main(["judge", "--judge", "ml_dtypes", "--operator", "decode", "--models", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == ""
    assert (answer["kept"], answer["models"], answer["seed"]) == (True, 2, 0)
    assert [row["operator"] for row in answer["rows"]] == [
        f"decode {name}" for name in ("e4m3", "e5m2", "e2m1", "e2m3", "e3m2")
    ]
    assert all(row["mismatches"] == 0 and row["outputs"] > 0 for row in answer["rows"])


def test_several_semantics_and_operators_may_be_named(capsys):
    pytest.importorskip("onnxruntime")
    arguments = ["judge", "--semantics", "onnxruntime", "--semantics", "tflm", "--judge", "onnxruntime"]
    assert main([*arguments, "--operator", "add int8", "--operator", "concat", "--models", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["operator"] for row in rows] == ["add int8", "concat int8", "concat uint8"]


def test_a_disagreement_is_exit_code_1(monkeypatch, capsys):
    table = JudgeTable((JudgeRow("mine", "1", "tflm", "linear int8", 10, 1, 1.0),), 0, 12)
    monkeypatch.setattr("workbench.integer.judges.run_judges", lambda *given, **options: table)
    assert main(["judge"]) == 1
    assert "1 of 1 rows that promise 0 mismatches break it" in capsys.readouterr().out


def test_a_judge_that_is_not_there_is_named_with_its_command(monkeypatch, capsys):
    monkeypatch.delenv("WORKBENCH_TOSA_PYTHON", raising=False)
    assert main(["judge", "--judge", "tosa"]) == 0
    out = capsys.readouterr().out
    assert "tosa is not installed: python -m venv tosa" in out
    assert "nothing was compared" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--semantics", "mine"], "no semantics is called 'mine'"),
        (["--judge", "mine"], "no judge is called 'mine'"),
        (["--judge", "gguf", "--operator", "linear"], "none of gguf has an operator linear"),
        (["--models", "0"], "1 random model or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments, sentence, capsys):
    assert main(["judge", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_promises_are_coloured():
    rows = (
        JudgeRow("a", "1", "tflm", "one", 10),
        JudgeRow("b", "1", "tflm", "two", 10, 2, 1.0, promised=False, note="why"),
        JudgeRow("c", "1", "tflm", "three", note="it broke"),
    )
    table = shown.judge_table(JudgeTable(rows, 0, 1))
    console = make_console()
    with console.capture() as captured:
        console.print(table)
    assert "why" in captured.get()
    styles = [cell.style for cell in table.columns[5]._cells]
    assert styles == ["green", "", "bold red"]
