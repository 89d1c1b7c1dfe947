"""The inner steps of each runtime's rounding, written out with plain integers."""

from __future__ import annotations

import math

import numpy as np

from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.semantics import Semantics
from workbench.integer.trace import Step


def factor_steps(factor: float, named: Semantics, *, wide: bool) -> tuple[list[Step], int | float, int]:
    """Return how a real factor becomes multiplier and shift, and both.

    Args:
        factor: from accumulator to output steps.
        named: whose convention.
        wide: whether the accumulator has more than 32 bits.
    """
    if named.rounding == "float64":
        return (
            [Step("factor", "multiplier", f"{factor!r}", factor, "a float64 number: the real factor itself")],
            factor,
            0,
        )
    multiplier, shift = quantize_multiplier(factor, named, accumulator_bits=48 if wide else 32)
    if named.rounding == "float32":
        value = float(multiplier)
        return [Step("factor", "multiplier", f"float32({factor!r})", value, "a float32 number")], value, 0
    m, s = int(multiplier), int(shift)
    if m == 0:
        return (
            [Step("factor", "multiplier", "0", 0, "the factor is too small: everything becomes the zero point")],
            0,
            s,
        )
    if not named.shift_is_right:
        places = 31 - s
        steps = [
            Step(
                "factor",
                "shift",
                f"{31 - places}",
                s,
                "the factor's power of two: factor = multiplier / 2**31 * 2**shift",
            ),
            Step("factor", "multiplier", f"floor({factor!r} * 2**{places} + 0.5)", m, "31 bits of the factor"),
        ]
        return steps, m, s
    bits = 15 if wide else 31
    exact = bits - math.frexp(factor)[1]
    if math.floor(math.frexp(factor)[0] * 2.0**bits + 0.5) == 1 << bits:
        exact -= 1
    note = f"{bits} bits of the factor: factor = multiplier / 2**shift"
    steps = [Step("factor", "shift", f"{s}", s, "the factor's power of two")]
    if exact > 62:
        lost = exact - 62
        text = f"(floor({factor!r} * 2**{exact} + 0.5) + 2**{lost - 1}) >> {lost}"
        steps.append(Step("factor", "multiplier", text, m, note + "; low bits are lost, for a shift is at most 62"))
    else:
        steps.append(Step("factor", "multiplier", f"floor({factor!r} * 2**{s} + 0.5)", m, note))
    return steps, m, s


def rescale_steps(value: int, multiplier: float, shift: int, named: Semantics, *, wide: bool) -> tuple[list[Step], int]:
    """Return the steps from an accumulator to the rounded number before its zero point, and that number.

    Args:
        value: the accumulator.
        multiplier: from ``factor_steps``.
        shift: from ``factor_steps``.
        named: whose rounding.
        wide: whether the accumulator has more than 32 bits.
    """
    if named.rounding == "float32":
        return _float32(value, multiplier)
    if named.rounding == "float64":
        return _float64(value, multiplier)
    m = int(multiplier)
    if named.shift_is_right:
        return _right(value, m, shift, double=named.rounding == "double" and not wide)
    if wide:
        steps: list[Step] = []
        if m < 0x7FFF0000:
            reduced = (m + (1 << 15)) >> 16
            steps.append(_step("reduced multiplier", f"({m} + 2**15) >> 16", reduced, "int64 sums take 15 bits of it"))
        else:
            reduced = 0x7FFF
            steps.append(_step("reduced multiplier", "2**15 - 1", reduced, "the largest that 15 bits hold"))
        more, result = _single(value, reduced, 15 - shift)
        return steps + more, _cut(result, more)
    if named.rounding == "double":
        return _double(value, m, shift)
    steps, result = _single(value, m, 31 - shift)
    return steps, _cut(result, steps)


def _step(name: str, formula: str, result: float, note: str = "") -> Step:
    return Step("rescale", name, formula, result, note)


def _single(value: int, m: int, places: int) -> tuple[list[Step], int]:
    product = value * m
    half = 1 << (places - 1)
    result = (product + half) >> places
    steps = [
        _step("product", f"{value} * {m}", product, "64 bits"),
        _step("rounding constant", f"2**{places - 1}", half, "one half of what the shift drops"),
        _step("shift", f"({product} + {half}) >> {places}", result, "one rounding, halves go up"),
    ]
    return steps, result


