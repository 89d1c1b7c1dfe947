"""Speed of the methods against what a user would write, in one run: ratios, after a check that both do the same.

    python benchmarks/methods_speed.py            # --quick for a small layer and few steps, which keeps no figures

(a) PowerQuant's exponent for all linear layers of MiniLM: coarse grid and refinement from sketches, against SciPy's
Nelder-Mead over the full tensors in torch. With and without the one pass that makes the sketches; a sketch answers any
later question too (other bits, clips, one layer), the full tensors start again each time. (b) One optimiser step of
AdaRound and of NUPES (with Adam on both sides) on a layer, against the plain PyTorch loop of the BRECQ kind: over all rows
of the calibration, where both walk the same curve (checked: median relative difference over the last quarter of a run), and
with the mini-batch of 32 rows that BRECQ's code takes, which is a noisier loss; AdaRound's loop also under
``torch.compile`` (a dash where this machine has no C++ compiler for it).
(c) GPTQ of a layer from its Gram matrix against the plain torch loop; both give the same codes but for ties (checked). The
plain side is ``methods_plain.py``. Steps are timed as the difference of two runs, so that preparing a run does not count.

Measured (docs/methods.md): compiling buys the plain loop a quarter and costs half a minute for each shape, less than a step
that is one pass over memory, so the workbench uses no ``torch.compile``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from methods_cells import RESULTS, machine, markdown, number
from methods_models import MiniLM, layer_rows
from methods_plain import Schedule, adaround_loop, gptq_loop, nelder_mead_exponent, nupes_loop

BITS = 4

#: Learning rates of (b), the same on both sides. They are small because the soft weights start at the true ones: the first
#: gradient is rounding noise, which Adam turns into a step of full length in a random direction, another one on each side.
RATES = {"adaround": 0.01, "nupes": 0.001}

#: Layers of (b) and (c).
LAYERS = ("encoder.layer.2.attention.self.query", "encoder.layer.2.intermediate.dense", "encoder.layer.2.output.dense")


def seconds(step: Callable[[], Any], rounds: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def exponent_search(bits: int, rounds: int, most: int | None) -> dict[str, Any]:
    """Return the figures of (a)."""
    import torch

    from workbench.quantization import sketch
    from workbench.quantization.search import search_exponent

    subject = MiniLM()
    layers = [layer for layer in subject.model.layers.values() if layer.kind == "linear"][:most]
    weights = [torch.from_numpy(np.asarray(layer.weight[:], dtype=np.float32)) for layer in layers]
    search_exponent([sketch(weights[0][:8].numpy(), "channel")], bits)  # compiles
    made: list[Any] = []

    def sketches() -> None:
        made[:] = [sketch(weight.numpy(), "channel") for weight in weights]

    sketching = seconds(sketches, rounds)
    found: list[Any] = []
    searching = seconds(lambda: found.append(search_exponent(made, bits)), rounds)
    plain: list[Any] = []
    full = seconds(lambda: plain.append(nelder_mead_exponent(weights, bits)), max(1, rounds // 3))
    exponent, value, asked = plain[-1]
    return {
        "layers": len(layers),
        "weights": sum(weight.numel() for weight in weights),
        "sketching": sketching,
        "searching": searching,
        "nelder_mead": full,
        "ratio_with_sketching": full / (sketching + searching),
        "ratio_without_sketching": full / searching,
        "exponent": found[-1].exponent,
        "value": found[-1].value,
        "plain_exponent": exponent,
        "plain_value": value,
        "plain_evaluations": asked,
    }


def prepare(name: str, rows: int) -> dict[str, Any]:
    """Return a layer of MiniLM with rows of its inputs, as tensors."""
    import torch

    subject = MiniLM(samples=max(8, rows // 64))
    module = subject.float_module()
    weight = np.ascontiguousarray(module.get_submodule(name).weight.detach().numpy())
    inputs = layer_rows(module, [name], subject.calibration(0).batches, rows)[name]
    scale = np.abs(weight).max(axis=1, keepdims=True)
    return {
        "weight": weight,
        "inputs": inputs,
        "tensors": [torch.from_numpy(each) for each in (weight, scale, inputs)],
    }


def step_times(ours: Callable[[int], Any], plain: Callable[[int], Any], steps: int, rounds: int) -> tuple[float, float]:
    """Return the seconds of one step of both, interleaved: (time of 3 n steps - time of n steps) / 2 n."""
    ours(3), plain(3)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("plain", plain)):
            short, long = seconds(lambda r=run: r(steps), 1), seconds(lambda r=run: r(3 * steps), 1)
            times[name].append((long - short) / (2 * steps))
    return statistics.median(times["ours"]), statistics.median(times["plain"])


def learner(word: str, name: str, given: dict[str, Any], steps: int, rounds: int) -> dict[str, Any]:
    """Return the figures of (b) for one method and layer."""
    from workbench.calibration.statistics import LayerStatistics
    from workbench.methods import LayerTask, Run, parse_method
    from workbench.methods.gradient.variables import TEMPERATURES

    weight, scale, inputs = given["tensors"]
    n, exponent = 2 ** (BITS - 1) - 1, 0.7
    grid = f"uniform:bits={BITS}" if word == "adaround" else f"power:bits={BITS},exponent={exponent}"
    statistic = LayerStatistics.from_inputs(name, given["inputs"])
    task = LayerTask.of(given["weight"], grid, statistics=statistic, name=name)

    def method(count: int) -> Any:
        return parse_method(
            f"{word}:steps={count},start=task,ramp=0,optimizer=adam,decay=false,learning_rate={RATES[word]}"
        )

    def ours(count: int) -> Any:
        return method(count).quantize_layer(task, Run())

    def schedule(count: int) -> Schedule:
        settings: Any = method(count)
        return Schedule(
            steps=count,
            rate=settings._schedule(gram=True).rates["codes"],
            regularizer=settings.regularizer,
            warmup=settings.warmup,
            beta=(settings.beta_start, settings.beta_end),
            scale_rate=settings.scale_rate,
            exponent_rate=settings.exponent_rate,
            temperature=(TEMPERATURES[0], settings.temperature_end),
        )

    def plain(count: int, batch: int | None = None) -> list[float]:
        if word == "adaround":
            return adaround_loop(weight, scale, n, inputs, schedule(count), batch)
        return nupes_loop(weight, scale, n, exponent, inputs, schedule(count), batch)

    # Point k of our curve is the loss of the soft weights before step k - 1; 0 and the last are hard ones. Compared is the
    # last quarter: at first both are within noise of zero loss, and the different first steps take a while to wear off.
    long = 4 * steps
    trace, curve = ours(long).trace, plain(long)
    pairs = [
        (loss, curve[at - 1]) for at, loss in zip(trace.steps, trace.loss, strict=True) if 0.75 * long <= at < long
    ]
    apart = statistics.median(abs(a - b) / b for a, b in pairs) if pairs else math.nan
    own, theirs = step_times(ours, plain, steps, rounds)
    _, small = step_times(ours, lambda count: plain(count, 32), steps, 1)
    compiled: float | None = None
    if word == "adaround":
        try:
            _, compiled = step_times(
                ours,
                lambda count: adaround_loop(weight, scale, n, inputs, schedule(count), compiled=True),
                steps,
                rounds,
            )
        except Exception as error:
            print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
    return {
        "method": word,
        "layer": name,
        "shape": list(weight.shape),
        "rows": len(inputs),
        "ours_ms": 1e3 * own,
        "plain_ms": 1e3 * theirs,
        "plain_batch32_ms": 1e3 * small,
        "compiled_ms": None if compiled is None else 1e3 * compiled,
        "ratio": theirs / own,
        "ratio_batch32": small / own,
        "ratio_compiled": None if compiled is None else compiled / own,
        "curves_apart": apart,
    }


def gptq(name: str, given: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return the figures of (c) for one layer."""
    import torch

    from workbench.calibration.statistics import LayerStatistics
    from workbench.methods import LayerTask, parse_method
    from workbench.methods.loss import output_error

    weight, scale, _ = given["tensors"]
    n = 2 ** (BITS - 1) - 1
    statistic = LayerStatistics.from_inputs(name, given["inputs"])
    assert statistic.gram is not None
    gram = torch.from_numpy(statistic.gram[0].astype(np.float32))
    task = LayerTask.of(given["weight"], f"uniform:bits={BITS}", statistics=statistic, name=name)
    method = parse_method("gptq")
    found = method.quantize_layer(task).quantized.dequantize()
    plain = gptq_loop(weight, scale, n, gram).numpy()
    own = seconds(lambda: method.quantize_layer(task), rounds)
    theirs = seconds(lambda: gptq_loop(weight, scale, n, gram), rounds)
    return {
        "layer": name,
        "shape": list(weight.shape),
        "ours_ms": 1e3 * own,
        "plain_ms": 1e3 * theirs,
        "ratio": theirs / own,
        "codes_alike": float((np.abs(found - plain) < 0.5 * scale.numpy() / n).mean()),
        "error": output_error(given["weight"], found, statistic),
        "plain_error": output_error(given["weight"], plain, statistic),
    }


