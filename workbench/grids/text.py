"""Grids as text: ``parse_grid("power:bits=4,exponent=0.55")``, and back with ``str(grid)``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_type_hints

from workbench.errors import GridError
from workbench.grids.additive import AdditivePowerGrid
from workbench.grids.binary_coding import BinaryCodingGrid
from workbench.grids.checks import nearest, shown
from workbench.grids.codebook import CODEBOOKS, CodebookGrid
from workbench.grids.floating import FLOAT_PRESETS, FloatGrid
from workbench.grids.grid import Grid
from workbench.grids.logarithmic import LogGrid
from workbench.grids.power import PowerGrid
from workbench.grids.uniform import UniformGrid

FAMILIES: dict[str, type[Grid]] = {
    grid.family: grid
    for grid in (UniformGrid, PowerGrid, LogGrid, AdditivePowerGrid, FloatGrid, CodebookGrid, BinaryCodingGrid)
}
"""The families by the first word of their text form. A new family is added here."""

PRESETS: tuple[str, ...] = (*FLOAT_PRESETS, *CODEBOOKS)
"""Grids that have a name of their own."""


def brief_grid(grid: str | Grid) -> str:
    """Return a grid's text form for people: four digits of a learned number, and how many levels a learned codebook has.

    >>> brief_grid("power:bits=4,exponent=0.8013597204950223")
    'power:bits=4,exponent=0.8014'
    """
    text = str(grid)
    if text.startswith("codebook:levels="):
        return f"codebook of {text.count('/') + 1} levels"
    return re.sub(r"\d+\.\d{5,}", lambda found: f"{float(found[0]):.4g}", text)


def parse_grid(text: str | Grid) -> Grid:
    """Read a grid from its text form; a grid itself passes through.

    ``family:name=value,...`` such as ``uniform:bits=4``, ``uniform:bits=4,range=asymmetric``,
    ``power:bits=4,exponent=0.55,rounding=nearest``, ``log:bits=4``, ``apot:bits=4``,
    ``float:exponent_bits=3,mantissa_bits=4``, ``codebook:levels=-1.0/0.0/0.5/1.0``, ``bcq:bits=3``; or a name: ``nf4``,
    ``e2m1``, ``e4m3``, ``mxfp4``, ``nvfp4``, ... Capitals and spaces do not matter; what is left out has its default.

    >>> parse_grid("power:bits=4,exponent=0.55")
    PowerGrid(bits=4, exponent=0.55, rounding='power', signed=True, shifted=False)
    >>> str(parse_grid("float:exponent_bits=2,mantissa_bits=1,scale_format=e8m0,block=32"))
    'mxfp4'

    Raises:
        GridError: the text names no grid, or a parameter is unknown, unreadable or out of range.
    """
    if isinstance(text, Grid):
        return text
    if not isinstance(text, str):
        message = f"a grid is written as text such as power:bits=4,exponent=0.55, not {shown(text)}"
        raise GridError(message)
    word, colon, rest = text.strip().lower().partition(":")
    word = word.strip()
    if word in PRESETS:
        if colon:
            message = f"{word} is a whole grid and takes no parameters, so {shown(':' + rest)} says too much"
            raise GridError(message)
        return FloatGrid(**FLOAT_PRESETS[word]) if word in FLOAT_PRESETS else CodebookGrid(word)
    if word not in FAMILIES:
        known = [*FAMILIES, *PRESETS]
        message = f"there is no grid named {shown(word)}{nearest(word, known)}; known: {', '.join(known)}"
        raise GridError(message)
    family = FAMILIES[word]
    return family(**_read_parameters(family, rest))


def _read_parameters(family: type[Grid], rest: str) -> dict[str, Any]:
    """Read ``name=value,...`` into the constructor's arguments."""
    readers = _readers(family)
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest.strip() else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            message = (
                f"{shown(part.strip())} is no parameter of {family.family}; write name=value, as in {_example(family)}"
            )
            raise GridError(message)
        if name not in readers:
            listed = ", ".join(readers)
            message = f"{family.family} has no parameter {shown(name)}{nearest(name, list(readers))}; it has {listed}"
            raise GridError(message)
        field, read = readers[name]
        if field in given:
            message = f"{name} is given twice in {shown(rest)}; give it once"
            raise GridError(message)
        given[field] = read(value, f"{name} of {family.family}")
    return given


@cache
def _readers(family: type[Grid]) -> dict[str, tuple[str, Callable[[str, str], Any]]]:
    """Return, for each parameter's name in the text, the field and how its value is read (by the field's type)."""
    if family is CodebookGrid:
        return {"levels": ("table", _read_levels)}
    hints = get_type_hints(family)
    return {field.name: (field.name, _reader(hints[field.name])) for field in fields(family)}  # pyright: ignore[reportArgumentType]


def _reader(hint: Any) -> Callable[[str, str], Any]:
    """Return how a value of this type is read; what is no number or bool is a word that the constructor checks."""
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        return _read_bool
    if float in kinds:
        return _read_float
    return _read_int if int in kinds else _read_word


def _read_int(value: str, what: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", value):
        message = f"{what} is a whole number, not {shown(value)}"
        raise GridError(message)
    return int(value)


def _read_float(value: str, what: str) -> float:
    # float() alone would also take "1_0" and digits of other scripts
    if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", value):
        message = f"{what} is a number such as 0.55, not {shown(value)}"
        raise GridError(message)
    return float(value)


def _read_bool(value: str, what: str) -> bool:
    if value not in {"true", "false"}:
        message = f"{what} is true or false, not {shown(value)}"
        raise GridError(message)
    return value == "true"


def _read_word(value: str, what: str) -> str:
    if not value:
        message = f"{what} is empty; leave it out for its default"
        raise GridError(message)
    return value


def _read_levels(value: str, what: str) -> tuple[float, ...]:
    return tuple(_read_float(part.strip(), f"each of the {what}") for part in value.split("/"))


def _example(family: type[Grid]) -> str:
    """Return a text form of this family that can be copied."""
    if family is CodebookGrid:
        return "codebook:levels=-1.0/0.0/1.0"
    example = family()
    return ":".join([family.family, ",".join(f"{name}={value}" for name, value in example._parameters())])
