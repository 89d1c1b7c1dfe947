"""Which choices of gradient post-training quantization matter: one table per axis, everything else fixed.

    python benchmarks/status_quo.py                        # two models, three seeds; stopped and started again it goes on
    python benchmarks/status_quo.py --quick                # a smoke run
    python benchmarks/status_quo.py --only gemma loss grid # models and axes by their words
    python benchmarks/status_quo.py --report               # tables of what is there

The axes are those that "Gradient-Based Post-Training Quantization: Challenging the Status Quo" (Yvinec et al., arXiv
2308.07662) names: problem formulation (loss, degrees of freedom, non-uniform grids), optimisation (variable, optimizer),
and what it calls robust choices (the calibration set). Its tables could not be read; nothing here repeats its numbers.

Every cell quantizes the layers of the first two blocks of a model to three bits, a scale for each row, with the same steps
of the same loop (``learn``), the rest of the model staying float; the last block's inputs are thus what the quantized
block before it gives. Fixed unless an axis varies it: free codes over the whole power grid, learned scale, mean squared
error, Adam, one layer at a time, inputs of the float model, 64 random samples of 128 tokens. Where a choice forbids the
fixed ones, the whole axis is run without them, so that its rows differ in one thing only: ``variable`` is run up/down with
fixed scales (the rectified sigmoid can nothing else), ``loss`` on mini-batches of rows (only squared errors have a Gram
matrix), ``grid`` without a learned exponent. A seed chooses the samples and drives the method.

Two figures: the relative error of what the two blocks hand to the rest of the model (hidden states against the float
model's, on text that nothing was calibrated on), and the model's own (perplexity over float, or rank correlation).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from methods import HELD_OUT, Bench
from methods_cells import RESULTS, Cells, markdown, number

if TYPE_CHECKING:
    import pandas as pd

#: Where the cells of the whole study are.
CELLS = RESULTS / "status_quo.json"

#: Layers that are quantized.
BLOCKS = {
    "gemma": ("model.layers.0.*", "model.layers.1.*"),
    "minilm": ("encoder.layer.0.*", "encoder.layer.1.*"),
}

GRID = "power:bits=3,exponent=search"
LEARN = "learn:variable=free,freedom=range,learn_scale=true"


@dataclass(frozen=True)
class Choice:
    """One row of one axis."""

    axis: str
    name: str
    method: str
    """Settings of ``learn``, before ``steps``."""
    grid: str = GRID
    calibration: str = "random"
    """``first``, ``random``, ``balanced`` or ``synthetic``."""
    samples: int = 1
    """Calibration samples, in units of the study's."""


def _axis(axis: str, base: str, setting: str, names: Sequence[str], grid: str = GRID) -> list[Choice]:
    return [Choice(axis, name, f"{base},{setting}={name}", grid) for name in names]


UPDOWN = "learn:freedom=updown"
EVERY = "learn:variable=free"
GRIDS = (
    "uniform:bits=3",
    "uniform:bits=3,range=full",
    "uniform:bits=3,range=asymmetric",
    "power:bits=3,exponent=0.5",
    GRID,
    "log:bits=3",
    "apot:bits=3",
)

CHOICES: tuple[Choice, ...] = (
    *_axis("variable", UPDOWN, "variable", ("sigmoid", "free", "latent", "offset", "divide")),
    Choice("freedom", "up/down", f"{EVERY},freedom=updown"),
    Choice("freedom", "whole range", f"{EVERY},freedom=range"),
    Choice("freedom", "range + scale", f"{EVERY},freedom=range,learn_scale=true"),
    Choice("freedom", "range + scale + exponent", f"{EVERY},freedom=range,learn_scale=true,learn_exponent=true"),
    Choice(
        "freedom",
        "range + scale + exponent + bias",
        f"{EVERY},freedom=range,learn_scale=true,learn_exponent=true,learn_bias=true",
    ),
    *_axis("loss", f"{LEARN},batch=256", "loss", ("mse", "lp", "fisher", "cosine")),
    *_axis("optimizer", LEARN, "optimizer", ("adam", "adamax", "radam", "signsgd")),
    *_axis("scope", LEARN, "scope", ("layer", "block")),
    *_axis("inputs", LEARN, "inputs", ("float", "quantized", "qdrop")),
    *(Choice("grid", grid, LEARN, grid) for grid in GRIDS),
    *(Choice("calibration", name, LEARN, calibration=name) for name in ("first", "random", "balanced", "synthetic")),
    Choice("calibration", "a quarter of the samples", LEARN, samples=-4),
    Choice("calibration", "four times the samples", LEARN, samples=4),
)
AXES = tuple(dict.fromkeys(choice.axis for choice in CHOICES))


