"""What holds for every grid: the contract of ``Grid``."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from grid_zoo import GRIDS, ZOO
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import GridError
from workbench.grids import CodebookGrid, Grid, PowerGrid, UniformGrid, parse_grid

every_grid = pytest.mark.parametrize("grid", ZOO, ids=lambda grid: str(grid)[:60])


def check_arrays(grid: Grid) -> None:
    levels, thresholds, codes = grid.levels, grid.thresholds, grid.codes
    assert levels.dtype == thresholds.dtype == np.float64
    assert codes.dtype == np.int32
    assert len(levels) == len(codes) == len(thresholds) + 1 == len(grid) >= 2
    assert len(np.unique(codes)) == len(codes)
    assert len(grid) <= 2**grid.bits
    assert np.all(np.diff(levels) > 0)
    assert np.all(levels[:-1] < thresholds)
    assert np.all(thresholds <= levels[1:])
    assert not np.any(np.signbit(levels[levels == 0]))
    np.testing.assert_array_equal(grid.steps, np.diff(levels))


@every_grid
def test_levels_thresholds_and_codes_fit_together(grid):
    check_arrays(grid)
    if not isinstance(grid, CodebookGrid) or grid.table == "nf4":
        assert np.abs(grid.levels).max() == 1.0


@settings(max_examples=50, deadline=None)
@given(GRIDS)
def test_any_parameters_give_a_sound_grid(grid):
    check_arrays(grid)
    assert parse_grid(str(grid)) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid
    np.testing.assert_array_equal(grid.encode(grid.levels), grid.codes)


@every_grid
def test_a_threshold_is_the_first_float_of_the_upper_level(grid):
    index = np.arange(len(grid.thresholds))
    np.testing.assert_array_equal(grid.index(grid.thresholds), index + 1)
    np.testing.assert_array_equal(grid.index(np.nextafter(grid.thresholds, -np.inf)), index)


@every_grid
def test_decode_undoes_encode_on_levels(grid):
    np.testing.assert_array_equal(grid.decode(grid.codes), grid.levels)
    np.testing.assert_array_equal(grid.decode(grid.encode(grid.levels)), grid.levels)
    shuffled = np.random.default_rng(0).permutation(grid.codes)[: len(grid) // 2 * 2].reshape(2, -1)
    np.testing.assert_array_equal(grid.encode(grid.decode(shuffled)), shuffled)


@every_grid
def test_values_outside_saturate(grid):
    ends = [grid.codes[0], grid.codes[-1]]
    np.testing.assert_array_equal(grid.encode([-np.inf, np.inf]), ends)
    np.testing.assert_array_equal(grid.encode([-1e300, 1e300]), ends)


@every_grid
def test_pickle_copy_hash_and_text_give_an_equal_grid(grid):
    assert grid.thresholds.size  # cached arrays do not travel in the pickle
    stored = pickle.dumps(grid)
    assert len(stored) < 300 + 10 * len(repr(getattr(grid, "table", "")))
    for twin in (pickle.loads(stored), copy.copy(grid), copy.deepcopy(grid), parse_grid(str(grid))):
        assert twin == grid
        assert hash(twin) == hash(grid)
        assert str(twin) == str(grid)
        np.testing.assert_array_equal(twin.levels, grid.levels)
        np.testing.assert_array_equal(twin.thresholds, grid.thresholds)


@every_grid
def test_arrays_are_kept_and_cannot_be_written(grid):
    for name in ("levels", "thresholds", "codes"):
        array = getattr(grid, name)
        assert getattr(grid, name) is array
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@every_grid
def test_label_and_html_say_what_it_is(grid):
    assert 0 < len(grid.label) < 60
    page = grid._repr_html_()
    assert f"{grid.bits}-bit codes, {len(grid)} levels" in page
    assert page.count("<svg") == page.count("</svg>") == 1
    assert len(page) < 12_000


def test_the_drawing_has_a_tick_for_each_level():
    assert parse_grid("power:bits=4")._repr_html_().count("V2") == 15


def test_grids_of_the_zoo_have_different_texts_and_labels():
    assert len({str(grid) for grid in ZOO}) == len(ZOO)
    assert len(set(ZOO)) == len(ZOO)


def test_decode_refuses_what_is_no_code():
    with pytest.raises(GridError, match=r"uniform:bits=4 has no code 8; its codes run from -7 to 7"):
        UniformGrid(4).decode([0, 8])
    with pytest.raises(GridError, match="no code -8"):
        UniformGrid(4).decode(-8)
    with pytest.raises(GridError, match="codes are integers, not float64"):
        UniformGrid(4).decode([0.5])


def test_encode_keeps_the_shape():
    grid = PowerGrid(4, 0.5)
    assert grid.encode(0.3).shape == ()
    assert grid.encode(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert grid.encode(np.ones((2, 3), dtype=np.float16)).dtype == np.int32
    assert grid.decode(np.ones((2, 3), dtype=np.uint8)).shape == (2, 3)


@settings(max_examples=50, deadline=None)
@given(GRIDS, st.floats(-2, 2))
def test_encoding_is_monotone_and_near(grid, u):
    """A value between two levels takes one of the two."""
    level = float(grid.decode(grid.encode(u)))
    between = np.sort([u, level])
    inside = grid.levels[(grid.levels > between[0]) & (grid.levels < between[1])]
    assert inside.size == 0
