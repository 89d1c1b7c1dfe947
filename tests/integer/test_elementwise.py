"""Sums, products, rescalings and joins: against Python integers, and with no mismatch against three runtimes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_zoo import ON_X86, RUNNERS, codes, one_operator, scale

from workbench.errors import AccumulatorOverflowError, IntegerError, SemanticsError
from workbench.integer.elementwise import add, addition_multipliers, mul, sub
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.rescaling import concat, rescale_codes
from workbench.integer.watch import watch

INTEGER_RULES = ["tflm", "litert-reference", "tosa-single", "tosa-double"]
OPERATORS = {"ADD": add, "SUB": sub, "MUL": mul}
SHAPES = [((4, 300), (4, 300)), ((2, 5, 7, 40), (40,)), ((3, 1), (3, 300)), ((4, 300), (1,)), ((1,), (2, 3, 1))]


def twice_rounded(value, multiplier, shift):
    """gemmlowp's two roundings, in Python integers."""
    left, right = max(shift, 0), max(-shift, 0)
    product = (value << left) * multiplier
    nudged = product + (1 << 30 if product >= 0 else 1 - (1 << 30))
    high = nudged // (1 << 31) if nudged >= 0 else -(-nudged // (1 << 31))
    rest = high & ((1 << right) - 1)
    return (high >> right) + (rest > ((1 << right) - 1) // 2 + (high < 0))


def right_shifted(value, multiplier, shift, *, double):
    half = 1 << (shift - 1)
    if double and shift > 31:
        half += (1 << 30) if value >= 0 else -(1 << 30)
    return (value * multiplier + half) >> shift


def rescaled(value, multiplier, shift, semantics):
    if semantics.startswith("tosa"):
        return right_shifted(value, multiplier, shift, double=semantics == "tosa-double")
    return twice_rounded(value, multiplier, shift)


scales = st.floats(2**-10, 10, width=32)


@given(
    st.sampled_from(INTEGER_RULES),
    st.sampled_from([np.int8, np.int16]),
    st.tuples(scales, scales, scales),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, -1]),
)
def test_sums_follow_their_formula_in_python_integers(semantics, kind, three, seed, sign):
    rng = np.random.default_rng(seed)
    limits = np.iinfo(kind)
    a, b = codes(rng, 7, kind), codes(rng, 7, kind)
    a[0], b[0], a[1], b[1] = limits.min, limits.max, limits.max, limits.min
    zeros = [int(codes(rng, (), kind)) for _ in range(3)]
    s = [float(np.float32(each)) for each in three]
    left = 20 if kind == np.int8 else 15
    twice = 2 * max(s[0], s[1])
    lift = 2**left if semantics.startswith("tosa") else 1
    try:
        factors = [
            tuple(int(part) for part in quantize_multiplier(real, semantics))
            for real in (lift * s[0] / twice, lift * s[1] / twice, twice / (2**left * s[2]))
        ]
    except SemanticsError:
        return
    expected = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        start = 1 if lift > 1 else 2**left
        first = rescaled((x - zeros[0]) * start, *factors[0], semantics)
        second = rescaled((y - zeros[1]) * start, *factors[1], semantics)
        total = rescaled(first + sign * second, *factors[2], semantics) + zeros[2]
        expected.append(min(max(total, limits.min), limits.max))
    places = {"a_zero_point": zeros[0], "b_zero_point": zeros[1], "output_zero_point": zeros[2], "semantics": semantics}
    operator = add if sign > 0 else sub
    got = operator(a, b, a_scale=s[0], b_scale=s[1], output_scale=s[2], **places)
    assert got.tolist() == expected
    multiplier, shift = addition_multipliers(*s, semantics, kind)
    assert np.array_equal(operator(a, b, multiplier=multiplier, shift=shift, **places), got)


@given(st.sampled_from(INTEGER_RULES), scales, scales, st.integers(0, 2**32 - 1))
def test_integer_recipes_are_within_one_step_of_the_exact_sum(semantics, first, second, seed):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, 50), codes(rng, 50)
    out = np.float32(2 * max(first, second))
    got = add(a, b, a_scale=first, b_scale=second, output_scale=out, semantics=semantics)
    for x, y, z in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        exact = (x * Fraction(float(first)) + y * Fraction(float(second))) / Fraction(float(out))
        assert abs(z - exact) <= Fraction(1, 2) + Fraction(1, 1000)


