"""A layer on any grid, prepared for integer runs: operand, sums, combination, requantization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.accumulator import Accumulator, as_accumulator, needed_bits
from workbench.integer.level_table import LevelTable
from workbench.integer.level_tensor import LevelTensor
from workbench.integer.linear import accumulate, rescaling
from workbench.integer.power_root import PowerRoot
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics, as_semantics
from workbench.integer.tables import check_scale
from workbench.integer.watch import Observation, note

Method = Literal["levels", "per-product", "power-domain"]
METHODS: tuple[Method, ...] = ("levels", "per-product", "power-domain")


@dataclass(frozen=True, repr=False, eq=False)
class GridLinear:
    """A linear layer prepared for integer runs; ``prepare_linear`` makes it, host-side, from real scales.

    A run is: ``operand(codes)`` -> ``sums`` -> ``combine`` -> requantize; each takes and gives integers only.
    """

    weight: LevelTensor
    input_table: LevelTable
    input_scale: float
    """Real size of one unit of the input's integers."""
    input_zero_point: int
    """In the same units."""
    bias: Int[np.ndarray, " outputs"] | None
    """In units of the accumulator (of the combined one where there are groups or a root)."""
    method: Method
    accumulator_scale: Float[np.ndarray, " scales"]
    """Real size of one unit of what ``combine`` gives: one, or one for each output; float64."""
    group_multiplier: Int[np.ndarray, "outputs groups"] | None = None
    """int64: the group's scale over the largest of its row, times ``2**group_bits``; None without groups."""
    group_bits: int = 0
    group_shift: int = 0
    """The weighed sum of the groups is divided by this power of two, rounded half up, so that it fits 32 bits."""
    sum_shift: int = 0
    """The sums are divided by this power of two, rounded half up, so that they fit 32 bits; 0 keeps them."""
    wide: bool = False
    """Whether requantization sees int64 sums, as runtimes do it for int16 inputs; else int32."""
    worst: tuple[int, int] = (0, 0)
    """Bounds on every partial sum of the accumulation, whatever the input."""
    root: PowerRoot | None = None
    """The root that ``power-domain`` takes; None for the others."""
    products: Int[np.ndarray, "weight_levels input_levels"] | None = field(default=None)
    """int64: the product of each pair of levels, and a last column of zeros for padding; only ``per-product``."""

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.weight.values.shape[0]

    @property
    def depth(self) -> int:
        """Inputs of one output."""
        return self.weight.values.shape[1]

    @property
    def worst_case_bits(self) -> int:
        """Accumulator bits that no input can exceed."""
        return needed_bits(*self.worst)

    @property
    def padding(self) -> int:
        """The operand that adds nothing: what a convolution pads with."""
        return {"levels": self.input_zero_point, "per-product": len(self.input_table.values), "power-domain": 0}[
            self.method
        ]

    def operand(self, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return what the method multiplies, from the input's codes: levels, level indices, or the codes themselves."""
        if self.method == "levels":
            return self.input_table.decode(codes)
        if self.method == "per-product":
            return _indices(self.input_table, codes)
        return self.input_table.check_codes(codes).astype(code_kind(self.input_table))

    def sums(
        self, operand: Int[np.ndarray, "rows depth"], accumulator: Accumulator | str | None = None
    ) -> Int[np.ndarray, "..."]:
        """Return the accumulated sums: int32 or int64 (rows, outputs), or (rows, outputs, groups) where there are groups.

        Args:
            operand: from ``operand``.
            accumulator: e.g. ``"int16:wrap"``; by default 32 bits for 8-bit operands and 62 for int16.

        Raises:
            AccumulatorOverflowError: see ``accumulate``.
            IntegerError: shapes differ, or a narrow accumulator with ``per-product``.
        """
        if operand.ndim != 2 or operand.shape[1] != self.depth:
            message = f"the layer takes inputs (rows, {self.depth}), not {operand.shape}"
            raise IntegerError(message)
        if self.method == "per-product":
            return self._product_sums(operand, accumulator)
        if self.method == "power-domain":
            weight = self.weight.codes.astype(code_kind(self.weight.table))
            return accumulate(operand, weight, accumulator=accumulator, operator="power-domain sums")
        if self.weight.groups == 1:
            early = None if self.bias is None else _bias_kind(self.bias, operand, self.weight.values)
            return accumulate(
                operand,
                self.weight.values,
                early,
                input_zero_point=self.input_zero_point,
                weight_zero_point=self._zeros(0),
                accumulator=accumulator,
                operator="linear",
            )
        size = self.weight.group_size
        parts = []
        for group in range(self.weight.groups):
            columns = slice(group * size, min((group + 1) * size, self.depth))
            parts.append(
                accumulate(
                    np.ascontiguousarray(operand[:, columns]),
                    np.ascontiguousarray(self.weight.values[:, columns]),
                    input_zero_point=self.input_zero_point,
                    weight_zero_point=self._zeros(group),
                    accumulator=accumulator,
                    operator=f"linear, group {group}",
                )
            )
        return np.stack(parts, axis=-1)

    def combine(self, sums: Int[np.ndarray, "..."]) -> Int[np.ndarray, "rows outputs"]:
        """Return what requantization takes, int32 (int64 where ``wide``): groups weighed, root taken, sums shifted.

        Raises:
            AccumulatorOverflowError: a combined sum does not fit 32 bits.
        """
        late = False
        if self.group_multiplier is None:
            total = sums.astype(np.int64)
        else:
            total = np.zeros(sums.shape[:-1], dtype=np.int64)
            for group in range(sums.shape[-1]):
                total += sums[..., group] * self.group_multiplier[:, group]
            total = round_shift(total, self.group_shift)
            late = True
        if self.root is not None:
            total = self.root.apply(total)
            late = True
        total = round_shift(total, self.sum_shift)
        if late and self.bias is not None:
            total = total + self.bias
        if self.wide:
            return total
        if total.size and (int(total.min()) < -(1 << 31) or int(total.max()) >= 1 << 31):
            bits = needed_bits(int(total.min()), int(total.max()))
            message = f"a combined sum needs {bits} bits, and requantization takes 32: use finer groups or fewer inputs"
            raise AccumulatorOverflowError(message)
        return total.astype(np.int32)

    def rescaling(self, output_scale: float, semantics: Semantics | str) -> np.ndarray:
        """Return the real factor from accumulator to output codes, one or one for each output, as the runtime has it."""
        if self.group_multiplier is None and self.root is None and self.sum_shift == 0:
            weight_scale = self.weight.scale[:, 0]
            if len(weight_scale) == 1:
                weight_scale = weight_scale[0]
            scale = rescaling(
                self.input_scale, weight_scale, output_scale, None, self.outputs, semantics, product="float64"
            )
            assert scale is not None
            return scale
        factor = self.accumulator_scale / check_scale(output_scale, "output")
        if as_semantics(semantics).rounding == "float32":
            factor = factor.astype(np.float32)
        return factor.astype(np.float64)

    def __call__(
        self,
        codes: Int[np.ndarray, "..."],
        *,
        output_scale: float,
        output_zero_point: int = 0,
        dtype: Any = np.int8,
        low: int | None = None,
        high: int | None = None,
        semantics: Semantics | str = "litert-reference",
        accumulator: Accumulator | str | None = None,
    ) -> Int[np.ndarray, "..."]:
        """Run the layer: input codes (..., depth) to output codes (..., outputs).

        Args:
            codes: codes of the input's grid.
            output_scale: real scale of the output.
            output_zero_point: code of 0 in the output.
            dtype: integer type of the output.
            low: smallest output code (an activation fused into the layer).
            high: largest output code.
            semantics: whose rounding.
            accumulator: see ``sums``.

        Raises:
            IntegerError: shapes or ranges do not fit.
            AccumulatorOverflowError: see ``accumulate``.
        """
        operand = self.operand(codes)
        if operand.ndim < 1:
            message = "a layer takes codes (..., depth), not a single one"
            raise IntegerError(message)
        rows = operand.reshape(-1, operand.shape[-1])
        combined = self.combine(self.sums(rows, accumulator))
        out = requantize(
            combined,
            scale=self.rescaling(output_scale, semantics),
            zero_point=output_zero_point,
            dtype=dtype,
            low=low,
            high=high,
            semantics=semantics,
            operator="linear",
        )
        return out.reshape(*operand.shape[:-1], self.outputs)

    def _zeros(self, group: int) -> Any:
        zeros = self.weight.zero_point[:, group]
        return zeros[0] if len(zeros) == 1 else zeros

    def _product_sums(self, operand: np.ndarray, accumulator: Accumulator | str | None) -> np.ndarray:
        from workbench.kernels.products import sum_products

        assert self.products is not None
        chosen = as_accumulator(accumulator, 62)
        if chosen.overflow != "error":
            message = (
                "per-product sums run in 64 bits; a narrow accumulator needs method='levels', which gives the same sums"
            )
            raise IntegerError(message)
        weight = _indices(self.weight.table, self.weight.codes)
        total = sum_products(operand.astype(np.int32), weight.astype(np.int32), self.products)
        if self.bias is not None:
            total = total + self.bias
        observed = needed_bits(int(total.min(initial=0)), int(total.max(initial=0)))
        if observed > chosen.bits:
            message = f"a sum of looked-up products needs {observed} bits and the accumulator has {chosen.bits}: use a wider one"
            raise AccumulatorOverflowError(message)
        note(
            Observation(
                "per-product sums",
                outputs=int(total.size),
                accumulator_bits=chosen.bits,
                worst_case_bits=self.worst_case_bits,
                observed_bits=observed,
            )
        )
        return total

    def __repr__(self) -> str:
        return f"GridLinear({self.depth} -> {self.outputs}, {self.method}, {self.weight.table!r}, inputs {self.input_table!r})"


def round_shift(values: np.ndarray, places: int) -> np.ndarray:
    """Return values / 2**places, rounded half up, in int64.

    >>> round_shift(np.array([5, -5, 6]), 2)
    array([ 1, -1,  2])
    """
    wide = np.asarray(values, dtype=np.int64)
    return (wide + (1 << (places - 1))) >> places if places else wide


def _bias_kind(bias: np.ndarray, operand: np.ndarray, weight: np.ndarray) -> np.ndarray:
    if operand.dtype.itemsize > 1 or weight.dtype.itemsize > 1:
        return bias
    if np.abs(bias).max(initial=0) >= 1 << 31:
        message = "the bias needs more than the 32 bits of the accumulator: its layer's scales are too small"
        raise AccumulatorOverflowError(message)
    return bias.astype(np.int32)


def _indices(table: LevelTable, codes: Any) -> np.ndarray:
    order = np.argsort(table.grid.codes, kind="stable")
    return order[np.searchsorted(table.grid.codes[order], table.check_codes(codes))]


def code_kind(table: LevelTable) -> np.dtype:
    """Return the integer type that holds a grid's codes as they are multiplied: int8 or int16."""
    codes = table.grid.codes
    small = int(codes.min()) >= -128 and int(codes.max()) <= 127
    return np.dtype(np.int8 if small else np.int16)
