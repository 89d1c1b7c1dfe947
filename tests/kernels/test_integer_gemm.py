"""Integer matrix products on every path of this machine against numpy's int64 products."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir

from workbench.kernels import integer_gemm, torch_product
from workbench.kernels.dot_steps import Arithmetic, Operand, fold, plan_of
from workbench.kernels.instruction_sets import INSTRUCTION_SETS, Neon, available, instruction_set
from workbench.kernels.integer_gemm import integer_matmul, integer_matmul_batched, row_sums

BEST = available()[0]
#: Each machine's own code for bytes of either sign, and for 16 bits on one side or both.
PAIRS = [(np.int8, np.int8), (np.uint8, np.int8), (np.int16, np.int8), (np.int16, np.int16)]
ALL_PAIRS = [(left, right) for left in (np.int8, np.uint8, np.int16) for right in (np.int8, np.uint8, np.int16)]
#: Where tiles, steps and depth blocks end: one below, on, one above.
SHAPES = [
    (1, 1, 1),
    (1, 9, 64),
    (1, 8, 4097),
    (2, 2, 0),
    (3, 5, 63),
    (5, 4, 65),
    (7, 3, 8200),
    (13, 17, 129),
    (97, 66, 5),
]


def exact(left, right):
    """The product modulo the accumulator's width."""
    wide = left.dtype.itemsize > 1 or right.dtype.itemsize > 1
    product = left.astype(np.int64) @ np.swapaxes(right.astype(np.int64), -1, -2)
    return product if wide else product.astype(np.int32)


def assert_exact(left, right, path=None):
    result = integer_matmul(left, right, path)
    expected = exact(left, right)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def numbers(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("path", [BEST, *(pytest.param(name, marks=pytest.mark.slow) for name in available()[1:])])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "x".join(np.dtype(kind).name for kind in pair))
def test_every_path_at_every_edge(path, pair):
    rng = np.random.default_rng(3)
    for rows, columns, depth in SHAPES:
        left, right = numbers(rng, (rows, depth), pair[0]), numbers(rng, (columns, depth), pair[1])
        assert_exact(left, right, path)
        for one in (np.iinfo(pair[0]).min, np.iinfo(pair[0]).max):
            for other in (np.iinfo(pair[1]).min, np.iinfo(pair[1]).max):
                assert_exact(np.full_like(left, one), np.full_like(right, other), path)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in ALL_PAIRS if pair not in PAIRS])
def test_the_other_pairs_of_types(pair):
    rng = np.random.default_rng(4)
    for rows, columns, depth in SHAPES:
        assert_exact(numbers(rng, (rows, depth), pair[0]), numbers(rng, (columns, depth), pair[1]))


@given(
    st.sampled_from(PAIRS),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 200),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_any_shape(pair, rows, columns, depth, seed, extremes):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    sides = []
    for count, kind in zip((rows, columns), pair, strict=True):
        limits = np.iinfo(kind)
        ends = np.array([limits.min, limits.max], dtype=kind)
        sides.append(rng.choice(ends, (count, depth)) if extremes else numbers(rng, (count, depth), kind))
    assert_exact(*sides)


def test_sums_wrap_at_32_bits():
    depth = 150_000
    left, right = np.full((2, depth), -128, dtype=np.int8), np.full((3, depth), -128, dtype=np.int8)
    wrapped = (depth * 128 * 128 + 2**31) % 2**32 - 2**31
    assert wrapped != depth * 128 * 128
    np.testing.assert_array_equal(integer_matmul(left, right), np.full((2, 3), wrapped))
    # With 16 bits on one side nothing wraps.
    wide = integer_matmul(left.astype(np.int16), right)
    np.testing.assert_array_equal(wide, np.full((2, 3), depth * 128 * 128))


@pytest.mark.parametrize("pair", [(np.int8, np.int8), (np.int16, np.int8)])
def test_all_threads_give_the_same(pair, monkeypatch):
    rng = np.random.default_rng(5)
    left, right = numbers(rng, (200, 130), pair[0]), numbers(rng, (150, 130), pair[1])
    alone = integer_matmul(left, right, BEST)
    monkeypatch.setattr(integer_gemm, "FEW", 0)
    for shape in ((200, 150), (1, 150), (200, 1), (97, 65)):
        np.testing.assert_array_equal(
            integer_matmul(left[: shape[0]], right[: shape[1]], BEST), alone[: shape[0], : shape[1]]
        )


