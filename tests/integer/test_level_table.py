"""Level tables against the published reference values, brute force over every table, and the grids' own closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.grids.grid_zoo import ZOO
from workbench.errors import IntegerError
from workbench.grids import CodebookGrid, PowerGrid, UniformGrid
from workbench.integer.level_table import level_table


def errors(levels: np.ndarray, shares: np.ndarray, values: np.ndarray) -> float:
    """Return the relative error under the least-squares scale, with numpy's solver instead of the closed form."""
    root = np.sqrt(shares)
    scale = np.linalg.lstsq((root * values)[:, None], root * levels, rcond=None)[0][0]
    return float(np.sqrt((shares * (levels - scale * values) ** 2).sum() / (shares * levels**2).sum()))


@pytest.mark.parametrize(
    ("exponent", "values"),
    [(0.5, [0, 3, 10, 23, 41, 65, 93, 127]), (0.55, [0, 4, 13, 27, 46, 69, 96, 127])],
)
def test_four_bit_power_tables_have_the_reference_values(exponent, values):
    table = level_table(PowerGrid(bits=4, exponent=exponent), 8, peak=127)
    assert table.values[7:].tolist() == values
    assert table.values[:8].tolist() == [-value for value in reversed(values)]


@pytest.mark.parametrize("exponent", [0.5, 0.55, 0.7])
def test_sixteen_bits_miss_less_than_four_parts_in_a_hundred_thousand(exponent):
    weights = np.random.default_rng(0).standard_normal(1 << 16)
    grid = PowerGrid(bits=4, exponent=exponent)
    counts = np.bincount(grid.index(weights / np.abs(weights).max()), minlength=len(grid))
    assert level_table(grid, 16, occupancy=counts).relative_error < 4e-5
    assert level_table(grid, 16, occupancy=counts, peak=32767).relative_error < 4e-5


def test_eight_bit_error_on_a_gaussian_is_about_one_percent():
    weights = np.random.default_rng(0).standard_normal((512, 512))
    weights /= np.abs(weights).max(axis=1, keepdims=True)
    found = []
    for exponent in (0.5, 0.55):
        grid = PowerGrid(bits=4, exponent=exponent)
        counts = np.bincount(grid.index(weights).ravel(), minlength=len(grid))
        found.append(level_table(grid, 8, occupancy=counts, peak=127).relative_error)
    # Reference: 0.96 % and 0.44 % (another sample, another maximum).
    assert 0.006 < found[0] < 0.013
    assert 0.003 < found[1] < 0.007
    assert found[1] < found[0]


def test_exponent_one_half_needs_no_table():
    for bits, kind in ((4, np.int8), (4, np.int16), (8, np.int16)):
        table = level_table(PowerGrid(bits=bits, exponent=0.5), np.dtype(kind).itemsize * 8)
        codes = table.grid.codes
        assert table.recipe == "q*|q|"
        assert table.exact and not table.look_up and table.nbytes == 0
        assert table.values.dtype == kind
        assert table.values.tolist() == [int(q) * abs(int(q)) for q in codes]
        assert table.decode(codes).tolist() == table.values.tolist()
    np.testing.assert_allclose(table.scale * table.values, table.grid.levels, rtol=1e-15)


def test_squares_that_do_not_fit_are_tabulated():
    table = level_table(PowerGrid(bits=8, exponent=0.5), 8)
    assert table.look_up
    assert not table.exact
    assert np.abs(table.values.astype(int)).max() <= 127


