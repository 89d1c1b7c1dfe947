"""GPTQ's walk over the columns of one Gram matrix: factor the inverse, round block by block, pass the errors on.

What is rounded is one matrix whose rows share their inputs. Scales are known before (static), or found group by group
from the weights as the walk has left them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import QuantizationError
from workbench.grids import LogGrid, PowerGrid
from workbench.grids.grid import Grid

#: How often the damping is raised tenfold before a Gram matrix is given up.
_MOST_RAISES = 12


@dataclass(frozen=True, eq=False)
class Factor:
    """The inverse of a damped Gram matrix in the form that the walk needs."""

    upper: Float[np.ndarray, "depth depth"]
    """float64, upper triangular U with (G + damping I)^-1 = U^T U."""
    damping: float
    """What was added to the diagonal."""
    raised: int
    """How often the damping had to be raised tenfold."""
    dead: int
    """Inputs that were always zero; their place on the diagonal holds the mean of the others."""


def factor_inverse(gram: Float[np.ndarray, "depth depth"], damp: float, name: str = "the layer") -> Factor:
    """Factor the inverse of a Gram matrix: one Cholesky from the far corner, then a triangular inverse, in float64.

    With P the reversal of the order, P G P = L L^T gives G = R R^T for the upper triangular R = P L P, and so
    G^-1 = U^T U with U = R^-1: the factor of GPTQ's algorithm 1 without ever forming the inverse.

    Args:
        gram: symmetric, positive semidefinite.
        damp: fraction of the diagonal's mean (over inputs that are not always zero) that is added to it.
        name: of the layer, for the message.

    Raises:
        QuantizationError: no damping makes it positive definite: it holds NaN, or is no Gram matrix.
    """
    from scipy.linalg import lapack

    cholesky: Any = getattr(lapack, "dpotrf")  # noqa: B009 - type checkers do not see into the compiled module
    invert: Any = getattr(lapack, "dtrtri")  # noqa: B009

    diagonal = np.diagonal(gram).astype(np.float64)
    dead = diagonal <= 0.0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    places = np.arange(len(diagonal))
    base = np.where(dead, mean, diagonal)[::-1]
    amount = damp
    for raised in range(_MOST_RAISES):
        # Symmetric: the transpose of a row-major copy is the column-major one that LAPACK works in.
        trial = np.array(gram[::-1, ::-1], dtype=np.float64, order="C").T
        trial[places, places] = base + amount * mean
        lower, failed = cholesky(trial, lower=1, clean=1, overwrite_a=1)
        if not failed and np.isfinite(lower[-1, -1]):
            inverse, failed = invert(lower, lower=1, overwrite_c=1)
            if not failed and np.isfinite(inverse).all():
                return Factor(inverse[::-1, ::-1], amount * mean, raised, int(dead.sum()))
        amount = max(amount * 10.0, 1e-8)
    message = f"the Gram matrix of {name} is not positive semidefinite, so that its inverse cannot be factored"
    raise QuantizationError(message)


def nearest_grid(grid: Grid) -> Grid:
    """Return the grid with thresholds midway between levels: the same levels and level indices.

    Second-order rounding has to take the level nearest by value; grids that round in another domain (powers, logarithms)
    decode the same codes to the same weights.
    """
    if isinstance(grid, PowerGrid | LogGrid):
        return replace(grid, rounding="nearest")
    return grid


class Columns(Protocol):
    """The weight on its way through the walk, wherever it lies."""

    def current(self, start: int, stop: int) -> Float[np.ndarray, "rows width"]:
        """Return columns as the errors passed on so far have left them, float32."""
        ...

    def round(self, span: tuple[int, int, int], scale: np.ndarray, offset: np.ndarray) -> None:
        """Round the columns of a span (first, after the last, first of the block) in order."""
        ...

    def spread(self, start: int, stop: int, base: int, until: int) -> None:
        """Move columns ``stop`` to ``until`` by the errors of columns ``start`` to ``stop``."""
        ...

    def indices(self) -> Int[np.ndarray, "rows columns"]:
        """Return the level index of each weight."""
        ...


class HostColumns:
    """A weight in the machine's own memory, rounded by the compiled kernel."""

    def __init__(
        self,
        weight: Float[np.ndarray, "rows columns"],
        upper: Float[np.ndarray, "columns columns"],
        grid: Grid,
        group_of: Int[np.ndarray, " columns"],
        width: int,
    ) -> None:
        self._weight = np.array(weight, order="C")
        self._upper = np.ascontiguousarray(upper.astype(self._weight.dtype))
        self._grid = grid
        self._group_of = group_of
        self._indices = np.zeros(weight.shape, dtype=np.uint16)
        self._errors = np.zeros((len(weight), width), dtype=self._weight.dtype)

    def current(self, start: int, stop: int) -> Float[np.ndarray, "rows width"]:
        """Return columns as they are now."""
        return np.ascontiguousarray(self._weight[:, start:stop], dtype=np.float32)

    def round(self, span: tuple[int, int, int], scale: np.ndarray, offset: np.ndarray) -> None:
        """Round some columns."""
        from workbench.kernels.gptq import round_columns

        round_columns(
            self._weight, self._upper, span, self._group_of, scale, offset, self._grid, self._indices, self._errors
        )

    def spread(self, start: int, stop: int, base: int, until: int) -> None:
        """Pass errors on to later columns."""
        if until > stop:
            self._weight[:, stop:until] -= (
                self._errors[:, start - base : stop - base] @ self._upper[start:stop, stop:until]
            )

    def indices(self) -> Int[np.ndarray, "rows columns"]:
        """Return the level indices."""
        return self._indices


