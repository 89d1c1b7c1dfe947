"""LUT-GEMM against what it replaces, all in one run: latency, memory, and the complexity model beside the measurement.

    python benchmarks/lut_gemm.py              # 4096 x 4096 and 11008 x 4096, 2 to 4 bits, batch 1, 2, 4, 8
    python benchmarks/lut_gemm.py --quick      # 4096 x 4096, 3 bits, batch 1 and 8

Each round runs every contender once, so that a disturbance of the machine falls on all of them alike; the figure is the
median over rounds. Every contender cycles through copies of its weight that together exceed the last-level cache, as the
layers of a model do: a layer's weights are never still in the cache from the token before. Groups have 128 inputs.

Contenders: ``float32`` is torch's product with the float32 weight; ``dequantize`` decodes the codes to float32 first and
then multiplies, as a fake-quantized layer does; ``int8`` is ``torch._int_mm`` with an int8 weight (its product only, no
scales); ``LUT`` reads the binary coding (``lut_matmul``, float32), ``LUT int8`` is the integer kernel with int8
activations and fixed-point alphas (``lut_integer_matmul``). The model counts operations per input vector: m n
multiplications against m n q / µ look-ups and n 2^µ / µ additions for the tables (LUT-GEMM, arXiv 2206.09557, section
3.3); its ratio is what look-ups as dear as multiplications would gain.

Measured on 2026-11-20 on a quiet machine (load 0.5 before), two cores of an AMD EPYC (Zen 5, AVX-512), two threads, torch
2.13, medians in milliseconds:

    shape       bits  batch  float32  dequantize   int8    LUT  LUT int8  LUT : float32  LUT int8 : int8  model
    4096x4096      2      1     3.18        8.02  0.555  0.376     0.233          8.47x            2.39x  2.00x
    4096x4096      2      8     5.25        9.69   1.73   1.15     0.791          4.56x            2.19x  2.00x
    4096x4096      3      1     3.35        10.6  0.657  0.575     0.374          5.82x            1.76x  1.33x
    4096x4096      3      8     5.19        10.6   1.76   1.47     0.994          3.52x            1.77x  1.33x
    4096x4096      4      1     3.39        12.6  0.619  0.633     0.444          5.35x            1.39x  1.00x
    4096x4096      4      8     5.33        12.2   1.68   1.83      1.33          2.92x            1.26x  1.00x
    11008x4096     3      1     8.37        22.0   1.34  0.889     0.677          9.41x            1.97x  1.33x
    11008x4096     3      8     14.7        27.8   4.18   3.37      2.05          4.35x            2.04x  1.33x

Memory: float32 67.1 MB, int8 16.8 MB, LUT 5.8, 8.4 and 11.0 MB (float32 alphas and biases in it). The model is passed
because one permute looks up 16 or 32 rows, while a float32 product of one vector waits for its bytes.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

#: Bytes that the copies of one contender's weight have at least: four times the last-level cache of the machine below.
SPAN = 128 << 20

#: Seconds of rest before each measurement: helper threads of the step before stop spinning for work.
REST = 0.005

GROUP = 128
SHAPES = {"4096x4096": (4096, 4096), "11008x4096": (11008, 4096)}


def model(rows: int, columns: int, bits: int, key: int) -> tuple[float, float]:
    """Return multiplications of the plain product, and look-ups plus table additions of LUT-GEMM."""
    return rows * columns, rows * columns * bits / key + columns / key * 2**key


def make(rows: int, columns: int, bits: int) -> Any:
    """Return a packed binary coding with random codes: look-ups take as long whatever the weights are."""
    from workbench.kernels.lut_gemm import pack

    rng = np.random.default_rng(bits)
    groups = columns // GROUP
    codes = rng.integers(0, 2**bits, (rows, columns), dtype=np.uint8)
    alphas = np.sort(rng.random((rows, groups, bits), dtype=np.float32), axis=-1)
    return codes, alphas, rng.random((rows, groups), dtype=np.float32), pack


def copies(value: Any, nbytes: int, copy: Callable[[Any], Any]) -> Any:
    """Return an endless round of copies that together exceed the cache."""
    return itertools.cycle([value, *(copy(value) for _ in range(SPAN // nbytes))])


def measure(
    steps: dict[str, Callable[[], Any]], rounds: int, figure: Callable[[list[float]], float]
) -> dict[str, float]:
    """Return the seconds of each step, the steps interleaved; ``figure`` picks one of all rounds."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            time.sleep(REST)
            start = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - start)
    return {name: figure(times) for name, times in taken.items()}


