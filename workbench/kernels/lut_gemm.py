"""LUT-GEMM: products with binary-coded weights as sums of table look-ups instead of multiplications.

For ``w = bias + sum_i ± alpha_i`` the product of a group with its inputs is
``sum_i alpha_i * sum_k (± x_k) + bias * sum_k x_k``: the inner sums only add and subtract inputs, and all sums of µ
inputs under all signs are a table of 2^µ entries, built once for all rows by doubling (T[k + 2^s] = T[k] + 2 x_s).
m*n*q/µ look-ups replace m*n multiplications (Park et al., LUT-GEMM, ICLR 2024, arXiv 2206.09557, section 3).

One packing (four keys of four signs in a 16-bit word, rows side by side in tiles of 64), and three ways to look up
(``lut_permute``): ``avx512`` and ``avx2`` keep tables of µ = 4 in registers, ``memory`` reads tables of µ = 8 on any CPU.
"""

# Compiled functions: numba infers their types, and they take arrays, not objects.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import prange

from workbench.kernels.lut_permute import (
    ENTRIES,
    INT_TABLE,
    KEY,
    KEYS,
    PATHS,
    TILE,
    WIDE_ENTRIES,
    paths,
    sum_look_ups,
)
from workbench.kernels.runtime import SUMS, exclusive, kernel, threads

Path = Literal["avx512", "avx2", "memory"]

#: Inputs of one 16-bit word.
WORD = KEY * KEYS

#: Words of a segment: int16 sums of 128 inputs of magnitude 255 do not overflow (128 * 255 < 2^15).
SEGMENT = 8

#: Inputs beside each other of which one pass over the keys makes use; tables of more would leave the caches.
BATCH = 8


@dataclass(frozen=True, eq=False)
class LutWeight:
    """A binary-coded weight as the look-up kernels read it."""

    words: np.ndarray
    """uint16, in the order (tile, segment, plane, word, row of the tile): bit 4j + l is the sign of input 4j + l."""
    alphas: np.ndarray
    """float32 (tiles, groups, planes, TILE)."""
    bias: np.ndarray
    """float32 (tiles, groups, TILE)."""
    segments: np.ndarray
    """int64 (segments, 4): first word, words, group, first column; no segment crosses a group."""
    rows: int
    columns: int
    size: int
    """Inputs of a group."""
    bits: int
    """Planes of signs."""

    @property
    def nbytes(self) -> int:
        """Bytes of words, alphas and biases (rows padded to whole tiles, groups to whole words)."""
        return self.words.nbytes + self.alphas.nbytes + self.bias.nbytes

    @property
    def total_words(self) -> int:
        """Words of one row and plane."""
        return int(self.segments[-1, 0] + self.segments[-1, 1])

    def __repr__(self) -> str:
        """Say what it holds."""
        return (
            f"LutWeight({self.rows}x{self.columns}, {self.bits} planes, groups of {self.size}, "
            f"{self.nbytes / 1e6:.3g} MB)"
        )