def test_strided_and_read_only_operands_are_read_in_place():
    rng = np.random.default_rng(6)
    whole = numbers(rng, (40, 300), np.int8)
    for left in (whole[::2, :100], whole[5:, 7:90], whole[:, ::3], whole[::-1], np.asfortranarray(whole)):
        right = numbers(rng, (9, left.shape[1]), np.int8)
        right.flags.writeable = False
        assert_exact(left, right)


@pytest.mark.parametrize("pair", PAIRS[:3])
def test_batches_and_broadcast_batches(pair):
    rng = np.random.default_rng(8)
    left, right = numbers(rng, (6, 5, 70), pair[0]), numbers(rng, (6, 11, 70), pair[1])
    np.testing.assert_array_equal(integer_matmul_batched(left, right), exact(left, right))
    shared = np.broadcast_to(right[:1], right.shape)
    np.testing.assert_array_equal(integer_matmul_batched(left, shared), exact(left, shared))
    swapped = np.ascontiguousarray(np.swapaxes(right, 1, 2)).swapaxes(1, 2)
    np.testing.assert_array_equal(integer_matmul_batched(left, swapped), exact(left, right))
    empty = np.empty((0, 5, 70), dtype=pair[0]), np.empty((0, 11, 70), dtype=pair[1])
    assert integer_matmul_batched(*empty).shape == (0, 5, 11)


def test_torch_is_a_path_where_it_is_exact():
    pytest.importorskip("torch")
    if not torch_product.is_exact():
        pytest.skip("torch's int8 product is not exact on this CPU")
    rng = np.random.default_rng(9)
    for rows, columns, depth in SHAPES:
        assert_exact(numbers(rng, (rows, depth), np.int8), numbers(rng, (columns, depth), np.int8), "torch")
    assert_exact(np.full((4, 4096), -128, np.int8), np.full((8, 4096), -128, np.int8), "torch")
    with pytest.raises(ValueError, match="int8 by int8"):
        integer_matmul(np.ones((1, 1), dtype=np.uint8), np.ones((1, 1), dtype=np.int8), "torch")


def test_the_faster_of_both_is_remembered(monkeypatch):
    pytest.importorskip("torch")
    if not torch_product.is_exact():
        pytest.skip("torch's int8 product is not exact on this CPU")
    monkeypatch.setattr(torch_product, "_winner", {})
    monkeypatch.setattr(torch_product, "MANY", 1)
    calls = []
    monkeypatch.setattr(torch_product, "_seconds", lambda way: calls.append(way()) or float(len(calls)))
    rng = np.random.default_rng(10)
    left, right = numbers(rng, (20, 64), np.int8), numbers(rng, (30, 64), np.int8)
    assert_exact(left, right)
    assert len(calls) == 2 * torch_product.RUNS
    assert all(np.array_equal(calls[0], other) for other in calls)
    assert_exact(left, right)
    assert len(calls) == 2 * torch_product.RUNS
    # torch was timed first, and the clock of this test only grows.
    assert list(torch_product._winner.values()) == [True]


def test_a_saturating_torch_is_not_used(monkeypatch):
    """What a CPU without VNNI may do: pairs of products of 0...255 and -128...127 added in 16 bits that saturate."""

    def saturating(left, right):
        moved, other = left.astype(np.int64) + 128, right.astype(np.int64)
        depth = left.shape[1] // 2 * 2
        pairs = moved[:, None, :depth:2] * other[:, :depth:2] + moved[:, None, 1:depth:2] * other[:, 1:depth:2]
        total = np.clip(pairs, -(2**15), 2**15 - 1).sum(-1) + (moved[:, depth:] @ other[:, depth:].T)
        return (total - 128 * other.sum(1)).astype(np.int32)

    torch_product.is_exact.cache_clear()
    try:
        monkeypatch.setattr(torch_product, "_product", saturating)
        assert not torch_product.is_exact()
        with pytest.raises(ValueError, match="exact"):
            integer_matmul(np.ones((1, 4), dtype=np.int8), np.ones((1, 4), dtype=np.int8), "torch")
        torch_product.is_exact.cache_clear()
        monkeypatch.setattr(torch_product, "_product", exact)
        assert torch_product.is_exact()
    finally:
        torch_product.is_exact.cache_clear()


