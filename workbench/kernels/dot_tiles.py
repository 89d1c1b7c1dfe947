"""A small tile of dot products held in registers, written as LLVM vectors for each instruction set.

Rows of both sides are read along the depth as they lie in memory: nothing is packed beforehand, so one row times a matrix
runs at the speed of the memory. Each pair (row, column) has one vector of partial sums; they are folded at the end.
"""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workbench.kernels.dot_steps import I8, I32, I64, Arithmetic, fold, plan_of, pointer_to, shuffle, splat, vector
from workbench.kernels.instruction_sets import Avx2, Avx512, Neon, Portable, Vnni256, Vnni512

#: (rows, columns) of the tiles, largest first: 24 vectors of sums where there are 32 registers, 8 where there are 16.
SHAPES: dict[type, tuple[tuple[int, int], ...]] = {
    Vnni512: ((6, 4), (4, 4), (2, 4), (1, 4)),
    Avx512: ((6, 4), (4, 4), (2, 4), (1, 4)),
    Vnni256: ((2, 4), (1, 4)),
    Avx2: ((2, 4), (1, 4)),
    Neon: ((4, 4), (2, 4), (1, 4)),
    Portable: ((2, 4), (1, 4)),
}

#: Columns of the tile for one row times a matrix. They are read one after the other, each with ``UNROLLED`` vectors of
#: sums: a single stream through the memory is what the machine fetches ahead best.
LINE, UNROLLED = 4, 4

#: Most steps along the depth before the sums go to memory. Rows of a tile stay in the first-level cache that long, and
#: 16-bit operands cannot overflow: 64 steps of two products below 2**15 * 2**8 each stay below 2**31.
DEPTH = 64


def _dot_tile(
    typing_context,
    machine,
    left_kind,
    right_kind,
    left,
    left_stride,
    right,
    right_stride,
    rows,
    columns,
    steps,
    left_tail,
    right_tail,
    tail_step,
    base,
    out,
    out_stride,
    fresh,
):
    """Write a tile of ``base[row] + sum over k of left[row, k] * right[column, k]``, or add to what stands there.

    Args:
        typing_context: numba's.
        machine: tag of the instruction set.
        left_kind: any number of the left operand's type.
        right_kind: any number of the right operand's type.
        left: address of the first row's first element.
        left_stride: bytes from row to row.
        right: address of the first column's first element.
        right_stride: bytes from column to column.
        rows: how many rows exist, at least 1; the largest tile that fits is taken.
        columns: how many columns exist, at least 1; beyond them the last one is computed again and not written.
        steps: full steps along the depth, at most ``DEPTH``.
        left_tail: address of the zero-padded last step of the first row.
        right_tail: address of the zero-padded last step of the first column.
        tail_step: elements between rows of the tails, or 0 where there is no such last step.
        base: address of one number of the output's type per row.
        out: address of the first output.
        out_stride: bytes from output row to output row.
        fresh: 0 adds to what stands in ``out``, else it is set to ``base`` and the sum.

    Returns:
        How many rows were done.
    """
    plan = plan_of(machine.instance_class, left_kind, right_kind)
    shapes = SHAPES[machine.instance_class]

    def generate(context, builder, signature, arguments):
        done = cgutils.alloca_once(builder, I64)

        def largest_of(left_shapes) -> None:
            (tall, broad), *others = left_shapes
            if not others:
                _tile(builder, plan, (tall, broad), arguments[3:])
                builder.store(ir.Constant(I64, tall), done)
                return
            with builder.if_else(builder.icmp_signed(">=", arguments[7], ir.Constant(I64, tall))) as (fits, too_tall):
                with fits:
                    _tile(builder, plan, (tall, broad), arguments[3:])
                    builder.store(ir.Constant(I64, tall), done)
                with too_tall:
                    largest_of(others)

        largest_of(shapes)
        return builder.load(done)

    i64 = types.int64
    return i64(machine, left_kind, right_kind, *[i64] * 14), generate


