"""Judges: LiteRT's reference and default kernels, and TensorFlow Lite Micro, on random layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from workbench.integer.judges.plan import Plan
from workbench.integer.judges.runners import run_litert, run_tflm
from workbench.integer.judges.table import JudgeRow
from workbench.integer.judges.tflite_trials import LAYERS
from workbench.integer.judges.trials import Trial, compare, generator

Runner = Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]]

_XNNPACK = "its layers run in XNNPACK, which rounds as onnxruntime does"
_X86 = "its x86 kernels round twice, and halves go up both times"


def litert_reference(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield the rows of LiteRT's reference kernels under ``litert-reference``: 0 mismatches are promised."""
    yield from _rows(plan, "ai-edge-litert (reference)", version, ["litert-reference"], run_litert)


def tflm(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield the rows of TensorFlow Lite Micro under ``tflm``: 0 mismatches are promised (it has no GELU)."""
    yield from _rows(plan, "tflite-micro", version, ["tflm"], run_tflm, without={"gelu"})


def litert_default(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield LiteRT's default kernels (XNNPACK) and its own x86 ones, without a promise: layers under every semantics."""
    layers = {"linear", "conv2d", "depthwise conv2d"}
    for resolver, note in (("default", _XNNPACK), ("optimized", _X86)):

        def run(model: bytes, inputs: Sequence[np.ndarray], resolver: str = resolver) -> list[np.ndarray]:
            return run_litert(model, inputs, resolver)  # pyright: ignore[reportArgumentType]

        names = ["litert-reference", "tflm", "onnxruntime"]
        yield from _rows(plan, f"ai-edge-litert ({resolver})", version, names, run, only=layers, note=note)


def _rows(
    plan: Plan,
    judge: str,
    version: str,
    semantics: list[str],
    run: Runner,
    *,
    only: set[str] | None = None,
    without: frozenset[str] | set[str] = frozenset(),
    note: str | None = None,
) -> Iterator[JudgeRow]:
    for operator, (draw, types) in LAYERS.items():
        if operator in without or (only is not None and operator not in only):
            continue
        for dtype in types if only is None else types[:1]:
            name = f"{operator} {np.dtype(dtype).name}"
            for each in semantics:
                if not plan.wants(each, name):
                    continue
                row = JudgeRow(
                    judge, version, each, name, promised=note is None or (each == "onnxruntime" and note == _XNNPACK)
                )
                rng = generator(plan.seed, name)
                layers = (draw(rng, dtype, number) for number in range(plan.models))
                trials = (Trial(lambda layer=layer: run(layer.model, layer.inputs)[0], layer.ours) for layer in layers)
                found = compare(row, trials)
                yield found if note is None or found.note or not found.mismatches else found.noted(note)
