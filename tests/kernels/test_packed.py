"""Weights of 4 bits, two per byte, against numpy's product with the looked-up levels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.grids import PowerGrid
from workbench.kernels import packed as packed_module
from workbench.kernels.instruction_sets import available
from workbench.kernels.packed import pack_nibbles, packed_matmul, unpack_nibbles

BEST = available()[0]
PAIRS = [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.int16), (np.int16, np.int8), (np.int16, np.int16)]
SHAPES = [
    (1, 1, 1),
    (1, 9, 64),
    (1, 70, 8203),
    (2, 2, 0),
    (3, 5, 63),
    (13, 17, 129),
    (7, 3, 8200),
    (99, 70, 20),
    (0, 3, 4),
    (1, 0, 5),
]


def numbers(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape, dtype=dtype)


def assert_exact(x, codes, table, path=None):
    result = packed_matmul(x, pack_nibbles(codes), table, path)
    expected = x.astype(np.int64) @ table[codes].astype(np.int64).T
    assert result.dtype == (np.int32 if x.dtype.itemsize == table.dtype.itemsize == 1 else np.int64)
    np.testing.assert_array_equal(result, expected.astype(result.dtype))


@pytest.mark.parametrize("path", [BEST, *(pytest.param(name, marks=pytest.mark.slow) for name in available()[1:])])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "x".join(np.dtype(kind).name for kind in pair))
def test_every_path_at_every_edge(path, pair):
    rng = np.random.default_rng(3)
    for rows, columns, depth in SHAPES:
        codes = rng.integers(0, 16, (columns, depth))
        x = numbers(rng, (rows, depth), pair[0])
        assert_exact(x, codes, numbers(rng, 16, pair[1]), path)
        limits, levels = np.iinfo(pair[0]), np.iinfo(pair[1])
        for one in (limits.min, limits.max):
            for other in (levels.min, levels.max):
                assert_exact(np.full_like(x, one), codes, np.full(16, other, dtype=pair[1]), path)


@given(
    st.sampled_from(PAIRS[:3]), st.integers(0, 5), st.integers(0, 20), st.integers(0, 300), st.integers(0, 2**32 - 1)
)
def test_any_shape(pair, rows, columns, depth, seed):
    rng = np.random.default_rng(seed)
    assert_exact(numbers(rng, (rows, depth), pair[0]), rng.integers(0, 16, (columns, depth)), numbers(rng, 16, pair[1]))


def test_all_threads_give_the_same(monkeypatch):
    rng = np.random.default_rng(5)
    monkeypatch.setattr(packed_module, "FEW", 0)
    for rows in (1, 70):
        assert_exact(numbers(rng, (rows, 700), np.int8), rng.integers(0, 16, (333, 700)), numbers(rng, 16, np.int8))


def test_levels_of_a_power_grid():
    grid = PowerGrid(bits=4, exponent=0.5)
    levels = np.asarray(grid.levels)
    table = np.zeros(16, dtype=np.int8)
    table[: len(levels)] = np.rint(127 * levels)
    rng = np.random.default_rng(6)
    assert_exact(numbers(rng, (4, 96), np.int8), rng.integers(0, len(levels), (31, 96)), table)


def test_read_only_and_strided_operands():
    rng = np.random.default_rng(7)
    codes, table = rng.integers(0, 16, (9, 64)), numbers(rng, 16, np.int8)
    stored = pack_nibbles(codes)
    stored.flags.writeable = False
    table.flags.writeable = False
    x = numbers(rng, (6, 128), np.int8)[:, ::2]
    for rows in (x[:1], x):
        expected = rows.astype(np.int64) @ table[codes].astype(np.int64).T
        np.testing.assert_array_equal(packed_matmul(rows, stored, table), expected)


@given(st.integers(0, 4), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_packing_is_undone(rows, depth, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (2, rows, depth))
    stored = pack_nibbles(codes)
    assert stored.shape == (2, rows, (depth + 1) // 2)
    np.testing.assert_array_equal(unpack_nibbles(stored, depth), codes)
    for row in range(rows):
        for place in range(depth):
            assert stored[1, row, place // 2] >> 4 * (place % 2) & 15 == codes[1, row, place]


def test_what_does_not_fit_is_refused():
    x, stored, table = np.ones((2, 6), np.int8), np.zeros((4, 3), np.uint8), np.zeros(16, np.int8)
    for wrong, said in [
        ((x[0], stored, table), "left side"),
        ((x, stored[:, :2], table), "packed codes"),
        ((x, stored.astype(np.int8), table), "packed codes"),
        ((x, stored, table[:15]), "16 numbers"),
        ((x, stored, table.astype(np.float32)), "16 numbers"),
    ]:
        with pytest.raises(ValueError, match=said):
            packed_matmul(*wrong)
    for codes in (np.array([16]), np.array([-1]), np.array([1.5]), np.array(3)):
        with pytest.raises(ValueError, match="0 to 15"):
            pack_nibbles(codes)
    with pytest.raises(ValueError, match="3 bytes"):
        unpack_nibbles(np.zeros(2, np.uint8), 6)
