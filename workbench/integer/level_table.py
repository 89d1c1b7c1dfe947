"""Levels as integers: the fixed-point table that turns a code of any grid into a number that an integer GEMM takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int

from workbench.errors import IntegerError
from workbench.grids import Grid, PowerGrid, UniformGrid, parse_grid
from workbench.integer.arguments import as_array, real_numbers, shown

if TYPE_CHECKING:
    import pandas as pd

Recipe = Literal["codes", "q*|q|", "table"]
#: Candidate peaks times levels that one search looks at.
_BUDGET = 1 << 23
#: Squared relative errors below this are float64's own: the table is exact.
_EXACT = 1e-26


@dataclass(frozen=True, repr=False, eq=False)
class LevelTable:
    """Integers for the levels of a grid: ``level ~ scale * (value - zero)``."""

    grid: Grid
    values: Int[np.ndarray, " levels"]
    """int8 or int16, in the order of ``grid.levels``."""
    scale: float
    """What one step of ``values`` stands for on the axis where the grid's largest level is 1."""
    zero: int
    """The integer of level 0; only uniform grids with a zero point have another one than 0."""
    relative_error: float
    """Root of sum p (level - scale (value - zero))^2 / sum p level^2, p the occupancy that the search was given."""
    recipe: Recipe
    """``codes``: the value is the stored code less a constant. ``q*|q|``: it is the code times its magnitude. ``table``:
    it must be looked up."""

    @property
    def exact(self) -> bool:
        """Whether every level is met exactly (up to float64's own rounding)."""
        return self.relative_error == 0.0

    @property
    def look_up(self) -> bool:
        """Whether decoding needs the table; the other recipes are arithmetic on the code."""
        return self.recipe == "table"

    @property
    def nbytes(self) -> int:
        """Bytes that the table takes in memory; 0 where none is needed."""
        return self.values.nbytes if self.look_up else 0

    @cached_property
    def by_code(self) -> tuple[Int[np.ndarray, " span"], int]:
        """The table as a run indexes it: values by code, and the least code; numbers that are no code hold 0."""
        codes = self.grid.codes.astype(np.int64)
        least = int(codes.min())
        table = np.zeros(int(codes.max()) - least + 1, dtype=self.values.dtype)
        table[codes - least] = self.values
        return table, least

    def check_codes(self, codes: Any) -> Int[np.ndarray, "..."]:
        """Return codes that lie between the grid's least and largest.

        Args:
            codes: codes of the grid, any shape and integer type.

        Raises:
            IntegerError: the codes are no integers, or one of them is none of the grid's.
        """
        given = as_array(codes, "the codes")
        if given.dtype.kind not in "iu":
            message = f"codes are integers, not {given.dtype}; quantize(...).codes holds them"
            raise IntegerError(message)
        table, least = self.by_code
        if given.size and (int(given.min()) < least or int(given.max()) >= least + len(table)):
            message = f"{self.grid} has codes from {least} to {least + len(table) - 1}, not {int(given.min())} to {int(given.max())}"
            raise IntegerError(message)
        return given

    def decode(self, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the integer of each code, in integers only, by this table's recipe.

        Args:
            codes: codes of the grid, any shape and integer type.

        Raises:
            IntegerError: the codes are no integers, or one of them is none of the grid's.
        """
        given = self.check_codes(codes)
        table, least = self.by_code
        if self.recipe == "codes":
            return (given.astype(np.int32) + self.zero).astype(self.values.dtype)
        if self.recipe == "q*|q|":
            wide = given.astype(np.int32)
            return (wide * np.abs(wide)).astype(self.values.dtype)
        return table[given.astype(np.int64) - least]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each level: code, level, its integer, what the integer stands for, and the difference."""
        import pandas as pd

        stands_for = self.scale * (self.values.astype(np.float64) - self.zero)
        return pd.DataFrame(
            {
                "code": self.grid.codes,
                "level": self.grid.levels,
                "value": self.values,
                "stands for": stands_for,
                "difference": stands_for - self.grid.levels,
            }
        )

    def __repr__(self) -> str:
        recipe = {"codes": "the codes themselves", "q*|q|": "q*|q|", "table": f"{len(self.values)} entries"}[
            self.recipe
        ]
        low, high = int(self.values.min()), int(self.values.max())
        error = "exact" if self.exact else f"relative error {self.relative_error:.2g}"
        return f"LevelTable({self.grid}, {self.values.dtype}, {recipe}, {low} to {high}, {error})"


def level_table(
    grid: Grid | str,
    bits: Literal[8, 16] = 8,
    *,
    occupancy: Any = None,
    peak: int | None = None,
) -> LevelTable:
    """Return the integers that stand for a grid's levels, their common scale chosen to make the table's error least.

    The value of level l is ``rint(K * l)``; the search runs over K, the scale is then the least-squares one. Uniform
    grids need no table (their codes are the integers), nor do power grids of exponent 1/2 whose squares fit
    (``q * |q|``). Among tables without error the one with the smallest integers wins: it needs the fewest accumulator
    bits. (Shifted power grids keep large ones: their zero point is rounded to a whole unit.) For 8 bits every K that gives another table is tried, so the answer is the best one there is; for 16 bits
    every whole K is tried (hence every exact table is found) and quarters between the larger ones, fewer where the
    grid has very many levels.

    Args:
        grid: any scalar grid, or its text form.
        bits: 8 (values within ±127) or 16 (within ±32767).
        occupancy: how much each level counts, in the order of ``grid.levels`` (weights on each level, or shares), or an
            ``Occupancy``; None counts every level alike.
        peak: the integer of the level 1 instead of the search, 1 to 127 or 32767.

    Raises:
        IntegerError: the bits, the occupancy or the peak are out of range, or the grid has no fixed levels.
        GridError: the grid's text form cannot be read.

    >>> level_table("power:bits=4,exponent=0.55", peak=127).values[7:]
    array([  0,   4,  13,  27,  46,  69,  96, 127], dtype=int8)
    >>> level_table("power:bits=4,exponent=0.5")
    LevelTable(power:bits=4,exponent=0.5, int8, q*|q|, -49 to 49, exact)
    """
    grid = parse_grid(grid)
    if grid.fitted:
        message = (
            f"{grid} fits levels of its own to each group of weights, so no one table of integers stands for them: "
            "give a grid with fixed levels, or run the layer by lut_linear"
        )
        raise IntegerError(message)
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or bits not in {8, 16}:
        message = f"a level table has 8 or 16 bits, not {shown(bits)}"
        raise IntegerError(message)
    if occupancy is None and peak is None:
        return _even_table(grid, bits)
    return _make_table(grid, bits, occupancy, peak)


@lru_cache(maxsize=256)
def _even_table(grid: Grid, bits: int) -> LevelTable:
    """Keep the tables that layers ask for again and again."""
    return _make_table(grid, bits, None, None)


def _make_table(grid: Grid, bits: int, occupancy: Any, peak: int | None) -> LevelTable:
    limit = (1 << (bits - 1)) - 1
    shares = _shares(grid, occupancy)
    if peak is None:
        ready = _closed_form(grid, bits)
        if ready is not None:
            return ready
        peak_candidates = _candidates(grid.levels, limit)
        if _has_real_offset(grid):
            peak_candidates = peak_candidates[peak_candidates >= limit / 2]
    else:
        if isinstance(peak, bool) or not isinstance(peak, int | np.integer) or not 1 <= peak <= limit:
            message = f"the peak of an int{bits} table is a whole number from 1 to {limit}, not {shown(peak)}"
            raise IntegerError(message)
        peak_candidates = np.array([float(peak)])
    kind = np.int8 if bits == 8 else np.int16
    best = _best_peak(grid.levels, shares, peak_candidates)
    values = np.rint(best * grid.levels)
    scale, error = _fit(grid.levels, shares, values)
    return LevelTable(grid, _read_only(values.astype(kind)), scale, 0, error, "table")


def _closed_form(grid: Grid, bits: int) -> LevelTable | None:
    """Return the table of a grid whose integers follow from its codes, where they fit."""
    if _has_real_offset(grid):
        return None
    limit = (1 << (bits - 1)) - 1
    codes = grid.codes.astype(np.int64)
    kind = np.int8 if bits == 8 else np.int16
    if isinstance(grid, UniformGrid) or (isinstance(grid, PowerGrid) and grid.exponent == 1):
        count = len(codes) - 1 if int(codes.min()) == 0 else None
        # Codes from 0 are moved to the middle of the type where they would not fit: 8 bits then are int8.
        zero = 0 if count is None or count <= limit else -(1 << (grid.bits - 1))
        values = codes + zero
        if values.min() >= -limit - 1 and values.max() <= limit:
            return LevelTable(grid, _read_only(values.astype(kind)), 1.0 / grid.n, zero, 0.0, "codes")
        return None
    if isinstance(grid, PowerGrid) and grid.exponent == 0.5 and grid.n**2 <= limit:
        values = codes * np.abs(codes)
        return LevelTable(grid, _read_only(values.astype(kind)), 1.0 / grid.n**2, 0, 0.0, "q*|q|")
    return None


def _has_real_offset(grid: Grid) -> bool:
    """Say whether zero lies anywhere on the grid's axis: it is rounded to the table's units, so they must be fine."""
    return grid.normalization == "range" and not grid.integer_zero_point


def _shares(grid: Grid, occupancy: Any) -> np.ndarray:
    if occupancy is None:
        return np.ones(len(grid.levels))
    counts = real_numbers(getattr(occupancy, "counts", occupancy), "an occupancy")
    if counts.shape != grid.levels.shape or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        message = f"the occupancy of {grid} is {len(grid.levels)} finite numbers, 0 or above and not all 0, one for each level"
        raise IntegerError(message)
    if not counts[grid.levels != 0].any():
        return np.ones(len(grid.levels))  # only zeros: any table is right for them
    return counts


def _candidates(levels: np.ndarray, limit: int) -> np.ndarray:
    """Return the K to try, ascending: one for each different table, or as many as the budget allows."""
    magnitudes = np.unique(np.abs(levels[levels != 0]))
    largest = magnitudes[-1]
    top = (limit + 0.5) / largest * (1 - 2.0**-40)
    whole = np.arange(1, int(top) + 1, dtype=np.float64)
    whole = whole[-max(_BUDGET // (2 * len(magnitudes)), 1) :]
    borders = float(top * magnitudes.sum())
    if borders * len(magnitudes) <= _BUDGET // 2:
        steps = [(np.arange(int(top * each + 0.5)) + 0.5) / each for each in magnitudes]
        edges = np.unique(np.concatenate([*steps, [top]]))
        between = (edges[:-1] + edges[1:]) / 2
    else:
        count = min(_BUDGET // (2 * len(magnitudes)), int(2 * top))
        between = np.linspace(top / 2, top, max(count, 1))
    return np.unique(np.concatenate([whole, between, [limit / largest]]))


def _best_peak(levels: np.ndarray, shares: np.ndarray, candidates: np.ndarray) -> float:
    """Return the K whose rounded levels lie nearest the levels, up to a common factor; the least one of equals."""
    places, inverse = np.unique(np.abs(levels), return_inverse=True)
    weight = np.bincount(inverse, weights=shares)
    energy = float(weight @ places**2)
    best, found = np.inf, float(candidates[-1])
    step = max(1, (1 << 21) // len(places))
    for start in range(0, len(candidates), step):
        block = candidates[start : start + step]
        values = np.rint(block[:, None] * places)
        square = (values * values) @ weight
        cross = values @ (weight * places)
        scale = np.divide(cross, square, out=np.zeros_like(cross), where=square > 0)
        gap = values * scale[:, None]
        gap -= places
        errors = (gap * gap) @ weight / energy
        errors[errors < _EXACT] = 0.0
        least = int(np.argmin(errors))
        if errors[least] < best:
            best, found = float(errors[least]), float(block[least])
        if best == 0.0:
            break
    return found


def _fit(levels: np.ndarray, shares: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the least-squares scale of a table, and its relative error."""
    square = float(shares @ values**2)
    if square == 0.0:
        # Every level that counts rounds to 0 (a given peak may be that small): nothing is kept.
        return 1.0 / max(float(np.abs(values).max()), 1.0), 1.0
    scale = float(shares @ (values * levels)) / square
    error = float(shares @ (levels - scale * values) ** 2) / float(shares @ levels**2)
    return scale, 0.0 if error < _EXACT else float(np.sqrt(error))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