def segments_of(columns: int, size: int) -> np.ndarray:
    """Return the segments of a row: (first word, words, group, first column), int64; each group starts a word of its own."""
    listed = []
    first = 0
    for group in range(-(-columns // size)):
        for begin in range(group * size, min((group + 1) * size, columns), SEGMENT * WORD):
            end = min(begin + SEGMENT * WORD, (group + 1) * size, columns)
            count = -(-(end - begin) // WORD)
            listed.append((first, count, group, begin))
            first += count
    return np.array(listed, dtype=np.int64).reshape(-1, 4)


@kernel(parallel=True)
def _pack(codes, size, bits, segments, total, words):
    rows, columns = codes.shape
    for tile in prange((rows + TILE - 1) // TILE):
        base = tile * total * bits * TILE
        for s in range(len(segments)):
            first, count, group, begin = segments[s]
            end = min((group + 1) * size, columns)
            for plane in range(bits):
                place = base + (first * bits + plane * count) * TILE
                for word in range(count):
                    for r in range(TILE):
                        packed = 0
                        if tile * TILE + r < rows:
                            for k in range(WORD):
                                column = begin + word * WORD + k
                                if column < end and (codes[tile * TILE + r, column] >> plane) & 1:
                                    packed |= 1 << k
                        words[place + word * TILE + r] = packed


@exclusive
def pack(codes: np.ndarray, alphas: np.ndarray, bias: np.ndarray, size: int) -> LutWeight:
    """Pack codes, alphas and biases for ``lut_matmul`` and ``lut_integer_matmul``.

    Args:
        codes: uint8 (rows, columns); bit i is the sign in plane i.
        alphas: float32 (rows, groups, planes).
        bias: float32 (rows, groups).
        size: inputs of a group.
    """
    rows, columns = codes.shape
    bits = alphas.shape[2]
    segments = segments_of(columns, size)
    total = int(segments[-1, 0] + segments[-1, 1])
    tiles = -(-rows // TILE)
    words = np.empty(tiles * total * bits * TILE, dtype=np.uint16)
    _pack(np.ascontiguousarray(codes), size, bits, segments, total, words)
    return LutWeight(words, tiled(alphas), tiled(bias), segments, rows, columns, size, bits)


def tiled(values: np.ndarray) -> np.ndarray:
    """Return (rows, ...) as (tiles, ..., TILE), zeros below the last row."""
    rows = values.shape[0]
    tiles = -(-rows // TILE)
    padded = np.zeros((tiles * TILE, *values.shape[1:]), dtype=values.dtype)
    padded[:rows] = values
    return np.ascontiguousarray(np.moveaxis(padded.reshape(tiles, TILE, *values.shape[1:]), 1, -1))


@kernel()
def _spread(x, size, segments, padded, sums):
    """Lay inputs out by words, zeros between a group's end and the next word; sum each group's inputs."""
    batch, columns = x.shape
    padded[:] = 0
    sums[:] = 0
    for n in range(batch):
        for s in range(len(segments)):
            first, count, group, start = segments[s]
            end = min(start + count * WORD, (group + 1) * size, columns)
            for column in range(start, end):
                padded[n, first * WORD + column - start] = x[n, column]
                sums[n, group] += x[n, column]


@kernel()
def _small_tables(padded, copies, tables):
    """Tables of 2^4 partial sums by doubling, each ``copies`` times in a row."""
    batch, inputs = padded.shape
    entries = copies * ENTRIES
    for n in range(batch):
        for key in range(inputs // KEY):
            own = tables[n, key * entries : (key + 1) * entries]
            own[0] = 0
            for s in range(KEY):
                own[0] -= padded[n, key * KEY + s]
            for s in range(KEY):
                twice = 2 * padded[n, key * KEY + s]
                for k in range(1 << s):
                    own[k + (1 << s)] = own[k] + twice
            if copies > 1:
                own[ENTRIES:] = own[:ENTRIES]


@kernel()
def _byte_tables(padded, tables):
    """Tables of 2^4 partial sums as bytes: 16 low ones twice, then 16 high ones twice."""
    batch, inputs = padded.shape
    own = np.empty(ENTRIES, np.int16)
    for n in range(batch):
        for key in range(inputs // KEY):
            own[0] = 0
            for s in range(KEY):
                own[0] -= padded[n, key * KEY + s]
            for s in range(KEY):
                twice = 2 * padded[n, key * KEY + s]
                for k in range(1 << s):
                    own[k + (1 << s)] = own[k] + twice
            place = key * 4 * ENTRIES
            for k in range(ENTRIES):
                low, high = np.uint8(own[k] & 255), np.uint8((own[k] >> 8) & 255)
                tables[n, place + k] = tables[n, place + ENTRIES + k] = low
                tables[n, place + 2 * ENTRIES + k] = tables[n, place + 3 * ENTRIES + k] = high


@kernel()
def _large_tables(padded, tables):
    """Tables of 2^8 partial sums by doubling."""
    batch, inputs = padded.shape
    for n in range(batch):
        for key in range(inputs // 8):
            own = tables[n, key * WIDE_ENTRIES : (key + 1) * WIDE_ENTRIES]
            own[0] = 0
            for s in range(8):
                own[0] -= padded[n, key * 8 + s]
            for s in range(8):
                twice = 2 * padded[n, key * 8 + s]
                for k in range(1 << s):
                    own[k + (1 << s)] = own[k] + twice


@kernel(fastmath=SUMS)
def _add_scaled(total, alphas, part):
    for r in range(TILE):
        total[r] += alphas[r] * part[r]


@kernel()
def _add_scaled_integers(total, coefficients, part):
    for r in range(TILE):
        total[r] += total.dtype.type(np.int32(coefficients[r]) * np.int32(part[r]))


@kernel()
def _multiply_block(number, machine, words, alphas, bias, segments, total, tables, sums, block, out):
    tiles, _, bits, _ = alphas.shape
    batch = sums.shape[0]
    each = tables.shape[1] // total
    begin, end = number * block, min((number + 1) * block, tiles)
    part = np.empty(TILE, np.float32)
    totals = np.zeros((end - begin, batch, TILE), np.float32)
    for s in range(len(segments)):
        first, count, group, _ = segments[s]
        for tile in range(begin, end):
            for plane in range(bits):
                place = (tile * total * bits + first * bits + plane * count) * TILE
                for n in range(batch):
                    sum_look_ups(machine, words, place, count, tables[n], first * each, part)
                    _add_scaled(totals[tile - begin, n], alphas[tile, group, plane], part)
    for tile in range(begin, end):
        for n in range(batch):
            own = totals[tile - begin, n]
            for group in range(bias.shape[1]):
                value = sums[n, group]
                for r in range(TILE):
                    own[r] += bias[tile, group, r] * value
            stop = min(TILE, out.shape[1] - tile * TILE)
            out[n, tile * TILE : tile * TILE + stop] = own[:stop]


@kernel(parallel=True)
def _multiply(machine, words, alphas, bias, segments, total, tables, sums, block, out):
    tiles = alphas.shape[0]
    for number in prange((tiles + block - 1) // block):
        _multiply_block(number, machine, words, alphas, bias, segments, total, tables, sums, block, out)


@kernel()
def _multiply_integers_block(number, machine, words, alphas, bias, segments, total, tables, sums, block, out):
    tiles, _, bits, _ = alphas.shape
    batch = sums.shape[0]
    each = tables.shape[1] // total
    begin, end = number * block, min((number + 1) * block, tiles)
    part = np.empty(TILE, np.int16)
    totals = np.zeros((end - begin, batch, TILE), out.dtype)
    for s in range(len(segments)):
        first, count, group, _ = segments[s]
        for tile in range(begin, end):
            for plane in range(bits):
                place = (tile * total * bits + first * bits + plane * count) * TILE
                for n in range(batch):
                    sum_look_ups(machine, words, place, count, tables[n], first * each, part)
                    _add_scaled_integers(totals[tile - begin, n], alphas[tile, group, plane], part)
    for tile in range(begin, end):
        for n in range(batch):
            own = totals[tile - begin, n]
            for group in range(bias.shape[1]):
                value = np.int64(sums[n, group])
                for r in range(TILE):
                    own[r] += own.dtype.type(np.int64(bias[tile, group, r]) * value)
            stop = min(TILE, out.shape[1] - tile * TILE)
            out[n, tile * TILE : tile * TILE + stop] = own[:stop]


@kernel(parallel=True)
def _multiply_integers(machine, words, alphas, bias, segments, total, tables, sums, block, out):
    tiles = alphas.shape[0]
    for number in prange((tiles + block - 1) // block):
        _multiply_integers_block(number, machine, words, alphas, bias, segments, total, tables, sums, block, out)


def _block(tiles: int) -> int:
    """Return how many tiles share a pass over the tables: at most 4, and at least four pieces for each thread."""
    return max(1, min(4, tiles // (4 * threads())))


def choose_path(path: Path | None = None) -> Path:
    """Return the way to look up: the one asked for, or the fastest that the CPU has.

    Raises:
        ValueError: no such way, or the CPU does not have it.
    """
    here = paths()
    if path is not None and path not in here:
        message = f"this CPU looks tables up by {', '.join(here)}, not by {path!r}"
        raise ValueError(message)
    return path or here[0]  # pyright: ignore[reportReturnType]


def _tables(padded: np.ndarray, path: Path) -> np.ndarray:
    """Return the tables of spread inputs (batch, inputs) in the form that a path reads: float32 or int16."""
    batch, inputs = padded.shape
    if path == "memory":
        tables = np.empty((batch, inputs // 8 * WIDE_ENTRIES), dtype=padded.dtype)
        _large_tables(padded, tables)
        return tables
    integer = padded.dtype == np.int16
    tables = np.empty((batch, inputs // KEY * (INT_TABLE if integer else ENTRIES)), dtype=padded.dtype)
    if integer and path == "avx2":
        _byte_tables(padded, tables.view(np.uint8))
    else:
        _small_tables(padded, 2 if integer else 1, tables)
    return tables


@exclusive
def lut_matmul(x: np.ndarray, weight: LutWeight, path: Path | None = None) -> np.ndarray:
    """Return ``x @ dequantized.T`` by look-ups, float32 (batch, rows).

    Sums run in float32: inputs of a segment first, then segments. Paths add in another order, so they agree up to
    rounding.

    Args:
        x: float32 (batch, columns), C order.
        weight: the packed weight.
        path: ``avx512``, ``avx2`` or ``memory``; None for the fastest that this CPU has.

    Raises:
        ValueError: the CPU does not have the path.
    """
    path = choose_path(path)
    out = np.empty((x.shape[0], weight.rows), dtype=np.float32)
    groups = weight.alphas.shape[1]
    total = weight.total_words
    for start in range(0, x.shape[0], BATCH):
        own = x[start : start + BATCH]
        padded = np.empty((len(own), total * WORD), dtype=np.float32)
        sums = np.empty((len(own), groups), dtype=np.float32)
        _spread(own, weight.size, weight.segments, padded, sums)
        tables = _tables(padded, path)
        _multiply(
            PATHS[path],
            weight.words,
            weight.alphas,
            weight.bias,
            weight.segments,
            total,
            tables,
            sums,
            _block(len(weight.alphas)),
            out[start : start + BATCH],
        )
    return out


@exclusive
def lut_integer_matmul(
    x: np.ndarray,
    weight: LutWeight,
    coefficients: np.ndarray,
    bias: np.ndarray,
    dtype: np.dtype,
    path: Path | None = None,
) -> np.ndarray:
    """Return sums of look-ups times fixed-point alphas, in integers: exact, modulo the width of the accumulator.

    ``out[n, row] = sum_groups (sum_i coefficients[row, group, i] * S_i + bias[row, group] * sum of the group's x)`` with
    S_i the sum of the group's inputs under the signs of plane i, which never leaves int16 within a segment.

    Args:
        x: int16 (batch, columns), magnitudes at most 255 (codes minus their zero point), C order.
        weight: the packed weight; its float alphas are not read.
        coefficients: int16 (tiles, groups, planes, TILE), as ``tiled`` gives them.
        bias: int16 (tiles, groups, TILE).
        dtype: int32 or int64: the accumulator.
        path: as in ``lut_matmul``; the result does not depend on it.

    Raises:
        ValueError: the CPU does not have the path.
    """
    path = choose_path(path)
    out = np.empty((x.shape[0], weight.rows), dtype=dtype)
    groups = weight.alphas.shape[1]
    total = weight.total_words
    for start in range(0, x.shape[0], BATCH):
        own = x[start : start + BATCH]
        padded = np.empty((len(own), total * WORD), dtype=np.int16)
        sums = np.empty((len(own), groups), dtype=np.int32)
        _spread(own, weight.size, weight.segments, padded, sums)
        tables = _tables(padded, path)
        _multiply_integers(
            PATHS[path],
            weight.words,
            coefficients,
            bias,
            weight.segments,
            total,
            tables,
            sums,
            _block(len(weight.alphas)),
            out[start : start + BATCH],
        )
    return out
