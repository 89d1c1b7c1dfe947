"""APoT against the construction in the paper, written out."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import GridError
from workbench.grids import AdditivePowerGrid

# exponents of the terms, as the authors' build_power_value has them, for the magnitude's bits 2 to 6
AUTHORS = {
    3: [{1, 2, 3}],
    4: [{1, 2, 4}, {3}],
    5: [{1, 3, 5}, {2, 4, 6}],
    6: [{1, 3, 6}, {2, 4, 7}, {5}],
    7: [{1, 4, 7}, {2, 5, 8}, {3, 6, 9}],
}


@pytest.mark.parametrize("bits", AUTHORS)
def test_terms_are_the_authors(bits):
    assert [set(term) for term in AdditivePowerGrid(bits).terms] == AUTHORS[bits]


def test_levels_written_out():
    """4 bits: {0, 1/2, 1/4, 1/16} + {0, 1/8}, over the largest sum 5/8."""
    sums = sorted(a + b for a in (0, 1 / 2, 1 / 4, 1 / 16) for b in (0, 1 / 8))
    np.testing.assert_array_equal(AdditivePowerGrid(4).levels[7:], np.array(sums) / 0.625)


@pytest.mark.parametrize("bits", [3, 5, 7])
def test_even_widths_follow_equation_five(bits):
    """p_i in {0, 2^-i, 2^-(i+n), ... 2^-(i+(2^k-2)n)} for k = 2 and n terms; the common factor drops out."""
    n = (bits - 1) // 2
    sums = {0.0}
    for i in range(n):
        sums = {total + term for total in sums for term in (0, *(2.0 ** -(i + j * n) for j in range(3)))}
    levels = np.array(sorted(sums))
    np.testing.assert_allclose(AdditivePowerGrid(bits).levels[len(levels) - 1 :], levels / levels[-1], rtol=1e-15)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_decode_by_shifts_and_adds(bits):
    grid = AdditivePowerGrid(bits)
    assert len(grid) == 2**bits - 1
    widths = [2 if len(term) == 3 else 1 for term in grid.terms]
    assert sum(widths) == bits - 1
    sums = []
    for code in np.abs(grid.codes):
        total, shift = 0.0, bits - 1
        for term, width in zip(grid.terms, widths, strict=True):
            shift -= width
            picked = code >> shift & (2**width - 1)
            total += 2.0 ** -term[picked - 1] if picked else 0.0
        sums.append(total)
    np.testing.assert_array_equal(np.sign(grid.codes) * np.array(sums) / max(sums), grid.levels)


def test_ties_go_towards_zero():
    grid = AdditivePowerGrid(2)
    np.testing.assert_array_equal(grid.levels, [-1, 0, 1])
    assert grid.decode(grid.encode([0.5, -0.5])).tolist() == [0, 0]
    assert grid.decode(grid.encode([0.50001, -0.50001])).tolist() == [1, -1]


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(GridError, match=f"bits of apot lies between 2 and 8, not at {bits}"):
        AdditivePowerGrid(bits)
