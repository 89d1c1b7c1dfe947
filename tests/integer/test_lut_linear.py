"""Binary-coded layers in integers: exact sums, known fixed-point error, the runtimes' requantization."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer import SEMANTICS, linear, requantize, watch
from workbench.integer.lut_linear import lut_linear, prepare_lut_weight
from workbench.kernels.lut_permute import paths
from workbench.quantization import from_uniform, quantize

PATHS = paths()


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integer_weights(prepared, codes, size):
    """The integers that a row multiplies its inputs with, one Python-sized sum per weight (int64)."""
    bits = prepared.coefficients.shape[2]
    group = np.arange(codes.shape[1]) // size
    signs = 2 * ((codes[..., None] >> np.arange(bits)) & 1).astype(np.int64) - 1
    return (signs * prepared.coefficients.astype(np.int64)[:, group]).sum(-1) + prepared.offsets.astype(np.int64)[
        :, group
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 200),
    st.integers(1, 4),
    st.sampled_from(["tensor", "channel", "group:16", "group:50"]),
    st.sampled_from([np.int8, np.uint8]),
    st.sampled_from([32, 64]),
    st.integers(0, 5),
)
def test_sums_are_exact_integers(rows, columns, bits, granularity, kind, accumulator_bits, seed):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    coded = quantize(gaussian(rows, columns, seed=seed), f"bcq:bits={bits}", granularity)
    prepared = prepare_lut_weight(coded, accumulator_bits=accumulator_bits)
    limits = np.iinfo(kind)
    x = rng.integers(limits.min, limits.max + 1, (2, 3, columns)).astype(kind)
    zero = int(rng.integers(limits.min, limits.max + 1))
    bias = rng.integers(-(10**6), 10**6, rows).astype(np.int32)
    size = columns if granularity == "tensor" else coded.group_size
    weights = integer_weights(prepared, coded.codes, size)
    sums = (x.astype(np.int64) - zero) @ weights.T + bias
    options = {"zero_point": 3, "semantics": "litert-reference"}
    scale = np.float32(0.02) * prepared.unit.astype(np.float64) / np.float32(0.1)
    expected = requantize(sums.astype(np.int32 if accumulator_bits == 32 else np.int64), scale=scale, **options)
    for path in PATHS if accumulator_bits == 32 else PATHS[:1]:
        got = lut_linear(
            x, prepared, bias, input_scale=0.02, output_scale=0.1, input_zero_point=zero, output_zero_point=3, path=path
        )
        assert got.dtype == np.int8
        assert got.shape == (2, 3, rows)
        np.testing.assert_array_equal(got, expected)


def test_one_output_by_hand():
    """Every step in Python integers and fractions: signs, sums, fixed point, rounding."""
    weight = np.array([[1.0, -0.5, 0.25, 2.0, -1.0, 0.75, 0.5, -2.0]], dtype=np.float32)
    coded = quantize(weight, "bcq:bits=2", "group:4")
    prepared = prepare_lut_weight(coded)
    x = np.array([[10, -20, 30, -40, 50, -60, 70, 127]], dtype=np.int8)
    total = 0
    for column in range(8):
        group = column // 4
        integer = int(prepared.offsets[0, group])
        for plane in range(2):
            sign = 1 if int(coded.codes[0, column]) >> plane & 1 else -1
            integer += sign * int(prepared.coefficients[0, group, plane])
        total += (int(x[0, column]) - 5) * integer
    real = Fraction(total) * Fraction(float(prepared.unit[0])) * Fraction(float(np.float32(0.05)))
    code = round(real / Fraction(float(np.float32(2.0)))) - 1
    got = lut_linear(x, prepared, input_scale=0.05, output_scale=2.0, input_zero_point=5, output_zero_point=-1)
    assert int(got[0, 0]) == code


@pytest.mark.parametrize("semantics", list(SEMANTICS))
def test_rounding_is_the_linear_layer_s(semantics):
    """Where the integer weights fit int8, ``linear`` gives the same codes from the same sums."""
    coded = quantize(gaussian(40, 64), "bcq:bits=3", "group:32")
    prepared = prepare_lut_weight(coded, scale_bits=5)
    weights = integer_weights(prepared, coded.codes, 32)
    assert np.abs(weights).max() < 128
    x = np.random.default_rng(1).integers(-128, 128, (9, 64)).astype(np.int8)
    bias = np.random.default_rng(2).integers(-5000, 5000, 40).astype(np.int32)
    options = {
        "input_scale": 0.03,
        "output_scale": 0.07,
        "input_zero_point": -7,
        "output_zero_point": 4,
        "semantics": semantics,
        "low": -100,
        "high": 90,
    }
    expected = linear(x, weights.astype(np.int8), bias, weight_scale=prepared.unit, **options)
    np.testing.assert_array_equal(lut_linear(x, prepared, bias, **options), expected)


def test_real_outputs_are_those_of_the_coding():
    coded = quantize(gaussian(64, 512), "bcq:bits=3", "group:128")
    prepared = prepare_lut_weight(coded)
    assert prepared.relative_error < 1e-3
    x = np.random.default_rng(1).integers(-128, 128, (16, 512)).astype(np.int8)
    real = 0.02 * x.astype(np.float64) @ coded.dequantize().astype(np.float64).T
    step = float(np.abs(real).max() / 120)
    got = lut_linear(x, coded, input_scale=0.02, output_scale=step)
    assert np.abs(got * np.float32(step) - real).max() <= 0.51 * step + np.abs(real).max() * 1e-3
    ready = quantize(gaussian(64, 512), "uniform:bits=4,range=asymmetric", "group:128")
    converted = prepare_lut_weight(from_uniform(ready))
    real = 0.02 * x.astype(np.float64) @ ready.dequantize().astype(np.float64).T
    step = float(np.abs(real).max() / 120)
    got = lut_linear(x, converted, input_scale=0.02, output_scale=step)
    assert np.abs(got * np.float32(step) - real).max() <= 0.51 * step + np.abs(real).max() * 1e-3


def test_scale_bits_keep_32_bit_sums_from_overflowing_and_error_falls_with_them():
    coded = quantize(gaussian(8, 4096), "bcq:bits=4", "group:128")
    errors = [prepare_lut_weight(coded, scale_bits=bits).relative_error for bits in (4, 7, 10, 13)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]
    prepared = prepare_lut_weight(coded)
    assert prepared.largest_sum * 255 <= 1 << 30
    assert prepare_lut_weight(coded, accumulator_bits=64).relative_error < prepared.relative_error
    assert "int32 sums" in repr(prepared)
    largest = np.where(integer_weights(prepared, coded.codes, 128)[0] > 0, 127, -128).astype(np.int8)
    with watch() as seen:
        lut_linear(largest, prepared, input_scale=1.0, output_scale=1e3)
    first = seen.observations[0]
    assert first.operator == "lut_linear"
    assert first.accumulator_bits == 32
    assert 25 < first.observed_bits <= first.worst_case_bits <= 31


def test_a_sum_that_does_not_fit_is_refused():
    coded = quantize(np.ones((1, 1 << 15), dtype=np.float32), "bcq:bits=1", "channel")
    prepared = prepare_lut_weight(coded, scale_bits=15)
    x = np.full(1 << 15, 127, dtype=np.int8)
    with pytest.raises(AccumulatorOverflowError, match=r"needs \d+ bits and the accumulator has 32"):
        lut_linear(x, prepared, input_scale=1.0, output_scale=1e6)
    wide = prepare_lut_weight(coded, accumulator_bits=64, scale_bits=15)
    got = lut_linear(x, wide, input_scale=1.0, output_scale=1e5)
    assert int(got[0]) == round(127 * (1 << 15) / 1e5)
    few = np.zeros(1 << 15, dtype=np.int8)
    few[:5] = 100
    assert int(lut_linear(few, prepared, input_scale=1.0, output_scale=10.0)[0]) == 50


def test_dead_rows_and_empty_inputs():
    weight = gaussian(5, 32)
    weight[2] = 0.0
    prepared = prepare_lut_weight(quantize(weight, "bcq:bits=2", "group:16"))
    x = np.full((3, 32), 77, dtype=np.int8)
    got = lut_linear(x, prepared, input_scale=0.1, output_scale=0.1, output_zero_point=11)
    np.testing.assert_array_equal(got[:, 2], 11)
    assert lut_linear(x[:0], prepared, input_scale=0.1, output_scale=0.1).shape == (0, 5)
    zeros = prepare_lut_weight(quantize(np.zeros((3, 8), dtype=np.float32), "bcq:bits=2"))
    assert zeros.relative_error == 0.0
    np.testing.assert_array_equal(lut_linear(x[:, :8], zeros, input_scale=0.1, output_scale=0.1), 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((2, 16), dtype=np.int16)}, "int8 or uint8"),
        ({"x": np.zeros((2, 15), dtype=np.int8)}, r"\(\.\.\., 16\)"),
        ({"bias": np.zeros(4, dtype=np.int64)}, r"int32 \(4,\)"),
        ({"input_zero_point": 200}, "from -128 to 127"),
        ({"input_scale": None}, "give the scales"),
        ({"multiplier": [1 << 30] * 4, "shift": [0] * 4}, "not both"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    prepared = prepare_lut_weight(quantize(gaussian(4, 16), "bcq:bits=2"))
    options = {"x": np.zeros((2, 16), dtype=np.int8), "input_scale": 1.0, "output_scale": 1.0} | change
    x = options.pop("x")
    bias = options.pop("bias", None)
    with pytest.raises(IntegerError, match=says):
        lut_linear(x, prepared, bias, **options)


def test_preparing_refuses_other_widths():
    coded = quantize(gaussian(4, 16), "bcq:bits=2")
    with pytest.raises(IntegerError, match="32 or 64"):
        prepare_lut_weight(coded, accumulator_bits=16)
    with pytest.raises(IntegerError, match="1 to 15"):
        prepare_lut_weight(coded, scale_bits=16)


def test_ready_multipliers_do_what_scales_do():
    from workbench.integer import quantize_multiplier

    prepared = prepare_lut_weight(quantize(gaussian(4, 16), "bcq:bits=2"))
    x = np.random.default_rng(0).integers(-128, 128, (5, 16)).astype(np.int8)
    factor = np.float32(0.5) * prepared.unit.astype(np.float64) / np.float32(0.9)
    multiplier, shift = quantize_multiplier(factor, "tflm")
    scales = lut_linear(x, prepared, input_scale=0.5, output_scale=0.9, semantics="tflm")
    np.testing.assert_array_equal(lut_linear(x, prepared, multiplier=multiplier, shift=shift, semantics="tflm"), scales)
