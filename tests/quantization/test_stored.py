"""Tensors in files: every grid, granularity and scale format comes back bit for bit, in the bytes that its bits say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.checkpoints.prequantized.workbench_codes import pack_rows, packed_bytes, unpack_rows
from workbench.errors import CheckpointError
from workbench.grids import CodebookGrid
from workbench.quantization import quantize
from workbench.quantization.stored import from_stored, to_stored

GRIDS = [
    "uniform:bits=2",
    "uniform:bits=3",
    "uniform:bits=4,range=full",
    "uniform:bits=5,range=asymmetric",
    "uniform:bits=8",
    "uniform:bits=11",
    "uniform:bits=16",
    "power:bits=4,exponent=0.5371",
    "power:bits=3,exponent=0.7,shifted=true",
    "log:bits=4",
    "apot:bits=4",
    "nf4",
    "e2m1",
    "e4m3",
    "bcq:bits=3",
    "bcq:bits=2,bias=false",
]


def same(one, other):
    np.testing.assert_array_equal(one.codes, other.codes)
    assert one.codes.dtype == other.codes.dtype
    np.testing.assert_array_equal(one.scale, other.scale)
    np.testing.assert_array_equal(one.offset, other.offset)
    assert (one.grid, one.granularity, one.shape, one.name) == (other.grid, other.granularity, other.shape, other.name)
    assert (one.scale_format, one.tensor_scale) == (other.scale_format, other.tensor_scale)
    assert one.dequantize().tobytes() == other.dequantize().tobytes()
    assert one.bits_per_weight == other.bits_per_weight


def through_a_file(quantized):
    parts = to_stored(quantized)
    return from_stored(parts.arrays, json.loads(json.dumps(parts.settings)), quantized.name), parts


@given(
    bits=st.integers(1, 16),
    columns=st.integers(1, 40),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_of_any_width_survive_packing(bits, columns, signed, seed):
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    codes = np.random.default_rng(seed).integers(low, high, (3, columns))
    packed = pack_rows(codes, bits)
    assert packed.shape == (3, packed_bytes(columns, bits))
    np.testing.assert_array_equal(unpack_rows(packed, bits, columns, signed=signed), codes)
    # The definition: bit b of code i is bit i * bits + b of the row.
    stream = [(int(byte) >> place) & 1 for byte in packed[0] for place in range(8)]
    for i, code in enumerate(codes[0]):
        assert sum(stream[i * bits + b] << b for b in range(bits)) == int(code) % (1 << bits)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_tensor_comes_back(grid, granularity):
    weight = np.random.default_rng(3).standard_normal((6, 40)).astype(np.float32)
    weight[2] = 0.0
    found, _ = through_a_file(quantize(weight, grid, granularity))
    same(found, quantize(weight, grid, granularity))


@pytest.mark.parametrize(
    ("grid", "granularity", "scale_format"),
    [
        ("uniform:bits=4", "group:32", "float16"),
        ("uniform:bits=4,range=full", "group:32", "float16"),
        ("uniform:bits=4,range=asymmetric", "group:32", "bfloat16"),
        ("bcq:bits=3", "group:32", "float16"),
        ("mxfp4", "group:32", None),
        ("nvfp4", "group:16", None),
        ("nf4", "group:64", "bfloat16"),
    ],
)
def test_scales_keep_their_format(grid, granularity, scale_format):
    weight = np.random.default_rng(4).standard_t(4, (8, 96)).astype(np.float32)
    quantized = quantize(weight, grid, granularity, scale_format=scale_format)
    found, parts = through_a_file(quantized)
    same(found, quantized)
    if not quantized.grid.fitted:
        assert parts.settings["scale_format"] == quantized.scale_format
    assert parts.nbytes * 8 == pytest.approx(quantized.storage.total, abs=32)


def test_convolutions_vectors_and_codebooks():
    generator = np.random.default_rng(5)
    conv = generator.standard_normal((4, 3, 3, 3)).astype(np.float32)
    same(through_a_file(quantize(conv, "uniform:bits=3"))[0], quantize(conv, "uniform:bits=3"))
    vector = generator.standard_normal(12).astype(np.float32)
    same(through_a_file(quantize(vector, "nf4"))[0], quantize(vector, "nf4"))
    fitted = quantize(conv, CodebookGrid(tuple(generator.uniform(-1, 1, 8).tolist())))
    found, parts = through_a_file(fitted)
    same(found, fitted)
    assert parts.settings["grid"] == "codebook"
    assert parts.arrays["codebook"].size == 8


def test_learned_scales_that_their_format_cannot_hold_are_stored_as_float32():
    weight = np.random.default_rng(6).standard_normal((4, 32)).astype(np.float32)
    quantized = quantize(weight, "uniform:bits=4", scale_format="float16")
    learned = replace(quantized, scale=quantized.scale * np.float32(1.0001))
    found, parts = through_a_file(learned)
    assert parts.settings["scale_format"] == "full"
    np.testing.assert_array_equal(found.scale, learned.scale)
    assert found.scale_format == "float32"


@settings(max_examples=30)
@given(st.sampled_from(GRIDS), st.integers(1, 9), st.integers(1, 33), st.integers(0, 20))
def test_any_shape_comes_back(grid, rows, columns, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    quantized = quantize(weight, grid, "group:8")
    same(through_a_file(quantized)[0], quantized)


def test_far_zero_points_are_kept():
    quantized = quantize(np.linspace(5, 6, 12, dtype=np.float32)[None], "uniform:bits=4,range=asymmetric")
    shifted = replace(quantized, offset=np.array([[-37 / 15]]))
    found, parts = through_a_file(shifted)
    assert parts.settings["zero_signed"]
    np.testing.assert_array_equal(found.offset, shifted.offset)


@pytest.mark.parametrize(
    "damage",
    [
        lambda parts: parts.arrays.pop("codes"),
        lambda parts: parts.arrays.update(codes=parts.arrays["codes"][:-1]),
        lambda parts: parts.arrays.update(scale=parts.arrays["scale"][:-1]),
        lambda parts: parts.settings.update(shape=[3, 7]),
        lambda parts: parts.settings.update(shape=[0, 7], matrix=[0, 7]),
        lambda parts: parts.settings.update(scale_format="e3m4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(damage):
    parts = to_stored(quantize(np.ones((4, 8), dtype=np.float32), "uniform:bits=4"))
    damage(parts)
    with pytest.raises(CheckpointError) as caught:
        from_stored(parts.arrays, parts.settings)
    assert "\n" not in str(caught.value)
