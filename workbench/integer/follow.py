"""Follow one number: every step from input codes to one output code, in plain integers."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import numpy as np

from workbench.errors import IntegerError, WorkbenchError
from workbench.grids import Grid, UniformGrid
from workbench.integer.follow_rounding import factor_steps, rescale_steps
from workbench.integer.grid_linear import GridLinear
from workbench.integer.layer_run import LayerRun
from workbench.integer.level_table import LevelTable
from workbench.integer.power_root import integer_root
from workbench.integer.semantics import Semantics, as_semantics
from workbench.integer.trace import Step, Terms, Trace


def follow(run: LayerRun, row: int, channel: int, semantics: Semantics | str | None = None) -> Trace:
    """Return every step of one output number (arguments: ``LayerRun.follow``)."""
    rows, channels = run.codes.shape
    for name, index, most in (("row", row, rows), ("channel", channel, channels)):
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < most:
            message = f"{run.name} has {name}s 0 to {most - 1}, not {index!r}"
            raise IntegerError(message)
    row, channel = int(row), int(channel)
    named = run.semantics if semantics is None else as_semantics(semantics)
    conv_group, inside = divmod(channel, run.layers[0].outputs)
    layer = run.layers[conv_group]
    tables: dict[str, Any] = {}
    functions: dict[str, Any] = {
        "floor": math.floor,
        "float32": np.float32,
        "float64": float,
        "bisect_right": bisect_right,
        "integer_root": integer_root,
    }
    steps: list[Step] = []
    start = 0
    late = layer.group_multiplier is not None or layer.root is not None
    bias = _bias_step(run, layer, channel, inside)
    if bias is not None and not late:
        steps.append(bias)
        start = int(bias.result)
    accumulator = run.accumulator
    modulus = 0 if accumulator.overflow == "error" else accumulator.bits
    limits = (-(1 << (modulus - 1)), (1 << (modulus - 1)) - 1) if modulus else None
    if limits is not None and not limits[0] <= start <= limits[1]:
        kept = _kept(start, limits, accumulator.overflow)
        text = _kept_text(str(start), modulus, accumulator.overflow)
        steps.append(Step("bias", "bias in the accumulator", text, kept, "the bias alone overflows"))
        start = kept
    before = len(steps)
    starts = (start,) + (0,) * (layer.weight.groups - 1)
    terms = _terms(run, layer, conv_group, row, channel, inside, starts, limits)
    rules = _rules(run, layer, inside, tables, modulus, accumulator.overflow)
    total = _combine(layer, terms, inside, starts, steps, bias if late else None)
    code, steps_after = _finish(run, layer, inside, row, channel, total, named, tables, functions)
    steps += steps_after
    if named == run.semantics and code != int(run.codes[row, channel]):
        message = f"the steps of row {row}, channel {channel} give {code} and the run gave {int(run.codes[row, channel])}: a bug"
        raise IntegerError(message)
    return Trace(
        layer=run.name,
        row=row,
        channel=channel,
        semantics=named.name,
        terms=terms,
        steps=tuple(steps),
        code=code,
        integer=run.stage.final.scale * (code - run.stage.final.zero_point),
        real=float(run.real[row, channel]),
        fake=float(run.fake[row, channel]),
        step_size=run.step,
        tables=tables,
        functions=functions,
        rules=rules,
        before=before,
        start=starts,
    )


def _bias_step(run: LayerRun, layer: GridLinear, channel: int, inside: int) -> Step | None:
    if layer.bias is None or run.bias is None:
        return None
    scale = (
        layer.accumulator_scale
        if layer.method == "power-domain" or layer.group_multiplier is not None
        else _early(layer)
    )
    unit = float(scale[0] if len(scale) == 1 else scale[inside])
    value = float(run.bias[channel])
    return Step(
        "bias", "bias", f"round({value!r} / {unit!r})", int(layer.bias[inside]), "the real bias in units of the sum"
    )


def _early(layer: GridLinear) -> np.ndarray:
    """Return the unit of the sums themselves, before a shift."""
    return layer.accumulator_scale / 2.0**layer.sum_shift


def _terms(  # noqa: PLR0917
    run: LayerRun,
    layer: GridLinear,
    conv_group: int,
    row: int,
    channel: int,
    inside: int,
    starts: tuple[int, ...],
    limits: tuple[int, int] | None,
) -> Terms:
    operand, source = run.patch(row)
    integers, where = operand[conv_group].astype(np.int64), source[conv_group]
    padded = where < 0
    flat_codes = run.input.codes.reshape(-1)
    codes = np.where(padded, _zero_code(run.input.grid, run), flat_codes[np.maximum(where, 0)]).astype(np.int64)
    reals = np.where(padded, 0.0, run.inputs.reshape(-1)[np.maximum(where, 0)].astype(np.float64))
    weight = layer.weight
    weight_codes = weight.codes[inside].astype(np.int64)
    depth = len(weight_codes)
    group = np.arange(depth) // weight.group_size
    zero_row = 0 if len(weight.zero_point) == 1 else inside
    zeros = weight.zero_point[zero_row, group].astype(np.int64)
    if layer.method == "levels":
        values = weight.values[inside].astype(np.int64)
        products = (integers - layer.input_zero_point) * (values - zeros)
    elif layer.method == "per-product":
        values = np.searchsorted(weight.table.grid.levels, weight.table.grid.decode(weight_codes)).astype(np.int64)
        zeros = np.zeros_like(zeros)
        assert layer.products is not None
        products = layer.products[values, integers]
    else:
        values, zeros = weight_codes, np.zeros_like(zeros)
        products = integers * values
    partial, overflow = _partial_sums(products, group, starts, limits, run.accumulator.overflow)
    return Terms(
        group=group,
        source=where,
        input_real=reals,
        input_code=codes,
        input_integer=integers,
        weight_real=_weight_row(run, channel, depth),
        weight_code=weight_codes,
        weight_integer=values,
        weight_zero_point=zeros,
        product=products,
        partial_sum=partial,
        overflow=overflow,
    )


def _partial_sums(
    products: np.ndarray, group: np.ndarray, starts: tuple[int, ...], limits: tuple[int, int] | None, overflow: str
) -> tuple[np.ndarray, np.ndarray]:
    total, last = 0, -1
    sums, left = np.empty(len(products), dtype=np.int64), np.zeros(len(products), dtype=bool)
    for index, (product, which) in enumerate(zip(products.tolist(), group.tolist(), strict=True)):
        if which != last:
            total, last = starts[which], which
        total += product
        if limits is not None and not limits[0] <= total <= limits[1]:
            left[index] = True
            total = _kept(total, limits, overflow)
        sums[index] = total
    return sums, left


def _kept(total: int, limits: tuple[int, int], overflow: str) -> int:
    if overflow == "saturate":
        return min(max(total, limits[0]), limits[1])
    return (total - limits[0]) % (limits[1] - limits[0] + 1) + limits[0]


def _kept_text(total: str, bits: int, overflow: str) -> str:
    if overflow == "saturate":
        return f"min(max({total}, -2**{bits - 1}), 2**{bits - 1} - 1)"
    return f"({total} + 2**{bits - 1}) % 2**{bits} - 2**{bits - 1}"


def _zero_code(grid: Grid, run: LayerRun) -> int:
    """Return the input code of 0, for padding; 0 where the grid has none."""
    zero = run.input.zero_point
    return 0 if zero is None else int(zero[0, 0]) + int(grid.codes[0])


def _weight_row(run: LayerRun, channel: int, depth: int) -> np.ndarray:
    if run.weight_source is None:
        return np.full(depth, np.nan)
    try:
        return run.weight_source.rows(channel, channel + 1)[0].astype(np.float64)
    except WorkbenchError:
        return np.full(depth, np.nan)


def _rules(  # noqa: PLR0917
    run: LayerRun, layer: GridLinear, inside: int, tables: dict[str, Any], bits: int, overflow: str
) -> dict[str, str]:
    """Return the format texts of a term's steps, and put what they look up into ``tables``."""
    weight = layer.weight
    source = weight.source
    scale, offset = float(run.input.scale[0, 0]), float(run.input.offset[0, 0])
    rules = {"input code": _code_rule("x", run.input.grid, scale, offset, "input", tables)}
    wz, xz = "" if not weight.zero_point.any() else " - {z}", layer.input_zero_point
    xz_text = f" - {xz}" if xz >= 0 else f" + {-xz}"
    if layer.method == "levels":
        rules["input integer"] = _level_rule("q", layer.input_table, "input_levels", tables)
        level = _level_rule("c", weight.table, "weight_levels", tables)
        left = "{i}" if xz == 0 else f"({{i}}{xz_text})"
        rules["product"] = f"{left} * " + (f"({{v}}{wz})" if wz else "{v}")
    elif layer.method == "per-product":
        tables["input_index"] = _index_by_code(layer.input_table.grid)
        tables["weight_index"] = _index_by_code(weight.table.grid)
        assert layer.products is not None
        tables["products"] = layer.products.tolist()
        rules["input integer"], level = "input_index[{q}]", "weight_index[{c}]"
        rules["product"] = "products[{v}][{i}]"
    else:
        rules["input integer"], level = "{q}", "{c}"
        rules["product"] = "{i} * {v}"
    row = 0 if len(source.scale) == 1 else _source_row(run, layer, inside)
    for group in range(weight.groups):
        s, o = float(source.scale[row, group]), float(source.offset[row if len(source.offset) > 1 else 0, group])
        rules[f"weight code of group {group}"] = _code_rule("w", source.grid, s, o, "weight", tables)
        zero = int(weight.zero_point[0 if len(weight.zero_point) == 1 else inside, group])
        text = str(zero) if s == 0 else level
        rules[f"weight integer of group {group}"] = f"-({text})" if s < 0 and layer.method == "levels" else text
    rules["partial sum"] = _kept_text("{before} + {p}", bits, overflow) if bits else "{before} + {p}"
    return rules