@pytest.mark.parametrize("range_", ["narrow", "full", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_uniform_grids_are_their_own_integers(bits, range_):
    grid = UniformGrid(bits=bits, range=range_)
    table = level_table(grid, 8 if bits <= 8 else 16)
    assert table.recipe == "codes"
    assert table.exact
    assert np.diff(table.values.astype(int)).tolist() == [1] * (len(grid) - 1)
    np.testing.assert_allclose(table.scale * (table.values.astype(float) - table.zero), grid.levels, atol=1e-15)
    assert table.decode(grid.codes).tolist() == table.values.tolist()


def test_eight_bits_with_a_zero_point_are_int8():
    table = level_table("uniform:bits=8,range=asymmetric")
    assert table.values.dtype == np.int8
    assert (int(table.values.min()), int(table.values.max()), table.zero) == (-128, 127, -128)


@pytest.mark.parametrize(
    ("grid", "peak"), [("log:bits=4", 64), ("e2m1", 12), ("apot:bits=4", 10), ("power:bits=3,exponent=0.5", 9)]
)
def test_exact_tables_are_found_and_the_smallest_one_wins(grid, peak):
    table = level_table(grid, 8)
    assert table.exact
    assert int(table.values.max()) == peak


@pytest.mark.parametrize("grid", [grid for grid in ZOO if len(grid) <= 300], ids=str)
@pytest.mark.parametrize("bits", [8, 16])
def test_every_grid_has_integers_near_its_levels(grid, bits):
    table = level_table(grid, bits)
    limit = (1 << (bits - 1)) - 1
    assert table.values.dtype == np.dtype(f"int{bits}")
    assert table.values.min() >= -limit - 1 and table.values.max() <= limit
    assert (np.diff(table.values.astype(int)) >= 0).all()
    stands_for = table.scale * (table.values.astype(float) - table.zero)
    assert np.abs(stands_for - table.grid.levels).max() <= 0.75 / (limit / 2)
    shares = np.ones(len(table.values))
    assert table.relative_error == pytest.approx(
        errors(table.grid.levels, shares, table.values.astype(float) - table.zero), abs=1e-9
    )
    assert table.decode(table.grid.codes).tolist() == table.values.tolist()


def best_by_brute_force(levels: np.ndarray, shares: np.ndarray, limit: int) -> float:
    """Return the least error over a very fine scan of K: no table within the limit is better by more than its mesh."""
    top = (limit + 0.499) / np.abs(levels).max()
    scan = np.linspace(0.4, top, 6001)
    values = np.rint(scan[:, None] * levels)
    square, cross = (values**2) @ shares, values @ (shares * levels)
    scale = np.divide(cross, square, out=np.zeros_like(cross), where=square > 0)
    gap = levels - scale[:, None] * values
    return float(np.sqrt(((gap**2) @ shares).min() / (shares @ levels**2)))


@given(
    levels=st.lists(st.floats(-1, 1, allow_nan=False).map(lambda x: round(x, 6)), min_size=2, max_size=9, unique=True),
    weights=st.lists(st.integers(0, 9), min_size=9, max_size=9),
)
def test_eight_bit_search_is_exhaustive(levels, weights):
    if max(abs(level) for level in levels) < 0.05:
        levels = [*levels, 0.5]
    grid = CodebookGrid(tuple(levels))
    shares = np.array((weights * 2)[: len(grid)], dtype=float)
    if not shares[grid.levels != 0].any():
        shares[:] = 1.0
    table = level_table(grid, 8, occupancy=shares)
    assert table.relative_error <= best_by_brute_force(grid.levels, shares, 127) + 1e-12
    assert np.abs(table.values.astype(int)).max() <= 127


def test_occupancy_moves_the_search():
    grid = PowerGrid(bits=4, exponent=0.55)
    counts = np.zeros(15)
    counts[8] = counts[6] = 1000.0  # only the smallest levels occur
    counts[14] = 1.0
    table = level_table(grid, 8, occupancy=counts)
    even = level_table(grid, 8)
    own = errors(grid.levels, counts, even.values)
    assert table.relative_error < own


def test_shifted_grids_keep_fine_units_for_their_zero_point():
    table = level_table("power:bits=4,exponent=0.5,shifted=true", 16)
    assert table.recipe == "table"
    assert int(table.values.max()) > 16000


def test_decode_refuses_what_is_no_code():
    table = level_table("power:bits=4,exponent=0.55")
    with pytest.raises(IntegerError, match="from -7 to 7"):
        table.decode(np.array([8]))
    with pytest.raises(IntegerError, match="integers, not float64"):
        table.decode(np.array([0.5]))
    assert table.decode(np.zeros((0, 3), dtype=np.int8)).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 12}, "8 or 16 bits"),
        ({"peak": 128}, "from 1 to 127"),
        ({"peak": 1.5}, "from 1 to 127"),
        ({"occupancy": [1.0, 2.0]}, "one for each level"),
        ({"occupancy": np.full(15, -1.0)}, "0 or above"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(IntegerError, match=message):
        level_table("power:bits=4,exponent=0.55", **options)


def test_shows_itself():
    table = level_table("nf4", 8)
    frame = table.to_frame()
    assert list(frame.columns) == ["code", "level", "value", "stands for", "difference"]
    assert frame["difference"].abs().max() < 0.01
    assert "relative error" in repr(table)
    assert "exact" in repr(level_table("uniform:bits=4"))


def test_a_grid_without_fixed_levels_has_no_table():
    with pytest.raises(IntegerError, match="run the layer by lut_linear"):
        level_table("bcq:bits=3")
