"""The text form of grids: what is read, what is written, and what is said about mistakes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workbench.errors import GridError
from workbench.grids import (
    FAMILIES,
    PRESETS,
    AdditivePowerGrid,
    CodebookGrid,
    FloatGrid,
    Grid,
    LogGrid,
    PowerGrid,
    UniformGrid,
    parse_grid,
)
from workbench.grids.text import brief_grid

READ = {
    "uniform": UniformGrid(4),
    "uniform:bits=4": UniformGrid(4),
    "uniform:bits=8,range=asymmetric": UniformGrid(8, "asymmetric"),
    " Uniform : BITS = 3 , range=full ": UniformGrid(3, "full"),
    "power:bits=4,exponent=0.55": PowerGrid(4, 0.55),
    "power:exponent=5.5e-1": PowerGrid(4, 0.55),
    "power:bits=4,exponent=1": PowerGrid(4, 1.0),
    "power:bits=4,exponent=.5,rounding=nearest": PowerGrid(4, 0.5, "nearest"),
    "power:bits=4,exponent=0.5,signed=false": PowerGrid(4, 0.5, signed=False),
    "power:bits=4,exponent=0.5,shifted=true": PowerGrid(4, 0.5, shifted=True),
    "log:bits=5,rounding=log": LogGrid(5, "log"),
    "apot:bits=4": AdditivePowerGrid(4),
    "float:exponent_bits=3,mantissa_bits=4": FloatGrid(3, 4),
    "float:exponent_bits=2,mantissa_bits=1,scale_format=e8m0,block=32": FloatGrid(2, 1, scale_format="e8m0", block=32),
    "nf4": CodebookGrid("nf4"),
    "MXFP4": FloatGrid(2, 1, scale_format="e8m0", block=32),
    "e4m3": FloatGrid(4, 3),
    "codebook:levels=-1.0/0/0.5/1": CodebookGrid((-1, 0, 0.5, 1)),
}

WRITTEN = {
    UniformGrid(4): "uniform:bits=4",
    UniformGrid(4, "asymmetric"): "uniform:bits=4,range=asymmetric",
    PowerGrid(4, 0.55): "power:bits=4,exponent=0.55",
    PowerGrid(4, 1 / 3, "nearest"): "power:bits=4,exponent=0.3333333333333333,rounding=nearest",
    PowerGrid(4, signed=False): "power:bits=4,exponent=0.5,signed=false",
    LogGrid(4): "log:bits=4",
    AdditivePowerGrid(4): "apot:bits=4",
    FloatGrid(3, 4): "float:exponent_bits=3,mantissa_bits=4",
    FloatGrid(3, 4, special="ieee"): "float:exponent_bits=3,mantissa_bits=4,special=ieee",
    FloatGrid(2, 1, scale_format="e4m3", block=16): "nvfp4",
    FloatGrid(5, 2, special="ieee"): "e5m2",
    CodebookGrid((-2, 0.5)): "codebook:levels=-1.0/0.25",
}

MISTAKES = {
    "": "there is no grid named ''",
    "powr:bits=4": r"no grid named 'powr' \(did you mean power\?\); known: uniform, power",
    "unifrom:bits=4": r"did you mean uniform\?",
    "mxfp5": r"did you mean mxfp4\?",
    "int4": "no grid named 'int4'",
    "power:bit=4": r"power has no parameter 'bit' \(did you mean bits\?\); it has bits, exponent, rounding, signed",
    "power:expnent=0.5": r"did you mean exponent\?",
    "power:bits=4;exponent=0.5": "bits of power is a whole number, not '4;exponent=0.5'",
    "power:4": "'4' is no parameter of power; write name=value, as in power:bits=4,exponent=0.5",
    "power:bits=4,": "'' is no parameter of power",
    "power:bits=": "bits of power is a whole number, not ''",
    "power:bits=4,bits=5": "bits is given twice",
    "power:bits=4.0": "bits of power is a whole number, not '4.0'",
    "power:bits=٤": "bits of power is a whole number",
    "power:bits=" + "9" * 50: "bits of power is a whole number",
    "power:bits=" + "9" * 40: "lies between 2 and 16, not at 9",
    "power:exponent=half": "exponent of power is a number such as 0.55, not 'half'",
    "power:exponent=nan": "is a number such as 0.55, not 'nan'",
    "power:exponent=1e999": "exponent of power is a finite number, not inf",
    "power:exponent=3": "above 0 and at most 2, not 3.0",
    "power:signed=yes": "signed of power is true or false, not 'yes'",
    "power:rounding=": "rounding of power is empty; leave it out for its default",
    "uniform:range=asymetric": r"did you mean asymmetric\?",
    "nf4:bits=3": "nf4 is a whole grid and takes no parameters, so ':bits=3' says too much",
    "codebook:levels=": "each of the levels of codebook is a number such as 0.55, not ''",
    "codebook:levels=1/x": "not 'x'",
    "codebook:levels=1/1": "1.0 is there twice",
    "codebook:-1/1": "write name=value, as in codebook:levels=-1.0/0.0/1.0",
    "float:bias=3": "float has no parameter 'bias'",
    "x" * 500: r"no grid named 'x+\.\.\.;",
}


@pytest.mark.parametrize("text", READ)
def test_read(text):
    assert parse_grid(text) == READ[text]


@pytest.mark.parametrize("grid", WRITTEN, ids=str)
def test_written(grid):
    assert str(grid) == WRITTEN[grid]
    assert parse_grid(str(grid)) == grid


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:30])
def test_mistakes(text):
    with pytest.raises(GridError, match=MISTAKES[text]) as caught:
        parse_grid(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thing", [None, 4, b"nf4", ["nf4"], 0.5])
def test_what_is_no_text(thing):
    with pytest.raises(GridError, match=r"a grid is written as text such as power:bits=4,exponent=0\.55, not"):
        parse_grid(thing)


def test_a_grid_passes_through():
    grid = PowerGrid(4, 0.3)
    assert parse_grid(grid) is grid


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_written_by_their_name(name):
    assert str(parse_grid(name)) == name
    assert parse_grid(name.upper()) == parse_grid(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_by_its_name(name):
    grid = parse_grid(name)
    assert type(grid) is FAMILIES[name]
    assert parse_grid(str(grid)) == grid


WORDS = [
    *FAMILIES,
    *PRESETS,
    "bits",
    "exponent",
    "range",
    "levels",
    "block",
    "rounding",
    "signed",
    "full",
    "log",
    "true",
]
near_grids = st.lists(
    st.one_of(st.sampled_from([*WORDS, *":=,/ -.", "4", "0.5", "1e3"]), st.text(max_size=3)), max_size=12
).map("".join)


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(max_size=40), near_grids))
@example("power:bits=4,exponent=0.5\x00")
@example("float:block=99999999999999999999")
@example("codebook:levels=" + "/".join(str(x) for x in range(70000)))
def test_any_text_gives_a_grid_or_a_grid_error(text):
    try:
        grid = parse_grid(text)
    except GridError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert isinstance(grid, Grid)
        assert parse_grid(str(grid)) == grid


def test_a_grid_in_brief_is_for_people():
    assert brief_grid(PowerGrid(4, 0.8013597204950223)) == "power:bits=4,exponent=0.8014"
    assert brief_grid(PowerGrid(4, 0.5)) == "power:bits=4,exponent=0.5"
    assert brief_grid(CodebookGrid((-1.0, 0.123456789, 1.0))) == "codebook of 3 levels"
    assert brief_grid("uniform:bits=4") == "uniform:bits=4"