def test_row_sums():
    rng = np.random.default_rng(11)
    for kind in (np.int8, np.uint8, np.int16):
        rows = numbers(rng, (3, 4, 1000), kind)
        np.testing.assert_array_equal(row_sums(rows), rows.astype(np.int64).sum(-1))
        np.testing.assert_array_equal(row_sums(rows[:, :, ::2]), rows[:, :, ::2].astype(np.int64).sum(-1))


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (np.ones((2, 3), np.int8), np.ones((2, 4), np.int8), "meets"),
        (np.ones((2, 3), np.int32), np.ones((2, 3), np.int8), "int8, uint8 or int16"),
        (np.ones(3, np.int8), np.ones((2, 3), np.int8), "two matrices"),
    ],
)
def test_what_does_not_fit_is_refused(left, right, said):
    with pytest.raises(ValueError, match=said):
        integer_matmul(left, right)


def test_a_path_that_this_cpu_lacks_is_refused():
    with pytest.raises(ValueError, match="this CPU has"):
        integer_matmul(np.ones((1, 1), np.int8), np.ones((1, 1), np.int8), "abacus")
    assert instruction_set("portable") is INSTRUCTION_SETS["portable"]
    assert available()[-1] == "portable"


@pytest.mark.parametrize(
    ("left", "right", "instruction"), [(True, True, "sdot"), (True, False, "sdot"), (False, False, "udot")]
)
def test_arm_code_is_made_of_dot_products(left, right, instruction):
    """Cross-compiled, since this machine may not be an Arm one: the step and the final fold."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    plan = Arithmetic(Neon, 4, Operand(8, left), Operand(8, right))
    assert plan.flip == (left != right)
    pointer = ir.IntType(8).as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VectorType(ir.IntType(32), 4), [pointer, pointer]), "step")
    builder = ir.IRBuilder(function.append_basic_block())
    zero = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)
    one = plan.read(builder, function.args[0], plan.left)
    (other,) = plan.read_right(builder, function.args[1])
    sums = [plan.multiply_add(builder, zero, one, other) for _ in range(4)]
    builder.ret(fold(builder, sums))
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this llvmlite has no Arm target")
    text = target.create_target_machine(features="+dotprod,+neon").emit_assembly(llvm.parse_assembly(str(module)))
    assert instruction in text


@settings(max_examples=200)
@given(st.sampled_from(sorted(INSTRUCTION_SETS)), st.sampled_from(ALL_PAIRS), st.integers(0, 2**32 - 1))
def test_the_turned_sign_is_taken_back(name, pair, seed):
    """Each machine's arithmetic in Python: which side is turned by 128, and what the base must take away."""
    machine = type(INSTRUCTION_SETS[name])
    plan = plan_of(machine, np.dtype(pair[0]), np.dtype(pair[1]))
    rng = np.random.default_rng(seed)
    left, right = numbers(rng, 32, pair[0]), numbers(rng, 32, pair[1])
    if plan.bytes:
        turned = right.view(np.uint8) ^ 128 if plan.flip else right.view(np.uint8)
        signed = plan.right.signed != plan.flip
        # vpdpbusd takes one operand of each sign, sdot and udot two of one.
        assert (signed == plan.left.signed) == (machine is Neon)
        used = turned.view(np.int8 if signed else np.uint8).astype(np.int64)
    else:
        assert not plan.flip
        used = right.astype(np.int64)
    operands = integer_gemm.Operands(left.reshape(1, 1, -1), right.reshape(1, 1, -1), INSTRUCTION_SETS[name])
    total = int(left.astype(np.int64) @ used) + int(operands.base[0, 0])
    assert total == int(left.astype(np.int64) @ right.astype(np.int64))