class DeviceColumns:
    """A weight on a torch device: the same arithmetic, all rows at once and column after column."""

    def __init__(  # noqa: PLR0917 - as on the host, and then the device
        self,
        weight: Float[np.ndarray, "rows columns"],
        upper: Float[np.ndarray, "columns columns"],
        grid: Grid,
        group_of: Int[np.ndarray, " columns"],
        width: int,
        device: str,
    ) -> None:
        import torch

        self._device = torch.device(device)
        # Places on the grid's axis are float64 where the device has it, as in the kernel.
        self._wide: Any = torch.float32 if self._device.type == "mps" else torch.float64
        self._weight = torch.tensor(weight, dtype=torch.float32, device=self._device)
        self._upper = torch.tensor(np.ascontiguousarray(upper), dtype=torch.float32, device=self._device)
        self._thresholds = torch.tensor(np.array(grid.thresholds), dtype=self._wide, device=self._device)
        self._levels = torch.tensor(np.array(grid.levels), dtype=self._wide, device=self._device)
        self._zero = int(np.argmin(np.abs(grid.levels)))
        self._group_of = group_of
        self._indices = torch.zeros(weight.shape, dtype=torch.int32, device=self._device)
        self._errors = torch.zeros((len(weight), width), dtype=torch.float32, device=self._device)

    def current(self, start: int, stop: int) -> Float[np.ndarray, "rows width"]:
        """Return columns as they are now."""
        return np.ascontiguousarray(self._weight[:, start:stop].cpu().numpy())

    def round(self, span: tuple[int, int, int], scale: np.ndarray, offset: np.ndarray) -> None:
        """Round some columns."""
        import torch

        start, stop, base = span
        scales = torch.tensor(np.array(scale), dtype=self._wide, device=self._device)
        offsets = torch.tensor(np.array(offset), dtype=self._wide, device=self._device)
        for j in range(start, stop):
            s, o = scales[:, self._group_of[j]], offsets[:, self._group_of[j]]
            w = self._weight[:, j].to(self._wide)
            index = torch.searchsorted(self._thresholds, w / s + o, right=True)
            index = torch.where(s == 0.0, self._zero, index)
            decoded = torch.where(s == 0.0, 0.0, s * (self._levels[index] - o)).to(torch.float32)
            error = ((w - decoded.to(self._wide)) / self._upper[j, j].to(self._wide)).to(torch.float32)
            self._indices[:, j] = index.to(torch.int32)
            self._errors[:, j - base] = error
            if j + 1 < stop:
                self._weight[:, j + 1 : stop].addr_(error, self._upper[j, j + 1 : stop], alpha=-1.0)

    def spread(self, start: int, stop: int, base: int, until: int) -> None:
        """Pass errors on to later columns."""
        if until > stop:
            self._weight[:, stop:until].addmm_(
                self._errors[:, start - base : stop - base], self._upper[start:stop, stop:until], alpha=-1.0
            )

    def indices(self) -> Int[np.ndarray, "rows columns"]:
        """Return the level indices."""
        return self._indices.cpu().numpy().astype(np.uint16)


#: Finds the scales of a group from its weights as they are when the walk reaches it: (group, weights) -> (scale, offset),
#: each one column.
FindScales = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Walk:
    """How the columns are cut into pieces."""

    depth: int
    block: int
    """Columns after which errors are passed on to all that follow."""
    group: int
    """Columns that share a scale which is found when the walk reaches them; ``depth`` where all scales are known."""

    @property
    def width(self) -> int:
        """Columns between two updates of all that follow: whole groups, or a whole group."""
        return self.group * max(1, self.block // self.group) if self.group < self.depth else self.block

    def pieces(self, base: int) -> list[tuple[int, int]]:
        """Return the spans of a block: none crosses the border of a group, none is longer than ``block``."""
        end = min(base + self.width, self.depth)
        cuts = {base, end, *range(base, end, self.block)}
        if self.group < self.depth:
            cuts |= {at for at in range(0, end, self.group) if base < at}
        ordered = sorted(cuts)
        return list(pairwise(ordered))


def walk_columns(
    columns: Columns,
    walk: Walk,
    scale: Float[np.ndarray, "rows groups"],
    offset: Float[np.ndarray, "rows groups"],
    *,
    find: FindScales | None,
    tell: Callable[[float], Any],
) -> None:
    """Round all columns.

    Args:
        columns: the weight.
        walk: how it is cut.
        scale: float32; filled group by group where ``find`` is given.
        offset: float64, same shape.
        find: finds a group's scales when the walk reaches it; None where they are known.
        tell: told the finished fraction; may raise ``Cancelled``.
    """
    for base in range(0, walk.depth, walk.width):
        end = min(base + walk.width, walk.depth)
        for start, stop in walk.pieces(base):
            if find is not None and start % walk.group == 0:
                number = start // walk.group
                found = find(number, columns.current(start, min(start + walk.group, walk.depth)))
                scale[:, number : number + 1], offset[:, number : number + 1] = found
            columns.round((start, stop, base), scale, offset)
            columns.spread(start, stop, base, end)
        columns.spread(base, end, base, walk.depth)
        tell(end / walk.depth)
