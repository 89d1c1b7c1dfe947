"""Random layers for judges: what a trial is, and the numbers that it is drawn from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.integer.judges.table import JudgeRow


@dataclass(frozen=True)
class Trial:
    """One random layer: what the judge gives, and what we give under a semantics.

    Attributes:
        theirs: runs the judge.
        ours: runs the workbench's operator under a named semantics.
    """

    theirs: Callable[[], np.ndarray]
    ours: Callable[[str], np.ndarray]


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the random numbers of one row: they depend on the seed and the row's name only."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def compare(row: JudgeRow, trials: Iterable[Trial]) -> JudgeRow:
    """Return the row with the differences of all its trials; what either side raises becomes the row's note."""
    outputs = mismatches = 0
    largest = 0.0
    try:
        for each in trials:
            theirs = np.asarray(each.theirs())
            ours = np.asarray(each.ours(row.semantics))
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                note = f"ours is {ours.dtype} {ours.shape} and theirs {theirs.dtype} {theirs.shape}"
                return replace(row, outputs=outputs, mismatches=mismatches + ours.size, largest=largest, note=note)
            step = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            outputs += step.size
            # Not-a-number on one side only is a mismatch as well.
            mismatches += int(np.count_nonzero(~((step == 0) | (ours == theirs))))
            largest = max(largest, float(np.nan_to_num(step, nan=0.0).max(initial=0.0)))
    except Exception as error:
        note = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return replace(row, outputs=outputs, mismatches=mismatches, largest=largest, note=note)
    return replace(row, outputs=outputs, mismatches=mismatches, largest=largest)


def codes(rng: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    """Return random codes over the whole range of a type."""
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def scale(rng: np.random.Generator, low: float = 0.005, high: float = 0.2) -> np.float32:
    """Return a random scale, log-uniform."""
    return np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))


def zero_point(rng: np.random.Generator, dtype: Any) -> int:
    """Return a random zero point; 0 for int16, whose codes are symmetric in every runtime."""
    return 0 if np.dtype(dtype) == np.int16 else int(codes(rng, (), dtype))


def two(rng: np.random.Generator, top: int) -> tuple[int, int]:
    """Return two random numbers from 1 to below ``top``: a window, a stride, a dilation."""
    return int(rng.integers(1, top)), int(rng.integers(1, top))


def layer_scales(
    rng: np.random.Generator, channels: int, depth: int, dtype: Any, *, ties: bool
) -> tuple[np.float32, np.ndarray, np.float32]:
    """Return scales of input, weight and output of a layer whose outputs fill their type.

    Args:
        rng: random numbers.
        channels: weight scales: 1, or one per output.
        depth: products per sum.
        dtype: of input and output.
        ties: powers of two, which put many sums exactly halfway between two codes.
    """
    top = float(np.iinfo(dtype).max)
    spread = top * 74.0 * np.sqrt(depth) / 2.0
    if ties:
        weights = np.exp2(rng.integers(-9, -6, channels)).astype(np.float32)
        first = np.float32(2.0 ** int(rng.integers(-6, 2)))
        return first, weights, np.float32(first * weights.max() * 2.0 ** int(np.round(np.log2(spread / top))))
    first, weights = scale(rng), rng.uniform(0.001, 0.02, channels).astype(np.float32)
    return first, weights, np.float32(first * weights.mean() * spread / top * rng.uniform(0.4, 1.5))
