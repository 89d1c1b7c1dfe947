"""Integer matrix products against torch's, in one run: every path of this machine, packed weights, rounding included.

    python benchmarks/integer_gemm.py                    # the CPU
    python benchmarks/integer_gemm.py --paths all        # also the slower instruction sets of this CPU, and portable code
    python benchmarks/integer_gemm.py --cuda             # a GPU, against torch on the same GPU

Each round runs every way, so that a disturbance of the machine falls on all of them alike; shown are the least and the
median time. Operands are numpy's, as callers have them (their rows need not begin at a cache line); torch reads the
same memory. The naive product is three loops compiled by numba on one thread, and the naive packed product three loops
that look every code up.

Measured on 2026-11-20 on a quiet machine (load 0.4), two cores of an AMD EPYC (Zen 5, AVX-512 VNNI), torch 2.13, two
threads, least times:

    shape           torch int8   int8, chosen path   int8, vnni512   4 bits packed   naive look-ups
    256x1024x1024     0.297 ms            0.311 ms        0.348 ms        0.379 ms         72.4 ms
    1x4096x4096       0.204 ms            0.223 ms        0.258 ms        0.156 ms          4.5 ms
    64x4096x4096      2.160 ms            1.471 ms        1.319 ms        1.459 ms        287.7 ms

So int8 reaches 0.96, 0.91 and 1.47 times torch's speed: at the two smaller shapes torch's product is the one that is
chosen, and what is missing is the way from numpy to torch and back, 15 to 20 microseconds. (Another quiet run had vnni512 at
0.209 ms and torch at 0.242 ms for one row: the two are equal there within what this machine repeats.) Packed weights
reach 0.78, 1.31 and 1.48 times torch's speed, and 191, 29 and 197 times that of naive look-ups: one row is bound by the
memory's speed, which 50 times the naive loop would exceed. Rounding inside the product took 0.414, 0.290 and 1.442 ms,
rounding afterwards 0.414, 0.266 and 1.435 ms: fusing saves the array of sums, not time. The CUDA kernels were compiled for
compute capability 9.0 and run on numba's simulator, but on no GPU: ``--cuda`` has not been run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

SHAPES = {"256x1024x1024": (256, 1024, 1024), "1x4096x4096": (1, 4096, 4096), "64x4096x4096": (64, 4096, 4096)}

#: Seconds of rest before each measurement: helper threads of the step before stop spinning for work.
REST = 0.01


@njit(nogil=True, boundscheck=False)
def naive_product(left, right):
    """Three loops; LLVM turns the innermost into vectors."""
    out = np.empty((left.shape[0], right.shape[0]), dtype=np.int32)
    for row in range(left.shape[0]):
        for column in range(right.shape[0]):
            total = np.int32(0)
            for k in range(left.shape[1]):
                total += np.int32(left[row, k]) * np.int32(right[column, k])
            out[row, column] = total
    return out


@njit(nogil=True, boundscheck=False)
def naive_look_ups(left, packed, table):
    """Three loops over codes of 4 bits, each looked up on the way."""
    out = np.empty((left.shape[0], packed.shape[0]), dtype=np.int32)
    for row in range(left.shape[0]):
        for column in range(packed.shape[0]):
            total = np.int32(0)
            for k in range(packed.shape[1]):
                code = packed[column, k]
                total += (
                    np.int32(left[row, 2 * k]) * table[code & 15] + np.int32(left[row, 2 * k + 1]) * table[code >> 4]
                )
            out[row, column] = total
    return out


def measure(
    ways: dict[str, Callable[[], Any]], rounds: int, rest: float, *, slow: int
) -> dict[str, tuple[float, float]]:
    """Return least and median seconds of each way, the ways interleaved; naive ones run ``slow`` times only.

    Each is run once untimed just before, so that all find their operands in the caches as far as these hold them.
    """
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            if number < (slow if "naive" in name else rounds):
                time.sleep(rest)
                way()
                start = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - start)
    return {name: (min(times), statistics.median(times)) for name, times in taken.items()}


def show(name: str, shape: tuple[int, int, int], seconds: dict[str, tuple[float, float]], against: str) -> None:
    """Print a table: times, speed, and how many times faster than one of torch's products."""
    rows, columns, depth = shape
    print(f"\n{name} (rows x columns x depth)")
    print(f"  {'way':38s} {'least ms':>10s} {'median ms':>10s} {'Gop/s':>9s} {'x torch':>13s} {'by median':>10s}")
    for way, (least, median) in seconds.items():
        ratios = seconds[against][0] / least, seconds[against][1] / median
        speed = 2 * rows * columns * depth / least / 1e9
        print(f"  {way:38s} {1e3 * least:10.3f} {1e3 * median:10.3f} {speed:9.1f} {ratios[0]:13.2f} {ratios[1]:10.2f}")


