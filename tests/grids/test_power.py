"""Power grids against the closed forms of both roundings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import GridError
from workbench.grids import PowerGrid, UniformGrid

exponents = st.floats(0.05, 2.0)


def closed_form(grid: PowerGrid, u: np.ndarray) -> np.ndarray:
    """PowerQuant's operator, in the power domain."""
    magnitude = np.rint(grid.n * np.minimum(np.abs(u), 1.0) ** grid.exponent)
    return np.copysign(magnitude, u).astype(np.int32) if grid.signed else np.where(u > 0, magnitude, 0).astype(np.int32)


def away_from_borders(grid: PowerGrid, u: np.ndarray) -> np.ndarray:
    """The ``u`` for which the class promises the closed form."""
    nearest = np.searchsorted(grid.thresholds, u)
    neighbours = grid.thresholds[np.clip([nearest - 1, nearest], 0, len(grid.thresholds) - 1)]
    margin = (8 / grid.exponent) * np.spacing(np.abs(neighbours))
    return u[np.all(np.abs(u - neighbours) > margin, axis=0)]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 10), exponents, st.booleans(), st.integers(0, 2**32 - 1))
def test_power_rounding_is_the_closed_form(bits, exponent, signed, seed):
    grid = PowerGrid(bits, exponent, signed=signed)
    rng = np.random.default_rng(seed)
    near = rng.choice(grid.thresholds, 500) * (1 + rng.integers(-400, 401, 500) * 2.0**-50)
    spread = rng.uniform(-1.1, 1.1, 500)
    small = rng.choice([-1, 1], 500) * 10.0 ** rng.uniform(-12, 0, 500)
    u = away_from_borders(grid, np.concatenate([near, spread, small]))
    assert len(u) > 1000
    np.testing.assert_array_equal(grid.encode(u), closed_form(grid, u))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), exponents, st.booleans())
def test_levels_are_the_inverse_power(bits, exponent, signed):
    grid = PowerGrid(bits, exponent, signed=signed)
    codes = grid.codes
    expected = np.sign(codes) * (np.abs(codes) / grid.n) ** (1 / exponent)
    np.testing.assert_allclose(grid.levels, expected, rtol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), exponents, st.integers(0, 2**32 - 1))
def test_nearest_rounding_takes_the_nearest_level(bits, exponent, seed):
    grid = PowerGrid(bits, exponent, "nearest")
    u = np.random.default_rng(seed).uniform(-1.1, 1.1, 500)
    distance = np.abs(u[:, None] - grid.levels)
    chosen = distance[np.arange(500), grid.index(u)]
    assert np.all(chosen <= distance.min(axis=1) * (1 + 1e-12))


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("rounding", ["power", "nearest"])
def test_exponent_one_is_the_uniform_grid(bits, rounding):
    power, uniform = PowerGrid(bits, 1, rounding), UniformGrid(bits)
    np.testing.assert_array_equal(power.levels, uniform.levels)
    np.testing.assert_array_equal(power.codes, uniform.codes)
    if rounding == "power":
        np.testing.assert_array_equal(power.thresholds, uniform.thresholds)
    else:
        np.testing.assert_allclose(power.thresholds, uniform.thresholds, rtol=1e-12)


def test_ties_in_the_power_domain_go_to_even():
    """u = 1/4 has power 1/2: with n = 1 that is the tie of 0 and 1, with n = 3 (unsigned) of 1 and 2."""
    assert PowerGrid(2, 0.5).encode([0.25, np.nextafter(0.25, 1), -0.25, np.nextafter(-0.25, -1)]).tolist() == [
        0,
        1,
        0,
        -1,
    ]
    assert PowerGrid(2, 0.5, signed=False).encode([0.25, np.nextafter(0.25, 0)]).tolist() == [2, 1]


def test_exponent_one_half_decodes_to_q_times_abs_q():
    grid = PowerGrid(4, 0.5)
    np.testing.assert_allclose(grid.levels * 49, grid.codes * np.abs(grid.codes), rtol=1e-15)


def test_small_exponents_put_levels_near_zero():
    counts = [np.count_nonzero(np.abs(PowerGrid(4, exponent).levels) < 0.1) for exponent in (0.3, 0.5, 1.0, 2.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_unsigned_and_shifted():
    unsigned = PowerGrid(4, 0.5, signed=False)
    assert (unsigned.n, unsigned.levels[0], unsigned.normalization) == (15, 0.0, "absmax")
    assert unsigned.encode(-0.3) == 0
    shifted = PowerGrid(4, 0.5, shifted=True)
    assert shifted == PowerGrid(4, 0.5, signed=False, shifted=True)
    assert (shifted.signed, shifted.normalization, shifted.integer_zero_point) == (False, "range", False)
    assert str(shifted) == "power:bits=4,exponent=0.5,shifted=true"
    np.testing.assert_array_equal(shifted.levels, unsigned.levels)


def test_symmetry():
    grid = PowerGrid(5, 0.37)
    u = np.concatenate([np.random.default_rng(1).uniform(-1, 1, 2000), grid.thresholds])
    np.testing.assert_array_equal(grid.encode(-u), -grid.encode(u))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"exponent": 0}, "exponent of power is above 0 and at most 2, not 0.0"),
        ({"exponent": -0.5}, "above 0 and at most 2, not -0.5"),
        ({"exponent": 2.0001}, "at most 2, not 2.0001"),
        ({"exponent": float("nan")}, "exponent of power is a finite number, not nan"),
        ({"exponent": "0.5"}, "finite number, not '0.5'"),
        ({"exponent": None}, "finite number, not None"),
        (
            {"exponent": 0.001},
            r"exponent 0.001 puts the smallest level of a 4-bit power grid below 1e-290.*at least 0.004",
        ),
        ({"bits": 1}, r"bits of power \(signed\) lies between 2 and 16, not at 1"),
        ({"bits": 17, "signed": False}, r"bits of power \(unsigned\) lies between 1 and 16, not at 17"),
        ({"rounding": "near"}, r"rounding of power is one of power, nearest, not 'near' \(did you mean nearest\?\)"),
        ({"signed": "no"}, "signed of power is True or False, not 'no'"),
        ({"shifted": 1}, "shifted of power is True or False, not 1"),
    ],
)
def test_parameters_out_of_range(parameters, sentence):
    with pytest.raises(GridError, match=sentence):
        PowerGrid(**parameters)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_lowest_exponent_that_an_error_names_works(bits):
    with pytest.raises(GridError) as caught:
        PowerGrid(bits, 1e-6)
    lowest = float(str(caught.value).rsplit(" ", 1)[1])
    grid = PowerGrid(bits, lowest)
    assert grid.levels[grid.n + 1] > 0
    assert np.all(np.diff(grid.thresholds) > 0)
