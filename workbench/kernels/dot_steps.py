"""Steps of a dot product, written as LLVM vectors for each instruction set: read, multiply, add, fold."""

# Functions that write instructions: llvmlite's objects carry no useful types.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from workbench.kernels.instruction_sets import Avx2, Avx512, Neon, Vnni256, Vnni512

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))

_PAIRS = {Vnni512: "llvm.x86.avx512.pmaddw.d.512", Avx512: "llvm.x86.avx512.pmaddw.d.512"}
_PAIRS |= {Vnni256: "llvm.x86.avx2.pmadd.wd", Avx2: "llvm.x86.avx2.pmadd.wd"}


def vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    """Return a vector type."""
    return ir.VectorType(kind, lanes)


def splat(kind: ir.IntType, lanes: int, value: int) -> ir.Constant:
    """Return a constant with the same number in every lane."""
    return ir.Constant(vector(kind, lanes), [value] * lanes)


def call(builder, name: str, result: ir.Type, arguments: list[Any]):
    """Call an LLVM intrinsic by name."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def load(builder, pointer, kind: ir.Type):
    """Load a vector from bytes of any alignment."""
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def pointer_to(builder, address):
    """Return a pointer to bytes at an address."""
    return builder.inttoptr(address, I8.as_pointer())


def shuffle(builder, one, other, order: list[int]):
    """Return lanes of two vectors in a fixed order."""
    return builder.shuffle_vector(one, other, ir.Constant(vector(I32, len(order)), order))


class Operand(NamedTuple):
    """How a row's elements are read: 8 or 16 bits, signed or not."""

    bits: int
    signed: bool


class Arithmetic:
    """One step along the depth for one instruction set and pair of operand types.

    Attributes:
        span: elements of a row that one step takes.
        halves: vectors of sums per pair: two where both sides have 16 bits (low and high byte of the right side).
    """

    def __init__(self, machine: type, lanes: int, left: Operand, right: Operand) -> None:
        self.machine, self.lanes, self.left, self.right = machine, lanes, left, right
        narrow = left.bits == right.bits == 8
        self.bytes = narrow and (machine in {Vnni512, Vnni256} or (machine is Neon))
        self.span = lanes * 4 if self.bytes else lanes * 2
        self.wide = not narrow
        self.halves = 2 if left.bits == right.bits == 16 else 1
        # vpdpbusd wants one unsigned side; dot-product instructions of Arm want both of one sign.
        same = left.signed == right.signed
        self.flip = self.bytes and (same if machine is not Neon else not same)

    def read(self, builder, pointer, operand: Operand):
        """Return one step's elements of a row: bytes, or 16 bits each."""
        values = load(builder, pointer, vector(ir.IntType(operand.bits), self.span))
        return self.widen(builder, values, operand)

    def widen(self, builder, values, operand: Operand):
        """Return elements as the instruction takes them: bytes as they are, or as 16 bits."""
        if self.bytes or operand.bits == 16:
            return values
        kind = vector(I16, self.span)
        return builder.sext(values, kind) if operand.signed else builder.zext(values, kind)

    def read_right(self, builder, pointer) -> list[Any]:
        """Return what one step multiplies with: one vector, or a 16-bit number's low and high bytes."""
        values = self.read(builder, pointer, self.right)
        if self.flip:
            values = builder.xor(values, splat(I8, self.span, -128))
        if self.halves == 1:
            return [values]
        return [
            builder.and_(values, splat(I16, self.span, 255)),
            builder.ashr(values, splat(I16, self.span, 8)),
        ]

    def multiply_add(self, builder, sums, left, right):
        """Return sums + products of one step."""
        kind = vector(I32, self.lanes)
        if self.bytes:
            if self.machine is Neon:
                # After a flip both sides have the left one's sign.
                name = f"llvm.aarch64.neon.{'s' if self.left.signed else 'u'}dot.v4i32.v16i8"
                return call(builder, name, kind, [sums, left, right])
            # Exactly one side is unsigned: the right one after a flip of a signed one, or the unsigned one there is.
            unsigned, signed = (left, right) if not self.left.signed else (right, left)
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            return call(builder, name, kind, [sums, builder.bitcast(unsigned, kind), builder.bitcast(signed, kind)])
        if self.machine in _PAIRS:
            return builder.add(sums, call(builder, _PAIRS[self.machine], kind, [left, right]))
        double = vector(I32, self.span)
        products = builder.mul(builder.sext(left, double), builder.sext(right, double))
        even = shuffle(builder, products, products, list(range(0, self.span, 2)))
        odd = shuffle(builder, products, products, list(range(1, self.span, 2)))
        return builder.add(sums, builder.add(even, odd))

    def finish(self, builder, sums: list[Any]):
        """Return one vector of final partial sums per pair: int32, or int64 with the two bytes put together."""
        if not self.wide:
            return sums[0]
        half = self.lanes // 2
        total = None
        for place, part in enumerate(sums):
            long = builder.sext(part, vector(I64, self.lanes))
            low = shuffle(builder, long, long, list(range(half)))
            high = shuffle(builder, long, long, list(range(half, self.lanes)))
            folded = builder.add(low, high)
            if place:
                folded = builder.shl(folded, splat(I64, half, 8))
            total = folded if total is None else builder.add(total, folded)
        return total


def fold(builder, four: list[Any]):
    """Return the four sums of the lanes of four vectors, as one vector of four.

    Pairs of vectors are interleaved and added until a lane of each stands beside the others, then halves are added.
    """
    lanes = four[0].type.count
    if lanes >= 4:
        pairs: list[Any] = []
        for one, other in (four[:2], four[2:]):
            # Within each group of four lanes: (a0 b0 a1 b1) + (a2 b2 a3 b3).
            low, high = [], []
            for group in range(0, lanes, 4):
                low += [group, lanes + group, group + 1, lanes + group + 1]
                high += [group + 2, lanes + group + 2, group + 3, lanes + group + 3]
            pairs.append(builder.add(shuffle(builder, one, other, low), shuffle(builder, one, other, high)))
        low, high = [], []
        for group in range(0, lanes, 4):
            low += [group, group + 1, lanes + group, lanes + group + 1]
            high += [group + 2, group + 3, lanes + group + 2, lanes + group + 3]
        joined = builder.add(shuffle(builder, pairs[0], pairs[1], low), shuffle(builder, pairs[0], pairs[1], high))
    else:
        # Two lanes each: (a0 b0 c0 d0) + (a1 b1 c1 d1).
        first = shuffle(builder, four[0], four[1], [0, 2, 1, 3])
        second = shuffle(builder, four[2], four[3], [0, 2, 1, 3])
        joined = builder.add(
            shuffle(builder, first, second, [0, 1, 4, 5]), shuffle(builder, first, second, [2, 3, 6, 7])
        )
    while joined.type.count > 4:
        half = joined.type.count // 2
        low = shuffle(builder, joined, joined, list(range(half)))
        high = shuffle(builder, joined, joined, list(range(half, 2 * half)))
        joined = builder.add(low, high)
    return joined


def lanes_of(machine: Any) -> int:
    """Return how many sums of 32 bits a vector of an instruction set holds."""
    return machine._field_defaults["lanes"]


def plan_of(machine: type, left: Any, right: Any) -> Arithmetic:
    """Return how an instruction set multiplies two types, given as numpy's or numba's."""
    operands = []
    for kind in (left, right):
        if isinstance(kind, np.dtype):
            operands.append(Operand(kind.itemsize * 8, kind.kind == "i"))
        else:
            operands.append(Operand(kind.bitwidth, kind.signed))
    return Arithmetic(machine, lanes_of(machine), *operands)