def report(figures: dict[str, Any]) -> str:
    """Return the figures as markdown."""
    search = figures["search"]
    text = [
        f"(a) exponent of {search['layers']} layers, {search['weights'] / 1e6:.1f} M weights: sketching "
        f"{search['sketching']:.3f} s, search {search['searching']:.4f} s, Nelder-Mead over full tensors "
        f"{search['nelder_mead']:.2f} s ({search['plain_evaluations']} evaluations): "
        f"**{search['ratio_without_sketching']:.0f}x** from sketches, **{search['ratio_with_sketching']:.1f}x** with "
        f"sketching; exponent {search['exponent']:.4f} and {search['plain_exponent']:.4f}, summed error "
        f"{search['value']:.6g} and {search['plain_value']:.6g}",
        "(b) one optimiser step",
        markdown(
            [
                "method, layer",
                "shape",
                "rows",
                "ours, ms",
                "plain loop, ms",
                "ratio",
                "plain, 32 rows, ms",
                "ratio",
                "torch.compile, ms",
                "ratio",
                "curves apart",
            ],
            [
                [
                    f"{each['method']}, {each['layer']}",
                    "x".join(map(str, each["shape"])),
                    each["rows"],
                    *(
                        number(each[word], 3)
                        for word in (
                            "ours_ms",
                            "plain_ms",
                            "ratio",
                            "plain_batch32_ms",
                            "ratio_batch32",
                            "compiled_ms",
                            "ratio_compiled",
                        )
                    ),
                    f"{each['curves_apart']:.1e}",
                ]
                for each in figures["steps"]
            ],
        ),
        "(c) GPTQ",
        markdown(
            ["layer", "shape", "ours, ms", "plain loop, ms", "ratio", "codes alike", "output error, ours", "plain"],
            [
                [
                    each["layer"],
                    "x".join(map(str, each["shape"])),
                    *(f"{each[word]:.3g}" for word in ("ours_ms", "plain_ms", "ratio")),
                    f"{each['codes_alike']:.2%}",
                    f"{each['error']:.6g}",
                    f"{each['plain_error']:.6g}",
                ]
                for each in figures["gptq"]
            ],
        ),
    ]
    return "\n\n".join(text)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two layers to search, one small layer, few steps")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--output", type=Path, help="JSON of the figures")
    asked = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(asked.threads)
    rounds, steps, rows, names = asked.rounds, asked.steps, asked.rows, LAYERS
    if asked.quick:
        rounds, steps, rows, names = 1, 40, 128, LAYERS[:1]
    figures: dict[str, Any] = {"machine": machine(), "steps": [], "gptq": []}
    figures["search"] = exponent_search(BITS, rounds, 2 if asked.quick else None)
    for name in names:
        given = prepare(name, rows)
        figures["steps"] += [learner(word, name, given, steps, rounds) for word in ("adaround", "nupes")]
        figures["gptq"].append(gptq(name, given, rounds))
    print(report(figures))
    output = asked.output or (None if asked.quick else RESULTS / "methods_speed.json")
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
