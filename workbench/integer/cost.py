"""What an integer layer costs: multiplies by width, adds, table look-ups, Newton steps, bytes moved.

Counts are those of the arithmetic itself, as a straightforward kernel does it (no Winograd, no sparsity), and each array
is counted as moved once. They compare paths; they are no times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import check_word, shown

if TYPE_CHECKING:
    import pandas as pd

Path = Literal["uniform", "q*|q|", "level table", "per-product", "power-domain", "lut-gemm"]
PATHS: tuple[Path, ...] = ("uniform", "q*|q|", "level table", "per-product", "power-domain", "lut-gemm")
#: Inputs that share one look-up table of partial sums in LUT-GEMM.
LUT_INPUTS = 8


@dataclass(frozen=True)
class LayerCost:
    """The counts of one layer (or of one part of a model)."""

    layer: str
    path: str
    multiplies: Mapping[str, int] = field(default_factory=dict)
    """By width, e.g. ``{"8x8": 4096, "32x32": 64}``."""
    adds: Mapping[str, int] = field(default_factory=dict)
    """By the width of the sum in bits, e.g. ``{"32": 4096}``."""
    look_ups: int = 0
    newton_steps: int = 0
    """Steps of integer roots, each a division, a multiply and an add of its own."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """Moved bytes by what they are: ``weights``, ``scales``, ``inputs``, ``tables``, ``outputs``."""

    @property
    def total_multiplies(self) -> int:
        """Multiplies of all widths."""
        return sum(self.multiplies.values())

    @property
    def total_adds(self) -> int:
        """Adds of all widths."""
        return sum(self.adds.values())

    @property
    def total_bytes(self) -> int:
        """Bytes moved in all."""
        return sum(self.bytes.values())


@dataclass(frozen=True, repr=False)
class OperationCount:
    """Counts of one or several layers; counts add up with ``+`` and ``sum``."""

    layers: tuple[LayerCost, ...] = ()

    @property
    def multiplies(self) -> dict[str, int]:
        """Multiplies by width."""
        return _added(each.multiplies for each in self.layers)

    @property
    def adds(self) -> dict[str, int]:
        """Adds by the width of the sum."""
        return _added(each.adds for each in self.layers)

    @property
    def look_ups(self) -> int:
        """Table look-ups."""
        return sum(each.look_ups for each in self.layers)

    @property
    def newton_steps(self) -> int:
        """Steps of integer roots."""
        return sum(each.newton_steps for each in self.layers)

    @property
    def bytes(self) -> dict[str, int]:
        """Moved bytes by what they are."""
        return _added(each.bytes for each in self.layers)

    @property
    def total_multiplies(self) -> int:
        """Multiplies of all widths."""
        return sum(each.total_multiplies for each in self.layers)

    @property
    def total_adds(self) -> int:
        """Adds of all widths."""
        return sum(each.total_adds for each in self.layers)

    @property
    def total_bytes(self) -> int:
        """Bytes moved in all."""
        return sum(each.total_bytes for each in self.layers)

    def __add__(self, other: OperationCount | int) -> OperationCount:
        if isinstance(other, int):  # what sum() starts with
            return self
        return OperationCount(self.layers + other.layers)

    __radd__ = __add__

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each layer: path, each width of multiplies and adds, look-ups, Newton steps, bytes."""
        import pandas as pd

        rows = []
        for each in self.layers:
            row: dict[str, object] = {"layer": each.layer, "path": each.path}
            row |= {f"multiplies {width}": count for width, count in each.multiplies.items()}
            row |= {f"adds {width}": count for width, count in each.adds.items()}
            row |= {"look-ups": each.look_ups, "Newton steps": each.newton_steps}
            row |= {f"bytes of {what}": count for what, count in each.bytes.items()}
            row["bytes"] = each.total_bytes
            rows.append(row)
        frame = pd.DataFrame(rows)
        numbers = [name for name in frame.columns if name not in {"layer", "path"}]
        frame[numbers] = frame[numbers].fillna(0).astype("int64")
        return frame

    def __repr__(self) -> str:
        name = self.layers[0].path if len(self.layers) == 1 else f"{len(self.layers)} layers"
        parts = [f"{self.total_multiplies:,} multiplies", f"{self.total_adds:,} adds", f"{self.look_ups:,} look-ups"]
        if self.newton_steps:
            parts.append(f"{self.newton_steps:,} Newton steps")
        return f"OperationCount({name}: {', '.join(parts)}, {self.total_bytes:,} bytes)"

    def _repr_html_(self) -> str:
        entries = [(f"multiplies {width}", count) for width, count in self.multiplies.items()]
        entries += [(f"adds, {width} bits", count) for width, count in self.adds.items()]
        entries += [("table look-ups", self.look_ups), ("Newton steps", self.newton_steps)]
        entries += [(f"bytes of {what}", count) for what, count in self.bytes.items()]
        entries.append(("bytes moved", self.total_bytes))
        body = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:right'>{count:,}</td></tr>"
            for name, count in entries
        )
        return f"<table class='workbench-operation-count'>{body}</table>"


