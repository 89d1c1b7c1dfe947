"""Binary coding as a grid: parameters, text form, and one sentence where levels would be needed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from workbench.errors import GridError
from workbench.grids import BinaryCodingGrid, parse_grid


@pytest.mark.parametrize(
    "grid",
    [
        BinaryCodingGrid(),
        BinaryCodingGrid(1, bias=False),
        BinaryCodingGrid(4, solver="greedy"),
        BinaryCodingGrid(8, bias=False, solver="refined", rounds=3),
    ],
)
def test_text_pickle_and_hash_keep_the_grid(grid):
    assert parse_grid(str(grid)) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert len({grid, parse_grid(str(grid))}) == 1
    assert len(grid) == len(grid.codes) == 2**grid.bits
    assert grid.label in grid._repr_html_()


def test_text_form_names_what_differs_from_the_default():
    assert str(BinaryCodingGrid(3)) == "bcq:bits=3"
    assert str(BinaryCodingGrid(2, bias=False, solver="greedy")) == "bcq:bits=2,bias=false,solver=greedy"
    assert parse_grid("BCQ: bits=5, rounds=40") == BinaryCodingGrid(5, rounds=40)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bcq:bits=0", "between 1 and 8"),
        ("bcq:bits=9", "between 1 and 8"),
        ("bcq:bias=maybe", "true or false"),
        ("bcq:solver=greed", "did you mean greedy"),
        ("bcq:rounds=0", "between 1 and 1000"),
        ("bcq:exponent=0.5", "no parameter"),
    ],
)
def test_parameters_out_of_range_are_refused(text, says):
    with pytest.raises(GridError, match=says):
        parse_grid(text)


@pytest.mark.parametrize("ask", ["levels", "thresholds", "steps"])
def test_levels_are_refused_with_what_to_do(ask):
    with pytest.raises(GridError, match=r"fits them to each group of weights: quantize, error and exact_error take it"):
        getattr(BinaryCodingGrid(3), ask)


def test_encoding_without_weights_is_refused():
    with pytest.raises(GridError, match="no levels of its own"):
        BinaryCodingGrid(3).encode(np.zeros(3))