def _source_row(run: LayerRun, layer: GridLinear, inside: int) -> int:
    """Return the row of the quantized weight that a row of this conv group is."""
    position = next(index for index, each in enumerate(run.layers) if each is layer)
    return position * run.layers[0].outputs + inside


def _code_rule(  # noqa: PLR0917
    letter: str, grid: Grid, scale: float, offset: float, name: str, tables: dict[str, Any]
) -> str:
    if scale == 0:
        zero = int(grid.codes[int(np.argmin(np.abs(grid.levels)))])
        return str(zero)
    place = f"{{{letter}}} / {scale!r}" + (f" + {offset!r}" if offset else "")
    if isinstance(grid, UniformGrid):
        low, high = int(grid.codes[0]), int(grid.codes[-1])
        return f"min(max(round({grid.n} * ({place})), {low}), {high})"
    tables[f"{name}_thresholds"] = grid.thresholds.tolist()
    tables[f"{name}_codes"] = grid.codes.tolist()
    return f"{name}_codes[bisect_right({name}_thresholds, {place})]"


def _level_rule(letter: str, table: LevelTable, name: str, tables: dict[str, Any]) -> str:
    if table.recipe == "codes":
        if table.zero == 0:
            return f"{{{letter}}}"
        return f"{{{letter}}} - {-table.zero}" if table.zero < 0 else f"{{{letter}}} + {table.zero}"
    if table.recipe == "q*|q|":
        return f"{{{letter}}} * abs({{{letter}}})"
    tables[name] = dict(zip(table.grid.codes.tolist(), table.values.tolist(), strict=True))
    return f"{name}[{{{letter}}}]"


