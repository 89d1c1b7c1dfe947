"""How fast the error follows the mouse: everything measured in one run, against the torch expression a person writes.

    python benchmarks/live_error.py            # both layers: 4096 x 4096 and 21504 x 5376, bf16
    python benchmarks/live_error.py --quick    # the smaller layer only

Each round runs every measurement once, so that a disturbance of the machine falls on all of them alike; the figure is
the median over rounds, each measurement from rest, as a mouse that stops finds the machine. The torch expression is the usual fake quantization of a bf16 weight per output channel: widen,
divide by the absmax, apply the power, round, undo it, and average the squared difference. Its 8-bit row is measured
with the 8-bit grid.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

#: Seconds of rest before each measurement: helper threads of the step before (torch's, numba's) stop spinning for work.
REST = 0.02

#: The exponents of a drag: a new grid for each, so its levels and thresholds are computed too.
EXPONENTS = np.linspace(0.4, 0.9, 50).tolist()
DRAG = "sketch query, one of 50 in a drag"

LAYERS = {"4096x4096": (4096, 4096), "21504x5376": (21504, 5376)}


def make_layer(rows: int, columns: int) -> np.ndarray:
    """Return bf16 weights as a trained layer has them: Gaussian, rows of different sizes, a few outliers."""
    rng = np.random.default_rng(0)
    weights = np.empty((rows, columns), dtype=ml_dtypes.bfloat16)
    for start in range(0, rows, 1024):
        stop = min(start + 1024, rows)
        block = rng.standard_normal((stop - start, columns), dtype=np.float32)
        block *= 0.02 * np.exp(0.2 * rng.standard_normal((stop - start, 1), dtype=np.float32))
        block[rng.random(block.shape, dtype=np.float32) < 1e-5] *= 8.0
        weights[start:stop] = block.astype(ml_dtypes.bfloat16)
    return weights


def torch_error(weight: Any, bits: int, exponent: float) -> float:
    """Return the mean squared error of a power grid per channel, as a person would write it in torch."""
    n = 2 ** (bits - 1) - 1
    w = weight.float()
    scale = w.abs().amax(dim=1, keepdim=True)
    u = w / scale
    q = torch_round(n * u.abs() ** exponent)
    w_hat = scale * u.sign() * (q / n) ** (1 / exponent)
    return float(((w - w_hat) ** 2).mean())


def torch_uniform_error(weight: Any, bits: int) -> float:
    """Return the mean squared error of the uniform grid per channel: the cheaper torch expression without powers."""
    n = 2 ** (bits - 1) - 1
    w = weight.float()
    scale = w.abs().amax(dim=1, keepdim=True) / n
    w_hat = (w / scale).round().clamp(-n, n) * scale
    return float(((w - w_hat) ** 2).mean())


def torch_round(values: Any) -> Any:
    """Round half to even, as ``torch.round`` does."""
    return values.round()


def measure(steps: dict[str, Callable[[], Any]], rounds: dict[str, int]) -> dict[str, float]:
    """Return the median seconds of each step, the steps interleaved."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(max(rounds.values())):
        for name, step in steps.items():
            if number < rounds[name]:
                time.sleep(REST)
                start = time.perf_counter()
                step()
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def run(name: str, shape: tuple[int, int]) -> None:
    """Measure one layer and print its rows."""
    import torch

    from workbench.grids import PowerGrid, UniformGrid
    from workbench.quantization import exact_error, landscape, sketch, sketch_error

    weights = make_layer(*shape)
    tensor = torch.from_numpy(weights.view(np.int16)).view(torch.bfloat16)
    four, eight, uniform = PowerGrid(bits=4, exponent=0.55), PowerGrid(bits=8, exponent=0.55), UniformGrid(bits=4)
    made = sketch(weights, "channel")
    steps: dict[str, Callable[[], Any]] = {
        "torch, power 4 bits": lambda: torch_error(tensor, 4, 0.55),
        "torch, power 8 bits": lambda: torch_error(tensor, 8, 0.55),
        "torch, uniform 4 bits": lambda: torch_uniform_error(tensor, 4),
        "exact error, power 4 bits, channel": lambda: exact_error(weights, four, "channel"),
        "exact error, power 8 bits, channel": lambda: exact_error(weights, eight, "channel"),
        "exact error, uniform 4 bits, channel": lambda: exact_error(weights, uniform, "channel"),
        "exact error, power 4 bits, group:128": lambda: exact_error(weights, four, "group:128"),
        "sketch query, power 4 bits": lambda: sketch_error(made, four),
        "sketch query, power 8 bits": lambda: sketch_error(made, eight),
        DRAG: lambda: [sketch_error(made, PowerGrid(bits=4, exponent=exponent)) for exponent in EXPONENTS],
        "landscape 64x64, 4 bits": lambda: landscape(made, 4),
        "landscape 64x64, 8 bits": lambda: landscape(made, 8),
        "make the sketch, channel": lambda: sketch(weights, "channel"),
        "make the sketch, tensor (exact)": lambda: sketch(weights, "tensor"),
    }
    large = shape[0] * shape[1] > 5e7
    rounds = dict.fromkeys(steps, 3 if large else 9)
    for step in steps:
        if step.startswith("sketch query"):
            rounds[step] = 201
        elif not step.startswith("torch"):
            rounds[step] = 9 if large else 25
    rounds[DRAG] = 25
    seconds = measure(steps, rounds)
    seconds[DRAG] /= len(EXPONENTS)
    agree = exact_error(weights, four, "channel").mse
    print(f"\n{name} bf16, {shape[0] * shape[1] / 1e6:.1f} M weights")
    print(
        f"  4-bit mse: exact {agree:.9e}, torch (float32) {torch_error(tensor, 4, 0.55):.9e}, {sketch_error(made, four)}"
    )
    for step, time_taken in seconds.items():
        print(f"  {step:40s} {1e3 * time_taken:10.3f} ms")
    power4, power8, plain = (seconds[f"torch, {kind} bits"] for kind in ("power 4", "power 8", "uniform 4"))
    rows = [
        ("exact 4 bits against torch", power4 / seconds["exact error, power 4 bits, channel"], 40.0),
        ("exact 8 bits against torch", power8 / seconds["exact error, power 8 bits, channel"], 20.0),
        ("sketch query in a drag against torch", power4 / seconds[DRAG], 2000.0),
        ("sketch query from rest against torch", power4 / seconds["sketch query, power 4 bits"], 2000.0),
        ("exact uniform 4 bits against torch's uniform", plain / seconds["exact error, uniform 4 bits, channel"], None),
    ]
    for label, ratio, target in rows:
        goal = "" if target is None else f"(target {target:,.0f}, {'met' if ratio >= target else 'MISSED'})"
        print(f"  {label:46s} {ratio:10,.1f} times faster {goal}")
    limits = [("landscape 64x64, 4 bits", 0.3), ("landscape 64x64, 8 bits", 0.3)]
    if large:
        limits.append(("exact error, power 4 bits, channel", 0.15))
    for step, limit in limits:
        print(f"  {step:46s} {seconds[step]:10.4f} s (limit {limit} s, {'met' if seconds[step] < limit else 'MISSED'})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how fast the error follows the mouse.")
    parser.add_argument("--quick", action="store_true", help="the 4096 x 4096 layer only")
    chosen = parser.parse_args()
    import numba
    import torch

    start = time.perf_counter()
    from workbench.kernels.warm import warm_up

    warm_up()
    print(f"kernels ready after {time.perf_counter() - start:.2f} s (compiled, or read from numba's disk cache)")
    print(
        f"python {platform.python_version()}, numba {numba.__version__} ({numba.get_num_threads()} threads, "
        f"{numba.threading_layer()}), torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"{os.cpu_count()} cores"
    )
    for name, shape in LAYERS.items():
        if not (chosen.quick and name != "4096x4096"):
            run(name, shape)


if __name__ == "__main__":
    main()