class Study:
    """Runs cells; sizes come from the ``Bench`` that also judges.

    Args:
        bench: sizes, subjects, and the shared measure.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._calibrations: dict[tuple[Any, ...], Any] = {}
        self._hidden: dict[str, list[Any]] = {}

    def key(self, word: str, choice: Choice, seed: int) -> str:
        """Return what a cell is stored under."""
        return f"{word} | {choice.axis} | {choice.name} | {seed}"

    def calibration(self, word: str, choice: Choice, seed: int) -> Any:
        """Return the samples of a choice and seed, made once."""
        subject = self.bench.subject(word)
        count = self.bench.samples // 4 if choice.samples < 0 else self.bench.samples * choice.samples
        key = (word, choice.calibration, count, seed)
        if key not in self._calibrations:
            from workbench.calibration import Calibration

            sizes: dict[str, Any] = {"samples": max(count, 1), "length": self.bench.length, "seed": seed}
            if choice.calibration != "synthetic":
                made = Calibration.from_texts(subject.source, choose=choice.calibration, **sizes)
            elif word == "minilm":
                message = "an encoder writes no text of its own"
                raise NotImplementedError(message)
            else:
                made = Calibration.synthetic(subject.source, **sizes)
            self._calibrations[key] = made
        return self._calibrations[key]

    def run(self, word: str, choice: Choice, seed: int) -> dict[str, Any]:
        """Quantize two blocks, judge the model, measure the layers."""
        from workbench.methods.runner import quantize_model
        from workbench.quantization.recipe import Entry, Recipe

        method = f"{choice.method},steps={self.bench.steps}"
        entries = [
            Entry(pattern, weight=choice.grid, granularity="channel", method=method, activation="float")
            for pattern in BLOCKS[word]
        ]
        calibration = self.calibration(word, choice, seed)
        subject = self.bench.subject(word)
        quantized = quantize_model(subject.source, Recipe(tuple(entries)), calibration, seed=seed, rows=self.bench.rows)
        found = subject.judge(quantized.module())
        return {
            "error": self.hidden_error(word, quantized.module()),
            "value": found["value"],
            "ratio": found.get("ratio"),
            "ratio_error": found.get("ratio_error"),
            "bits_per_weight": quantized.bits_per_weight,
            "learning_seconds": sum(result.seconds for result in quantized.layers.values()),
        }

    def hidden_error(self, word: str, module: Any) -> float:
        """Return the relative squared error of the hidden states after the quantized blocks, on held-out samples."""
        if word not in self._hidden:
            self._hidden[word] = self.hidden(word, self.bench.subject(word).float_module())
        wrong = total = 0.0
        for own, true in zip(self.hidden(word, module), self._hidden[word], strict=True):
            wrong += float((own - true).double().square().sum())
            total += float(true.double().square().sum())
        return wrong / total

    def hidden(self, word: str, module: Any) -> list[Any]:
        """Return the hidden states after the quantized blocks, a tensor for each batch."""
        import torch

        found = []
        with torch.inference_mode():
            for batch in self.bench.calibration(word, HELD_OUT).batches:
                given = module(*batch.arguments, **batch.options, output_hidden_states=True)
                found.append(given.hidden_states[len(BLOCKS[word])])
        return found


def load(path: Path = CELLS) -> dict[str, dict[str, Any]]:
    """Return the finished cells of a study by key: ``model | axis | choice | seed``.

    Raises:
        FileNotFoundError: there is no study; run this script first.
    """
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def frame(cells: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per cell: model, axis, choice, seed, error, value, ratio, bits_per_weight, learning_seconds, failed."""
    import pandas as pd

    rows = []
    for key, cell in cells.items():
        word, axis, choice, seed = key.split(" | ")
        row = {"model": word, "axis": axis, "choice": choice, "seed": int(seed), "failed": cell.get("error_text")}
        rows.append(row | {name: cell.get(name) for name in FIGURES})
    return pd.DataFrame(rows, columns=["model", "axis", "choice", "seed", *FIGURES, "failed"])


FIGURES = ("error", "value", "ratio", "bits_per_weight", "learning_seconds")


@dataclass(frozen=True)
class AxisWeight:
    """How much an axis matters beside the noise of seeds."""

    axis: str
    best: str
    worst: str
    span: float
    """Error of the worst choice over that of the best, means over seeds (logarithmic)."""
    noise: float
    """Typical factor between two seeds of the same choice."""

    @property
    def matters(self) -> bool:
        """Whether the choices differ by more than three times what seeds do."""
        return math.log(self.span) > 3.0 * math.log(self.noise)


