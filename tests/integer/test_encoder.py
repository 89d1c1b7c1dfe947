"""Integer thresholds against the grid's own encoder in exact arithmetic, and two power layers chained in integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.grids import parse_grid
from workbench.integer.encoder import integer_encoder, output_encoder
from workbench.integer.grid_linear import prepare_linear
from workbench.integer.level_table import level_table
from workbench.quantization import quantize

GRIDS = [
    "power:bits=4,exponent=0.55,signed=false",
    "power:bits=8,exponent=0.5",
    "power:bits=4,exponent=0.6,shifted=true",
    "uniform:bits=8,range=asymmetric",
    "nf4",
    "log:bits=4",
]


@given(
    grid=st.sampled_from(GRIDS),
    scale=st.floats(1e-3, 100),
    unit=st.floats(1e-6, 10),
    zero=st.integers(-128, 127),
    offset=st.floats(0, 1),
    values=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=30),
)
def test_integers_are_encoded_as_their_real_numbers_would_be(grid, scale, unit, zero, offset, values):  # noqa: PLR0917
    grid = parse_grid(grid)
    offset = offset if grid.normalization == "range" else 0.0
    encoder = integer_encoder(grid, scale, offset, input_scale=unit, input_zero_point=zero)
    found = encoder.encode(np.array(values))
    borders = [Fraction(float(t)) for t in grid.thresholds]
    for value, code in zip(values, found.tolist(), strict=True):
        exact = Fraction(unit) * (value - zero) / Fraction(scale) + Fraction(offset)
        assert code == grid.codes[sum(border <= exact for border in borders)]


@pytest.mark.parametrize("grid", GRIDS)
def test_channels_have_their_own_thresholds(grid):
    generator = np.random.default_rng(0)
    units = generator.uniform(0.001, 0.1, 6)
    encoder = integer_encoder(grid, 3.0, 0.25, input_scale=units)
    values = generator.integers(-4000, 4000, (5, 7, 6)).astype(np.int32)
    found = encoder.encode(values)
    assert found.dtype.kind in "iu"
    for channel, unit in enumerate(units):
        alone = integer_encoder(grid, 3.0, 0.25, input_scale=unit)
        assert (found[..., channel] == alone.encode(values[..., channel])).all()


def test_two_power_layers_run_in_integers_only():
    generator = np.random.default_rng(1)
    first, second = generator.standard_normal((16, 24)), generator.standard_normal((5, 16))
    inputs = np.abs(generator.standard_normal((40, 24))).astype(np.float32)
    coded = quantize(inputs, "power:bits=8,exponent=0.5,signed=false", "tensor")
    q1, q2 = (quantize(each, "power:bits=4,exponent=0.5") for each in (first, second))
    layer1 = prepare_linear(q1, level_table(coded.grid, 16), float(coded.scale[0, 0]))
    hidden = np.maximum(coded.dequantize().astype(float) @ q1.dequantize().astype(float).T, 0.0)
    middle = parse_grid("power:bits=8,exponent=0.5,signed=false")
    scale = float(hidden.max())
    encoder = output_encoder(layer1, middle, scale)
    layer2 = prepare_linear(q2, level_table(middle, 16), scale)
    # Codes in, codes out, integers between: sums of the first layer go straight to codes of the second.
    sums = layer1.combine(layer1.sums(layer1.operand(coded.codes)))
    codes = encoder.encode(sums)
    out = layer2(codes, output_scale=0.1)
    assert {array.dtype.kind for array in (coded.codes, sums, codes, out)} <= {"i", "u"}
    in_float = middle.encode(hidden / scale)
    assert (codes.astype(int) - in_float != 0).mean() < 0.001
    true = scale * middle.decode(codes) @ q2.dequantize().astype(float).T
    assert np.abs(out - np.clip(true / 0.1, -128, 127)).max() <= 0.51


def test_bad_arguments_are_refused():
    for options in ({"scale": 0.0}, {"scale": float("nan")}, {"input_scale": -1.0}):
        arguments = {"scale": 1.0, "input_scale": 1.0, **options}
        with pytest.raises(IntegerError, match="above 0"):
            integer_encoder("nf4", arguments["scale"], input_scale=arguments["input_scale"])
    encoder = integer_encoder("nf4", 1.0, input_scale=[1.0, 2.0])
    with pytest.raises(IntegerError, match="integers, not float64"):
        encoder.encode(np.zeros(2))
    with pytest.raises(IntegerError, match="2 channels"):
        encoder.encode(np.zeros((2, 3), dtype=int))
    assert encoder.encode(np.zeros((0, 2), dtype=int)).shape == (0, 2)
    assert "thresholds" in repr(encoder)