def verdict(shape: tuple[int, int, int], seconds: dict[str, tuple[float, float]]) -> None:
    """Print the targets and whether this run met them, by the least time."""
    torch_time, best = seconds["torch int8"][0], seconds["workbench int8, chosen path"][0]
    packed, naive = seconds["workbench 4 bits packed"][0], seconds["naive look-ups, 1 thread"][0]
    limit = 1.0 if shape[0] == 1 else 1 / 1.5
    rows = [
        ("int8 against torch's int8", torch_time / best, 1.0),
        ("packed against torch's int8", torch_time / packed, limit),
        ("packed against naive look-ups", naive / packed, 50.0),
    ]
    for label, ratio, target in rows:
        print(
            f"  {label:34s} {ratio:8.2f} times as fast (target {target:.2f}, {'met' if ratio >= target else 'MISSED'})"
        )


def operands(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return random operands of a layer, and everything that its rounding needs."""
    rows, columns, depth = shape
    rng = np.random.default_rng(0)
    return {
        "left": rng.integers(-128, 128, (rows, depth), dtype=np.int8),
        "right": rng.integers(-128, 128, (columns, depth), dtype=np.int8),
        "wide": rng.integers(-(2**15), 2**15, (rows, depth), dtype=np.int16),
        "packed": rng.integers(0, 256, (columns, depth // 2), dtype=np.uint8),
        "table": rng.integers(-128, 128, 16, dtype=np.int8),
        "offset": rng.integers(-(2**20), 2**20, columns),
        "multiplier": rng.integers(2**30, 2**31, columns),
        "shift": rng.integers(-16, -10, columns),
    }


def cpu(name: str, rounds: int, rest: float, paths: list[str]) -> None:
    """Measure one shape on this machine's CPU."""
    import torch

    from workbench.kernels.fixed_point import SINGLE
    from workbench.kernels.integer_gemm import integer_matmul
    from workbench.kernels.linear_codes import linear_codes
    from workbench.kernels.packed import packed_matmul
    from workbench.kernels.requantize import requantize_rows

    given = operands(SHAPES[name])
    left, right, wide = given["left"], given["right"], given["wide"]
    packed, table, offset = given["packed"], given["table"], given["offset"]
    rounding = (given["multiplier"], given["shift"], SINGLE, 3, -128, 127, np.dtype(np.int8))
    one, other = torch.from_numpy(left), torch.from_numpy(right).t()
    real, real_other = one.float(), other.float()
    long_table, short_offset = table.astype(np.int32), offset.astype(np.int32)
    ways: dict[str, Callable[[], Any]] = {
        "torch int8": lambda: torch._int_mm(one, other),
        "torch float32": lambda: real @ real_other,
        "workbench int8, chosen path": lambda: integer_matmul(left, right),
    }
    for path in paths:
        ways[f"workbench int8, {path}"] = lambda path=path: integer_matmul(left, right, path)
    ways |= {
        "workbench int8, rounded at once": lambda: linear_codes(left, right, offset, *rounding),
        "workbench int8, rounded afterwards": lambda: requantize_rows(
            integer_matmul(left, right) + short_offset, *rounding
        ),
        "workbench int16 x int8": lambda: integer_matmul(wide, right),
        "workbench 4 bits packed": lambda: packed_matmul(left, packed, table),
        "naive product, 1 thread": lambda: naive_product(left, right),
        "naive look-ups, 1 thread": lambda: naive_look_ups(left, packed, long_table),
    }
    assert np.array_equal(integer_matmul(left, right), naive_product(left, right))
    assert np.array_equal(packed_matmul(left, packed, table), naive_look_ups(left, packed, long_table))
    seconds = measure(ways, rounds, rest, slow=3)
    show(name, SHAPES[name], seconds, "torch int8")
    verdict(SHAPES[name], seconds)


def gpu(name: str, rounds: int, rest: float) -> None:
    """Measure one shape on the GPU: operands and results stay there, each way is waited for."""
    import torch
    from numba import cuda

    from workbench.kernels.cuda.integer_gemm import DeviceProduct
    from workbench.kernels.fixed_point import SINGLE

    given = operands(SHAPES[name])
    left, right, table = given["left"], given["right"], given["table"]
    one, other = torch.from_numpy(left).cuda(), torch.from_numpy(right).cuda().t()
    half, half_other, real, real_other = one.half(), other.half(), one.float(), other.float()
    rounding = (given["offset"], given["multiplier"], given["shift"], SINGLE, 3, -128, 127)
    products = {
        "workbench int8": DeviceProduct(left[None], right[None]),
        "workbench int8 without dp4a": DeviceProduct(left[None], right[None], plain=True),
        "workbench int8, rounded at once": DeviceProduct(
            left[None], right[None], output=np.dtype(np.int8), rescaling=rounding
        ),
        "workbench int16 x int8": DeviceProduct(given["wide"][None], right[None]),
        "workbench 4 bits packed": DeviceProduct(left[None], given["packed"][None], table=table),
    }
    exact = left.astype(np.float64) @ right.astype(np.float64).T
    assert np.array_equal(products["workbench int8"].launch().result()[0], exact)
    ways: dict[str, Callable[[], Any]] = {
        "torch float16": lambda: half @ half_other,
        "torch float32": lambda: real @ real_other,
    }
    # torch's int8 product on a GPU takes more than 16 rows only.
    if left.shape[0] > 16:
        ways["torch int8"] = lambda: torch._int_mm(one, other)
    timed = {label: waiting(way, torch.cuda.synchronize) for label, way in ways.items()}
    timed |= {label: waiting(product.launch, cuda.synchronize) for label, product in products.items()}
    seconds = measure(timed, rounds, rest, slow=2)
    against = "torch int8" if "torch int8" in seconds else "torch float16"
    show(f"{name}, ratios against {against}", SHAPES[name], seconds, against)


def waiting(work: Callable[[], Any], wait: Callable[[], Any]) -> Callable[[], None]:
    """Return a way that ends when the GPU has finished."""

    def run() -> None:
        work()
        wait()

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure integer matrix products against torch's.")
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="one shape only (may be repeated)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--paths", choices=["best", "all"], default="best", help="which instruction sets to show apart")
    parser.add_argument("--rest", type=float, default=REST, help="seconds before each measurement")
    parser.add_argument("--threads", type=int, help="of numba and torch; one is the least disturbed on a busy machine")
    parser.add_argument("--cuda", action="store_true", help="measure the GPU instead")
    chosen = parser.parse_args()
    names = chosen.shape or list(SHAPES)
    import numba
    import torch

    if chosen.cuda:
        today = datetime.datetime.now(tz=datetime.UTC).date()
        print(f"{today}, {torch.cuda.get_device_name()}, torch {torch.__version__}, numba {numba.__version__}")
        for name in names:
            gpu(name, chosen.rounds, chosen.rest)
        return
    if chosen.threads is not None:
        numba.set_num_threads(chosen.threads)
        torch.set_num_threads(chosen.threads)

    from workbench.kernels.instruction_sets import available

    paths = list(available()) if chosen.paths == "all" else [available()[0]]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, instruction sets {', '.join(available())}; python "
        f"{platform.python_version()}, numba {numba.__version__} ({numba.get_num_threads()} threads), torch "
        f"{torch.__version__} ({torch.get_num_threads()} threads); load {os.getloadavg()[0]:.1f}"
    )
    for name in names:
        cpu(name, chosen.rounds, chosen.rest, paths)


if __name__ == "__main__":
    main()
