"""How good a whole model gets at few bits, by which method: the tables of the README.

    python benchmarks/methods.py                         # everything; stopped and started again it goes on
    python benchmarks/methods.py --quick                 # a smoke run: two methods, few steps, little text
    python benchmarks/methods.py --only gemma W3         # subjects, settings or methods by their words
    python benchmarks/methods.py --seeds 0 --minutes 60  # one seed; no new cell after an hour
    python benchmarks/methods.py --report                # tables of what is there

Subjects: tiny-gemma3 (perplexity on every eighth held-out module, windows of 256, and the paired ratio to float on the
same windows), all-MiniLM-L6-v2 (rank correlation with the float encoder over pairs of sentences), tiny-resnet (accuracy on
the 450 held-out digits). Every method gets the same calibration samples (training-side text or digits) and, where it
learns by steps, the same number of them. A seed chooses samples and drives the method; data-free methods have no use for
one and run once. Rows W4 and W3 by channel and those of the ResNet are measured with every seed, the others with the first
one; ``--full`` gives all to all. Whoever does not choose scales itself (GPTQ, AWQ, and the learners' start) has those of
the best clip; ``rtn`` and ``gptq-absmax`` have absmax. AdaRound learns layer by layer, BRECQ, AutoRound and NUPES block by block.
Embeddings, norms and a head tied to the embedding stay float; of the ResNet the stem and the head keep 8 bits. Learned
grids: uniform narrow (2^bits - 1 levels), the power grid of as many levels for PowerQuant and NUPES. At 2 bits those would
have three levels, so everybody gets the four of ``uniform:bits=2,range=asymmetric``, where NUPES has no exponent to learn
and PowerQuant none to search (it keeps its three). HQQ always has the asymmetric grid that it fits.

A second table shows what each method makes of single layers: every layer alone, all others float, its output error over
its output energy under second moments of inputs that no method was calibrated on. Here the learners see the layer only.

Two runs with ``--only gemma`` and ``--only minilm resnet`` may go on at once: they share the results' file.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from methods_cells import RESULTS, Cells, markdown, number, spread
from methods_models import SUBJECTS, Subject
from methods_order import layer_loss, orders

#: Methods of the table by their column: text form (``{steps}`` for learners), whether a seed matters.
METHODS: dict[str, tuple[str, bool]] = {
    "rtn": ("rtn", False),
    "rtn-clip": ("rtn-clip", False),
    "powerquant": ("powerquant:joint=true,clip=group", False),
    "hqq": ("hqq", False),
    "gptq-absmax": ("gptq", True),
    "gptq": ("gptq", True),
    "awq": ("awq", True),
    "adaround": ("adaround:steps={steps}", True),
    "brecq": ("brecq:steps={steps}", True),
    "autoround": ("autoround:steps={steps}", True),
    "nupes": ("nupes:steps={steps}", True),
}
#: Scale rules that recipes give; the others choose scales themselves.
SCALES = {"gptq": "mse", "awq": "mse"}
#: Seed of the samples that nothing is calibrated on.
HELD_OUT = 1000
#: Whose grid is a power grid.
POWER = {"powerquant", "nupes"}


@dataclass(frozen=True)
class Setting:
    """A row of the tables: bits of weights and activations, and what shares a scale."""

    word: str
    bits: int
    granularity: str = "channel"
    activation: str = "float"

    def grid(self, method: str) -> str:
        """Return the weight grid of a method."""
        if method == "hqq":
            return f"uniform:bits={self.bits},range=asymmetric"
        if method in POWER and not (self.bits == 2 and method == "nupes"):
            return f"power:bits={self.bits},exponent=search"
        return f"uniform:bits={self.bits}" + (",range=asymmetric" if self.bits == 2 else "")


WEIGHT_ONLY = tuple(
    Setting(f"W{bits} {granularity}", bits, granularity)
    for granularity in ("channel", "group:128")
    for bits in (4, 3, 2)
)
INTEGER = (Setting("W4A8", 4, activation="int8"), Setting("W8A8", 8, activation="int8"))


def _resnet_setting(bits: int, activation: int) -> Setting:
    return Setting(f"W{bits}A{activation}", bits, activation=f"uniform:bits={activation},range=asymmetric")


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "gemma": (*WEIGHT_ONLY, *INTEGER),
    "minilm": (*WEIGHT_ONLY, *INTEGER),
    "resnet": (_resnet_setting(4, 4), _resnet_setting(3, 3), _resnet_setting(2, 4)),
}
#: AWQ folds scales into neighbours of transformer blocks; a ResNet has none that it knows.
LEFT_OUT = {("resnet", "awq")}

#: Seconds of a cell before any of its kind was measured: a guess for two quiet cores, per optimiser step for learners.
GUESS = {"gemma": 6.0, "minilm": 10.0, "resnet": 2.0}
GUESS_STEP = {"gemma": 0.12, "minilm": 0.3, "resnet": 0.03}
#: A step of a whole block costs more than a step of each of its layers through their Gram matrices, by about so much.
BLOCK_FACTOR = 3.0
BLOCKWISE = {"brecq", "autoround", "nupes"}

#: Rows that are measured with every seed; the others with the first one, unless ``--full``.
SEEDED = {"W4 channel", "W3 channel", "W4A4", "W3A3", "W2A4"}


@dataclass(frozen=True)
class Cell:
    """One run: a subject, a setting, a method and a seed (None: any)."""

    subject: str
    setting: Setting
    method: str
    seed: int | None

    @property
    def key(self) -> str:
        """What it is stored under."""
        return " | ".join((self.subject, self.setting.word, self.method, "-" if self.seed is None else str(self.seed)))


@dataclass(eq=False)
class Bench:
    """Sizes of the whole benchmark, and what cells share."""

    steps: int = 100
    samples: int = 64
    length: int = 128
    part: int = 8
    limit: int | None = None
    pairs: int = 200
    rows: int = 1024
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    methods: tuple[str, ...] = tuple(METHODS)
    _made: dict[str, Subject] = field(default_factory=dict, init=False)
    _calibrations: dict[tuple[str, int], Any] = field(default_factory=dict, init=False)
    _measures: dict[str, Any] = field(default_factory=dict, init=False)
    _inputs: dict[str, Any] = field(default_factory=dict, init=False)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a cell's figures depend on."""
        kept = ("steps", "samples", "length", "part", "limit", "pairs", "rows")
        return {name: getattr(self, name) for name in kept}

    def subject(self, word: str) -> Subject:
        """Return a subject, made once."""
        if word not in self._made:
            given: dict[str, Any] = {"samples": self.samples, "length": self.length}
            given |= {"part": self.part, "limit": self.limit} if word == "gemma" else {}
            given |= {"pairs": self.pairs} if word == "minilm" else {}
            given |= {"samples": 4 * self.samples} if word == "resnet" else {}
            self._made[word] = SUBJECTS[word](**given)
        return self._made[word]

    def calibration(self, word: str, seed: int) -> Any:
        """Return the samples of a seed, made once."""
        if (word, seed) not in self._calibrations:
            self._calibrations[word, seed] = self.subject(word).calibration(seed)
        return self._calibrations[word, seed]

    def measure(self, word: str) -> dict[str, Any]:
        """Return statistics of every layer's inputs in the float model, on samples that no method sees; one pass."""
        if word not in self._measures:
            from workbench.calibration.stream import BlockStream

            found: dict[str, Any] = {}
            for block in BlockStream(self.subject(word).source, self.calibration(word, HELD_OUT)):
                found |= block.statistics(needs={"moments", "gram"})
            self._measures[word] = found
        return self._measures[word]

    def inputs(self, word: str) -> dict[str, Any]:
        """Return statistics and rows of every layer's inputs in the float model, on the first seed's samples; one pass."""
        if word not in self._inputs:
            from workbench.calibration.stream import BlockStream

            found: dict[str, Any] = {}
            for block in BlockStream(self.subject(word).source, self.calibration(word, 0)):
                found |= block.statistics(needs={"moments", "gram", "inputs"})
            self._inputs[word] = found
        return self._inputs[word]

    def cells(self, seeds: Sequence[int], *, full: bool = True) -> Iterator[Cell]:
        """Return all runs: first everything with the first seed, so that a run that is stopped has whole tables.

        Args:
            seeds: in their order.
            full: whether every row gets all seeds, or only those that ``SEEDED`` names.
        """
        for number_of_seed, seed in enumerate(seeds):
            for word in self.subjects:
                if number_of_seed == 0:
                    yield Cell(word, Setting("float", 0), "float", None)
                for setting in SETTINGS[word]:
                    for method in self.methods:
                        seeded = METHODS[method][1]
                        more = seeded and (full or setting.word in SEEDED)
                        if (word, method) in LEFT_OUT or (number_of_seed and not more):
                            continue
                        yield Cell(word, setting, method, seed if seeded else None)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Quantize and judge."""
        subject = self.subject(cell.subject)
        if cell.method == "float":
            return subject.judge(subject.float_module())
        from workbench.methods.runner import quantize_model

        seed = cell.seed or 0
        needs_data = METHODS[cell.method][1] or cell.setting.activation != "float"
        calibration = self.calibration(cell.subject, seed) if needs_data else None
        started = time.perf_counter()
        quantized = quantize_model(subject.source, self.recipe(cell), calibration, seed=seed, rows=self.rows)
        seconds = time.perf_counter() - started
        found = subject.judge(quantized.module())
        found |= {"bits_per_weight": quantized.bits_per_weight, "quantizing_seconds": seconds}
        return found

    def recipe(self, cell: Cell) -> Any:
        """Return the recipe of a cell."""
        from workbench.quantization.recipe import Entry, Recipe

        setting = cell.setting
        entry = Entry(
            "*",
            weight=setting.grid(cell.method),
            granularity=setting.granularity,
            method=METHODS[cell.method][0].format(steps=self.steps),
            scale=SCALES.get(cell.method, "absmax"),
            activation=setting.activation,
        )
        if cell.subject != "resnet":
            return Recipe((entry,))
        ends = [Entry(name, weight="uniform:bits=8", method="rtn", activation="int8") for name in ("stem", "head")]
        return Recipe((entry, *ends))

    def alone(self, word: str, bits: int, method: str) -> dict[str, Any]:
        """Return each layer's output error over its output energy, with all other layers float."""
        from workbench.methods.layer import quantize_layer
        from workbench.methods.loss import output_energy, output_error

        model, measure, given = self.subject(word).model, self.measure(word), self.inputs(word)
        grid = Setting("", bits).grid(method)
        text, scale = METHODS[method][0].format(steps=self.steps), SCALES.get(method, "absmax")
        found = {}
        for name, known in measure.items():
            if name not in model:
                continue
            result = quantize_layer(model[name], text, grid, scale=scale, inputs=given[name])
            weight = np.asarray(model[name].weight[:], dtype=np.float32)
            weight = weight.reshape(weight.shape[0], -1)
            energy = output_energy(weight, known)
            error = output_error(weight, result.quantized.dequantize().reshape(weight.shape), known)
            found[name] = error / energy if energy else 0.0
        return {"layers": found}

    def joint(self, word: str, bits: int) -> dict[str, Any]:
        """Return, for each layer, the weights' error of the joint search over that of the best-clipped uniform grid."""
        from workbench.methods.layer import quantize_layer

        found = {}
        model = self.subject(word).model
        names = self.measure(word)
        for name in names:
            if name not in model:
                continue
            power = quantize_layer(model[name], METHODS["powerquant"][0], f"power:bits={bits},exponent=search")
            uniform = quantize_layer(model[name], "rtn-clip", f"uniform:bits={bits}")
            found[name] = power.error / uniform.error if uniform.error else 1.0
        return {"ratios": found}