@given(st.sampled_from(INTEGER_RULES), st.tuples(scales, scales, scales), st.integers(0, 2**32 - 1))
def test_products_follow_their_formula_in_python_integers(semantics, three, seed):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, 9), codes(rng, 9)
    zeros = [int(codes(rng, ())) for _ in range(3)]
    s = [np.float32(each) for each in three]
    real = float(s[0]) * float(s[1]) / float(s[2])
    if semantics == "litert-reference":
        real = float(s[0] * s[1] / s[2])
    try:
        multiplier, shift = (int(part) for part in quantize_multiplier(real, semantics))
    except SemanticsError:
        return
    if shift > 13 and not semantics.startswith("tosa"):
        return  # the 16-bit product times 2**shift leaves int32, which the runtimes do not allow
    expected = [
        min(max(rescaled((x - zeros[0]) * (y - zeros[1]), multiplier, shift, semantics) + zeros[2], -128), 127)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    places = {"a_zero_point": zeros[0], "b_zero_point": zeros[1], "output_zero_point": zeros[2], "semantics": semantics}
    assert mul(a, b, a_scale=s[0], b_scale=s[1], output_scale=s[2], **places).tolist() == expected
    assert mul(a, b, multiplier=np.int32(multiplier), shift=np.int32(shift), **places).tolist() == expected


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference"])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint8])
@pytest.mark.parametrize("name", ["ADD", "SUB", "MUL"])
def test_equals_tensorflow_lite(semantics, kind, name):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    rng = np.random.default_rng(11)
    mismatches = outputs = 0
    for trial in range(16):
        shapes = SHAPES[trial % 4]
        a, b = codes(rng, shapes[0], kind), codes(rng, shapes[1], kind)
        first, second = scale(rng), scale(rng)
        zeros = [0] * 3 if kind == np.int16 else [int(codes(rng, (), kind)) for _ in range(3)]
        out = (first + second) * np.float32(rng.uniform(0.3, 2))
        if name == "MUL":
            out = first * second * np.float32(rng.uniform(20, 120) * (256 if kind == np.int16 else 1))
        relu = trial % 2
        options = {"fused_activation_function": ["NONE", "RELU"][relu]}
        if name != "MUL":
            options["pot_scale_int16"] = False
        shape = np.broadcast_shapes(*shapes)
        given_options = {
            "a_scale": first,
            "b_scale": second,
            "output_scale": out,
            "a_zero_point": zeros[0],
            "b_zero_point": zeros[1],
            "output_zero_point": zeros[2],
            "low": zeros[2] if relu else None,
            "semantics": semantics,
        }
        if semantics == "tflm" and kind == np.uint8:
            with pytest.raises(SemanticsError, match=r"tflm has no .* uint8"):
                OPERATORS[name](a, b, **given_options)
            return
        model = one_operator(
            name, [(a, first, zeros[0]), (b, second, zeros[1])], (shape, kind, out, zeros[2]), options, version=2
        )
        (expected,) = RUNNERS[semantics](model, [a, b])
        got = OPERATORS[name](a, b, **given_options)
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        mismatches += int(np.count_nonzero(got != expected))
        outputs += got.size
    assert outputs > 10_000
    assert mismatches == 0


@ON_X86
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("name", ["ADD", "MUL"])
def test_equals_onnxruntime(kind, name):
    pytest.importorskip("onnxruntime")
    from workbench.integer.judges.runners import onnx_model, run_onnx

    rng = np.random.default_rng(12)
    mismatches = outputs = 0
    for trial in range(25):
        shapes = SHAPES[trial % len(SHAPES)]
        a, b = codes(rng, shapes[0], kind), codes(rng, shapes[1], kind)
        first, second = scale(rng), scale(rng)
        zeros = [codes(rng, (), kind) for _ in range(3)]
        out = (first + second) * np.float32(rng.uniform(0.3, 2))
        if name == "MUL":
            out = first * second * np.float32(rng.uniform(20, 120))
        constants = {"as": first, "az": zeros[0], "bs": second, "bz": zeros[1], "cs": out, "cz": zeros[2]}
        model = onnx_model(
            f"QLinear{name.title()}",
            {"a": a, "b": b},
            {"y": kind},
            {key: np.asarray(value) for key, value in constants.items()},
            order=["a", "as", "az", "b", "bs", "bz", "cs", "cz"],
            domain="com.microsoft",
        )
        (expected,) = run_onnx(model, {"a": a, "b": b})
        got = OPERATORS[name](
            a,
            b,
            a_scale=first,
            b_scale=second,
            output_scale=out,
            a_zero_point=int(zeros[0]),
            b_zero_point=int(zeros[1]),
            output_zero_point=int(zeros[2]),
            semantics="onnxruntime",
        )
        assert got.shape == expected.shape
        mismatches += int(np.count_nonzero(got != expected))
        outputs += got.size
    assert outputs > 10_000
    assert mismatches == 0


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.int8, np.int8),
        (np.int8, np.uint8),
        (np.uint8, np.int8),
        (np.int8, np.int16),
        (np.int16, np.int8),
        (np.int16, np.int16),
        (np.int16, np.int32),
    ],
)
def test_rescaling_equals_quantize(semantics, source, target):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    rng = np.random.default_rng(13)
    for _ in range(5):
        x = codes(rng, 4000, source)
        first, second = scale(rng), scale(rng)
        zeros = [0 if kind in {np.int16, np.int32} else int(codes(rng, (), kind)) for kind in (source, target)]
        model = one_operator("QUANTIZE", [(x, first, zeros[0])], (x.shape, target, second, zeros[1]), version=2)
        (expected,) = RUNNERS[semantics](model, [x])
        options = {"input_zero_point": zeros[0], "output_zero_point": zeros[1], "dtype": target, "semantics": semantics}
        assert np.array_equal(rescale_codes(x, input_scale=first, output_scale=second, **options), expected)
        factor = float(first) / float(second)
        multiplier, shift = quantize_multiplier(factor, semantics)
        assert np.array_equal(rescale_codes(x, multiplier=multiplier, shift=shift, **options), expected)