def run(name: str, shape: tuple[int, int], all_bits: list[int], batches: list[int], rounds: int, figure: Any) -> None:  # noqa: PLR0917
    """Measure one shape and print its rows."""
    from dataclasses import replace

    import torch

    from workbench.kernels.binary_coding import decode_groups
    from workbench.kernels.lut_gemm import choose_path, lut_integer_matmul, lut_matmul, tiled

    rows, columns = shape
    key = 8 if choose_path() == "memory" else 4
    rng = np.random.default_rng(0)
    full = copies(torch.randn(rows, columns), rows * columns * 4, torch.clone)
    eight = copies(torch.randint(-127, 128, (rows, columns), dtype=torch.int8), rows * columns, torch.clone)
    print(f"\n{name}: float32 {rows * columns * 4 / 1e6:.1f} MB, int8 {rows * columns / 1e6:.1f} MB")
    for bits in all_bits:
        codes, alphas, bias, pack = make(rows, columns, bits)
        packed = pack(codes, alphas, bias, GROUP)
        weights = copies(packed, packed.nbytes, lambda one: replace(one, words=one.words.copy()))
        coefficients = tiled(np.rint(alphas * 2047).astype(np.int16))
        offsets = tiled(np.rint(bias * 2047).astype(np.int16))
        plain, looked = model(rows, columns, bits, key)
        print(
            f"  q = {bits}: LUT {packed.nbytes / 1e6:.1f} MB ({packed.nbytes * 8 / rows / columns:.2f} bits per weight), "
            f"model m n q / {key} + n 2^{key} / {key}: {plain / looked:.2f} times fewer operations"
        )
        for batch in batches:
            x = rng.standard_normal((batch, columns)).astype(np.float32)
            tensor = torch.from_numpy(x)
            integers = torch.randint(-127, 128, (batch, columns), dtype=torch.int8)
            centred = integers.numpy().astype(np.int16)

            def dequantize(codes: Any = codes, alphas: Any = alphas, bias: Any = bias, tensor: Any = tensor) -> Any:
                return tensor @ torch.from_numpy(decode_groups(codes, GROUP, alphas, bias)).T

            def look_up(x: Any = x, weights: Any = weights) -> Any:
                return lut_matmul(x, next(weights))

            def look_up_integers(
                x: Any = centred, weights: Any = weights, one: Any = coefficients, other: Any = offsets
            ) -> Any:
                return lut_integer_matmul(x, next(weights), one, other, np.dtype(np.int32))

            found = measure(
                {
                    "float32": lambda tensor=tensor: tensor @ next(full).T,
                    "dequantize": dequantize,
                    "int8": lambda integers=integers: torch._int_mm(integers, next(eight).T),
                    "LUT": look_up,
                    "LUT int8": look_up_integers,
                },
                rounds,
                figure,
            )
            milliseconds = "  ".join(f"{label} {seconds * 1e3:7.3f}" for label, seconds in found.items())
            ratios = ", ".join(
                f"{found[other] / found[own]:.2f}x {other}"
                for own, other in (("LUT", "float32"), ("LUT", "dequantize"), ("LUT int8", "int8"))
            )
            print(f"    batch {batch}: {milliseconds} ms | LUT {ratios}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, 3 bits, batch 1 and 8")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, help="threads of numba and torch; all cores without it")
    parser.add_argument(
        "--best", action="store_true", help="the fastest round instead of the median: on a busy machine"
    )
    chosen = parser.parse_args()
    import numba
    import torch

    if chosen.threads:
        numba.set_num_threads(chosen.threads)
        torch.set_num_threads(chosen.threads)

    from workbench.kernels.lut_gemm import choose_path

    print(
        f"{platform.machine()}, {numba.get_num_threads()} numba threads, {torch.get_num_threads()} torch threads, look-ups by {choose_path()}"
    )
    names = ["4096x4096"] if chosen.quick else list(SHAPES)
    for name in names:
        bits, batches = ([3], [1, 8]) if chosen.quick else ([2, 3, 4], [1, 2, 4, 8])
        run(name, SHAPES[name], bits, batches, chosen.rounds, min if chosen.best else statistics.median)


if __name__ == "__main__":
    main()
