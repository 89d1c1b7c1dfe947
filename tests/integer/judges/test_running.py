"""Judges as a whole: every row that promises 0 has 0, a crash is a note, what is missing is named."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import Cancelled, IntegerError, SemanticsError
from workbench.integer import requantize
from workbench.integer.judges import JUDGES, JudgeRow, JudgeTable, run_judges, running
from workbench.integer.judges.plan import Plan
from workbench.integer.judges.trials import Trial, codes, compare, generator, layer_scales

# Collecting onnx's cases takes seconds, and tests/integer/test_onnx_operators.py runs them all anyway.
SLOW = {"onnx": [pytest.mark.slow]}
NATIVE = [pytest.param(name, marks=SLOW.get(name, [])) for name in JUDGES if name != "tosa"]


@pytest.mark.parametrize("name", NATIVE)
def test_every_promise_is_kept(name):
    pytest.importorskip(JUDGES[name].package)
    table = run_judges(judges=[name], seed=1234, models=3, isolated=False)
    assert table.rows
    assert table.missing == ()
    assert table.broken == ()
    assert table.kept
    assert all(row.outputs > 0 and row.version for row in table)
    assert all(row.promised or row.mismatches == 0 or row.note for row in table), "a mismatch without a reason"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tflm", "litert", "onnxruntime", "torch"])
def test_every_promise_is_kept_on_many_models(name):
    pytest.importorskip(JUDGES[name].package)
    table = run_judges(judges=[name], seed=99, models=60, isolated=False)
    assert table.broken == ()


@pytest.mark.slow
def test_the_tosa_reference_model_agrees():
    if "WORKBENCH_TOSA_PYTHON" not in os.environ:
        pytest.skip("WORKBENCH_TOSA_PYTHON names no interpreter with tosa-tools")
    table = run_judges(judges=["tosa"], seed=5, models=6)
    assert table.kept
    assert {row.semantics for row in table} == {"tosa-single", "tosa-double"}
    assert len(table) == 14


def test_the_required_operators_are_promised():
    pytest.importorskip("ai_edge_litert")
    layers = {f"{name} {kind}" for name in ("linear", "conv2d", "depthwise conv2d") for kind in ("int8", "int16")}
    others = {"softmax", "logistic", "tanh", "add", "mul", "average_pool2d", "max_pool2d"}
    found = run_judges("litert-reference", judges=["litert"], models=1, isolated=False)
    promised = {row.operator for row in found if row.promised}
    assert layers | {f"{name} {kind}" for name in others for kind in ("int8", "int16")} <= promised
    assert "hard_swish int8" in promised


def test_rows_depend_on_the_seed_and_their_own_name_only():
    pytest.importorskip("onnxruntime")
    options = {"judges": ["onnxruntime"], "models": 2, "isolated": False}
    whole = {row.operator: row for row in run_judges(operators=["add", "concat"], seed=3, **options)}
    (alone,) = run_judges(operators="add int8", seed=3, **options)
    assert alone == whole["add int8"]
    (other,) = run_judges(operators="linear int8", seed=4, **options)
    (again,) = run_judges(operators="linear int8", seed=5, **options)
    assert other.outputs != again.outputs


def test_a_process_of_its_own_gives_the_same_rows():
    pytest.importorskip("gguf")
    told = []
    apart = run_judges(judges=["gguf"], models=1, progress=told.append)
    assert apart.rows == run_judges(judges=["gguf"], models=1, isolated=False).rows
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_cancelling_stops_the_judge():
    pytest.importorskip("gguf")

    def stop(fraction):
        raise Cancelled

    for isolated in (True, False):
        with pytest.raises(Cancelled):
            run_judges(judges=["gguf"], models=1, progress=stop, isolated=isolated)


def test_a_crash_is_the_note_of_a_row(tmp_path, monkeypatch):
    # The child imports this judge in place of the gguf one.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from workbench.integer.judges import running\n"
        "from workbench.integer.judges.table import JudgeRow\n"
        "from dataclasses import replace\n"
        "def crash(plan, version):\n"
        "    yield JudgeRow('bad', version, '', 'first', outputs=3)\n"
        "    os.abort()\n"
        "running.JUDGES['gguf'] = replace(running.JUDGES['gguf'], run=crash)\n"
    )
    pytest.importorskip("gguf")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    table = run_judges(judges=["gguf", "ml_dtypes"], models=1)
    first, last, *rest = table.rows
    assert (first.operator, first.kept) == ("first", True)
    assert "its process ended with SIGABRT after first" in last.note
    assert not last.kept
    assert not table.kept
    assert len(rest) == 10, "the next judge runs all the same"


def test_what_a_judge_raises_is_the_note_of_its_row(monkeypatch):
    def fail(plan, version):
        yield compare(JudgeRow("bad", version, "tflm", "one"), [Trial(lambda: 1 / 0, lambda name: np.zeros(1))])
        message = "no such\n engine"
        raise RuntimeError(message)

    monkeypatch.setitem(running.JUDGES, "gguf", replace(JUDGES["gguf"], run=fail))
    table = run_judges(judges=["gguf"], isolated=False)
    assert [row.note for row in table] == ["ZeroDivisionError: division by zero", "RuntimeError: no such engine"]
    assert len(table.broken) == 2


def test_what_is_not_installed_is_listed_with_its_command(monkeypatch):
    monkeypatch.setitem(running.JUDGES, "gguf", replace(JUDGES["gguf"], package="no_such_package_here"))
    monkeypatch.delenv("WORKBENCH_TOSA_PYTHON", raising=False)
    table = run_judges(judges=["gguf", "tosa"])
    assert len(table) == 0
    assert [name for name, _ in table.missing] == ["gguf", "tosa"]
    assert "pip install" in table.missing[0][1]
    assert "tosa-tools" in table.missing[1][1]
    assert table.verdict == "nothing was compared"


def test_an_interpreter_without_tosa_tools_is_named():
    import sys

    for python, sentence in ((sys.executable, "tosa-tools does not run in"), ("/no/such/python", "does not start")):
        (row,) = run_judges(judges=["tosa"], models=1, operators="table", tosa_python=python, isolated=False)
        assert sentence in row.note
        assert not row.kept


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"semantics": "mine"}, SemanticsError, "no semantics is called 'mine'"),
        ({"judges": ["tensorrt"]}, IntegerError, "no judge is called 'tensorrt'; there are tflm"),
        ({"models": 0}, IntegerError, "1 random model or more, not 0"),
        ({"models": True}, IntegerError, "1 random model or more"),
        ({"seed": -1}, IntegerError, "a seed is an integer, 0 or above"),
        ({"operators": "convolution", "judges": ["gguf"]}, IntegerError, "has an operator convolution"),
        ({"semantics": "tflite-single"}, IntegerError, "no judge follows tflite-single"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence):
        run_judges(isolated=False, **options)


def test_differences_are_counted_as_they_are():
    row = JudgeRow("one", "1", "tflm", "two")
    theirs = np.array([1, 2, 3, -128], np.int8)
    found = compare(row, [Trial(lambda: theirs, lambda name: np.array([1, 4, 3, 127], np.int8)) for _ in range(2)])
    assert (found.outputs, found.mismatches, found.largest, found.kept) == (8, 4, 255.0, False)
    wrong = compare(row, [Trial(lambda: theirs, lambda name: np.zeros(3, np.int8))])
    assert wrong.note == "ours is int8 (3,) and theirs int8 (4,)"
    assert not wrong.kept
    assert not compare(row, [Trial(lambda: theirs, lambda name: theirs.astype(np.int16))]).kept
    nan = np.array([np.nan, 1.0])
    assert compare(row, [Trial(lambda: nan, lambda name: np.zeros(2))]).mismatches == 2
    assert not compare(row, []).kept, "a promise of nothing is none"
    assert JudgeRow("one", "1", "tflm", "two", outputs=4, mismatches=1, promised=False).kept


def test_tables_show_themselves():
    rows = (
        JudgeRow("a<b", "1", "tflm", "linear int8", 1234, 0),
        JudgeRow("c", "2", "", "cast", 10, 3, 1.0, promised=False, note="ties"),
        JudgeRow("d", "3", "tflm", "add int8", 10, 2, 1.0),
    )
    table = JudgeTable(rows, seed=7, models=3, missing=(("tosa", "pip install tosa-tools"),))
    assert pickle.loads(pickle.dumps(table)) == table
    assert repr(table) == "<JudgeTable: 3 rows, 1,254 outputs, seed 7: 1 of 2 rows that promise 0 mismatches break it>"
    assert list(table.to_frame()["mismatches"]) == [0, 3, 2]
    html = table._repr_html_()
    assert "a&lt;b" in html
    assert "pip install tosa-tools" in html
    assert "| d | 3 | tflm | add int8 | 10 | 2 | 1 |  |" in table.to_markdown()
    assert json.loads(json.dumps(table.to_dict()))["kept"] is False


def test_plans_choose_rows():
    plan = Plan(("tflm",), ("conv2d", "add"))
    assert plan.wants("tflm", "conv2d int8")
    assert not plan.wants("tflm", "depthwise conv2d int8")
    assert not plan.wants("onnxruntime", "add int8")
    assert Plan().wants("", "cast e4m3")
    assert not Plan(("tflm",)).wants("", "cast e4m3")


def test_random_layers_fill_their_output():
    for ties in (False, True):
        for dtype in (np.int8, np.int16):
            rng = generator(0, f"{ties} {dtype}")
            first, weights, last = layer_scales(rng, 30, 64, dtype, ties=ties)
            sums = codes(rng, (200, 64), dtype).astype(np.float64) @ codes(rng, (64, 30), np.int8)
            real = sums * (float(first) * weights / float(last))
            top = np.iinfo(dtype).max
            assert 0.1 * top < np.std(real) < 2 * top


def test_litert_s_x86_kernels_round_twice_and_take_halves_up():
    """Why the optimized rows are not 0: ((a * m + 2**30 >> 31) + 2**(s - 1)) >> s, which no named semantics is."""
    pytest.importorskip("ai_edge_litert")
    import platform

    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("another processor has other kernels")
    from workbench.integer import accumulate, effective_scale, quantize_multiplier
    from workbench.integer.judges.runners import run_litert
    from workbench.integer.judges.tflite_builder import TFLiteModel

    rng = np.random.default_rng(8)
    differing = 0
    for ties in (False, True):
        x, weight = codes(rng, (40, 64), np.int8), np.maximum(codes(rng, (50, 64), np.int8), -127)
        bias = rng.integers(-9000, 9000, 50, dtype=np.int32)
        first, weights, last = layer_scales(rng, 50, 64, np.int8, ties=ties)
        model = TFLiteModel()
        ends = [
            model.tensor("x", x.shape, "int8", first, 3),
            model.tensor("w", weight.shape, "int8", weights, 0, weight, 0),
            model.tensor("b", bias.shape, "int32", first * weights, 0, bias, 0),
        ]
        y = model.tensor("y", (40, 50), "int8", last, -4)
        model.operator("FULLY_CONNECTED", ends, [y], {}, version=4)
        (theirs,) = run_litert(model.finish(ends[:1], [y]), [x], "optimized")
        sums = accumulate(x, weight, bias, input_zero_point=3).astype(np.int64)
        multiplier, shift = quantize_multiplier(effective_scale(first, weights, last, "tflm"), "tflm")
        right = -shift.astype(np.int64)
        high = (sums * multiplier.astype(np.int64) + 2**30) >> 31
        ours = np.clip(((high + (np.int64(1) << right >> 1)) >> right) - 4, -128, 127)
        np.testing.assert_array_equal(theirs, ours)
        differing += int(
            np.count_nonzero(theirs != requantize(sums.astype(np.int32), multiplier, shift, zero_point=-4))
        )
    assert differing > 0


def test_layers_that_only_many_models_found():
    """Factors and sums that lie so near a tie that the order of two float operations decides."""
    pytest.importorskip("tflite_micro")
    pytest.importorskip("onnxruntime")
    from workbench.integer import add, hard_swish
    from workbench.integer.judges.runners import onnx_model, run_litert, run_onnx, run_tflm
    from workbench.integer.judges.tflite_builder import TFLiteModel

    x = np.arange(-128, 128, dtype=np.int8).reshape(1, -1)
    coding = {"input_scale": np.float32(0.03591729), "input_zero_point": -124, "output_zero_point": -98}
    coding["output_scale"] = np.float32(0.031196166)
    model = TFLiteModel()
    ends = [model.tensor("x", x.shape, "int8", coding["input_scale"], -124)]
    ends.append(model.tensor("y", x.shape, "int8", coding["output_scale"], -98))
    model.operator("HARD_SWISH", ends[:1], ends[1:])
    content = model.finish(ends[:1], ends[1:])
    micro, lite = run_tflm(content, [x], 200_000)[0], run_litert(content, [x])[0]
    np.testing.assert_array_equal(hard_swish(x, semantics="tflm", **coding), micro)
    np.testing.assert_array_equal(hard_swish(x, semantics="litert-reference", **coding), lite)
    assert np.any(micro != lite)

    a, b = np.full((3, 40), 142, np.uint8), np.full((3, 40), 31, np.uint8)
    scales = [np.float32(each) for each in (0.13527715, 0.0103811845, 0.08117151)]
    zeros = [np.uint8(each) for each in (238, 121, 208)]
    order = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    constants = dict(
        zip([*order[1:3], *order[4:]], (scales[0], zeros[0], scales[1], zeros[1], scales[2], zeros[2]), strict=True)
    )
    constants = {name: np.asarray(value) for name, value in constants.items()}
    node = onnx_model("QLinearAdd", {"a": a, "b": b}, {"y": np.uint8}, constants, order=order, domain="com.microsoft")
    ours = add(
        a,
        b,
        a_scale=scales[0],
        b_scale=scales[1],
        output_scale=scales[2],
        a_zero_point=238,
        b_zero_point=121,
        output_zero_point=208,
        semantics="onnxruntime",
    )
    np.testing.assert_array_equal(ours, run_onnx(node, {"a": a, "b": b})[0])