def _index_by_code(grid: Grid) -> dict[int, int]:
    return {int(code): index for index, code in enumerate(grid.codes)}


def _combine(  # noqa: PLR0917
    layer: GridLinear, terms: Terms, inside: int, starts: tuple[int, ...], steps: list[Step], bias: Step | None
) -> int:
    """Return what requantization takes, from the sums of the groups."""
    ends = [int(np.flatnonzero(terms.group == group)[-1]) for group in range(layer.weight.groups)]
    sums = [int(terms.partial_sum[end]) for end in ends]
    total = sums[0]
    if layer.group_multiplier is None:
        steps.append(Step("sum", "accumulator", str(total), total, f"after the last of {len(terms)} terms"))
    else:
        parts = []
        for group, value in enumerate(sums):
            factor = int(layer.group_multiplier[inside, group])
            note = f"its scale is {factor} / 2**{layer.group_bits} of the row's largest"
            steps.append(Step("groups", f"group {group}", f"{value} * {factor}", value * factor, note))
            parts.append(value * factor)
        total = sum(parts)
        steps.append(Step("groups", "sum of groups", " + ".join(f"({part})" for part in parts), total))
        total = _shift_step("groups", total, layer.group_shift, "so that the weighed sum fits 32 bits", steps)
    if layer.root is not None:
        p, r = layer.root.numerator, layer.root.denominator
        root = integer_root(abs(total) ** p, r)
        sign = "-" if total < 0 else ""
        steps.append(
            Step("root", "integer root", f"{sign}integer_root({abs(total)} ** {p}, {r})", -root if total < 0 else root)
        )
        total = -root if total < 0 else root
    total = _shift_step("shift", total, layer.sum_shift, "so that every sum fits 32 bits", steps)
    if bias is not None:
        steps.append(bias)
        steps.append(Step("bias", "sum and bias", f"{total} + {_signed(int(bias.result))}", total + int(bias.result)))
        total += int(bias.result)
    return total


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _shift_step(stage: str, total: int, places: int, note: str, steps: list[Step]) -> int:
    if places == 0:
        return total
    result = (total + (1 << (places - 1))) >> places
    steps.append(Step(stage, "rounded shift", f"({total} + 2**{places - 1}) >> {places}", result, note))
    return result