def weigh(cells: Mapping[str, Mapping[str, Any]], word: str, axis: str) -> AxisWeight | None:
    """Return how much an axis matters on a model; None with fewer than two choices or one seed."""
    logs: dict[str, list[float]] = {}
    for key, cell in cells.items():
        model, of, choice, _ = key.split(" | ")
        if (model, of) == (word, axis) and isinstance(cell.get("error"), float) and cell["error"] > 0.0:
            logs.setdefault(choice, []).append(math.log(cell["error"]))
    deviations = [statistics.stdev(each) for each in logs.values() if len(each) > 1]
    if len(logs) < 2 or not deviations:
        return None
    means = {choice: statistics.fmean(each) for choice, each in logs.items()}
    best, worst = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
    noise = math.sqrt(statistics.fmean(each**2 for each in deviations))
    return AxisWeight(axis, best, worst, math.exp(means[worst] - means[best]), math.exp(noise))


def report(study: Study, cells: Mapping[str, Mapping[str, Any]], words: Sequence[str]) -> str:
    """Return the tables of all axes, and which matter, as markdown."""
    parts = []
    for word in words:
        subject = study.bench.subject(word)
        parts.append(f"## {subject.name}, first two blocks at 3 bits, {study.bench.steps} steps")
        for axis in AXES:
            rows = [_row(cells, word, choice) for choice in CHOICES if choice.axis == axis]
            rows = [row for row in rows if row is not None]
            if rows:
                figure = "perplexity / float" if word == "gemma" else subject.figure
                head = [axis, "error after the blocks", figure, "bits per weight", "learning, s"]
                parts.append(markdown(head, rows))
        lines = []
        for axis in AXES:
            weight = weigh(cells, word, axis)
            if weight is not None:
                lines.append(
                    f"- {axis}: {'matters' if weight.matters else 'does not stand out of the seeds'}; {weight.best} to "
                    f"{weight.worst} is a factor of {weight.span:.3f} in error, two seeds {weight.noise:.3f}"
                )
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def _row(cells: Mapping[str, Mapping[str, Any]], word: str, choice: Choice) -> list[str] | None:
    found = [cell for key, cell in cells.items() if key.startswith(f"{word} | {choice.axis} | {choice.name} | ")]
    if not found:
        return None
    good = [cell for cell in found if isinstance(cell.get("error"), float)]
    if not good:
        return [choice.name, str(found[0].get("error_text", "error")), "—", "—", "—"]
    name = "ratio" if word == "gemma" else "value"
    row = [choice.name]
    for figure, digits in (("error", 4), (name, 5)):
        values = [cell[figure] for cell in good]
        row.append(number(statistics.fmean(values), digits))
        row[-1] += f" ± {number(statistics.stdev(values), 2)}" if len(values) > 1 else ""
    row += [
        number(statistics.fmean(cell[each] for cell in good), 3) for each in ("bits_per_weight", "learning_seconds")
    ]
    return row


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, little text, one seed, tiny-gemma3")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=f"of {', '.join((*BLOCKS, *AXES))}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps, as in methods.py")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--retry", action="store_true", help="measure cells anew that failed")
    parser.add_argument("--report", action="store_true", help="print the tables of what is there")
    parser.add_argument("--output", type=Path, help="JSON of the cells")
    asked = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(asked.threads)
    bench = Bench(steps=asked.steps)
    words = [word for word in BLOCKS if word in asked.only] or list(BLOCKS)
    if asked.quick:
        bench = Bench(steps=4, samples=8, length=48, part=24, limit=800, pairs=20, rows=128)
        asked.seeds, words = asked.seeds[:1], words[:1]
    axes = [axis for axis in AXES if axis in asked.only] or list(AXES)
    study = Study(bench)
    cells = Cells(asked.output or (RESULTS / "status_quo_quick.json" if asked.quick else CELLS), bench.settings)
    wanted = [
        (word, choice, seed) for seed in asked.seeds for word in words for choice in CHOICES if choice.axis in axes
    ]
    for count, (word, choice, seed) in enumerate([] if asked.report else wanted, 1):
        key = study.key(word, choice, seed)
        if key in cells.found and not (asked.retry and "error_text" in cells.found[key]):
            continue
        found = cells.get(key, lambda w=word, c=choice, s=seed: study.run(w, c, s), retry=True)
        if isinstance(found.get("error"), str):  # the name ``error`` is a figure here
            found = cells.keep(key, {"error_text": found["error"], "seconds": found["seconds"]})
        figure = found.get("error_text") or f"error {found['error']:.4e}, {found['value']:.5g}"
        left = _minutes_left(cells.found, [study.key(*each) for each in wanted])
        print(f"[{count}/{len(wanted)}, {left:.0f} min left] {key}: {figure} ({found['seconds']:.1f} s)", flush=True)
    print(f"\n{report(study, cells.found, words)}\n\nstored in {cells.path}")


def _minutes_left(found: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> float:
    done = [cell["seconds"] for cell in found.values()]
    return statistics.fmean(done) * sum(key not in found for key in keys) / 60.0


if __name__ == "__main__":
    main()