def _cut(result: int, steps: list[Step]) -> int:
    """Keep 32 bits of a result, as TensorFlow Lite's kernels do."""
    kept = (result + (1 << 31)) % (1 << 32) - (1 << 31)
    if kept != result:
        text = f"({result} + 2**31) % 2**32 - 2**31"
        steps.append(_step("low 32 bits", text, kept, "the result left 32 bits and wrapped"))
    return kept


def _right(value: int, m: int, shift: int, *, double: bool) -> tuple[list[Step], int]:
    product = value * m
    half = 1 << (shift - 1)
    steps = [_step("product", f"{value} * {m}", product), _step("rounding constant", f"2**{shift - 1}", half)]
    if double and shift > 31:
        sign = "+" if value >= 0 else "-"
        more = half + (1 << 30) if value >= 0 else half - (1 << 30)
        steps.append(_step("second rounding", f"{half} {sign} 2**30", more, "DOUBLE_ROUND, away from zero"))
        half = more
    result = (product + half) >> shift
    steps.append(_step("shift", f"({product} + {half}) >> {shift}", result))
    return steps, result


def _double(value: int, m: int, shift: int) -> tuple[list[Step], int]:
    steps = []
    if shift > 0:
        moved = ((value << shift) + (1 << 31)) % (1 << 32) - (1 << 31)
        lost = "it left 32 bits and wrapped" if moved != value << shift else ""
        steps.append(_step("left shift", f"(({value} << {shift}) + 2**31) % 2**32 - 2**31", moved, lost))
        value = moved
    product = value * m
    steps.append(_step("product", f"{value} * {m}", product, "64 bits"))
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    text = "2**30" if product >= 0 else "1 - 2**30"
    steps.append(_step("nudge", text, nudge, "one half of 2**31, with the product's sign"))
    total = product + nudge
    # C divides towards zero.
    high = total >> 31 if total >= 0 else -((-total) >> 31)
    text = f"({product} + {nudge}) // 2**31" if total >= 0 else f"-(-({product} + {nudge}) // 2**31)"
    steps.append(_step("high multiply", text, high, "the first rounding: division towards zero, halves away from it"))
    right = max(-shift, 0)
    mask = (1 << right) - 1
    remainder = high & mask
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    result = (high >> right) + (1 if remainder > threshold else 0)
    steps += [
        _step("mask", f"2**{right} - 1", mask),
        _step("remainder", f"{high} & {mask}", remainder),
        _step(
            "threshold", f"({mask} >> 1) + {int(high < 0)}", threshold, "one more below zero: halves go away from it"
        ),
        _step("shift", f"{high} >> {right}", high >> right),
        _step("second rounding", f"{high >> right} + int({remainder} > {threshold})", result),
    ]
    return steps, result


def _float64(value: int, factor: float) -> tuple[list[Step], int]:
    product = float(value) * factor
    size = abs(product)
    whole = math.floor(size)
    up = int(size - whole >= 0.5)
    text = f"floor({size!r}) + int({size!r} - floor({size!r}) >= 0.5)"
    result = -(whole + up) if product < 0 else whole + up
    steps = [
        _step("float64 product", f"{value} * {factor!r}", product),
        _step("rounding", f"-({text})" if product < 0 else text, result, "to the nearest, halves away from zero"),
    ]
    if not -(1 << 31) <= result < 1 << 31:
        result = -(1 << 31)
        steps.append(_step("beyond 32 bits", "-2**31", result, "what the conversion to int32 gives on x86"))
    return steps, result


def _float32(value: int, factor: float) -> tuple[list[Step], int]:
    one = np.float32(value)
    product = np.float32(one * np.float32(factor))
    steps = [
        _step("accumulator in float32", f"float32({value})", float(one), "exact up to 24 bits"),
        _step("float32 product", f"float32({float(one)!r}) * float32({factor!r})", float(product)),
    ]
    if abs(float(product)) >= 2.0**40:
        result = (1 << 40) if product > 0 else -(1 << 40)
        steps.append(_step("saturation", f"{result}", result, "far outside 16 bits"))
        return steps, result
    result = round(float(product))
    steps.append(_step("rounding", f"round({float(product)!r})", result, "to the nearest, halves to even"))
    return steps, result
