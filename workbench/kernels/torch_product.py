"""torch's int8 matrix product as one way among others: only where it is exact and the faster one."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

#: How often each way is timed, and the part of the other's time that torch must stay under to be used.
RUNS, CLEARLY = 8, 0.97

#: Seconds of rest before each timing: threads of the way before stop spinning for work.
REST = 0.003

#: Smaller products are not worth a call into torch.
MANY = 1 << 24


def is_candidate(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether torch, already loaded, could multiply these (batches, rows, depth), (batches, columns, depth).

    torch is never imported for it: that takes longer than most products.
    """
    return (
        left.shape[0] == 1
        and left.dtype == right.dtype == np.int8
        and left.shape[1] * right.shape[1] * left.shape[2] >= MANY
        and "torch" in sys.modules
        and is_exact()
    )


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ``left[b] @ right[b].T`` through torch.

    Raises:
        ValueError: types that torch does not multiply, or a torch whose products are not exact on this CPU.
    """
    if not left.dtype == right.dtype == np.int8:
        message = f"torch multiplies int8 by int8, not {left.dtype} by {right.dtype}"
        raise ValueError(message)
    if not is_exact():
        message = "this torch has no exact int8 product on this CPU; choose another path"
        raise ValueError(message)
    if left.shape[0] == 1:
        return _product(left[0], right[0])[None]
    out = np.empty((left.shape[0], left.shape[1], right.shape[1]), dtype=np.int32)
    for one, other, result in zip(left, right, out, strict=True):
        result[...] = _product(one, other)
    return out


@functools.cache
def is_exact() -> bool:
    """Return whether ``torch._int_mm`` exists and gives exact sums on this CPU, found out once per process.

    On CPUs without VNNI some libraries add two products in 16 bits that saturate, after moving one side to 0...255. The
    probe multiplies extremes only, in the shapes for which libraries keep different code: one row, few, many.
    """
    try:
        generator = np.random.default_rng(0)
        for rows, columns, depth in ((1, 64, 256), (3, 33, 67), (32, 64, 256), (128, 128, 512)):
            left = generator.choice(np.array([-128, 127], dtype=np.int8), (rows, depth))
            right = generator.choice(np.array([-128, -127, 127], dtype=np.int8), (columns, depth))
            left[0], right[0] = 127, 127
            right[1] = -128
            exact = left.astype(np.float64) @ right.astype(np.float64).T
            if not np.array_equal(_product(left, right), exact):
                return False
    except (ImportError, AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    import torch

    return torch._int_mm(_tensor(left), _tensor(right).t()).numpy()


def _tensor(values: np.ndarray) -> Any:
    import torch

    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        # torch warns about arrays that cannot be written, though it only reads here.
        values = np.array(values)
    return torch.from_numpy(values)


_winner: dict[int, bool] = {}


def faster(left: np.ndarray, right: np.ndarray, other: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the product by torch or by the other way: torch where it was clearly faster on the first product of such a height.

    Both give the same integers; the first large product of a height class (one row, up to 16, up to 128, more) is
    computed ``RUNS`` times by each, in turns.
    """
    height = sum(left.shape[1] > limit for limit in (1, 16, 128))
    if height not in _winner:
        ways = (lambda: multiply(left, right), other)
        turns = [[_seconds(way) for way in ways] for _ in range(RUNS)]
        by_torch, by_other = (min(taken) for taken in zip(*turns, strict=True))
        _winner[height] = by_torch < CLEARLY * by_other
    return multiply(left, right) if _winner[height] else other()


def _seconds(way: Callable[[], Any]) -> float:
    time.sleep(REST)
    way()
    start = time.perf_counter()
    way()
    return time.perf_counter() - start
