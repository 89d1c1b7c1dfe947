"""Uniform grids against ``numpy.rint``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import GridError
from workbench.grids import UniformGrid


def closed_form(grid: UniformGrid, u: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(grid.n * np.asarray(u)), grid.codes[0], grid.codes[-1]).astype(np.int32)


EVERY = [
    UniformGrid(bits, kind)
    for kind in ("narrow", "full", "asymmetric")
    for bits in range(1, 17)
    if (bits, kind) != (1, "narrow")
]


@pytest.mark.parametrize("grid", EVERY, ids=str)
def test_encode_is_rint_everywhere_and_at_every_tie(grid):
    rng = np.random.default_rng(grid.bits)
    ties = (np.arange(-grid.n - 1, grid.n + 2) + 0.5) / grid.n
    u = np.concatenate(
        [
            rng.uniform(-1.2, 1.2, 4000),
            rng.standard_normal(4000).astype(np.float32) * 0.3,
            *(ties + step * np.spacing(ties) for step in (-2, -1, 0, 1, 2)),
            [0.0, -0.0, 1.0, -1.0],
        ]
    )
    np.testing.assert_array_equal(grid.encode(u), closed_form(grid, u))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(EVERY), st.floats(-2, 2))
def test_encode_is_rint_for_any_float(grid, u):
    assert grid.encode(u) == closed_form(grid, np.array(u))


def test_two_bits_narrow_is_ternary():
    np.testing.assert_array_equal(UniformGrid(2).levels, [-1, 0, 1])


def test_ranges():
    np.testing.assert_array_equal(UniformGrid(3).levels * 3, [-3, -2, -1, 0, 1, 2, 3])
    np.testing.assert_array_equal(UniformGrid(3, "full").levels * 4, [-4, -3, -2, -1, 0, 1, 2, 3])
    np.testing.assert_array_equal(UniformGrid(2, "asymmetric").levels, np.array([0, 1, 2, 3]) / 3)
    assert [UniformGrid(4, kind).normalization for kind in ("narrow", "full", "asymmetric")] == [
        "absmax",
        "signed",
        "range",
    ]
    assert [UniformGrid(4, kind).integer_zero_point for kind in ("narrow", "full", "asymmetric")] == [
        False,
        False,
        True,
    ]


def test_numpy_integers_are_bits():
    assert UniformGrid(np.int64(4)) == UniformGrid(4)
    assert type(UniformGrid(np.int64(4)).bits) is int


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"bits": 1}, r"bits of uniform \(narrow\) lies between 2 and 16, not at 1"),
        ({"bits": 17}, "lies between 2 and 16, not at 17"),
        ({"bits": 0, "range": "full"}, "lies between 1 and 16, not at 0"),
        ({"bits": 4.5}, "whole number from 2 to 16, not 4.5"),
        ({"bits": "4"}, "whole number from 2 to 16, not '4'"),
        ({"bits": True}, "whole number from 2 to 16, not True"),
        (
            {"range": "asym"},
            r"range of uniform is one of narrow, full, asymmetric, not 'asym' \(did you mean asymmetric",
        ),
        ({"range": None}, "one of narrow, full, asymmetric, not None"),
    ],
)
def test_parameters_out_of_range(parameters, sentence):
    with pytest.raises(GridError, match=sentence):
        UniformGrid(**parameters)