def operation_count(
    rows: int,
    depth: int,
    outputs: int,
    *,
    path: Path = "uniform",
    layer: str = "",
    weight_bits: int = 8,
    weight_level_bits: int = 8,
    input_bits: int = 8,
    input_level_bits: int = 8,
    output_bits: int = 8,
    accumulator_bits: int = 32,
    groups: int = 1,
    scales: int | None = None,
    weight_zero_points: bool = False,
    decode: Literal["load", "run"] = "load",
    weight_table_entries: int = 0,
    input_table_entries: int = 0,
    decode_inputs: Literal["none", "look-up", "multiply"] = "none",
    product_entries: int = 0,
    newton_steps: int = 0,
    input_numbers: int | None = None,
) -> OperationCount:
    """Count what one pass of a layer does.

    Args:
        rows: input rows (tokens, image positions), 0 or more.
        depth: inputs of one output.
        outputs: output channels.
        path: ``uniform`` (codes are multiplied), ``q*|q|`` and ``level table`` (integer levels are multiplied),
            ``per-product`` (products are looked up), ``power-domain`` (codes are multiplied, then one root), or
            ``lut-gemm`` (weights in bit planes, 2^8 partial sums looked up).
        layer: its name.
        weight_bits: bits of a stored weight code.
        weight_level_bits: bits of the integer that is multiplied.
        input_bits: bits of a stored input code.
        input_level_bits: bits of the integer that is multiplied.
        output_bits: bits of an output code.
        accumulator_bits: width of the sums (a narrow accumulator is one with fewer).
        groups: scale groups along a row.
        scales: fixed-point factors of the weight in all; by default one for each output (and group).
        weight_zero_points: whether weights have one: the inputs of each row must then be summed.
        decode: ``load`` decodes weights once, when the layer is loaded, and moves the decoded ones; ``run`` moves the
            packed codes and decodes them in every pass.
        weight_table_entries: of the weight's level table; 0 where none is needed.
        input_table_entries: of the input's.
        decode_inputs: how the pass turns each input code into a level: not at all, by a look-up, or by ``q*|q|``.
        product_entries: of the table of products.
        newton_steps: steps of all roots of the pass, as counted or bounded by the caller.
        input_numbers: different input numbers read (a convolution reads an image, not its patches); rows * depth by
            default.

    Raises:
        IntegerError: a path that does not exist, or a negative size.
    """
    check_word(path, PATHS, "a path")
    check_word(decode, ("load", "run"), "how weights are decoded")
    check_word(decode_inputs, ("none", "look-up", "multiply"), "how inputs are decoded")
    sizes = [rows, depth, outputs, groups, weight_bits, weight_level_bits, input_bits, input_level_bits, output_bits]
    sizes += [accumulator_bits, weight_table_entries, input_table_entries, product_entries, newton_steps]
    sizes += [each for each in (scales, input_numbers) if each is not None]
    if any(isinstance(each, bool) or not isinstance(each, int | np.integer) or each < 0 for each in sizes):
        message = f"sizes, bits and counts are integers, 0 or more, not all of {shown(sizes)}"
        raise IntegerError(message)
    products, results, weights = rows * depth * outputs, rows * outputs, depth * outputs
    inputs = rows * depth if input_numbers is None else input_numbers
    accumulator = str(accumulator_bits)
    multiplies: dict[str, int] = {}
    adds: dict[str, int] = {}
    look_ups = 0
    multiplied = f"{weight_level_bits}x{input_level_bits}"
    if path == "per-product":
        look_ups += products
        _count(adds, accumulator, products)
    elif path == "lut-gemm":
        blocks = -(-depth // LUT_INPUTS)
        look_ups += results * blocks * weight_bits
        _count(adds, accumulator, rows * blocks * (1 << LUT_INPUTS) + results * blocks * weight_bits)
        _count(multiplies, f"32x{16}", results * weight_bits * groups)
    else:
        if path == "power-domain":
            multiplied = f"{weight_bits}x{input_bits}"
        _count(multiplies, multiplied, products)
        _count(adds, accumulator, products)
    if decode == "run" and path == "level table":
        look_ups += weights
    elif decode == "run" and path == "q*|q|":
        _count(multiplies, f"{weight_bits}x{weight_bits}", weights)
    if decode_inputs == "look-up":
        look_ups += inputs
    elif decode_inputs == "multiply":
        _count(multiplies, f"{input_bits}x{input_bits}", inputs)
    if weight_zero_points:
        _count(adds, accumulator, rows * depth + results * groups)
        _count(multiplies, f"32x{weight_level_bits}", results * groups)
    if groups > 1 and path != "lut-gemm":
        _count(multiplies, f"{accumulator_bits}x16", results * groups)
        _count(adds, "64", results * groups)
    # Requantization: one multiply; the bias, the rounding constant and the zero point are added.
    _count(multiplies, "32x32", results)
    _count(adds, "64", results)
    _count(adds, accumulator, 2 * results)
    stored_bits = weight_level_bits if decode == "load" and path in {"uniform", "q*|q|", "level table"} else weight_bits
    factors = outputs * groups if scales is None else scales
    tables = weight_table_entries * weight_level_bits // 8 if decode == "run" else 0
    tables += input_table_entries * input_level_bits // 8 + 4 * product_entries
    if path == "lut-gemm":
        tables += rows * -(-depth // LUT_INPUTS) * (1 << LUT_INPUTS) * 4
    moved = {
        "weights": -(-weights * stored_bits // 8),
        "scales": 5 * factors + 4 * outputs,  # multiplier and shift; the bias
        "inputs": -(-inputs * input_bits // 8),
        "tables": tables,
        "outputs": -(-results * output_bits // 8),
    }
    return OperationCount((LayerCost(layer, path, multiplies, adds, look_ups, newton_steps, moved),))


def _count(counts: dict[str, int], width: str, number: int) -> None:
    if number:
        counts[width] = counts.get(width, 0) + number


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, number in part.items():
            total[name] = total.get(name, 0) + number
    return total
