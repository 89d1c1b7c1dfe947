"""Codes of 4 bits, two per byte, looked up in a table of 16 numbers within a register."""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workbench.kernels.dot_steps import (
    I8,
    I32,
    I64,
    Arithmetic,
    Operand,
    call,
    fold,
    lanes_of,
    load,
    plan_of,
    pointer_to,
    shuffle,
    splat,
    vector,
)
from workbench.kernels.dot_tiles import LINE, write_sums
from workbench.kernels.instruction_sets import Neon, Portable

_LOOK_UPS = {
    64: "llvm.x86.avx512.pshuf.b.512",
    32: "llvm.x86.avx2.pshuf.b",
    16: "llvm.x86.ssse3.pshuf.b.128",
}


def line_plan(machine: type, left: Any) -> Arithmetic:
    """Return how a row of 8-bit numbers meets looked-up bytes, whose sign is what the instruction wants."""
    operand = plan_of(machine, left, left).left
    plain = Arithmetic(machine, lanes_of(machine), operand, Operand(8, signed=True))
    signed = not plain.flip
    return Arithmetic(machine, plain.lanes, operand, Operand(8, signed))


def _look_up(builder, machine: type, table, codes):
    """Return table[code] for each byte of ``codes``, all below 16; ``table`` points to 16 bytes."""
    count = codes.type.count
    if machine is Portable:
        found = ir.Constant(codes.type, ir.Undefined)
        for lane in range(count):
            place = ir.Constant(I32, lane)
            code = builder.zext(builder.extract_element(codes, place), I64)
            found = builder.insert_element(found, builder.load(builder.gep(table, [code])), place)
        return found
    levels = load(builder, table, vector(I8, 16))
    if machine is Neon:
        return call(builder, "llvm.aarch64.neon.tbl1.v16i8", codes.type, [levels, codes])
    repeated = shuffle(builder, levels, levels, [lane % 16 for lane in range(count)])
    return call(builder, _LOOK_UPS[count], codes.type, [repeated, codes])


def _halves(builder, packed):
    """Return the low and the high four bits of each byte."""
    count = packed.type.count
    return builder.and_(packed, splat(I8, count, 15)), builder.lshr(packed, splat(I8, count, 4))


