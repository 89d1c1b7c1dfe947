"""Look-ups for LUT-GEMM: in tables that lie in registers where the CPU can permute them, else in memory.

A table of 2^4 partial sums fits registers, so a look-up needs no memory. AVX-512 answers 16 rows in float32 with one
``vpermps``, and 32 rows in int16 with one ``vpermw``; AVX2 answers 8 rows in float32 with two ``vpermps`` (half a table
each) and 16 rows in int16 with two ``vpshufb`` (low and high bytes). Keys of four inputs lie four to a 16-bit word, and
the permutes ignore the bits above their index, so that mostly one shift gives the next index. Without either, two keys
are one byte, and tables of 2^8 entries lie in the first-level cache. Compare Wei et al., T-MAC (arXiv 2407.00088), which
shuffles bytes and rounds tables to 8 bits; here entries are exact.
"""

# Compiled functions: numba infers their types.
# ruff: noqa: ANN001, ANN202, PLR0917

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workbench.kernels.instruction_sets import INSTRUCTION_SETS, Avx512, InstructionSet, Portable, available

#: Rows whose words lie beside each other.
TILE = 64

#: Inputs of one key and keys of one word.
KEY, KEYS = 4, 4

#: Entries of a table in registers, and of one in memory (two keys together).
ENTRIES, WIDE_ENTRIES = 1 << KEY, 256

#: int16 numbers that one integer table in registers takes: 16 entries twice, or their low and high bytes twice.
INT_TABLE = 32

#: Words ahead of the present one that are fetched early, and bytes of a cache line: the order of the words is the order
#: of use, but processors see a new stream at every page. (A fetch beyond the end of the array does nothing.)
AHEAD, _LINE = 32, 64

#: The ways, fastest first, and the tags by which kernels are compiled for them.
PATHS: dict[str, InstructionSet] = {
    "avx512": INSTRUCTION_SETS["avx512"],
    "avx2": INSTRUCTION_SETS["avx2"],
    "memory": INSTRUCTION_SETS["portable"],
}

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def paths() -> tuple[str, ...]:
    """Return the ways that this CPU has, fastest first."""
    return tuple(name for name in PATHS if name == "memory" or name in available())


