"""Activation codings as text: words of integer runs, grids, what shares a scale, and what nonsense is told."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from workbench.errors import RecipeError
from workbench.grids import PowerGrid, UniformGrid
from workbench.integer.codings import SHIFT_SHARE as INTEGER_SHIFT_SHARE
from workbench.integer.codings import value_for_range
from workbench.quantization.activations import SHIFT_SHARE, WORDS, ActivationCoding, parse_activation
from workbench.quantization.recipe import ACTIVATIONS

TEXTS = [
    "int8",
    "int8:symmetric",
    "uint8@token",
    "int16",
    "uniform:bits=4",
    "uniform:bits=4,range=asymmetric@token",
    "uniform:bits=4,range=full@group:32",
    "power:bits=8,exponent=0.5",
    "power:bits=8,exponent=search",
    "power:bits=4,exponent=search,rounding=nearest@token",
    "power:bits=4,exponent=0.5,signed=true",
    "power:bits=4,exponent=0.5,signed=false@token",
    "power:bits=4,exponent=0.5,shifted=true@group:8",
    "e4m3@token",
    "nf4",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_form_reads_back_equal(text):
    coding = parse_activation(text)
    assert str(coding) == text
    assert parse_activation(str(coding)) == coding
    assert pickle.loads(pickle.dumps(coding)) == coding
    assert parse_activation(coding) is coding


def test_static_is_what_nothing_means_and_spaces_and_capitals_do_not_count():
    assert parse_activation("int8@static") == parse_activation("INT8") == parse_activation(" int8 ")
    assert parse_activation("Uniform: bits=4 @ Token").mode == "token"
    assert parse_activation("uniform:bits=4@group:16").size == 16


def test_float_stays_float():
    assert parse_activation("float") is None
    assert parse_activation(None) is None


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_words_mean_what_integer_runs_mean(word):
    """A value's codes stand for the levels of the word's grid over the same range."""
    coding = parse_activation(word)
    low, high = -1.3, 2.9
    value = value_for_range("x", low, high, word)
    grid = coding.grid
    assert len(grid.levels) == (2**16 - 1 if word == "int16" else int(value.high) - int(value.low) + 1)
    scale = max(-low, high) if grid.normalization == "absmax" else high - low
    assert float(value.scale) == pytest.approx(scale / grid.n, rel=1e-6)
    if grid.integer_zero_point:
        code = int(value.zero_point) - int(np.iinfo(value.dtype).min)
        assert code == int(np.rint(-low / scale * grid.n))


def test_the_line_between_one_sided_and_two_sided_is_that_of_integer_runs():
    assert SHIFT_SHARE == INTEGER_SHIFT_SHARE
    assert set(WORDS) == set(ACTIVATIONS)
    coding = parse_activation("power:bits=8,exponent=0.5")
    for low, high in [(0.0, 1.0), (-0.2, 1.0), (-1.0, 1.0)]:
        value = value_for_range("x", low, high, "power:bits=8,exponent=0.5")
        found = coding.for_range(low, high)
        assert (value.grid is None) == (str(found) == "int8")
        if value.grid is not None:
            assert value.grid == found.grid


def test_a_power_grid_of_few_bits_keeps_its_bits_where_values_have_both_signs():
    coding = parse_activation("power:bits=4,exponent=0.5")
    assert coding.for_range(-1.0, 1.0).grid == PowerGrid(bits=4, exponent=0.5)
    assert coding.for_range(0.0, 1.0).grid == PowerGrid(bits=4, exponent=0.5, signed=False)
    token = parse_activation("power:bits=8,exponent=0.5@token").for_range(-1.0, 1.0)
    assert token.grid == PowerGrid(bits=8, exponent=0.5)
    given = parse_activation("power:bits=8,exponent=0.5,signed=true")
    assert given.for_range(0.0, 1.0).grid == PowerGrid(bits=8, exponent=0.5)


def test_a_searched_exponent_is_put_in():
    coding = parse_activation("power:bits=4,exponent=search")
    assert coding.search
    found = coding.for_range(0.0, 2.0, exponent=0.7)
    assert not found.search
    assert found.grid.exponent == 0.7
    assert parse_activation("uniform:bits=4").for_range(-1, 1) == parse_activation("uniform:bits=4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int9", "no activation coding"),
        ("", "no activation coding"),
        ("int8@", "@static, @token or @group:128"),
        ("int8@row", "@static, @token or @group:128"),
        ("int8@group:0", "@static, @token or @group:128"),
        ("int8@group", "@static, @token or @group:128"),
        ("float@token", "write float"),
        ("uniform:bits=4,exponent=search", "only a power grid"),
        ("power:bits=99", "no activation coding"),
        ("bcq:bits=3", "plain number"),
        ("mxfp4", "plain number"),
        (8, "is a text"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(text, words):
    with pytest.raises(RecipeError, match=words):
        parse_activation(text)


def test_a_coding_checks_itself():
    with pytest.raises(RecipeError, match="per group of a size"):
        ActivationCoding(UniformGrid(), "group")
    with pytest.raises(RecipeError, match="per group of a size"):
        ActivationCoding(UniformGrid(), "row")
    with pytest.raises(RecipeError, match="at least one channel"):
        ActivationCoding(UniformGrid(), "group", 0)
    with pytest.raises(RecipeError, match="exponent to search"):
        ActivationCoding(UniformGrid(), search=True)
