"""LUT-GEMM's look-ups: tables, packing and both paths against sums written out in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.kernels import lut_gemm
from workbench.kernels.lut_gemm import SEGMENT, WORD, lut_integer_matmul, lut_matmul, pack, segments_of, tiled
from workbench.kernels.lut_permute import paths

PATHS = paths()

shapes = st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(1, 300), st.integers(1, 8), st.integers(1, 330))


def make(rows, columns, bits, size, seed=0):
    rng = np.random.default_rng(seed)
    groups = -(-columns // size)
    codes = rng.integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    alphas = np.sort(rng.random((rows, groups, bits)), axis=-1).astype(np.float32)
    bias = rng.standard_normal((rows, groups)).astype(np.float32)
    return codes, alphas, bias


def weights_of(codes, alphas, bias, size):
    """The weights a coding stands for, in the type of its alphas (float64 or int64)."""
    group = np.arange(codes.shape[1]) // size
    signs = 2 * ((codes[..., None] >> np.arange(alphas.shape[2])) & 1).astype(alphas.dtype) - 1
    return (signs * alphas[:, group]).sum(-1) + bias[:, group]


def test_look_ups_are_the_sums_written_out():
    """Plain Python integers, one term after another: no matrix product, no table."""
    rng = np.random.default_rng(3)
    codes, _, _ = make(3, 21, 2, 8)
    alphas = rng.integers(-9, 10, (3, 3, 2)).astype(np.int16)
    bias = rng.integers(-9, 10, (3, 3)).astype(np.int16)
    x = rng.integers(-255, 256, (2, 21)).astype(np.int16)
    packed = pack(codes, alphas.astype(np.float32), bias.astype(np.float32), 8)
    for path in PATHS:
        got = lut_integer_matmul(x, packed, tiled(alphas), tiled(bias), np.dtype(np.int32), path)
        for n in range(2):
            for row in range(3):
                total = 0
                for column in range(21):
                    group = column // 8
                    weight = int(bias[row, group])
                    for plane in range(2):
                        sign = 1 if int(codes[row, column]) >> plane & 1 else -1
                        weight += sign * int(alphas[row, group, plane])
                    total += int(x[n, column]) * weight
                assert int(got[n, row]) == total


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([np.int32, np.int64]), st.integers(0, 9))
def test_integer_look_ups_are_exact_for_every_shape(shape, accumulator, seed):
    batch, rows, columns, bits, size = shape
    codes, alphas, bias = make(rows, columns, bits, size, seed)
    rng = np.random.default_rng(seed)
    largest = 900 if accumulator is np.int32 else 30000
    factors = rng.integers(-largest, largest + 1, alphas.shape).astype(np.int16)
    offsets = rng.integers(-largest, largest + 1, bias.shape).astype(np.int16)
    x = rng.integers(-255, 256, (batch, columns)).astype(np.int16)
    if seed == 0:
        x[:] = -255  # the largest sums there are
    expected = x.astype(np.int64) @ weights_of(codes, factors.astype(np.int64), offsets.astype(np.int64), size).T
    packed = pack(codes, alphas, bias, size)
    for path in PATHS if accumulator is np.int32 else PATHS[:1]:  # one compilation less for each
        got = lut_integer_matmul(x, packed, tiled(factors), tiled(offsets), np.dtype(accumulator), path)
        assert got.dtype == accumulator
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 9))
def test_float_look_ups_are_right_to_float32_rounding(shape, seed):
    batch, rows, columns, bits, size = shape
    codes, alphas, bias = make(rows, columns, bits, size, seed)
    x = np.random.default_rng(seed).standard_normal((batch, columns)).astype(np.float32)
    expected = x.astype(np.float64) @ weights_of(codes, alphas.astype(np.float64), bias.astype(np.float64), size).T
    # every partial sum is at most this, and each of fewer than ``columns`` additions errs by 2^-24 of it
    reach = np.abs(x.astype(np.float64)).sum(1, keepdims=True) * float(alphas.sum(-1).max() + np.abs(bias).max())
    packed = pack(codes, alphas, bias, size)
    for path in PATHS:
        got = lut_matmul(x, packed, path)
        assert got.dtype == np.float32
        assert np.all(np.abs(got - expected) <= (columns + 8) * 2.0**-24 * reach)


def test_no_input_and_zero_inputs():
    codes, alphas, bias = make(70, 40, 3, 16)
    packed = pack(codes, alphas, bias, 16)
    for path in PATHS:
        assert lut_matmul(np.empty((0, 40), dtype=np.float32), packed, path).shape == (0, 70)
        np.testing.assert_array_equal(lut_matmul(np.zeros((2, 40), dtype=np.float32), packed, path), 0.0)


def test_batches_longer_than_one_pass_are_cut():
    codes, alphas, bias = make(65, 50, 2, 50)
    packed = pack(codes, alphas, bias, 50)
    x = np.random.default_rng(0).standard_normal((lut_gemm.BATCH * 2 + 3, 50)).astype(np.float32)
    for path in PATHS:
        together = lut_matmul(x, packed, path)
        alone = np.concatenate([lut_matmul(row[None], packed, path) for row in x])
        np.testing.assert_array_equal(together, alone)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 700))
def test_segments_cover_each_column_once_and_stay_in_their_group(columns, size):
    seen = np.zeros(columns, dtype=int)
    word = 0
    for first, count, group, begin in segments_of(columns, size):
        assert first == word
        assert 1 <= count <= SEGMENT
        assert begin // size == group
        end = min(begin + count * WORD, (group + 1) * size, columns)
        seen[begin:end] += 1
        word += count
    assert np.all(seen == 1)


@pytest.mark.parametrize(("build", "inputs"), [("_small_tables", 4), ("_large_tables", 8)])
def test_doubling_gives_every_signed_sum(build, inputs):
    x = np.random.default_rng(1).integers(-255, 256, (1, inputs * 2)).astype(np.int16)
    tables = np.empty((1, 2 * 2**inputs), dtype=np.int16)
    arguments = (x, 1, tables) if build == "_small_tables" else (x, tables)
    getattr(lut_gemm, build)(*arguments)
    for table in range(2):
        for key in range(2**inputs):
            signs = [1 if key >> k & 1 else -1 for k in range(inputs)]
            total = sum(sign * int(x[0, table * inputs + k]) for k, sign in enumerate(signs))
            assert tables[0, table * 2**inputs + key] == total
    # the last entry is the plain sum: a bias needs no table of its own
    assert tables[0, 2**inputs - 1] == x[0, :inputs].sum()


def test_a_path_that_is_not_there_is_refused(monkeypatch):
    codes, alphas, bias = make(2, 8, 1, 8)
    packed = pack(codes, alphas, bias, 8)
    x = np.ones((1, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="memory"):
        lut_matmul(x, packed, "gather")
    monkeypatch.setattr(lut_gemm, "paths", lambda: ("memory",))
    with pytest.raises(ValueError, match="not by 'avx512'"):
        lut_matmul(x, packed, "avx512")
    assert lut_matmul(x, packed).shape == (1, 2)  # the portable path


def test_packed_bytes_are_the_bits_of_the_codes():
    codes, alphas, bias = make(128, 256, 3, 128)
    packed = pack(codes, alphas, bias, 128)
    assert packed.words.nbytes * 8 == 128 * 256 * 3
    assert packed.nbytes == 128 * 256 * 3 // 8 + 4 * (3 + 1) * 128 * 2
    assert "128x256, 3 planes" in repr(packed)