def estimate(cells: Sequence[Cell], stored: Mapping[str, Mapping[str, Any]], steps: int) -> float:
    """Return the seconds that the cells not yet stored will take: the mean of finished ones of their kind, else a guess."""
    known: dict[tuple[str, str], list[float]] = {}
    for key, values in stored.items():
        parts = key.split(" | ")
        if len(parts) == 4 and not values.get("error"):
            known.setdefault((parts[0], parts[2]), []).append(values["seconds"])
    total = 0.0
    for cell in cells:
        if cell.key in stored:
            continue
        guess = GUESS[cell.subject]
        if "steps" in METHODS.get(cell.method, ("", False))[0]:
            guess += steps * GUESS_STEP[cell.subject] * (BLOCK_FACTOR if cell.method in BLOCKWISE else 1.0)
        total += statistics.fmean(known.get((cell.subject, cell.method), [guess]))
    return total


def main_table(bench: Bench, word: str, stored: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a subject's table: rows are settings, columns methods, mean ± spread over seeds."""
    subject = bench.subject(word)
    reference = stored.get(Cell(word, Setting("float", 0), "float", None).key, {})
    lines = []
    for setting in SETTINGS[word]:
        row, any_found = [setting.word], False
        for method in METHODS:
            values, failed = _values(stored, word, setting, method)
            any_found |= bool(values or failed)
            row.append(spread(values) if values else "error" if failed else "—")
        if any_found:
            lines.append(row)
    error = reference.get("standard_error")
    about = f" ± {number(error, 2)} (standard error)" if error else ""
    title = f"### {subject.name}: {subject.figure} ({subject.better} is better), float {number(reference.get('value'))}{about}"
    return f"{title}\n\n{markdown(['', *METHODS], lines)}"


def table(bench: Bench, word: str, stored: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all tables of a subject: its own figure, the one that does not saturate, each layer alone; and what failed."""
    subject = bench.subject(word)
    parts = [main_table(bench, word, stored)]
    finer, meaning = subject.finer
    rows = []
    for setting in SETTINGS[word]:
        found = [_values(stored, word, setting, method, finer)[0] for method in METHODS]
        if any(found):
            rows.append([setting.word, *map(spread, found)])
    parts.append(f"{subject.name}: {meaning}:\n\n{markdown(['', *METHODS], rows)}")
    alone = [
        [f"W{bits} channel", *(decibels(layer_loss(stored, word, f"W{bits}", method)) for method in METHODS)]
        for bits in (4, 3, 2)
    ]
    parts.append(
        f"Each layer alone, mean output SQNR over layers, held-out inputs, dB:\n\n{markdown(['', *METHODS], alone)}"
    )
    parts += [
        f"- {key}: {cell['error']}" for key, cell in stored.items() if key.startswith(f"{word} ") and cell.get("error")
    ]
    return "\n\n".join(parts)


def decibels(loss: float | None) -> str:
    """Return an error over energy as a signal-to-noise ratio in dB; a dash for None."""
    return "—" if loss is None else f"{-10.0 * math.log10(loss):.2f}"


def _values(
    stored: Mapping[str, Mapping[str, Any]], word: str, setting: Setting, method: str, name: str = "value"
) -> tuple[list[float], bool]:
    cells = [values for key, values in stored.items() if key.split(" | ")[:3] == [word, setting.word, method]]
    return [cell[name] for cell in cells if name in cell], any(cell.get("error") for cell in cells)


def report(bench: Bench, stored: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all tables and the expected orders, as markdown."""
    parts = [table(bench, word, stored) for word in bench.subjects]
    return "\n\n".join([*parts, "### Expected orders", orders(stored)])


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, little text, W4 channel and resnet only")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="words that a cell's key must hold, e.g. gemma W3 nupes"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="all seeds for every row, not for the first ones only")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of every learner")
    parser.add_argument("--minutes", type=float, help="start no new cell after so many")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--retry", action="store_true", help="measure cells anew that failed")
    parser.add_argument("--report", action="store_true", help="print the tables of what is there")
    parser.add_argument("--output", type=Path, help="JSON of the cells")
    asked = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(asked.threads)
    bench = Bench(steps=asked.steps)
    if asked.quick:
        bench = Bench(steps=4, samples=8, length=48, part=24, limit=800, pairs=20, rows=128)
        asked.seeds, asked.only = asked.seeds[:1], asked.only or ["gemma", "resnet", "W4 channel", "W4A4"]
    cells = Cells(asked.output or RESULTS / f"methods{'_quick' if asked.quick else ''}.json", bench.settings)
    wanted = [
        cell for cell in bench.cells(asked.seeds, full=asked.full) if cell.method == "float" or _asked(cell, asked.only)
    ]
    if not asked.report:
        seconds = estimate(wanted, cells.found, bench.steps)
        missing = sum(cell.key not in cells.found for cell in wanted)
        print(f"{missing} of {len(wanted)} cells to do, about {seconds / 60:.0f} minutes", flush=True)
        started = time.monotonic()
        for count, cell in enumerate(wanted, 1):
            if asked.minutes is not None and time.monotonic() - started > 60 * asked.minutes:
                print(f"{asked.minutes:g} minutes are over: start again to go on", flush=True)
                break
            new = cell.key not in cells.found
            found = cells.get(cell.key, lambda one=cell: bench.run(one), asked.retry)
            if new:
                left = estimate(wanted, cells.found, bench.steps) / 60
                figure = found.get("error") or number(found.get("value"), 5)
                print(
                    f"[{count}/{len(wanted)}, {left:.0f} min left] {cell.key}: {figure} ({found['seconds']:.1f} s)",
                    flush=True,
                )
        else:
            _layers(bench, cells, asked)
    print(f"\n{report(bench, cells.found)}\n\nstored in {cells.path}")


def _layers(bench: Bench, cells: Cells, asked: argparse.Namespace) -> None:
    """Fill the cells on single layers: each method alone, and the joint search against the best-clipped uniform grid."""
    words = [word for word in bench.subjects if not set(asked.only) & set(SUBJECTS) or word in asked.only]
    for word in words:
        for bits in (4,) if asked.quick else (4, 3, 2):
            if bits > 2:
                cells.get(f"joint | {word} | W{bits}", lambda w=word, b=bits: bench.joint(w, b), asked.retry)
            for method in bench.methods:
                if method != "awq":  # its layers multiply scaled inputs: they cannot be measured one by one
                    key = f"alone | {word} | W{bits} | {method}"
                    cells.get(key, lambda w=word, b=bits, m=method: bench.alone(w, b, m), asked.retry)


def _asked(cell: Cell, words: Sequence[str]) -> bool:
    """Say whether a cell's subject, setting or method is asked for: words of one kind are alternatives."""
    kinds = (
        ({cell.subject}, set(SUBJECTS)),
        ({cell.method}, set(METHODS)),
    )
    for own, known in kinds:
        named = known & set(words)
        if named and not own & named:
            return False
    rest = [word for word in words if word not in SUBJECTS and word not in METHODS]
    return not rest or any(word == cell.setting.word or word in cell.setting.word.split() for word in rest)


if __name__ == "__main__":
    main()
