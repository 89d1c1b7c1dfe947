"""Run every installed judge and gather what they found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import IntegerError, WorkbenchError
from workbench.integer.judges import formats, onnx_runtime, tensorflow_lite, torch_engines
from workbench.integer.judges import tosa as tosa_judge
from workbench.integer.judges.plan import Plan
from workbench.integer.judges.table import JudgeRow, JudgeTable
from workbench.integer.semantics import Semantics, as_semantics

#: Random models per row, where nobody says how many.
MODELS = 12
_EXTRA = "pip install 'quantization-workbench[judges]'"
_TOSA = f"python -m venv tosa && tosa/bin/pip install tosa-tools, then --tosa-python tosa/bin/python or {tosa_judge.VARIABLE}"


@dataclass(frozen=True)
class Judge:
    """An independent package.

    Attributes:
        name: as ``workbench judge --judge`` takes it.
        package: what is imported.
        distribution: what is installed.
        install: the command that installs it.
        semantics: which of ours it is compared with; empty where nothing is rounded.
        run: yields its rows.
    """

    name: str
    package: str
    distribution: str
    install: str
    semantics: tuple[str, ...]
    run: Callable[[Plan, str], Iterator[JudgeRow]]

    def version(self, plan: Plan) -> str | None:
        """Return the installed version, or None."""
        if self.name == "tosa":
            return "" if plan.tosa_python else None
        if find_spec(self.package) is None:
            return None
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return "unknown"


#: Every judge by name, in the order of the table.
JUDGES: dict[str, Judge] = {
    each.name: each
    for each in (
        Judge("tflm", "tflite_micro", "tflite-micro", _EXTRA, ("tflm",), tensorflow_lite.tflm),
        Judge(
            "litert",
            "ai_edge_litert",
            "ai-edge-litert",
            _EXTRA,
            ("litert-reference",),
            tensorflow_lite.litert_reference,
        ),
        Judge(
            "litert-default",
            "ai_edge_litert",
            "ai-edge-litert",
            _EXTRA,
            ("litert-reference", "tflm", "onnxruntime"),
            tensorflow_lite.litert_default,
        ),
        Judge("onnxruntime", "onnxruntime", "onnxruntime", _EXTRA, ("onnxruntime",), onnx_runtime.onnxruntime),
        Judge("onnx", "onnx", "onnx", _EXTRA, ("onnxruntime",), formats.onnx_nodes),
        Judge("torch", "torch", "torch", "pip install torch", ("onnxruntime",), torch_engines.torch),
        Judge("tosa", "", "tosa-tools", _TOSA, ("tosa-single", "tosa-double"), tosa_judge.tosa),
        Judge("ml_dtypes", "ml_dtypes", "ml_dtypes", _EXTRA, (), formats.ml_dtypes),
        Judge("gguf", "gguf", "gguf", _EXTRA, (), formats.gguf),
    )
}


def run_judges(
    semantics: str | Semantics | Iterable[str | Semantics] | None = None,
    operators: str | Iterable[str] | None = None,
    seed: int = 0,
    models: int = MODELS,
    *,
    judges: Iterable[str] | None = None,
    tosa_python: str | None = None,
    isolated: bool = True,
    progress: Callable[[float], None] | None = None,
) -> JudgeTable:
    """Compare the workbench's integers with every installed judge on random layers.

    A judge that is not installed is listed under ``missing`` with the command that installs it; what a judge raises
    becomes its row's note, and so does the end of its process.

    Args:
        semantics: names of semantics; all by default (then casts and block formats too, which round nothing).
        operators: words of which one must start an operator's name, e.g. ``"conv2d"``; all by default.
        seed: of the random models.
        models: random models per row, 1 or more.
        judges: names in ``JUDGES``; all by default.
        tosa_python: an interpreter of an environment that has tosa-tools; ``WORKBENCH_TOSA_PYTHON`` by default.
        isolated: run every judge in a process of its own, so that one that crashes takes nothing with it.
        progress: told the finished fraction after each row; may raise ``Cancelled``.

    Raises:
        SemanticsError: an unknown semantics.
        IntegerError: an unknown judge, no models, or operators that no judge has.
    """
    named = None if semantics is None else tuple(as_semantics(each).name for each in _several(semantics))
    words = None if operators is None else tuple(_several(operators))
    if isinstance(models, bool) or not isinstance(models, int) or models < 1:
        message = f"judges compare 1 random model or more, not {models}"
        raise IntegerError(message)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        message = f"a seed is an integer, 0 or above, not {seed}"
        raise IntegerError(message)
    chosen = list(JUDGES) if judges is None else list(judges)
    for each in chosen:
        if each not in JUDGES:
            message = f"no judge is called {each!r}; there are {', '.join(JUDGES)}"
            raise IntegerError(message)
    plan = Plan(named, words, seed, models, tosa_judge.interpreter(tosa_python))
    rows: list[JudgeRow] = []
    missing: list[tuple[str, str]] = []
    asked = [JUDGES[each] for each in chosen if named is None or set(named) & set(JUDGES[each].semantics)]
    for place, judge in enumerate(asked):
        version = judge.version(plan)
        if version is None:
            missing.append((judge.name, judge.install))
            continue
        found = _in_own_process(judge, plan) if isolated else run_one(judge, plan)
        # How many rows a judge has is known when it is done: within a judge the fraction only creeps towards its end.
        for count, row in enumerate(found):
            rows.append(row)
            if progress is not None:
                progress((place + 1 - 1 / (2 + count)) / len(asked))
        if progress is not None:
            progress((place + 1) / len(asked))
    if not rows and len(missing) == len(asked) == 0:
        message = (
            f"no judge follows {' or '.join(named or ())}: {', '.join(each.name for each in JUDGES.values())} do not"
        )
        raise IntegerError(message)
    if not rows and len(missing) < len(asked):
        message = (
            f"none of {', '.join(each.name for each in asked)} has an operator {' or '.join(words or ('at all',))}"
        )
        raise IntegerError(message)
    return JudgeTable(tuple(rows), seed, models, tuple(missing))


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, Semantics)) else list(value)


def run_one(judge: Judge, plan: Plan) -> Iterator[JudgeRow]:
    """Yield a judge's rows in this process; what it raises between rows becomes a row."""
    version = judge.version(plan) or ""
    try:
        yield from judge.run(plan, version)
    except (WorkbenchError, ImportError, OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        yield JudgeRow(judge.name, version, "", "all", note=f"{type(error).__name__}: {' '.join(str(error).split())}")


def _in_own_process(judge: Judge, plan: Plan) -> Iterator[JudgeRow]:
    with tempfile.TemporaryDirectory(prefix="workbench-judge-") as folder:
        target = Path(folder) / "rows.jsonl"
        target.touch()
        command = [sys.executable, "-m", "workbench.integer.judges", judge.name, json.dumps(asdict(plan)), str(target)]
        # The judges' own chatter goes nowhere; a Python error's last line becomes the note.
        with (
            (Path(folder) / "errors").open("w+", encoding="utf-8", errors="replace") as errors,
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process,
            target.open(encoding="utf-8") as lines,
        ):
            try:
                last = "the start"
                while True:
                    ended = process.poll() is not None
                    while line := lines.readline():
                        row = JudgeRow(**json.loads(line))
                        last = row.operator
                        yield row
                    if ended:
                        break
                    _wait(process)
            finally:
                if process.poll() is None:
                    process.kill()
            if process.returncode:
                errors.seek(0)
                note = f"its process ended with {_reason(process.returncode)} after {last}: {_last_line(errors.read())}"
                yield JudgeRow(judge.name, judge.version(plan) or "", "", "all", note=note)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        return


def _reason(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"exit code {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
