"""Codebooks; NF4 against bitsandbytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import GridError
from workbench.grids import CodebookGrid, parse_grid


def test_nf4_is_bitsandbytes_table():
    functional = pytest.importorskip("bitsandbytes.functional")
    table = functional.get_4bit_type("nf4", device="cpu").double().numpy()
    np.testing.assert_array_equal(CodebookGrid("nf4").levels, table)


def test_nf4_codes_are_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    torch = pytest.importorskip("torch")
    u = np.random.default_rng(0).uniform(-1, 1, 64 * 512).astype(np.float32)
    u[::64] = 1.0  # the absmax of each block of 64
    packed, _ = functional.quantize_4bit(torch.from_numpy(u), blocksize=64, quant_type="nf4")
    packed = packed.numpy().ravel()
    theirs = np.stack([packed >> 4, packed & 15], axis=1).ravel()
    grid = CodebookGrid("nf4")
    border = np.abs(u[:, None] - grid.thresholds).min(axis=1) < 1e-6  # theirs are float32 constants
    assert border.mean() < 1e-3
    np.testing.assert_array_equal(grid.encode(u)[~border], theirs[~border])


def test_a_tie_goes_to_the_lower_level():
    grid = CodebookGrid((-1, 0, 0.5, 1))
    assert grid.encode([-0.5, 0.25, 0.75, np.nextafter(0.75, 1)]).tolist() == [0, 1, 2, 3]


def test_levels_are_sorted_and_brought_within_one():
    assert CodebookGrid([4, -8, 0]).levels.tolist() == [-1.0, 0.0, 0.5]
    assert CodebookGrid([0.5, -0.25]).levels.tolist() == [-0.25, 0.5]
    assert CodebookGrid(np.float32([0.5, -0.25])) == CodebookGrid((-0.25, 0.5))
    assert CodebookGrid([-0.0, 1]).levels.tolist() == [0.0, 1.0]
    assert not np.signbit(CodebookGrid([-0.0, 1]).levels[0])


def test_a_known_table_takes_its_name():
    nf4 = CodebookGrid(CodebookGrid("nf4").levels)
    assert nf4 == CodebookGrid("nf4") == CodebookGrid(" NF4 ") == parse_grid("nf4")
    assert (str(nf4), nf4.family, nf4.bits, nf4.label) == ("nf4", "nf4", 4, "NF4")
    assert CodebookGrid((0, 1)).family == "codebook"


@pytest.mark.parametrize(("count", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (256, 8)])
def test_bits_of_a_code(count, bits):
    assert CodebookGrid(np.linspace(-1, 1, count)).bits == bits


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=300, unique_by=lambda x: x + 0.0))
def test_text_carries_every_digit(levels):
    grid = CodebookGrid(levels)
    assert parse_grid(str(grid)) == grid
    np.testing.assert_array_equal(parse_grid(str(grid)).levels, np.sort(levels))
    assert len(repr(grid)) < 600


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("nf5", r"there is no codebook named 'nf5' \(did you mean nf4\?\); known: nf4"),
        ([], "2 to 65536 levels, not 0"),
        ([1.0], "2 to 65536 levels, not 1"),
        ([0.0, 0.5, 0.5], "but 0.5 is there twice"),
        ([0.0, -0.0], "but 0.0 is there twice"),
        ([0.0, float("inf")], "a level of codebook is a finite number, not inf"),
        (["a", "b"], "finite number, not 'a'"),
        (4, "a codebook is a name or a list of numbers, not 4"),
        (None, "a name or a list of numbers, not None"),
    ],
)
def test_tables_that_cannot_serve(table, sentence):
    with pytest.raises(GridError, match=sentence):
        CodebookGrid(table)