def _vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def _call(builder, name: str, result: ir.Type, *arguments: Any):
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _splat(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _shifted(builder, index, places: int):
    return builder.lshr(index, _splat(index.type, places)) if places else index


def _permute_float(builder, wide: bool, table: list[Any], index, key: int):
    """Look 16 or 8 rows up in 16 floats; ``index`` holds words in 32-bit lanes."""
    found = _shifted(builder, index, KEY * key)
    if wide:
        return _call(builder, "llvm.x86.avx512.permvar.sf.512", table[0].type, table[0], found)
    low, high = (_call(builder, "llvm.x86.avx2.permps", half.type, half, found) for half in table)
    upper = builder.icmp_signed("<", builder.shl(index, _splat(index.type, 28 - KEY * key)), _splat(index.type, 0))
    return builder.select(upper, high, low)


def _permute_integer(builder, wide: bool, table: list[Any], index, key: int):
    """Look 32 or 16 rows up in 16 numbers of 16 bits."""
    found = _shifted(builder, index, KEY * key)
    if wide:
        return _call(builder, "llvm.x86.avx512.permvar.hi.512", index.type, table[0], found)
    nibble = builder.and_(found, _splat(index.type, 15))
    both = builder.or_(nibble, builder.shl(nibble, _splat(index.type, 8)))
    pairs = builder.bitcast(both, _vector(_I8, 32))
    low, high = (_call(builder, "llvm.x86.avx2.pshuf.b", half.type, half, pairs) for half in table)
    upper = ir.Constant(_vector(ir.IntType(1), 32), [0, 1] * 16)
    return builder.bitcast(builder.select(upper, high, low), index.type)


def _emit(context, builder, signature, arguments) -> None:
    """Write the loop over words: load keys, look up four tables, add."""
    machine, words_type, _, _, tables_type, _, out_type = signature.args
    _, words, first, count, tables, table, out = arguments
    wide = machine.instance_class is Avx512
    integer = isinstance(tables_type.dtype, types.Integer)
    lanes = (32 if integer else 16) // (1 if wide else 2)
    value_kind = _vector(_I16 if integer else _F32, lanes)
    index_kind = _vector(_I16 if integer else _I32, lanes)
    # A table is one vector, or two halves of it.
    part_kind = value_kind if wide or not integer else _vector(_I8, 32)
    parts = 1 if wide else 2
    permute = _permute_integer if integer else _permute_float
    entries = INT_TABLE if integer else ENTRIES

    def pointer(array_type, array, index, kind):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

    vectors = TILE // lanes
    sums = [cgutils.alloca_once(builder, value_kind) for _ in range(vectors)]
    for each in sums:
        builder.store(ir.Constant(value_kind, None), each)
    with cgutils.for_range(builder, count) as loop:
        word = builder.add(first, builder.mul(loop.index, ir.Constant(_I64, TILE)))
        place = builder.add(table, builder.mul(loop.index, ir.Constant(_I64, KEYS * entries)))
        for line in range(0, TILE * 2, _LINE):
            ahead = builder.add(word, ir.Constant(_I64, AHEAD * TILE + line // 2))
            address = pointer(words_type, words, ahead, _I8)
            kinds = [ir.Constant(_I32, value) for value in (0, 3, 1)]  # read, into every cache, data
            _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), address, *kinds)
        own = []
        for key in range(KEYS):
            starts = [ir.Constant(_I64, key * entries + part * entries // parts) for part in range(parts)]
            places = [builder.add(place, start) for start in starts]
            own.append([builder.load(pointer(tables_type, tables, at, part_kind), align=2) for at in places])
        for number in range(vectors):
            at = builder.add(word, ir.Constant(_I64, number * lanes))
            index = builder.load(pointer(words_type, words, at, _vector(_I16, lanes)), align=2)
            if not integer:
                index = builder.zext(index, index_kind)
            total = builder.load(sums[number])
            for key in range(KEYS):
                found = permute(builder, wide, own[key], index, key)
                total = builder.add(total, found) if integer else builder.fadd(total, found)
            builder.store(total, sums[number])
    for number in range(vectors):
        at = ir.Constant(_I64, number * lanes)
        builder.store(builder.load(sums[number]), pointer(out_type, out, at, value_kind), align=2)


def _from_memory(words, first, count, tables, table, out):
    """Sum look-ups in tables of 256 entries, two for each word; four words at a time, to touch the sums less often."""
    out[:] = 0
    whole = count // 4 * 4
    step = 2 * WIDE_ENTRIES
    for word in range(0, whole, 4):
        one = table + word * step
        at = first + word * TILE
        for r in range(TILE):
            a, b = np.int64(words[at + r]), np.int64(words[at + TILE + r])
            c, d = np.int64(words[at + 2 * TILE + r]), np.int64(words[at + 3 * TILE + r])
            left = tables[one + (a & 255)] + tables[one + WIDE_ENTRIES + (a >> 8)]
            right = tables[one + step + (b & 255)] + tables[one + step + WIDE_ENTRIES + (b >> 8)]
            left += tables[one + 2 * step + (c & 255)] + tables[one + 2 * step + WIDE_ENTRIES + (c >> 8)]
            right += tables[one + 3 * step + (d & 255)] + tables[one + 3 * step + WIDE_ENTRIES + (d >> 8)]
            out[r] += left + right
    for word in range(whole, count):
        one = table + word * step
        for r in range(TILE):
            a = np.int64(words[first + word * TILE + r])
            out[r] += tables[one + (a & 255)] + tables[one + WIDE_ENTRIES + (a >> 8)]


def _sum_look_ups(typing_context, machine, words, first, count, tables, table, out):
    signature = types.void(machine, words, types.int64, types.int64, tables, types.int64, out)

    def emit(context, builder, signature, arguments):
        if machine.instance_class is Portable:
            context.compile_internal(builder, _from_memory, types.void(*signature.args[1:]), arguments[1:])
        else:
            _emit(context, builder, signature, arguments)
        return context.get_dummy_value()

    return signature, emit


#: (machine, words uint16, first word, count, tables float32 or int16, first entry, out of the tables' type [TILE]):
#: out = the sum of the look-ups of each row of a tile.
sum_look_ups: Any = intrinsic(_sum_look_ups)
