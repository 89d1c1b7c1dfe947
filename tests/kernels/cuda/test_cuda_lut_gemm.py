"""LUT-GEMM on a GPU (or numba's simulator of one): the same integers as on the CPU, floats up to rounding."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numba import cuda

if not (os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" or cuda.is_available()):
    pytest.skip("needs a GPU, or NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from workbench.kernels import lut_gemm as cpu
from workbench.kernels.cuda import lut_gemm as gpu

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
THREADS = 8 if SIMULATED else gpu.THREADS

#: batch, rows, columns, planes, group size: one group; groups that are no whole words; two tiles; many segments.
SHAPES = [(1, 5, 40, 1, 40), (2, 3, 50, 2, 20), (1, 70, 36, 3, 16), (1, 2, 600, 1, 300)]
if not SIMULATED:
    SHAPES += [(8, 1500, 4096, 4, 128), (3, 11008, 4096, 3, 4096)]


def make(shape, seed=0):
    batch, rows, columns, bits, size = shape
    rng = np.random.default_rng(seed)
    groups = -(-columns // size)
    codes = rng.integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    alphas = rng.random((rows, groups, bits)).astype(np.float32)
    bias = rng.standard_normal((rows, groups)).astype(np.float32)
    return codes, alphas, bias, rng.standard_normal((batch, columns)).astype(np.float32), rng


@pytest.mark.parametrize("shape", SHAPES)
def test_floats_are_the_product_up_to_rounding(shape):
    codes, alphas, bias, x, _ = make(shape)
    size = shape[4]
    group = np.arange(shape[2]) // size
    signs = 2.0 * ((codes[..., None] >> np.arange(shape[3])) & 1) - 1.0
    weights = (signs * alphas[:, group]).sum(-1) + bias[:, group].astype(np.float64)
    expected = x.astype(np.float64) @ weights.T
    packed = cpu.pack(codes, alphas, bias, size)
    got = gpu.lut_matmul(x, packed, threads=THREADS)
    reach = np.abs(x.astype(np.float64)) @ np.abs(weights).T
    assert got.dtype == np.float32
    assert np.all(np.abs(got - expected) <= (shape[2] + 16) * 2.0**-24 * (reach + np.abs(x).sum()))
    np.testing.assert_array_equal(got, gpu.lut_matmul(x, gpu.upload(packed), threads=THREADS))


@pytest.mark.parametrize("accumulator", [np.int32, np.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_the_cpu_s_bit_for_bit(shape, accumulator):
    codes, alphas, bias, _, rng = make(shape, seed=1)
    packed = cpu.pack(codes, alphas, bias, shape[4])
    largest = 400 if accumulator is np.int32 else 32767
    coefficients = cpu.tiled(rng.integers(-largest, largest + 1, alphas.shape).astype(np.int16))
    offsets = cpu.tiled(rng.integers(-largest, largest + 1, bias.shape).astype(np.int16))
    x = rng.integers(-255, 256, (shape[0], shape[2])).astype(np.int16)
    expected = cpu.lut_integer_matmul(x, packed, coefficients, offsets, np.dtype(accumulator))
    got = gpu.lut_integer_matmul(x, packed, coefficients, offsets, accumulator, threads=THREADS)
    assert got.dtype == accumulator
    np.testing.assert_array_equal(got, expected)


def test_no_input_gives_no_output():
    codes, alphas, bias, _, _ = make(SHAPES[0])
    packed = cpu.pack(codes, alphas, bias, 40)
    assert gpu.lut_matmul(np.empty((0, 40), dtype=np.float32), packed).shape == (0, 5)
