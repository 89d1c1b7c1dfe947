"""Sums of signed magnitudes that are fitted to each group of weights: binary coding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import ClassVar, Literal, NoReturn

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import GridError
from workbench.grids.checks import choice, truth, whole
from workbench.grids.grid import Grid, Normalization, read_only

Solver = Literal["greedy", "refined", "alternating"]
SOLVERS: tuple[Solver, ...] = ("greedy", "refined", "alternating")


@dataclass(frozen=True)
class BinaryCodingGrid(Grid):
    """w ~ bias ± alpha_0 ± alpha_1 ... ± alpha_(bits-1), the alphas (and the bias) fitted to each group of weights.

    Bit i of a code says whether alpha_i is added (1) or subtracted (0); alphas ascend, so the highest bit decides most.
    A matrix product with such weights is a sum of table look-ups instead of multiplications (LUT-GEMM).

    The levels belong to a group of weights, not to the grid, so ``levels`` and ``thresholds`` do not exist here:
    ``quantize`` fits them (and ``error``, ``exact_error`` and ``bits_per_weight`` take the grid), while a sketch, which
    holds a layer without its groups, cannot answer for it.

    Source: Park et al., LUT-GEMM, ICLR 2024 (arXiv 2206.09557), eq. 1 to 3; Xu et al., Alternating Multi-bit
    Quantization, ICLR 2018 (arXiv 1802.00150), for the solvers.

    >>> str(BinaryCodingGrid(bits=3)), BinaryCodingGrid(bits=2).codes
    ('bcq:bits=3', array([0, 1, 2, 3], dtype=int32))

    Args:
        bits: planes of signs, 1 to 8.
        bias: whether each group has an offset, fitted with the alphas.
        solver: ``greedy`` takes one plane after another, each the signs of what is left and its mean magnitude;
            ``refined`` fits all alphas again by least squares after each plane; ``alternating`` goes on from there with
            least squares and the nearest sum in turn, does the same from the uniform grid (with a bias: the asymmetric
            one with its zero point; without: the one without a zero), and keeps what errs less in each group.
        rounds: at most so many alternations, 1 to 1000.

    Raises:
        GridError: a parameter is out of range.
    """

    family: ClassVar[str] = "bcq"

    bits: int = 3
    bias: bool = True
    solver: Solver = "alternating"
    rounds: int = 15

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", whole(self.bits, "bits", "bcq", 1, 8))
        object.__setattr__(self, "bias", truth(self.bias, "bias", "bcq"))
        choice(self.solver, "solver", "bcq", SOLVERS)
        object.__setattr__(self, "rounds", whole(self.rounds, "rounds", "bcq", 1, 1000))

    @property
    def fitted(self) -> bool:
        """True: there are no levels before there are weights."""
        return True

    @property
    def scales_per_group(self) -> int:
        """One alpha for each bit."""
        return self.bits

    @property
    def normalization(self) -> Normalization:
        """``range`` with a bias (a group has an offset to store), else ``absmax``."""
        return "range" if self.bias else "absmax"

    @property
    def label(self) -> str:
        """A short name for people."""
        return f"binary coding, {self.bits} bits" + ("" if self.bias else ", no bias")

    @property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """Refused: see the class.

        Raises:
            GridError: always.
        """
        self._refuse()

    @property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Refused: see the class.

        Raises:
            GridError: always.
        """
        self._refuse()

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """0 to 2^bits - 1, int32; bit i is the sign of alpha_i."""
        return read_only(np.arange(2**self.bits, dtype=np.int32))

    def __len__(self) -> int:
        """Return the number of sums that a code can stand for."""
        return 2**self.bits

    def _refuse(self) -> NoReturn:
        message = (
            f"{self} has no levels of its own, it fits them to each group of weights: quantize, error and exact_error "
            "take it, and a sketch or the live panel needs a grid with fixed levels such as uniform:bits=4"
        )
        raise GridError(message)

    def _repr_html_(self) -> str:
        """Say what it is: there are no levels to draw before there are weights."""
        caption = f"{self.bits}-bit codes, {len(self)} levels fitted to each group of weights"
        return f"<div><b>{escape(self.label)}</b> <code>{escape(str(self))}</code><br><small>{escape(caption)}</small></div>"
