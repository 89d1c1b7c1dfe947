"""Integer products, packed weights and rounding on a GPU (or numba's simulator of one): the CPU's integers."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numba import cuda

if not (os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" or cuda.is_available()):
    pytest.skip("needs a GPU, or NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from workbench.kernels import integer_gemm, linear_codes, packed, requantize
from workbench.kernels.cuda import integer_gemm as gpu
from workbench.kernels.cuda import linear_codes as gpu_linear_codes
from workbench.kernels.cuda import packed as gpu_packed
from workbench.kernels.cuda import requantize as gpu_requantize
from workbench.kernels.cuda.products import TILE
from workbench.kernels.fixed_point import DOUBLE, FLOAT32, FLOAT64, RIGHT_DOUBLE, RIGHT_SINGLE, SINGLE, WIDE

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
BYTES = [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.uint8), (np.uint8, np.uint8)]
WIDER = [(np.int16, np.int8), (np.uint8, np.int16), (np.int16, np.int16)]
#: One row; few rows; a tile and a bit; no depth; nothing at all.
SHAPES = [(1, 3, 9), (2, 2, 0), (6, 5, 37), (0, 3, 4), (3, 0, 4)]
if not SIMULATED:
    SHAPES += [(1, 4096, 4096), (64, 1000, 777), (200, 300, 4096)]


def numbers(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("pair", BYTES + WIDER, ids=lambda pair: "x".join(np.dtype(kind).name for kind in pair))
def test_products_are_the_cpu_s(pair):
    rng = np.random.default_rng(1)
    for rows, columns, depth in SHAPES:
        left, right = numbers(rng, (rows, depth), pair[0]), numbers(rng, (columns, depth), pair[1])
        for one, other in (
            (left, right),
            (np.full_like(left, np.iinfo(pair[0]).min), np.full_like(right, np.iinfo(pair[1]).min)),
            (np.full_like(left, np.iinfo(pair[0]).max), np.full_like(right, np.iinfo(pair[1]).min)),
        ):
            expected = integer_gemm.integer_matmul(one, other)
            for plain in (False, True):
                result = gpu.integer_matmul(one, other, plain=plain)
                assert result.dtype == expected.dtype
                np.testing.assert_array_equal(result, expected)


def test_more_than_one_tile():
    rng = np.random.default_rng(2)
    left, right = numbers(rng, (TILE + 1, 5), np.int8), numbers(rng, (TILE + 1, 5), np.int8)
    np.testing.assert_array_equal(gpu.integer_matmul(left, right), integer_gemm.integer_matmul(left, right))


def test_batches():
    rng = np.random.default_rng(3)
    left, right = numbers(rng, (3, 5, 6), np.int8), numbers(rng, (3, 4, 6), np.int8)
    shared = np.broadcast_to(right[:1], right.shape)
    for side in (right, shared):
        np.testing.assert_array_equal(
            gpu.integer_matmul_batched(left, side), integer_gemm.integer_matmul_batched(left, side)
        )


@pytest.mark.parametrize("pair", [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.int16), (np.int16, np.int8)])
def test_packed_weights_are_the_cpu_s(pair):
    rng = np.random.default_rng(4)
    for rows, columns, depth in SHAPES:
        x, codes = numbers(rng, (rows, depth), pair[0]), rng.integers(0, 16, (columns, depth))
        table, stored = numbers(rng, 16, pair[1]), packed.pack_nibbles(codes)
        expected = packed.packed_matmul(x, stored, table)
        result = gpu_packed.packed_matmul(x, stored, table)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def factors(rng, rule, count):
    if rule == FLOAT32:
        return (rng.random(count) * 1e-3).astype(np.float32), np.zeros(count, dtype=np.int64)
    if rule == FLOAT64:
        return rng.random(count) * 1e-3, np.zeros(count, dtype=np.int64)
    right = rule in {RIGHT_SINGLE, RIGHT_DOUBLE}
    return rng.integers(2**30, 2**31, count), rng.integers(36, 46, count) if right else rng.integers(-20, 5, count)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("rule", [DOUBLE, SINGLE, WIDE, FLOAT32, RIGHT_SINGLE, RIGHT_DOUBLE, FLOAT64])
def test_rounding_is_the_cpu_s(rule, single):
    rng = np.random.default_rng(rule)
    bits = 47 if rule == WIDE else 31
    values = rng.integers(-(2**bits), 2**bits, (7, 9), dtype=np.int64)
    # Halves, and numbers that no factor saturates.
    values[3:] = rng.integers(-300, 300, (4, 9))
    values = values if rule == WIDE else values.astype(np.int32)
    multiplier, shift = factors(rng, rule, 1 if single else 9)
    if rule in {FLOAT32, FLOAT64}:
        multiplier[0] = 0.5
    for dtype in (np.int8, np.uint8, np.int32):
        limits = np.iinfo(dtype)
        rest = (multiplier, shift, rule, 3, int(limits.min), int(limits.max) - 1, np.dtype(dtype))
        codes, *counts = gpu_requantize.requantize_rows(values, *rest)
        expected, *expected_counts = requantize.requantize_rows(values, *rest)
        assert codes.dtype == dtype
        np.testing.assert_array_equal(codes, expected)
        assert counts == expected_counts
    empty, *counts = gpu_requantize.requantize_rows(values[:0], *rest)
    assert empty.shape == (0, 9)
    assert counts == [0, 0]


@pytest.mark.parametrize("rule", [DOUBLE, SINGLE, FLOAT32, RIGHT_DOUBLE, FLOAT64, WIDE])
def test_layers_are_the_cpu_s(rule):
    rng = np.random.default_rng(rule)
    kinds = (np.int16 if rule == WIDE else np.uint8, np.int8)
    for rows, columns, depth in SHAPES:
        x, weight = numbers(rng, (2, rows, depth), kinds[0]), numbers(rng, (2, columns, depth), kinds[1])
        multiplier, shift = factors(rng, rule, columns)
        zeros = rng.integers(-5, 6, columns)
        offset = rng.integers(-(2**18), 2**18, (2, columns))
        rest = (multiplier, shift, rule, 3, -100, 127, np.dtype(np.int8))
        codes, *counts = gpu_linear_codes.linear_codes(x, weight, offset, *rest, weight_zero=zeros)
        expected, *expected_counts = linear_codes.linear_codes(x, weight, offset, *rest, weight_zero=zeros)
        np.testing.assert_array_equal(codes, expected)
        assert counts == expected_counts
    one, *_ = gpu_linear_codes.linear_codes(x[0], weight[0], offset[0], *rest)
    np.testing.assert_array_equal(one, linear_codes.linear_codes(x[0], weight[0], offset[0], *rest)[0])


def test_what_does_not_fit_is_refused():
    x = np.ones((2, 3), np.int8)
    with pytest.raises(ValueError, match="meets"):
        gpu.integer_matmul(x, x[:, :2])
    with pytest.raises(ValueError, match="two matrices"):
        gpu.integer_matmul(x[0], x)
    with pytest.raises(ValueError, match="packed codes"):
        gpu_packed.packed_matmul(x, x, np.zeros(16, np.int8))
    with pytest.raises(ValueError, match="one number per column"):
        gpu_linear_codes.linear_codes(x, x, np.zeros(3), np.ones(1), np.zeros(1), SINGLE, 0, -9, 9, np.dtype(np.int8))
