"""Activations by tables and by polynomials: their stated bounds on every code, and their formulas in plain integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unary_judging import every, ours

from workbench.errors import IntegerError, SemanticsError
from workbench.integer import gelu, leaky_relu, logistic, relu, relu6, silu, tanh, watch
from workbench.integer.polynomials import CONSTANTS, argument_multiplier, fixed_multiplier
from workbench.integer.tables import FUNCTIONS

# docs/integer_operators.md states these: the polynomial's largest error in real terms. In output steps it is this over
# the output scale, and half a step of rounding more; hard-swish adds the input's 14 binary places times |x|.
BOUNDS = {
    "logistic": 7.3e-4,
    "tanh": 1.5e-3,
    "gelu": 1.83e-2,
    "gelu-tanh": 4.4e-4,
    "silu": 7.0e-4,
    "hard-swish": 2.1e-5,
}
TYPES = [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.int16), (np.int16, np.int8), (np.int16, np.int16)]


def call(name: str, codes: np.ndarray, **options):
    return silu(codes, **options) if name == "silu" else ours(name, codes, 0.0, **options)


@pytest.mark.parametrize(("given_type", "wanted"), TYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_polynomials_keep_their_bound_on_every_code(name, given_type, wanted):
    generator = np.random.default_rng(5)
    codes, limits = every(given_type), np.iinfo(given_type)
    for reach in (0.5, 1.0, 2.5, 8.0, 24.0):
        scale = float(np.float32(reach / limits.max))
        zero = int(generator.integers(limits.min // 2, limits.max // 2 + 1))
        real = FUNCTIONS[name](scale * (codes.astype(np.float64) - zero))
        # The largest result is the type's largest code.
        step = float(np.float32(np.abs(real).max() / np.iinfo(wanted).max * 1.001))
        got = call(
            name, codes, input_scale=scale, input_zero_point=zero, output_scale=step, output_zero_point=0,
            dtype=wanted, kind="polynomial",
        )  # fmt: skip
        assert got.dtype == wanted
        assert np.abs(got * step - real).max() <= BOUNDS[name] + 0.501 * step


def plain_factor(name: str, argument: int) -> int:
    """Return the polynomial kernel's factor (22 binary places) in Python's integers."""
    ln2, b, c, one, erf_b, erf_one, cubic, outer = (int(each) for each in CONSTANTS)
    size = abs(argument)
    if name == "gelu":
        value = erf_one - (min(size, erf_b) - erf_b) ** 2
        return (((erf_one + value if argument >= 0 else erf_one - value) << 21) + erf_one // 2) // erf_one
    if name == "hard-swish":
        return (min(max(argument + (3 << 14), 0), 6 << 14) << 8) // 6
    if name == "gelu-tanh":
        short = min(size, 16 << 14)
        cube = ((short * short >> 14) * short) >> 14
        size = ((short + ((cube * cubic + 2**19) >> 20)) * outer + 2**19) >> 20
    if name == "tanh":
        size *= 2
    z, rest = divmod(size, ln2)
    power = ((b - rest) ** 2 + c) >> min(z, 62)
    if name == "tanh":
        value = ((max(one - power, 0) << 22) + (one + power) // 2) // (one + power)
        return value if argument >= 0 else -value
    return (((one if argument >= 0 else power) << 22) + (one + power) // 2) // (one + power)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(BOUNDS)),
    given_type=st.sampled_from([np.int8, np.uint8, np.int16]),
    wanted=st.sampled_from([np.int8, np.uint8, np.int16]),
    scale=st.floats(1e-6, 2.0),
    step=st.floats(1e-4, 1.0),
    data=st.data(),
)
def test_polynomials_are_the_formulas_in_plain_integers(name, given_type, wanted, scale, step, data):  # noqa: PLR0917
    limits, out = np.iinfo(given_type), np.iinfo(wanted)
    codes = data.draw(st.lists(st.integers(limits.min, limits.max), max_size=12))
    zero, zero_point = data.draw(st.integers(limits.min, limits.max)), data.draw(st.integers(out.min, out.max))
    got = call(
        name, np.array(codes, dtype=given_type), input_scale=scale, input_zero_point=zero, output_scale=step,
        output_zero_point=zero_point, dtype=wanted, kind="polynomial",
    )  # fmt: skip
    scale, step = float(np.float32(scale)), float(np.float32(step))
    m, s = (int(each) for each in argument_multiplier(scale, math.sqrt(2.0) if name == "gelu" else 1.0))
    bounded = name in {"logistic", "tanh"}
    k, t = (int(each) for each in fixed_multiplier((1.0 if bounded else scale) / step / 2**22))
    wanted_codes = []
    for code in codes:
        value = code - zero
        argument = min(max((value * m + ((1 << s) >> 1)) >> s, -(32 << 14)), 32 << 14)
        result = plain_factor(name, argument) * (1 if bounded else value)
        wanted_codes.append(min(max(((result * k + ((1 << t) >> 1)) >> t) + zero_point, out.min), out.max))
    assert got.tolist() == wanted_codes


@pytest.mark.parametrize("kind", ["runtime", "table", "polynomial"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (200, 301)])
def test_any_shape_empty_or_large(kind, shape):
    codes = np.random.default_rng(2).integers(-128, 128, shape).astype(np.int8)
    got = tanh(codes, input_scale=0.03, kind=kind)
    one_by_one = tanh(codes.reshape(-1)[:50], input_scale=0.03, kind=kind)
    assert got.shape == shape and got.reshape(-1)[:50].tolist() == one_by_one.tolist()


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference", "tflite-single", "onnxruntime", "tosa-single"])
@pytest.mark.parametrize("kind", ["runtime", "table", "polynomial"])
def test_the_relu_family_stays_within_one_step(semantics, kind):
    codes = every(np.int8)
    for scale, zero, step, zero_point in ((0.1, 3, 0.1, 3), (0.05, -128, 0.03, -100), (0.2, 0, 0.35, 17)):
        real = np.float32(scale) * (codes.astype(np.float64) - zero)
        options = {
            "input_scale": scale,
            "input_zero_point": zero,
            "output_scale": step,
            "output_zero_point": zero_point,
        }
        for function, exact in (
            (relu, np.maximum(real, 0)),
            (relu6, np.clip(real, 0, 6)),
            (lambda x, **more: leaky_relu(x, slope=-0.3, **more), np.where(real >= 0, real, -0.3 * real)),
        ):
            if function is relu6 and semantics == "tflm" and kind == "runtime" and scale != step:
                continue  # that runtime rescales nothing in its ReLU6: judged in test_activation_judges
            got = function(codes, kind=kind, semantics=semantics, **options)
            wanted = np.clip(exact / np.float32(step) + zero_point, -128, 127)
            assert np.abs(got - wanted).max() <= 1.0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("wanted", [np.int8, np.uint8, np.int16])
def test_many_codes_and_few_give_the_same(dtype, wanted):
    limits = np.iinfo(dtype)
    codes = np.random.default_rng(8).integers(limits.min, limits.max + 1, (70, 301)).astype(dtype)
    options = {"input_scale": 0.03, "input_zero_point": 11, "output_scale": 0.02, "kind": "polynomial", "dtype": wanted}
    many = silu(codes, **options)
    assert many.dtype == wanted and many.shape == codes.shape
    assert all(np.array_equal(row, silu(part, **options)) for row, part in zip(many, codes, strict=True))
    with watch() as seen:
        assert np.array_equal(silu(codes, **options), many)
    assert seen.observations[0].saturated > 0 or wanted == np.int16


def test_default_output_of_logistic_and_tanh():
    for dtype, zero in ((np.int8, -128), (np.uint8, 0)):
        assert logistic(np.zeros(1, dtype=dtype), input_scale=1.0).tolist() == [128 + zero]
        assert tanh(np.zeros(1, dtype=dtype), input_scale=1.0).tolist() == [0 if dtype == np.int8 else 128]
    assert logistic(np.zeros(1, dtype=np.int16), input_scale=2.0**-12).tolist() == [16384]
    assert tanh(np.zeros(1, dtype=np.int8), input_scale=1.0, dtype=np.int16, kind="table").tolist() == [0]


def test_clamped_results_are_noted():
    codes = every(np.int8)
    with watch() as seen:
        for kind in ("runtime", "table", "polynomial"):
            gelu(codes, input_scale=0.1, output_scale=0.05, kind=kind)
    first = [(each.operator, each.outputs, each.saturated) for each in seen.observations]
    assert first == [("gelu", 256, 64)] * 3


@pytest.mark.parametrize(
    ("call_it", "error", "match"),
    [
        (lambda x: silu(x, input_scale=1.0, output_scale=1.0), SemanticsError, "litert-reference has no silu"),
        (lambda x: tanh(x, input_scale=1.0, kind="lut"), IntegerError, "a kind is 'runtime', 'table' or 'polynomial'"),
        (lambda x: tanh(x, input_scale=-1.0), IntegerError, "input scale"),
        (lambda x: tanh(x, input_scale=1.0, input_zero_point=128), IntegerError, "zero point of int8"),
        (lambda x: tanh(x, input_scale=1.0, output_zero_point=-999), IntegerError, "zero point of int8"),
        (lambda x: tanh(x.astype(np.int32), input_scale=1.0), IntegerError, "not int32"),
        (lambda x: tanh(x, input_scale=1.0, dtype=np.int64), IntegerError, "not int64"),
        (lambda x: tanh(x, input_scale=1.0, semantics="cuda"), SemanticsError, "no semantics is called"),
        (lambda x: gelu(x, approximate="erf", input_scale=1.0, output_scale=1.0), IntegerError, "'none' or 'tanh'"),
        (lambda x: leaky_relu(x, slope=math.inf, input_scale=1.0, output_scale=1.0), IntegerError, "a slope"),
        (lambda x: silu(x, input_scale=1e9, output_scale=1.0, kind="polynomial"), IntegerError, "too large"),
    ],
)
def test_bad_input_is_refused(call_it, error, match):
    with pytest.raises(error, match=match):
        call_it(np.zeros(3, dtype=np.int8))
