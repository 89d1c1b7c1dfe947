"""The fused error pass against the definition in plain float64 numpy."""

import numpy as np
import pytest
from definition import decode_block, encode_block
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_zoo import GRIDS, matrices

from workbench.grids import parse_grid
from workbench.kernels.borders import both_orders, group_borders
from workbench.kernels.encode import decode_rows, encode_rows
from workbench.kernels.exact import candidate_errors, error_sums
from workbench.kernels.tables import table_of


def oracle(w, grid, scale, offset, group):
    index = encode_block(w, grid, scale, offset, group)
    decoded = decode_block(index, grid, scale, offset, group)
    return index, decoded


def scales(w, group, factor, dead, rng):
    groups = -(-w.shape[1] // group)
    wide = np.abs(w.astype(np.float64))
    starts = np.arange(0, w.shape[1], group)
    scale = (np.maximum.reduceat(wide, starts, axis=1) * factor).astype(np.float32)
    if dead:
        scale[rng.random((len(w), groups)) < 0.3] = 0.0
    return scale


@settings(max_examples=50)
@given(
    matrices(),
    st.sampled_from(GRIDS),
    st.sampled_from([1, 7, 32, 128, 300]),
    st.sampled_from([1.0, 0.37, -1.0, -0.8, 1.5]),
    st.sampled_from([0.0, 0.5, 7 / 15, 0.123456]),
    st.booleans(),
)
def test_sums_and_codes_are_those_of_the_definition(w, text, group, factor, shift, dead):  # noqa: PLR0917
    grid = parse_grid(text)
    scale = scales(w, group, factor, dead, np.random.default_rng(0))
    offset = np.full(scale.shape, shift)
    index, decoded = oracle(w, grid, scale, offset, group)
    found = encode_rows(w, grid, scale, offset, group)
    np.testing.assert_array_equal(found, index)
    np.testing.assert_array_equal(decode_rows(found, grid, scale, offset, group), decoded)
    wide, back = w.astype(np.float64), decoded.astype(np.float64)
    difference = wide - back
    sums = error_sums(w, grid, scale, offset, group)
    np.testing.assert_allclose(sums.error, (difference**2).sum(axis=1), rtol=1e-11)
    np.testing.assert_allclose(sums.weight, (wide**2).sum(axis=1), rtol=1e-11)
    np.testing.assert_allclose(sums.decoded, (back**2).sum(axis=1), rtol=1e-11)
    np.testing.assert_array_equal(sums.largest, np.abs(difference).max(axis=1))
    starts = np.arange(0, w.shape[1], group)
    several = candidate_errors(w, grid, np.stack([scale, 0.9 * scale]), np.stack([offset, offset]), group)
    np.testing.assert_allclose(several[0], np.add.reduceat(difference**2, starts, axis=1), rtol=1e-11)
    reach = np.maximum.reduceat(np.abs(difference), starts, axis=1)
    steps = np.divide(reach, np.abs(scale, dtype=np.float64), out=np.zeros_like(reach), where=scale != 0)
    np.testing.assert_allclose(sums.steps, steps.max(axis=1), rtol=1e-12)


@pytest.mark.parametrize("text", GRIDS)
def test_one_scale_for_all_rows(text):
    grid = parse_grid(text)
    w = (np.random.default_rng(3).standard_normal((200, 33)) * 0.1).astype(np.float32)
    scale, offset = np.array([[0.3]], dtype=np.float32), np.zeros((1, 1))
    _, decoded = oracle(w, grid, scale, offset, 33)
    sums = error_sums(w, grid, scale, offset, 33)
    expected = ((w.astype(np.float64) - decoded) ** 2).sum(axis=1)
    np.testing.assert_allclose(sums.error, expected, rtol=1e-11)


@settings(max_examples=40)
@given(
    st.sampled_from(GRIDS),
    st.floats(-1e4, 1e4, width=32).filter(lambda s: abs(s) > 1e-30),
    st.sampled_from([0.0, 0.5, 0.25, 3 / 7, 1 / 3]),
)
def test_borders_are_the_smallest_float32_beyond_each_threshold(text, scale, shift):
    grid = parse_grid(text)
    thresholds, levels = both_orders(grid.thresholds, grid.levels)
    borders = np.empty(thresholds.shape[1], dtype=np.float32)
    values = np.empty(levels.shape[1], dtype=np.float32)
    group_borders(thresholds, levels, np.float32(scale), shift, borders, values)
    ordered = grid.thresholds if scale > 0 else grid.thresholds[::-1]
    found = borders[: len(ordered)]
    finite = np.isfinite(found)

    def beyond(w):
        u = w.astype(np.float64) / np.float64(np.float32(scale)) + shift
        return (u >= ordered) == (scale > 0)

    assert beyond(found)[finite].all()
    assert not beyond(np.nextafter(found, np.float32(-np.inf)))[finite].any()
    assert (borders[len(ordered) :] == np.inf).all()


def test_a_threshold_at_the_offset_itself_is_found():
    # u = w / s + 0.5 rounds to 0.5 for every tiny w: the border is far from zero in floats, near it in value.
    borders, values = np.empty(8, dtype=np.float32), np.empty(16, dtype=np.float32)
    thresholds, levels = both_orders(np.array([0.5]), np.array([0.0, 1.0]))
    group_borders(thresholds, levels, np.float32(3.0), 0.5, borders, values)
    border = borders[0]
    assert np.float64(border) / 3.0 + 0.5 >= 0.5
    assert np.float64(np.nextafter(border, np.float32(-1))) / 3.0 + 0.5 < 0.5


@pytest.mark.parametrize("text", [*GRIDS, "uniform:bits=16", "power:bits=16,exponent=0.3"])
def test_tables_settle_every_place_in_a_few_steps(text):
    grid = parse_grid(text)
    table = table_of(grid.thresholds, grid.levels)
    assert len(table.first) <= 1 << 17
    if len(grid.levels) <= 256 and grid.family in {"uniform", "power", "float", "nf4"}:
        assert table.steps == 1
    assert (np.diff(table.first) >= 0).all()
    assert table.first[0] == 0
    assert table.first[-1] + table.steps >= len(grid.thresholds)