def _dot_line(
    typing_context,
    machine,
    left_kind,
    right_kind,
    left,
    right,
    right_stride,
    columns,
    steps,
    left_tail,
    right_tail,
    tail_step,
    base,
    out,
    fresh,
):
    """Do what ``dot_tile`` does for a single row and ``LINE`` columns."""
    plan = plan_of(machine.instance_class, left_kind, right_kind)

    def generate(context, builder, signature, arguments):
        left, right, right_stride, columns, steps, left_tail, right_tail, tail_step, base, out, fresh = arguments[3:]
        last = builder.sub(columns, ir.Constant(I64, 1))
        taken = [ir.Constant(I64, plan.span * operand.bits // 8) for operand in (plan.left, plan.right)]
        finished = []
        for number in range(LINE):
            index = builder.select(
                builder.icmp_signed("<", ir.Constant(I64, number), last), ir.Constant(I64, number), last
            )
            row = builder.add(right, builder.mul(index, right_stride))
            slots = [cgutils.alloca_once(builder, vector(I32, plan.lanes)) for _ in range(UNROLLED * plan.halves)]
            for slot in slots:
                builder.store(splat(I32, plan.lanes, 0), slot)

            def step(place: int, at_left, at_right, slots=slots) -> None:
                values = plan.read(builder, pointer_to(builder, at_left), plan.left)
                for half, part in enumerate(plan.read_right(builder, pointer_to(builder, at_right))):
                    slot = slots[place * plan.halves + half]
                    builder.store(plan.multiply_add(builder, builder.load(slot), values, part), slot)

            def steps_from(first, count: int, row=row, step=step) -> None:
                for place in range(count):
                    at = builder.add(first, ir.Constant(I64, place))
                    step(
                        place,
                        builder.add(left, builder.mul(at, taken[0])),
                        builder.add(row, builder.mul(at, taken[1])),
                    )

            unrolled = builder.udiv(steps, ir.Constant(I64, UNROLLED))
            with cgutils.for_range(builder, unrolled, intp=I64) as loop:
                steps_from(builder.mul(loop.index, ir.Constant(I64, UNROLLED)), UNROLLED)
            done = builder.mul(unrolled, ir.Constant(I64, UNROLLED))
            with cgutils.for_range(builder, builder.sub(steps, done), intp=I64) as loop:
                steps_from(builder.add(done, loop.index), 1)
            with builder.if_then(builder.icmp_signed("!=", tail_step, ir.Constant(I64, 0))):
                at_right = builder.mul(index, builder.mul(tail_step, ir.Constant(I64, plan.right.bits // 8)))
                step(0, left_tail, builder.add(right_tail, at_right))
            parts = []
            for half in range(plan.halves):
                total = builder.load(slots[half])
                for place in range(1, UNROLLED):
                    total = builder.add(total, builder.load(slots[place * plan.halves + half]))
                parts.append(total)
            finished.append(plan.finish(builder, parts))
        is_fresh = builder.icmp_signed("!=", fresh, ir.Constant(I64, 0))
        write_sums(
            builder,
            fold(builder, finished),
            pointer_to(builder, base),
            pointer_to(builder, out),
            0,
            columns,
            is_fresh,
        )
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(machine, left_kind, right_kind, *[i64] * 11), generate


def _tile(builder, plan: Arithmetic, shape: tuple[int, int], arguments) -> None:
    """Write the instructions of one tile."""
    left, left_stride, right, right_stride, _, width, steps, left_tail, right_tail, tail_step = arguments[:10]
    base, out, out_stride, fresh = arguments[10:]
    rows, columns = shape
    last = builder.sub(width, ir.Constant(I64, 1))
    chosen = [ir.Constant(I64, 0)]
    for number in range(1, columns):
        index = ir.Constant(I64, number)
        chosen.append(builder.select(builder.icmp_signed("<", index, last), index, last))
    lines = [ir.Constant(I64, number) for number in range(rows)]

    def pointers(address, stride, places) -> list[Any]:
        return [builder.inttoptr(builder.add(address, builder.mul(place, stride)), I8.as_pointer()) for place in places]

    zero = splat(I32, plan.lanes, 0)
    slots = [cgutils.alloca_once(builder, zero.type) for _ in range(rows * columns * plan.halves)]
    for slot in slots:
        builder.store(zero, slot)

    def step(lefts: list[Any], rights: list[Any]) -> None:
        others = [plan.read_right(builder, pointer) for pointer in rights]
        for row, pointer in enumerate(lefts):
            values = plan.read(builder, pointer, plan.left)
            for column, parts in enumerate(others):
                for half, part in enumerate(parts):
                    slot = slots[(row * columns + column) * plan.halves + half]
                    builder.store(plan.multiply_add(builder, builder.load(slot), values, part), slot)

    lefts, rights = pointers(left, left_stride, lines), pointers(right, right_stride, chosen)
    with cgutils.for_range(builder, steps, intp=I64) as loop:
        at_left = builder.mul(loop.index, ir.Constant(I64, plan.span * plan.left.bits // 8))
        at_right = builder.mul(loop.index, ir.Constant(I64, plan.span * plan.right.bits // 8))
        step([builder.gep(p, [at_left]) for p in lefts], [builder.gep(p, [at_right]) for p in rights])
    with builder.if_then(builder.icmp_signed("!=", tail_step, ir.Constant(I64, 0))):
        at_left = builder.mul(tail_step, ir.Constant(I64, plan.left.bits // 8))
        at_right = builder.mul(tail_step, ir.Constant(I64, plan.right.bits // 8))
        step(pointers(left_tail, at_left, lines), pointers(right_tail, at_right, chosen))
    bases = pointers(base, ir.Constant(I64, 8 if plan.wide else 4), lines)
    outs = pointers(out, out_stride, lines)
    is_fresh = builder.icmp_signed("!=", fresh, ir.Constant(I64, 0))
    for row in range(rows):
        for group in range(0, columns, 4):
            finished = []
            for column in range(group, group + 4):
                place = (row * columns + column) * plan.halves
                finished.append(plan.finish(builder, [builder.load(slots[place + h]) for h in range(plan.halves)]))
            write_sums(builder, fold(builder, finished), bases[row], outs[row], group, width, is_fresh)


def write_sums(builder, sums, base, out, group: int, width, is_fresh) -> None:
    """Write four sums of one row: at once, or as many one by one as there are columns left."""
    four = sums.type
    kind = four.element
    size = kind.width // 8
    begin = builder.load(builder.bitcast(base, kind.as_pointer()))
    begins = builder.insert_element(ir.Constant(four, ir.Undefined), begin, ir.Constant(I32, 0))
    begins = shuffle(builder, begins, begins, [0] * 4)
    target = builder.gep(out, [ir.Constant(I64, group * size)])
    whole = builder.icmp_signed(">=", width, ir.Constant(I64, group + 4))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            pointer = builder.bitcast(target, four.as_pointer())
            with builder.if_else(is_fresh) as (new, old):
                with new:
                    builder.store(builder.add(sums, begins), pointer, align=size)
                with old:
                    builder.store(builder.add(sums, builder.load(pointer, align=size)), pointer, align=size)
        with otherwise:
            for column in range(4):
                with builder.if_then(builder.icmp_signed(">", width, ir.Constant(I64, group + column))):
                    place = builder.gep(target, [ir.Constant(I64, column * size)])
                    pointer = builder.bitcast(place, kind.as_pointer())
                    before = builder.select(is_fresh, begin, builder.load(pointer, align=size))
                    total = builder.add(builder.extract_element(sums, ir.Constant(I32, column)), before)
                    builder.store(total, pointer, align=size)


def _tile_facts(typing_context, machine, left_kind, right_kind):
    """Return rows and columns of the largest tile, elements of a step, and bytes of a left element, a right one and a sum; constants."""
    plan = plan_of(machine.instance_class, left_kind, right_kind)
    facts = (
        *SHAPES[machine.instance_class][0],
        plan.span,
        plan.left.bits // 8,
        plan.right.bits // 8,
        8 if plan.wide else 4,
    )

    def generate(context, builder, signature, arguments):
        return context.make_tuple(builder, signature.return_type, [ir.Constant(I64, fact) for fact in facts])

    return types.UniTuple(types.int64, len(facts))(machine, left_kind, right_kind), generate


dot_tile: Any = intrinsic(_dot_tile)
dot_line: Any = intrinsic(_dot_line)
tile_facts: Any = intrinsic(_tile_facts)
