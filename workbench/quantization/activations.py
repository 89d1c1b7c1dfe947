"""How a layer's inputs are coded: ``int8``, ``uniform:bits=4@token``, ``power:bits=8,exponent=0.5@group:32``.

    coding = parse_activation("uniform:bits=4,range=asymmetric@token")
    coding.grid, coding.mode        # UniformGrid(bits=4, range='asymmetric'), 'token'
    str(coding)                     # 'uniform:bits=4,range=asymmetric@token'

The first part is a word of integer runs or a grid; after ``@`` stands what shares one scale, and when it is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from workbench.errors import GridError, RecipeError
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.grids.grid import Grid

Mode = Literal["static", "token", "group"]

#: Words of integer runs and the grid that each one's codes form (``integer/codings.py``): 8 bits with a zero point, 8 or 16
#: bits without.
WORDS: dict[str, UniformGrid] = {
    "int8": UniformGrid(bits=8, range="asymmetric"),
    "int8:symmetric": UniformGrid(bits=8, range="narrow"),
    "uint8": UniformGrid(bits=8, range="asymmetric"),
    "int16": UniformGrid(bits=16, range="narrow"),
}

#: A range whose negative part is at most this share of it is shifted onto a one-sided power grid (GELU -0.17, SiLU -0.28);
#: integer runs draw the same line.
SHIFT_SHARE = 0.25

_SEARCH = "exponent=search"
_SHAPE = "int8, uint8, int16, or a grid such as power:bits=8,exponent=0.5; then @static, @token or @group:128"


@dataclass(frozen=True)
class ActivationCoding:
    """How the inputs of a layer are coded; ``parse_activation`` makes it from text.

    Args:
        grid: what numbers a code can stand for.
        mode: ``static``: one scale for the whole tensor, found once on calibration inputs. ``token``: one for each vector
            along the channels (each image, for convolutions), found at run time. ``group``: one for each run of ``size``
            consecutive channels of such a vector, found at run time.
        size: channels of a group; None in the other modes.
        word: the word of integer runs that the text gave instead of a grid; None for a grid.
        search: whether the exponent of a power grid is to be found from calibration inputs (``exponent=search``).
        follows: whether a power grid takes its sign from the calibrated range (``for_range``); the text of such a coding
            says neither ``signed`` nor ``shifted``.

    Raises:
        RecipeError: a mode, size or grid that activations cannot have.
    """

    grid: Grid
    mode: Mode = "static"
    size: int | None = None
    word: str | None = None
    search: bool = False
    follows: bool = False

    def __post_init__(self) -> None:
        if self.mode not in {"static", "token", "group"} or (self.size is not None) != (self.mode == "group"):
            message = f"an activation's scale is found static, per token or per group of a size, not {self.mode!r}"
            raise RecipeError(message)
        if self.size is not None and self.size < 1:
            message = f"a group of activations holds at least one channel, not {self.size}"
            raise RecipeError(message)
        if self.grid.fitted or self.grid.scale_format is not None:
            message = f"activations take a grid whose scale is a plain number, which {self.grid} is not; try {_SHAPE}"
            raise RecipeError(message)
        if (self.search or self.follows) and not isinstance(self.grid, PowerGrid):
            message = f"only a power grid has an exponent to search and a sign to choose, not {self.grid}"
            raise RecipeError(message)

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.grid.bits

    @property
    def dynamic(self) -> bool:
        """Whether scales are found at run time."""
        return self.mode != "static"

    def for_range(self, low: float, high: float, exponent: float | None = None) -> ActivationCoding:
        """Return the coding with everything decided that a calibrated range decides.

        A power grid whose text leaves its sign open codes values that are never negative unsigned, and nearly
        non-negative ones (at most ``SHIFT_SHARE`` of the range below zero) shifted. Two-sided ones: static 8-bit codings
        become ``int8``, which is what integer runs do; all others take the signed power grid of the same bits.

        Args:
            low: smallest value seen; zero is taken in.
            high: largest value seen.
            exponent: what a search found; None keeps the grid's.
        """
        if not isinstance(self.grid, PowerGrid):
            return self
        grid = self.grid if exponent is None else replace(self.grid, exponent=exponent)
        if self.follows:
            low, high = min(low, 0.0), max(high, 0.0)
            two_sided = -low > SHIFT_SHARE * (high - low)
            if two_sided and self.mode == "static" and grid.bits == 8:
                return parse_activation("int8")  # pyright: ignore[reportReturnType]
            grid = replace(grid, signed=two_sided, shifted=not two_sided and low < 0.0)
        return replace(self, grid=grid, search=self.search and exponent is None, follows=False)

    def __str__(self) -> str:
        """Return the text that ``parse_activation`` reads back to an equal coding."""
        text = self.word or self._grid_text()
        return text if self.mode == "static" else f"{text}@{self.mode}" + (f":{self.size}" if self.size else "")

    def _grid_text(self) -> str:
        text = str(self.grid)
        if not isinstance(self.grid, PowerGrid):
            return text
        if self.search:
            text = text.replace(f"exponent={self.grid.exponent!r}", _SEARCH)
        return text if self.follows or not self.grid.signed else f"{text},signed=true"


def parse_activation(text: str | ActivationCoding | None) -> ActivationCoding | None:
    """Read the coding of a layer's inputs; None means that they stay float.

    Args:
        text: ``float``; or ``int8``, ``int8:symmetric``, ``uint8``, ``int16``, or any grid's text form, followed by nothing
            or ``@static`` (one scale from calibration), ``@token`` or ``@group:128`` (scales at run time). A power grid
            that says neither ``signed=`` nor ``shifted=`` follows the range of what it codes; ``exponent=search`` leaves
            the exponent to calibration. A coding itself, and None, pass through.

    Raises:
        RecipeError: the text names no coding; one sentence.

    >>> parse_activation("int8@token")
    ActivationCoding(grid=UniformGrid(bits=8, range='asymmetric'), mode='token', size=None, word='int8', search=False, follows=False)
    >>> str(parse_activation("power:bits=4,exponent=0.5 @ group:32"))
    'power:bits=4,exponent=0.5@group:32'
    >>> parse_activation("float") is None
    True
    """
    if text is None or isinstance(text, ActivationCoding):
        return text
    if not isinstance(text, str):
        message = f"an activation coding is a text ({_SHAPE}), not {text!r}"
        raise RecipeError(message)
    words = text.replace(" ", "").lower()
    if words == "float":
        return None
    coded, at, sharing = words.partition("@")
    mode, size = _read_sharing(sharing, text) if at else ("static", None)
    if coded in WORDS:
        return ActivationCoding(WORDS[coded], mode, size, word=coded)
    if coded == "float":
        message = f"float inputs have no scale to share, so {text!r} says too much; write float"
        raise RecipeError(message)
    search = _SEARCH in coded
    family, _, rest = coded.partition(":")
    kept = ",".join(part for part in rest.split(",") if part != _SEARCH)
    try:
        grid = parse_grid(f"{family}:{kept}" if kept else family)
    except GridError as error:
        message = f"{text!r} is no activation coding ({_SHAPE}): {error}"
        raise RecipeError(message) from None
    if search and not isinstance(grid, PowerGrid):
        message = f"only a power grid has an exponent to search, not {text!r}"
        raise RecipeError(message)
    follows = isinstance(grid, PowerGrid) and "signed=" not in kept and "shifted=" not in kept
    return ActivationCoding(grid, mode, size, search=search, follows=follows)


def _read_sharing(text: str, whole: str) -> tuple[Mode, int | None]:
    if text in {"static", "token"}:
        return text, None  # pyright: ignore[reportReturnType]
    kind, _, size = text.partition(":")
    if kind == "group" and size.isdecimal() and int(size) > 0:
        return "group", int(size)
    message = f"what shares an activation's scale is written @static, @token or @group:128, not as in {whole!r}"
    raise RecipeError(message)