def _finish(  # noqa: PLR0917
    run: LayerRun,
    layer: GridLinear,
    inside: int,
    row: int,
    channel: int,
    total: int,
    named: Semantics,
    tables: dict[str, Any],
    functions: dict[str, Any],
) -> tuple[int, list[Step]]:
    """Return the output code and the steps from the accumulator to it."""
    stage, rounding = run.stage, run.rounding(named)
    scale = layer.rescaling(stage.linear.scale, rounding)
    factor = float(scale[0] if len(scale) == 1 else scale[inside])
    steps = [_factor_step(layer, inside, stage.linear.scale, factor)]
    more, multiplier, shift = factor_steps(factor, rounding, wide=layer.wide)
    steps += more
    more, value = rescale_steps(total, multiplier, shift, rounding, wide=layer.wide)
    steps += more
    zero = stage.linear.zero_point
    code = value + zero
    steps.append(Step("clamp", "zero point", f"{value} + {_signed(zero)}", code))
    kept = min(max(code, stage.linear.low), stage.linear.high)
    note = "it was clamped" if kept != code else ""
    if kept == stage.linear.low == zero and stage.then == "relu" and code < kept:
        note = "ReLU: the lower clamp is the zero point"
    steps.append(Step("clamp", "clamp", f"min(max({code}, {stage.linear.low}), {stage.linear.high})", kept, note))
    code = kept
    if stage.separate:
        code = _function_step(run, row, channel, code, named, tables, functions, steps)
    final = stage.final
    real = final.scale * (code - final.zero_point)
    steps.append(Step("output", "value", f"{final.scale!r} * ({code} - {_signed(final.zero_point)})", real))
    return code, steps


def _factor_step(layer: GridLinear, inside: int, output_scale: float, factor: float) -> Step:
    unit = layer.accumulator_scale
    one = float(unit[0] if len(unit) == 1 else unit[inside])
    note = "real size of one accumulator unit over that of one output step, prepared before the run"
    return Step("factor", "factor", f"{one!r} / {output_scale!r}", factor, note)


def _function_step(  # noqa: PLR0917
    run: LayerRun,
    row: int,
    channel: int,
    code: int,
    named: Semantics,
    tables: dict[str, Any],
    functions: dict[str, Any],
    steps: list[Step],
) -> int:
    stage = run.stage
    name = str(stage.then)
    if name == "softmax":
        codes = run.linear_codes if named == run.semantics else run.linear_under(named)
        line = codes[row].copy()
        line[channel] = code
        tables["row_codes"] = line.tolist()

        def softmax(values: list[int]) -> list[int]:
            return stage.activate(np.array([values], dtype=stage.linear.dtype), named)[0].tolist()

        functions["softmax"] = softmax
        result = softmax(line.tolist())[channel]
        note = f"over the row's {len(line)} codes, by kind {stage.kind!r}"
        steps.append(Step("function", "softmax", f"softmax(row_codes)[{channel}]", result, note))
        return result
    if stage.linear.dtype.itemsize > 1:

        def function(value: int) -> int:
            return int(stage.activate(np.array([[value]], dtype=stage.linear.dtype), named)[0, 0])

        functions[name] = function
        result = function(code)
        steps.append(Step("function", name, f"{name}({code})", result, f"16-bit codes, by kind {stage.kind!r}"))
        return result
    least = int(np.iinfo(stage.linear.dtype).min)
    tables[f"{name}_table"] = {least + index: int(value) for index, value in enumerate(stage.table(named))}
    result = tables[f"{name}_table"][code]
    steps.append(Step("function", name, f"{name}_table[{code}]", result, f"256 entries, made by kind {stage.kind!r}"))
    return result