def _packed_line(
    typing_context, machine, left_kind, left, packed, stride, columns, steps, packed_tail, tail, table, base, out
):
    """Write ``base + sum over k of left[k] * table[code[column, k]]`` for up to ``LINE`` columns of packed codes.

    Args:
        typing_context: numba's.
        machine: tag of the instruction set.
        left_kind: any number of the left operand's 8-bit type.
        left: address of the row: for each step first the numbers of the low halves, then of the high ones.
        packed: address of the first column's bytes.
        stride: bytes from column to column.
        columns: how many columns exist; beyond them the last one is computed again and not written.
        steps: full steps along the depth.
        packed_tail: address of the zero-padded last step of the first column.
        tail: whether there is such a last step.
        table: address of 16 bytes, as ``line_plan`` wants them.
        base: address of one int32.
        out: address of the first int32 output.
    """
    plan = line_plan(machine.instance_class, left_kind)

    def generate(context, builder, signature, arguments):
        left, packed, stride, columns, steps, packed_tail, tail, table, base, out = arguments[2:]
        last = builder.sub(columns, ir.Constant(I64, 1))
        chosen = []
        for number in range(LINE):
            index = ir.Constant(I64, number)
            chosen.append(builder.select(builder.icmp_signed("<", index, last), index, last))
        bytes_taken = ir.Constant(I64, plan.span)
        table = pointer_to(builder, table)
        finished = []
        for index in chosen:
            slots = [cgutils.alloca_once(builder, vector(I32, plan.lanes)) for _ in range(4)]
            for slot in slots:
                builder.store(splat(I32, plan.lanes, 0), slot)

            def step(place, row, first: int, slots=slots) -> None:
                codes = _halves(builder, load(builder, pointer_to(builder, row), vector(I8, plan.span)))
                for half, slot in zip(codes, slots[first : first + 2], strict=True):
                    values = plan.read(builder, pointer_to(builder, place), plan.left)
                    levels = plan.widen(builder, _look_up(builder, plan.machine, table, half), plan.right)
                    builder.store(plan.multiply_add(builder, builder.load(slot), values, levels), slot)
                    place = builder.add(place, bytes_taken)

            row = builder.add(packed, builder.mul(index, stride))

            def steps_from(first, count: int, row=row, step=step) -> None:
                for number in range(count):
                    at = builder.mul(builder.add(first, ir.Constant(I64, number)), bytes_taken)
                    place = builder.add(left, builder.mul(at, ir.Constant(I64, 2)))
                    step(place, builder.add(row, at), 2 * number)

            pairs = builder.udiv(steps, ir.Constant(I64, 2))
            with cgutils.for_range(builder, pairs, intp=I64) as loop:
                steps_from(builder.mul(loop.index, ir.Constant(I64, 2)), 2)
            done = builder.mul(pairs, ir.Constant(I64, 2))
            with cgutils.for_range(builder, builder.sub(steps, done), intp=I64) as loop:
                steps_from(builder.add(done, loop.index), 1)
            with builder.if_then(builder.icmp_signed("!=", tail, ir.Constant(I64, 0))):
                place = builder.add(left, builder.mul(steps, ir.Constant(I64, 2 * plan.span)))
                step(place, builder.add(packed_tail, builder.mul(index, bytes_taken)), 0)
            one, two = (builder.add(builder.load(slots[k]), builder.load(slots[k + 2])) for k in range(2))
            finished.append(builder.add(one, two))
        always = ir.Constant(ir.IntType(1), 1)
        sums = fold(builder, finished)
        write_sums(builder, sums, pointer_to(builder, base), pointer_to(builder, out), 0, columns, always)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(machine, left_kind, *[i64] * 10), generate


def _line_span(typing_context, machine, left_kind):
    """Return how many packed bytes a step of ``packed_line`` takes, a constant."""
    span = line_plan(machine.instance_class, left_kind).span

    def generate(context, builder, signature, arguments):
        return ir.Constant(I64, span)

    return types.int64(machine, left_kind), generate


def _widest(machine: type) -> int:
    """Return how many packed bytes are unpacked at a time."""
    return 16 if machine in {Neon, Portable} else 4 * lanes_of(machine)


def _unpack_step(typing_context, machine, item, packed, table, out):
    """Write the numbers of some packed bytes in their order; return how many bytes those were.

    Args:
        typing_context: numba's.
        machine: tag of the instruction set.
        item: any number of the table's type, int8 or int16.
        packed: address of the bytes.
        table: address of the table's 16 low bytes, then (int16) its 16 high bytes.
        out: address of the numbers.
    """
    name, wide = machine.instance_class, item.bitwidth == 16

    def generate(context, builder, signature, arguments):
        _, _, packed, table, out = arguments
        count = _widest(name)
        codes = _halves(builder, load(builder, pointer_to(builder, packed), vector(I8, count)))
        zipped = [lane // 2 + (lane % 2) * count for lane in range(2 * count)]
        tables = [pointer_to(builder, builder.add(table, ir.Constant(I64, 16 * part))) for part in range(1 + wide)]
        halves = []
        for half in codes:
            parts = [_look_up(builder, name, place, half) for place in tables]
            if wide:
                both = shuffle(builder, parts[0], parts[1], zipped)
                halves.append(builder.bitcast(both, vector(ir.IntType(16), count)))
            else:
                halves.append(parts[0])
        numbers = shuffle(builder, halves[0], halves[1], zipped)
        builder.store(numbers, builder.bitcast(pointer_to(builder, out), numbers.type.as_pointer()), align=1)
        return ir.Constant(I64, count)

    i64 = types.int64
    return i64(machine, item, i64, i64, i64), generate


packed_line: Any = intrinsic(_packed_line)
line_span: Any = intrinsic(_line_span)
unpack_step: Any = intrinsic(_unpack_step)
