"""LUT-GEMM on a GPU: tables of 2^8 partial sums in shared memory, one row of weights per thread.

The kernels read the words that ``workbench.kernels.lut_gemm.pack`` makes. A block takes one chunk of the inputs and a
few tiles of rows: its threads build 16 tables for each segment of 128 inputs (two halves of 16 entries first, so that an
entry of the whole costs one addition), then every thread looks up two bytes of each word of its rows. Chunks are added
by a second kernel in a fixed order, so that equal inputs give equal floats. Compare the authors' kernel (LUT-GEMM,
arXiv 2206.09557, section 3.3), which has half tables and atomic additions.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917
# numba-cuda annotates its stubs, not what they stand for inside a kernel.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, types

from workbench.kernels.lut_gemm import SEGMENT, WORD, LutWeight

#: Inputs and entries of one table.
_KEY, _ENTRIES = 8, 256

#: Tables that a segment of 128 inputs has.
_TABLES = SEGMENT * WORD // _KEY

#: Entries of all tables of a segment, and of their halves.
_SPACE, _HALVES = _TABLES * _ENTRIES, _TABLES * 32

#: Rows of a tile (``lut_permute.TILE``), and tiles that a block takes so that building tables pays.
_TILE, _TILES = 64, 16

#: Threads of a block.
THREADS = 256

#: Chunks that the inputs are cut into at most: enough blocks to fill a large GPU for one input vector.
CHUNKS = 16


@dataclass(frozen=True, eq=False)
class DeviceLutWeight:
    """A packed weight in the memory of a GPU."""

    words: Any
    alphas: Any
    bias: Any
    segments: Any
    rows: int
    columns: int
    size: int


def upload(
    weight: LutWeight, coefficients: np.ndarray | None = None, offsets: np.ndarray | None = None
) -> DeviceLutWeight:
    """Copy a packed weight to the current GPU.

    Args:
        weight: what ``pack`` gives.
        coefficients: integer alphas (tiles, groups, planes, TILE) in the place of the float ones, for
            ``lut_integer_matmul``.
        offsets: integer biases (tiles, groups, TILE) with them.
    """
    alphas = weight.alphas if coefficients is None else coefficients
    bias = weight.bias if offsets is None else offsets
    return DeviceLutWeight(
        cuda.to_device(weight.words),
        cuda.to_device(np.ascontiguousarray(alphas)),
        cuda.to_device(np.ascontiguousarray(bias)),
        cuda.to_device(weight.segments),
        weight.rows,
        weight.columns,
        weight.size,
    )


@cache
def _kernels(entry: str, total: str) -> tuple[Any, Any]:
    """Return the look-up kernel and the one that adds chunks, for tables of ``entry`` and sums of ``total``."""
    entry_type, total_type = getattr(types, entry), getattr(types, total)

    @cuda.jit
    def look_up(x, words, alphas, bias, segments, size, chunks, parts):
        tables = cuda.shared.array(_SPACE, entry_type)
        halves = cuda.shared.array(_HALVES, entry_type)
        sums = cuda.shared.array(_TABLES, entry_type)
        sum_of_segment = cuda.shared.array(1, entry_type)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        chunk, n = cuda.blockIdx.y, cuda.blockIdx.z
        tiles, _, bits, _ = alphas.shape
        columns = x.shape[1]
        last = segments.shape[0]
        whole = segments[last - 1, 0] + segments[last - 1, 1]
        first_tile = cuda.blockIdx.x * _TILES
        end_tile = min(first_tile + _TILES, tiles)
        for place in range(thread, (end_tile - first_tile) * _TILE, threads):
            parts[n, chunk, first_tile * _TILE + place] = 0
        for s in range(last * chunk // chunks, last * (chunk + 1) // chunks):
            first, count, group, begin = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
            end = min((group + 1) * size, columns)
            cuda.syncthreads()
            # Halves: 16 signed sums of four inputs, two of them for each table.
            for place in range(thread, count * 2 * 32, threads):
                column = begin + (place // 16) * 4
                value = entry_type(0)
                for k in range(4):
                    if column + k < end:
                        value += x[n, column + k] if (place >> k) & 1 else -x[n, column + k]
                halves[place] = value
            cuda.syncthreads()
            for place in range(thread, count * 2 * _ENTRIES, threads):
                table, key = place // _ENTRIES, place % _ENTRIES
                tables[place] = halves[table * 32 + (key & 15)] + halves[table * 32 + 16 + (key >> 4)]
            # The last entry of each table is the plain sum of its inputs: the bias needs no look-ups.
            for table in range(thread, count * 2, threads):
                sums[table] = halves[table * 32 + 15] + halves[table * 32 + 31]
            cuda.syncthreads()
            if thread == 0:
                value = entry_type(0)
                for table in range(count * 2):
                    value += sums[table]
                sum_of_segment[0] = value
            cuda.syncthreads()
            for place in range(thread, (end_tile - first_tile) * _TILE, threads):
                tile, row = first_tile + place // _TILE, place % _TILE
                at = (tile * whole * bits + first * bits) * _TILE + row
                total = total_type(bias[tile, group, row]) * total_type(sum_of_segment[0])
                for plane in range(bits):
                    value = entry_type(0)
                    for word in range(count):
                        keys = words[at]
                        at += _TILE
                        value += tables[word * 2 * _ENTRIES + (keys & 255)]
                        value += tables[(word * 2 + 1) * _ENTRIES + (keys >> 8)]
                    total += total_type(alphas[tile, group, plane, row]) * total_type(value)
                parts[n, chunk, first_tile * _TILE + place] += total

    @cuda.jit
    def add_chunks(parts, chunks, out):
        row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        n = cuda.blockIdx.y
        if row < out.shape[1]:
            total = total_type(0)
            for chunk in range(chunks):
                total += parts[n, chunk, row]
            out[n, row] = total

    return look_up, add_chunks


def _run(x: np.ndarray, weight: DeviceLutWeight, entry: str, total: str, threads: int) -> np.ndarray:
    batch = x.shape[0]
    out = np.empty((batch, weight.rows), dtype=total)
    if batch == 0:
        return out
    look_up, add_chunks = _kernels(entry, total)
    tiles = weight.alphas.shape[0]
    chunks = min(CHUNKS, weight.segments.shape[0])
    parts = cuda.device_array((batch, chunks, tiles * _TILE), dtype=total)
    answer = cuda.device_array(out.shape, dtype=total)
    look_up[(-(-tiles // _TILES), chunks, batch), threads](
        cuda.to_device(x),
        weight.words,
        weight.alphas,
        weight.bias,
        weight.segments,
        weight.size,
        chunks,
        parts,
    )
    add_chunks[(-(-weight.rows // threads), batch), threads](parts, chunks, answer)
    answer.copy_to_host(out)
    return out


def lut_matmul(x: np.ndarray, weight: LutWeight | DeviceLutWeight, threads: int = THREADS) -> np.ndarray:
    """Return ``x @ dequantized.T`` by look-ups, float32 (batch, rows), as ``workbench.kernels.lut_gemm.lut_matmul`` does.

    Equal inputs give equal results; against the CPU they differ by float32 rounding, because sums run in another order.

    Args:
        x: float32 (batch, columns), C order.
        weight: packed, or on the GPU already (``upload`` once for many products).
        threads: of a block.
    """
    ready = weight if isinstance(weight, DeviceLutWeight) else upload(weight)
    return _run(x, ready, "float32", "float32", threads)


def lut_integer_matmul(
    x: np.ndarray,
    weight: LutWeight | DeviceLutWeight,
    coefficients: np.ndarray | None,
    bias: np.ndarray | None,
    dtype: Any,
    threads: int = THREADS,
) -> np.ndarray:
    """Return the same integers as ``workbench.kernels.lut_gemm.lut_integer_matmul``, bit for bit.

    Args:
        x: int16 (batch, columns), magnitudes at most 255, C order.
        weight: packed, or uploaded with its integer alphas (then the next two are None).
        coefficients: int16 or int32 (tiles, groups, planes, TILE).
        bias: int16 or int32 (tiles, groups, TILE).
        dtype: int32 or int64: the accumulator.
        threads: of a block.
    """
    ready = weight if isinstance(weight, DeviceLutWeight) else upload(weight, coefficients, bias)
    return _run(x, ready, "int32", np.dtype(dtype).name, threads)
