"""Layers on any grid against plain Python integers and float64, by every method and granularity."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.grid_linear import bias_integers, grid_linear, prepare_linear
from workbench.integer.level_table import level_table
from workbench.integer.level_tensor import level_tensor, preferred_table
from workbench.quantization import GivenScale, quantize

WEIGHT_GRIDS = [
    "uniform:bits=8",
    "uniform:bits=4,range=full",
    "uniform:bits=8,range=full",
    "uniform:bits=4,range=asymmetric",
    "power:bits=4,exponent=0.5",
    "power:bits=4,exponent=0.55",
    "power:bits=4,exponent=0.7,shifted=true",
    "nf4",
    "e2m1",
    "log:bits=4",
    "apot:bits=4",
    "codebook:levels=-0.9/-0.2/0.1/0.6",
]
INPUT_GRIDS = [
    "uniform:bits=8,range=asymmetric",
    "uniform:bits=16",
    "power:bits=4,exponent=0.5,signed=false",
    "power:bits=8,exponent=0.55,signed=false",
    "power:bits=4,exponent=0.6,shifted=true",
]
GRANULARITIES = ["tensor", "channel", "group:7"]


def sample(seed: int = 0, rows: int = 9, depth: int = 24, outputs: int = 11):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((outputs, depth)).astype(np.float32)
    inputs = np.abs(generator.standard_normal((rows, depth))).astype(np.float32)
    return weight, inputs, generator.standard_normal(outputs)


def prepared(weight, inputs, grid, activation, granularity="channel", bias=None, **options):  # noqa: PLR0917
    q = quantize(weight, grid, granularity)
    coded = quantize(inputs, activation, "tensor")
    table = preferred_table(coded.grid)
    layer = prepare_linear(q, table, float(coded.scale[0, 0]), float(coded.offset[0, 0]), bias, **options)
    return layer, q, coded


def sums_by_hand(layer, operand) -> list[list[list[int]]]:
    """Return the sums of every group in plain Python integers."""
    w, size = layer.weight, layer.weight.group_size
    found = []
    for row in operand.tolist():
        line = []
        for out in range(layer.outputs):
            groups = [0] * w.groups
            if layer.bias is not None and w.groups == 1:
                groups[0] = int(layer.bias[out])
            for k, x in enumerate(row):
                group = k // size
                zero = int(w.zero_point[0 if len(w.zero_point) == 1 else out, group])
                groups[group] += (x - layer.input_zero_point) * (int(w.values[out, k]) - zero)
            line.append(groups)
        found.append(line)
    return found


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("activation", INPUT_GRIDS)
@pytest.mark.parametrize("grid", WEIGHT_GRIDS)
def test_sums_are_those_of_plain_integers_and_codes_stay_within_a_step(grid, activation, granularity):
    weight, inputs, bias = sample()
    layer, q, coded = prepared(weight, inputs, grid, activation, granularity, bias)
    operand = layer.operand(coded.codes)
    sums = layer.sums(operand)
    assert sums.dtype.kind == "i"
    by_hand = np.array(sums_by_hand(layer, operand))
    assert (sums.reshape(by_hand.shape) == by_hand).all()
    assert layer.worst[0] <= sums.min() and sums.max() <= layer.worst[1]
    combined = layer.combine(sums)
    assert combined.dtype == (np.int64 if layer.wide else np.int32)
    true = coded.dequantize().astype(float) @ q.dequantize().astype(float).T + bias
    scale = float(np.abs(true).max() / 127)
    codes = layer(coded.codes, output_scale=scale)
    assert codes.dtype == np.int8
    # A level table's error, the rounding of bias and zero points, and one rounding of the output.
    reach = np.abs(coded.dequantize()).astype(float) @ np.abs(q.dequantize()).astype(float).T
    slack = 0.02 * reach / scale + 0.5 + 0.01
    if layer.weight.table.exact and layer.input_table.exact:
        slack = np.full_like(reach, 0.56)
    assert (np.abs(codes - np.clip(true / scale, -128, 127)) <= slack).all()


@pytest.mark.parametrize("grid", ["power:bits=4,exponent=0.5", "nf4", "uniform:bits=8", "log:bits=4"])
def test_groups_are_weighed_in_fixed_point_as_written(grid):
    weight, inputs, bias = sample(1)
    weight[:, :7] *= 10.0  # scales of very different size
    layer, _, coded = prepared(weight, inputs, grid, INPUT_GRIDS[0], "group:7", bias)
    assert layer.group_multiplier is not None
    combined = layer.combine(layer.sums(layer.operand(coded.codes)))
    by_hand = sums_by_hand(layer, layer.operand(coded.codes))
    for r, line in enumerate(by_hand):
        for out, groups in enumerate(line):
            total = sum(value * int(layer.group_multiplier[out, g]) for g, value in enumerate(groups))
            if layer.group_shift:
                total = (total + (1 << (layer.group_shift - 1))) >> layer.group_shift
            assert combined[r, out] == total + int(layer.bias[out])
    ratios = layer.weight.scale / layer.weight.scale.max(axis=1, keepdims=True)
    assert np.abs(layer.group_multiplier / 2.0**layer.group_bits - ratios).max() <= 2.0 ** -(layer.group_bits + 1)


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 4),
    depth=st.integers(1, 40),
    outputs=st.integers(1, 5),
    grid=st.sampled_from(WEIGHT_GRIDS),
    activation=st.sampled_from(INPUT_GRIDS),
    granularity=st.sampled_from(["tensor", "channel", "group:5"]),
)
@settings(max_examples=30)
def test_any_shape_any_grid(seed, rows, depth, outputs, grid, activation, granularity):  # noqa: PLR0917
    weight, inputs, bias = sample(seed, rows, depth, outputs)
    layer, _, coded = prepared(weight, inputs, grid, activation, granularity, bias)
    operand = layer.operand(coded.codes)
    by_hand = np.array(sums_by_hand(layer, operand))
    assert (layer.sums(operand).reshape(by_hand.shape) == by_hand).all()


@pytest.mark.parametrize("activation", INPUT_GRIDS)
@pytest.mark.parametrize(
    "grid", ["uniform:bits=4", "power:bits=4,exponent=0.5", "power:bits=4,exponent=0.55", "nf4", "apot:bits=5"]
)
def test_products_looked_up_equal_levels_multiplied(grid, activation):
    weight, inputs, bias = sample(2, rows=5, depth=33)
    one, _, coded = prepared(weight, inputs, grid, activation, bias=bias)
    other, _, _ = prepared(weight, inputs, grid, activation, bias=bias, method="per-product")
    left = one.combine(one.sums(one.operand(coded.codes)))
    right = other.combine(other.sums(other.operand(coded.codes)))
    assert (left == right).all()
    assert (one(coded.codes, output_scale=0.1) == other(coded.codes, output_scale=0.1)).all()


def test_product_table_of_exponent_one_half_is_the_square_of_the_code_product():
    weight, inputs, _ = sample(3)
    layer, q, coded = prepared(
        weight, inputs, "power:bits=4,exponent=0.5", "power:bits=4,exponent=0.5,signed=false", method="per-product"
    )
    for i, a in enumerate(q.grid.codes.tolist()):
        for j, b in enumerate(coded.grid.codes.tolist()):
            assert layer.products[i, j] == a * b * abs(a * b)
    assert (layer.products[:, -1] == 0).all()  # padding adds nothing


def test_every_array_of_a_run_is_integer():
    weight, inputs, bias = sample(4)
    for method in ("levels", "per-product"):
        layer, _, coded = prepared(
            weight, inputs, "power:bits=4,exponent=0.55", INPUT_GRIDS[3], bias=bias, method=method
        )
        operand = layer.operand(coded.codes)
        sums = layer.sums(operand)
        stages = (coded.codes, operand, sums, layer.combine(sums), layer(coded.codes, output_scale=0.1), layer.bias)
        assert all(stage.dtype.kind in "iu" for stage in stages)


def test_negative_scales_and_zero_groups():
    weight = np.array([[-8.0, 4.0, 0.0, 0.0], [8.0, -4.0, 1.0, 2.0]], dtype=np.float32)
    q = quantize(weight, "uniform:bits=8,range=full", "group:2")
    assert (q.scale < 0).any() and (q.scale == 0).any()
    levels = level_tensor(q)
    assert (levels.scale > 0).all()
    np.testing.assert_allclose(levels.real(), q.dequantize(), rtol=1e-6)
    assert levels.values.dtype == np.int16  # -128 with a negative scale is +128
    assert levels.table_error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("grid", WEIGHT_GRIDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_level_tensor_stands_for_the_weights(grid, granularity):
    weight, _, _ = sample(5)
    levels = level_tensor(quantize(weight, grid, granularity), 16)
    assert levels.table_error < 2e-4
    assert level_tensor(quantize(weight, grid, granularity), 8).table_error < 0.012


def test_wide_sums_are_shifted_to_32_bits():
    weight, inputs, _ = sample(6, depth=300)
    layer, q, coded = prepared(weight, inputs, "power:bits=8,exponent=0.55", INPUT_GRIDS[3], weight_bits=16)
    assert layer.sum_shift > 0 and not layer.wide
    combined = layer.combine(layer.sums(layer.operand(coded.codes)))
    assert combined.dtype == np.int32
    true = coded.dequantize().astype(float) @ q.dequantize().astype(float).T
    np.testing.assert_allclose(combined * layer.accumulator_scale, true, atol=1e-4 * np.abs(true).max())


def test_overflow_is_refused_or_counted():
    weight, inputs, _ = sample(7, depth=200)
    layer, _, coded = prepared(weight, inputs, "uniform:bits=8", INPUT_GRIDS[0])
    operand = layer.operand(coded.codes)
    with pytest.raises(AccumulatorOverflowError, match="use a wider one"):
        layer.sums(operand, "int12")
    wrapped = layer.sums(operand, "int12:wrap")
    exact = layer.sums(operand)
    assert ((wrapped - exact) % 4096 == 0).all()
    saturated = layer.sums(operand, "int12:saturate")
    assert saturated.min() >= -2048 and saturated.max() <= 2047


def test_bias_is_rounded_once():
    scale = np.array([0.1, 0.2, 0.3])
    assert bias_integers(np.array([1.0, -1.0, 0.15]), scale, 3).tolist() == [
        10,
        -5,
        round(Fraction(0.15) / Fraction(0.3)),
    ]
    assert bias_integers(None, scale, 3) is None
    with pytest.raises(IntegerError, match="each of the 3 outputs"):
        bias_integers(np.zeros(2), scale, 3)
    with pytest.raises(IntegerError, match="finite"):
        bias_integers(np.full(3, np.nan), scale, 3)


def test_leading_axes_and_grid_linear():
    weight, inputs, bias = sample(8, rows=6)
    q, coded = quantize(weight, "nf4"), quantize(inputs, INPUT_GRIDS[0], "tensor")
    table = preferred_table(coded.grid)
    options = {"input_table": table, "input_scale": float(coded.scale[0, 0]), "input_offset": float(coded.offset[0, 0])}
    flat = grid_linear(coded.codes, q, bias, output_scale=0.1, **options)
    cube = grid_linear(coded.codes.reshape(2, 3, -1), q, bias, output_scale=0.1, **options)
    assert cube.shape == (2, 3, 11)
    assert (cube.reshape(6, 11) == flat).all()
    none = grid_linear(coded.codes[:0], q, bias, output_scale=0.1, **options)
    assert none.shape == (0, 11)


def test_bad_arguments_are_refused():
    weight, inputs, _ = sample(9)
    q, coded = quantize(weight, "nf4", "group:7"), quantize(inputs, INPUT_GRIDS[0], "tensor")
    table = preferred_table(coded.grid)
    with pytest.raises(IntegerError, match="not by 'quick'"):
        prepare_linear(q, table, 1.0, method="quick")
    with pytest.raises(IntegerError, match="above 0"):
        prepare_linear(q, table, 0.0)
    with pytest.raises(IntegerError, match="groups run by"):
        prepare_linear(q, table, 1.0, method="per-product")
    shifted = quantize(weight, "power:bits=4,exponent=0.5,shifted=true")
    with pytest.raises(IntegerError, match="zero is a level"):
        prepare_linear(shifted, table, 1.0, method="per-product")
    with pytest.raises(IntegerError, match="power_domain is its own"):
        grid_linear(coded.codes, q, input_table=table, input_scale=1.0, output_scale=1.0, method="power-domain")
    layer = prepare_linear(quantize(weight, "nf4"), table, 1.0, method="per-product")
    with pytest.raises(IntegerError, match="narrow accumulator needs"):
        layer.sums(layer.operand(coded.codes), "int16:wrap")
    with pytest.raises(IntegerError, match=r"\(rows, 24\)"):
        layer.sums(np.zeros((3, 5), dtype=np.int32))
    with pytest.raises(IntegerError, match="same grid"):
        level_tensor(q, table=level_table("uniform:bits=4"))


def test_a_given_scale_is_used_as_it_is():
    weight, _, _ = sample(10)
    q = quantize(weight, "uniform:bits=4", scale=GivenScale(np.full((11, 1), 2.0, dtype=np.float32)))
    layer = prepare_linear(q, level_table("uniform:bits=8"), 1.0)
    np.testing.assert_allclose(layer.accumulator_scale, 2.0 / 7 / 127)


def test_products_looked_up_never_overflow_in_silence():
    weight, inputs, _ = sample(11, depth=200)
    layer, _, coded = prepared(weight, inputs, "uniform:bits=8", INPUT_GRIDS[0], method="per-product")
    operand = layer.operand(coded.codes)
    with pytest.raises(AccumulatorOverflowError, match="use a wider one"):
        layer.sums(operand, "int12")
    assert (layer.sums(operand, "int32") == layer.sums(operand)).all()


@pytest.mark.parametrize("grid", ["uniform:bits=2", "power:bits=3,exponent=0.5", "uniform:bits=1,range=asymmetric"])
def test_small_sums_of_groups_lose_nothing(grid):
    weight, inputs, bias = sample(12, rows=40, depth=32)
    weight *= 1e-3  # far from 1: a group of zeros must not set the unit of its row
    weight[:, :8] = 0.0
    layer, q, coded = prepared(weight, inputs, grid, INPUT_GRIDS[0], "group:8", bias)
    combined = layer.combine(layer.sums(layer.operand(coded.codes)))
    true = coded.dequantize().astype(float) @ q.dequantize().astype(float).T + bias
    # A factor of 15 bits, the rounding of the bias, and one rounding of a sum that nearly fills 32 bits.
    np.testing.assert_allclose(combined * layer.accumulator_scale, true, atol=2.0**-14 * np.abs(true).max())


def test_a_bias_far_beyond_the_sums_of_groups_fits():
    weight, inputs, _ = sample(13, depth=32)
    bias = np.linspace(-1e4, 1e4, 11)
    layer, q, coded = prepared(weight, inputs, "nf4", INPUT_GRIDS[0], "group:8", bias)
    combined = layer.combine(layer.sums(layer.operand(coded.codes)))
    true = coded.dequantize().astype(float) @ q.dequantize().astype(float).T + bias
    np.testing.assert_allclose(combined * layer.accumulator_scale, true, rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("method", ["levels", "per-product"])
@pytest.mark.parametrize("bad", [np.full((2, 24), 0.5), np.full((2, 24), 99), [[1, 2], [3]], np.int8(1), None])
def test_what_is_no_code_is_refused_by_every_method(method: str, bad):
    """Looking a number up that is no code would silently give some other level."""
    weight = quantize(np.ones((3, 24), dtype=np.float32), "power:bits=4,exponent=0.55", "channel")
    table = level_table("power:bits=4,exponent=0.55,signed=false")
    layer = prepare_linear(weight, table, 1.0, method=method)
    with pytest.raises(IntegerError, match="codes"):
        layer(bad, output_scale=0.1)


@pytest.mark.parametrize(
    ("position", "bad", "match"),
    [
        (0, np.ones((3, 24)), "what quantize"),
        (1, None, "level_table"),
        (2, None, "real number"),
        (2, np.nan, "above 0"),
        (3, np.inf, "finite number on the grid's axis"),
        (3, 1e300, "finite number on the grid's axis"),
        (4, "x", "a bias is a real number"),
    ],
)
def test_what_no_layer_is_made_of_is_refused(position: int, bad, match: str):
    weight = quantize(np.ones((3, 24), dtype=np.float32), "power:bits=4,exponent=0.55", "channel")
    given = [weight, level_table("power:bits=4,exponent=0.55,signed=false"), 1.0, 0.0, None]
    given[position] = bad
    with pytest.raises(IntegerError, match=match):
        prepare_linear(*given)
