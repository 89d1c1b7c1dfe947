"""Sketches and levels as bytes for the browser: compact, and without losing what the error needs.

A sketch travels as float32: the counts of a picture histogram, then six columns of bins. Its moments are taken about
each bin's middle, so that rounding them to float32 changes the error by float32's own 6e-8, never by a difference of
two large sums; the browser adds them up in float64. Levels and thresholds travel as float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.quantization.normalised import normalised_histogram

if TYPE_CHECKING:
    from workbench.grids import Grid
    from workbench.quantization import Sketch

#: Bins that the browser gets: 48 kB, and enough that 4-bit errors are good to about 0.1 %.
MAX_BINS = 2048
#: Bins of the histogram that is drawn, even over the axis; a power of two, so that sketch bins fall whole into one.
PICTURE_BINS = 256
COLUMNS = 6


def coarsen(sketch: Sketch, max_bins: int) -> Sketch:
    """Join bins until ``max_bins`` are left, but never the outermost two.

    There lies the largest weight of every group, at the same place: joined with their neighbours these spikes would
    make the bound of fine grids ten times wider.
    """
    if len(sketch.n) <= max_bins:
        return sketch
    names = ("value_min", "value_max", "n", "m0", "m1", "m2", "offset_moment", "weights")
    arrays = {name: array for name in names if (array := getattr(sketch, name)) is not None}
    inner = replace(sketch, **{name: array[1:-1] for name, array in arrays.items()}).rebin(max_bins - 2)
    joined = {
        name: np.concatenate([array[:1], getattr(inner, name), array[-1:]])
        for name, array in arrays.items()
        if getattr(inner, name) is not None
    }
    return replace(inner, **joined)


def pack_sketch(sketch: Sketch, max_bins: int = MAX_BINS) -> bytes:
    """Return a sketch as the browser reads it (``openSketch`` in live.js), at most ``max_bins`` bins.

    The moments are divided by the layer's energy, so that the browser's sums are the error over the energy.
    """
    coarse = coarsen(sketch, max_bins)
    mean = np.divide(coarse.m1, coarse.m0, out=np.zeros_like(coarse.m1), where=coarse.m0 > 0.0)
    low, high = (  # the outermost bins may be open
        np.where(np.isfinite(border), border, mean).astype(np.float32)
        for border in (coarse.value_min, coarse.value_max)
    )
    middle = (low.astype(np.float64) + high) / 2.0
    first = coarse.m1 - middle * coarse.m0
    second = coarse.m2 - 2.0 * middle * coarse.m1 + middle**2 * coarse.m0
    energy = sketch.energy if sketch.energy > 0.0 else 1.0
    columns = [low, high, coarse.n, coarse.m0 / energy, first / energy, np.maximum(second, 0.0) / energy]
    counts = normalised_histogram(sketch, PICTURE_BINS).counts
    return np.concatenate([counts, *columns]).astype("<f4").tobytes()


def unpack_sketch(data: bytes, like: Sketch) -> Sketch:
    """Return the sketch that the browser sees, in float64: what its arithmetic is tested against.

    Args:
        data: from ``pack_sketch``.
        like: the sketch that was packed; gives name, granularity, energy, ...
    """
    flat = np.frombuffer(data, dtype="<f4")[PICTURE_BINS:].reshape(COLUMNS, -1).astype(np.float64)
    low, high, n, m0, first, second = flat
    middle = (low + high) / 2.0
    energy = like.energy if like.energy > 0.0 else 1.0
    return replace(
        like,
        value_min=low,
        value_max=high,
        n=n,
        m0=m0 * energy,
        m1=(first + middle * m0) * energy,
        m2=(second + 2.0 * middle * first + middle**2 * m0) * energy,
        exact=False,
        bfloat16=False,
        weights=None,
        offset_moment=None,
    )


def pack_levels(grids: Mapping[str, Grid]) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Return the levels and thresholds of grids as float64 bytes, and a catalogue of where each one lies.

    A catalogue entry has ``start``, ``middle``, ``stop`` (levels lie from start, thresholds from middle), ``bits``,
    ``normalization``, ``codes``, ``label`` and ``still``: true where a sketch cannot give the error (scales rounded to a block format, or far too many levels).
    """
    parts: list[np.ndarray] = []
    catalogue: dict[str, dict[str, Any]] = {}
    at = 0
    for key, grid in grids.items():
        levels, thresholds, codes = grid.levels, grid.thresholds, grid.codes
        many = len(levels) > MAX_BINS // 2
        if many:
            levels, thresholds, codes = levels[:0], thresholds[:0], codes[:0]
        catalogue[key] = {
            "start": at,
            "middle": at + len(levels),
            "stop": at + len(levels) + len(thresholds),
            "bits": grid.bits,
            "normalization": grid.normalization,
            "codes": codes.tolist(),
            "label": grid.label,
            "still": many or bool(grid.scale_format),
        }
        parts += [levels, thresholds]
        at += len(levels) + len(thresholds)
    flat = np.concatenate(parts) if parts else np.empty(0)
    return flat.astype("<f8").tobytes(), catalogue