def test_rescaling_equals_onnxruntimes_dequantize_and_quantize():
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    from workbench.integer.judges.runners import run_onnx

    assert onnxruntime
    rng = np.random.default_rng(14)
    for _ in range(5):
        x = codes(rng, 5000)
        first, second, zeros = scale(rng), scale(rng), [codes(rng, ()) for _ in range(2)]
        constants = {"xs": first, "xz": zeros[0], "ys": second, "yz": zeros[1]}
        graph = helper.make_graph(
            [
                helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["r"]),
                helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]),
            ],
            "rescale",
            [helper.make_tensor_value_info("x", 3, x.shape)],
            [helper.make_tensor_value_info("y", 3, x.shape)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (expected,) = run_onnx(model, {"x": x})
        got = rescale_codes(
            x,
            input_scale=first,
            output_scale=second,
            input_zero_point=int(zeros[0]),
            output_zero_point=int(zeros[1]),
            semantics="onnxruntime",
        )
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_concat_equals_onnxruntime(kind):
    pytest.importorskip("onnxruntime")
    from workbench.integer.judges.runners import onnx_model, run_onnx

    rng = np.random.default_rng(15)
    for _ in range(5):
        parts = [codes(rng, (3, length, 50), kind) for length in (4, 1, 6)]
        steps, zeros = [scale(rng) for _ in range(4)], [codes(rng, (), kind) for _ in range(4)]
        steps[2], zeros[2] = steps[3], zeros[3]
        constants = {f"{key}{i}": values[i] for i in range(4) for key, values in (("s", steps), ("z", zeros))}
        order = ["s3", "z3", *(name for i in range(3) for name in (f"x{i}", f"s{i}", f"z{i}"))]
        given_parts = {f"x{i}": part for i, part in enumerate(parts)}
        model = onnx_model(
            "QLinearConcat",
            given_parts,
            {"y": kind},
            {key: np.asarray(value) for key, value in constants.items()},
            order=order,
            domain="com.microsoft",
            axis=1,
        )
        (expected,) = run_onnx(model, given_parts)
        got = concat(
            parts,
            input_scales=steps[:3],
            output_scale=steps[3],
            input_zero_points=[int(zero) for zero in zeros[:3]],
            output_zero_point=int(zeros[3]),
            axis=1,
            semantics="onnxruntime",
        )
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference", "tosa-single"])
def test_concat_copies_what_has_the_outputs_scale_and_rescales_the_rest(semantics):
    a, b = np.arange(-10, 10, dtype=np.int8).reshape(4, 5), np.arange(-60, 60, dtype=np.int8).reshape(4, 30)
    assert np.array_equal(concat([a, b]), np.concatenate([a, b], axis=-1))
    got = concat([a, b], input_scales=[0.1, 0.3], output_scale=0.1, input_zero_points=[2, 5], output_zero_point=2)
    assert np.array_equal(got[:, :5], a)
    with watch() as seen:
        got = concat([a, b], input_scales=[0.1, 0.3], output_scale=0.1, input_zero_points=[2, 5], output_zero_point=2)
    assert [one.operator for one in seen.observations] == ["concat"]
    assert seen.saturated > 0
    again = concat(
        [a, b],
        input_scales=[0.1, 0.3],
        output_scale=0.1,
        input_zero_points=[2, 5],
        output_zero_point=2,
        semantics=semantics,
    )
    rest = rescale_codes(
        b, input_scale=0.3, output_scale=0.1, input_zero_point=5, output_zero_point=2, semantics=semantics
    )
    assert np.array_equal(again[:, 5:], rest)


def test_empty_tensors_stay_empty():
    empty = np.empty((0, 3), np.int8)
    for operator in (add, sub, mul):
        for semantics in INTEGER_RULES:
            got = operator(empty, empty, a_scale=1, b_scale=1, output_scale=1, semantics=semantics)
            assert got.shape == (0, 3)
    assert add(empty, empty, a_scale=1, b_scale=1, output_scale=1, semantics="onnxruntime").shape == (0, 3)
    assert concat([empty, empty], axis=0).shape == (0, 3)


X = np.zeros(3, np.int8)
SCALES = {"a_scale": 0.1, "b_scale": 0.1, "output_scale": 0.1}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: add(X, X.astype(np.int16), **SCALES), "one type"),
        (lambda: add(X, np.zeros(2, np.int8), **SCALES), "broadcast"),
        (lambda: add(X, X, a_scale=0.1, b_scale=0.1), "scale"),
        (lambda: add(X, X, **{**SCALES, "a_scale": -1}), "above 0"),
        (lambda: add(X, X, **SCALES, a_zero_point=300), "zero point"),
        (lambda: add(X, X, **SCALES, output_zero_point=300), "zero point"),
        (lambda: add(X, X, **SCALES, low=5, high=4), "clamp"),
        (lambda: add(X, X, **SCALES, low=5, high=4, semantics="onnxruntime"), "clamp"),
        (lambda: add(X, X, multiplier=np.zeros(2, np.int32), shift=np.zeros(2, np.int32)), "3 multipliers"),
        (lambda: add(X, X, multiplier=np.zeros(3, np.int32), **SCALES), "not both"),
        (lambda: mul(X, X, multiplier=np.int32(5), **SCALES), "not both"),
        (lambda: sub(X, X, **SCALES, semantics="onnxruntime"), "no quantized subtraction"),
        (lambda: add(X.astype(np.int16), X.astype(np.int16), **SCALES, semantics="onnxruntime"), "no add of int16"),
        (lambda: rescale_codes(X, input_scale=0.1), "scale"),
        (lambda: rescale_codes(X, multiplier=np.float32(1), semantics="onnxruntime"), "give the scales"),
        (lambda: concat([]), "joined"),
        (lambda: concat([X, np.zeros((1, 3), np.int8)]), "joined"),
        (lambda: concat([X, X], input_scales=[0.1], output_scale=0.1), "as many"),
        (lambda: concat([X[None], np.zeros((2, 2), np.int8)]), "do not join"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(IntegerError, match=words):
        call()


@given(st.integers(-32768, 32767), st.integers(-32768, 32767), st.integers(-32768, 32767), st.integers(-32768, 32767))
def test_products_of_int16_codes_never_wrap(x: int, y: int, x_zero: int, y_zero: int):
    """With zero points other than 0 a product of two int16 differences can need 33 bits."""
    a, b = np.array([x], dtype=np.int16), np.array([y], dtype=np.int16)
    options = {"multiplier": 1 << 30, "shift": 1, "a_zero_point": x_zero, "b_zero_point": y_zero, "dtype": np.int32}
    exact = (x - x_zero) * (y - y_zero)
    if -(2**31) <= exact < 2**31:
        assert int(mul(a, b, semantics="tosa", **{**options, "shift": 30})[0]) == exact
    else:
        with pytest.raises(AccumulatorOverflowError, match="a product of mul needs 33 bits"):
            mul(a, b, **options)


def test_sums_of_ready_multipliers_never_wrap():
    a = np.array([127], dtype=np.int8)
    multipliers, shifts = np.array([2**31 - 1] * 2 + [1 << 30]), np.array([4, 4, -30])
    with pytest.raises(AccumulatorOverflowError, match="a sum of add needs 33 bits"):
        add(a, a, multiplier=multipliers, shift=shifts)


def test_int32_codes_less_their_zero_point_never_wrap():
    far = np.array([-(2**31)], dtype=np.int32)
    with pytest.raises(AccumulatorOverflowError, match="33 bits"):
        rescale_codes(far, input_scale=1.0, output_scale=2.0, input_zero_point=1)
    assert rescale_codes(far, input_scale=1.0, output_scale=2.0)[0] == -(2**30)
