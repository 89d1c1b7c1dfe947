"""Powers of two."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from workbench.errors import GridError
from workbench.grids import LogGrid


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_the_powers_of_two_that_the_codes_say(bits):
    grid = LogGrid(bits)
    codes = grid.codes[grid.codes != 0]
    np.testing.assert_array_equal(grid.decode(codes), np.sign(codes) * 2.0 ** (np.abs(codes) - grid.n))
    assert grid.decode(0) == 0
    assert len(grid) == 2**bits - 1


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_log_rounding_is_rint_of_log2(bits):
    grid = LogGrid(bits, "log")
    rng = np.random.default_rng(bits)
    u = rng.choice([-1, 1], 5000) * 2.0 ** rng.uniform(-grid.n - 3, 0.4, 5000)
    exponent = np.minimum(np.rint(np.log2(np.abs(u))), 0)
    expected = np.where(exponent < 1 - grid.n, 0, np.sign(u) * 2.0**exponent)
    np.testing.assert_array_equal(grid.decode(grid.encode(u)), expected)


def test_log_thresholds_are_the_first_floats_above_the_root_of_one_half():
    """Judged by exact squares: sqrt(1/2) lies between the threshold and the float64 below it, in every octave."""
    for octave, threshold in enumerate(LogGrid(5, "log").thresholds[15:][::-1]):
        below = np.nextafter(threshold, 0.0)
        assert Fraction(float(below)) ** 2 < Fraction(1, 2 * 4**octave) < Fraction(float(threshold)) ** 2


def test_nearest_ties_take_the_even_code():
    grid = LogGrid(3)  # codes 0, 1, 2, 3 stand for 0, 1/4, 1/2, 1
    assert grid.encode([0.125, 0.375, 0.75]).tolist() == [0, 2, 2]
    assert grid.encode([-0.125, -0.375, -0.75]).tolist() == [0, -2, -2]


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(GridError, match=f"bits of log lies between 2 and 8, not at {bits}"):
        LogGrid(bits)


def test_unknown_rounding():
    with pytest.raises(GridError, match="rounding of log is one of nearest, log, not 'power'"):
        LogGrid(4, "power")
