"""LayerNorm and RMSNorm: within their stated bound of the exact result, and the spec's formulas in plain integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError, SemanticsError
from workbench.integer import layer_norm, normalization_constants, rms_norm, watch

# Largest distance from the exact result in output steps, as docs/integer_operators.md states it, for results up to the
# type's largest code: half a step of rounding and this much more.
BOUNDS = {
    ("polynomial", np.int8): 0.5002,
    ("polynomial", np.int16): 0.504,
    ("table", np.int8): 0.5002,
    ("table", np.int16): 0.515,
}
WEIGHT, SCALE = 1e-3, float(np.float32(1e-3))


def exact(codes, zero, scale, epsilon, *, centred) -> np.ndarray:
    """Return the normalized rows in float64 from exact integer sums."""
    q = codes.astype(np.int64) - zero
    depth = q.shape[-1]
    distance = depth * q - (q.sum(-1, keepdims=True) if centred else 0)
    spread = depth * (q * q).sum(-1, keepdims=True) - (q.sum(-1, keepdims=True) ** 2 if centred else 0)
    total = spread + epsilon * depth**2 / scale**2
    return np.where(spread > 0, distance / np.sqrt(np.where(total > 0, total, 1)), 0.0)


@pytest.mark.parametrize("wanted", [np.int8, np.int16])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("kind", ["polynomial", "table"])
def test_stated_bounds(kind, dtype, wanted):
    generator = np.random.default_rng([1, np.dtype(dtype).itemsize])
    limits = np.iinfo(dtype)
    for depth in (1, 2, 3, 8, 64, 384, 1152, 4096):
        for trial in range(6):
            zero = 0 if dtype == np.int16 else int(generator.integers(limits.min, limits.max + 1))
            scale = float(np.float32(np.exp(generator.uniform(math.log(1e-4), math.log(0.3)))))
            epsilon = float(generator.choice([1e-5, 1e-12, 1e-6, 0.0]))
            codes = generator.integers(limits.min, limits.max + 1, (12, depth)).astype(dtype)
            if trial % 3 == 0:
                # Nearly constant rows: epsilon matters, or little but rounding is left.
                codes = np.clip(zero + generator.integers(-2, 3, (12, depth)), limits.min, limits.max).astype(dtype)
            weight, bias = (generator.integers(-2000, 2000, depth).astype(np.int16) for _ in range(2))
            options = {"input_scale": scale, "weight_scale": WEIGHT, "input_zero_point": zero}
            for centred in (True, False):
                real = exact(codes, zero, scale, epsilon, centred=centred)
                real = real * (weight * SCALE + (0 if centred else 1)) + (bias * SCALE if centred else 0)
                step = float(np.float32(max(np.abs(real).max(), 1e-3) / np.iinfo(wanted).max * 1.0001))
                options |= {"output_scale": step, "epsilon": epsilon, "dtype": wanted, "kind": kind}
                if centred:
                    got = layer_norm(codes, weight, bias, bias_scale=WEIGHT, **options)
                else:
                    got = rms_norm(codes, weight, weight_offset=1.0, **options)
                assert got.dtype == wanted and got.shape == codes.shape
                assert np.abs(got - real / step).max() <= BOUNDS[kind, wanted]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=4, max_size=4), min_size=1, max_size=3),
    scale=st.floats(1e-4, 1.0),
    step=st.floats(1e-3, 1.0),
    epsilon=st.sampled_from([0.0, 1e-12, 1e-6, 1e-3]),
    centred=st.booleans(),
    data=st.data(),
)
def test_newton_is_the_spec_in_plain_integers(rows, scale, step, epsilon, centred, data):  # noqa: PLR0917
    weight = data.draw(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
    bias = data.draw(st.lists(st.floats(-3, 3), min_size=4, max_size=4)) if centred else None
    codes = np.array(rows, dtype=np.int16)
    made = normalization_constants(
        4, weight, bias, centred=centred, input_scale=scale, output_scale=step, epsilon=epsilon, input_dtype=np.int16
    )
    got = (layer_norm if centred else rms_norm)(codes, constants=made, output_zero_point=5)
    for row, results in zip(rows, got.tolist(), strict=True):
        total = sum(row) if centred else 0
        variance = 4 * sum(q * q for q in row) - total**2
        factor, down = 0, 1
        if variance:
            spread = (variance << made.fraction) + made.epsilon
            lift = (62 - spread.bit_length()) & ~1
            root = math.isqrt(spread << lift)
            factor = ((1 << 61) + (root >> 1)) // root
            down = 61 - made.places - (lift + made.fraction) // 2
        for column, (q, result) in enumerate(zip(row, results, strict=True)):
            normal = ((4 * q - total) * factor + (1 << (down - 1))) >> down
            gain = int(made.gain[column])
            offset = int(made.offset[column % made.offset.size])
            code = ((normal * gain + offset + (1 << (made.shift - 1))) >> made.shift) + 5
            assert result == min(max(code, -32768), 32767)


def test_no_sum_leaves_64_bits_at_the_widest_rows():
    """The largest depths that are taken, with the inputs that make every sum largest, against big integers."""
    for dtype, depth in ((np.int8, 2**22), (np.int16, 2**15)):
        limits = np.iinfo(dtype)
        codes = np.full((2, depth), limits.max, dtype=dtype)
        codes[0, ::2] = limits.min
        for function, centred in ((layer_norm, True), (rms_norm, False)):
            got = function(codes, input_scale=0.1, output_scale=2.0**-5, dtype=np.int8, epsilon=0.0)
            for row in range(2):
                q = codes[row].astype(np.int64)
                total = int(q.sum()) if centred else 0
                variance = depth * int((q * q).sum()) - total**2
                for column in (0, 1, depth - 1):
                    distance = depth * int(q[column]) - total
                    real = (
                        Fraction(0) if variance == 0 else Fraction(distance * 32 * 2**40, math.isqrt(variance * 4**40))
                    )
                    assert abs(int(got[row, column]) - max(min(real, 127), -128)) <= Fraction(51, 100)


def test_epsilon_is_honoured():
    """Rows far below sqrt(epsilon) shrink by it: 0.01 against epsilon 1 gives 0.01."""
    codes = np.array([[1, -1, 1, -1]], dtype=np.int16)
    got = layer_norm(codes, input_scale=0.01, output_scale=1e-4, epsilon=1.0)
    assert got.tolist() == [[100, -100, 100, -100]]
    assert rms_norm(codes, input_scale=0.01, output_scale=2.0**-14, epsilon=0.0).tolist() == [[16384, -16384] * 2]


def test_rows_without_variance_are_the_bias():
    bias = np.array([5, -7, 100], dtype=np.int16)
    for value in (-128, 0, 127):
        codes = np.full((2, 3), value, dtype=np.int8)
        for epsilon in (0.0, 1e-5):
            got = layer_norm(codes, None, bias, input_scale=0.1, bias_scale=0.5, output_scale=0.5, epsilon=epsilon)
            assert got.tolist() == [[5, -7, 100]] * 2
    assert rms_norm(np.zeros((1, 3), dtype=np.int8), input_scale=0.1, output_scale=0.1, epsilon=0.0).tolist() == [
        [0] * 3
    ]


@pytest.mark.parametrize("function", [layer_norm, rms_norm])
@pytest.mark.parametrize("kind", ["polynomial", "table"])
def test_shapes_clamps_and_ready_constants(function, kind):
    generator = np.random.default_rng(3)
    codes = generator.integers(-128, 128, (2, 5, 16)).astype(np.int8)
    weight = generator.integers(1, 99, 16).astype(np.int8)
    options = {"input_scale": 0.05, "weight_scale": 0.01, "output_scale": 0.02, "kind": kind}
    whole = function(codes, weight, **options)
    assert np.array_equal(whole[1, 2], function(codes[1, 2], weight, **options))
    clamped = function(codes, weight, low=-5, high=7, **options)
    assert np.array_equal(clamped, np.clip(whole, -5, 7))
    made = normalization_constants(
        16, weight * float(np.float32(0.01)), centred=function is layer_norm, input_scale=0.05, output_scale=0.02,
        epsilon=1e-5 if function is layer_norm else 1e-6,
    )  # fmt: skip
    assert np.array_equal(function(codes, constants=made, kind=kind), whole)
    assert function(codes[:0], weight, **options).shape == (0, 5, 16)
    assert function(codes.astype(np.uint8), weight, dtype=np.uint8, output_zero_point=128, **options).dtype == np.uint8


def test_clamped_results_are_noted():
    codes = np.array([[100, -100, 0, 0]], dtype=np.int8)
    with watch() as seen:
        layer_norm(codes, input_scale=0.1, output_scale=0.01)
        rms_norm(codes, input_scale=0.1, output_scale=0.01, low=-10, high=10)
    assert [(each.operator, each.saturated) for each in seen.observations] == [("layer_norm", 2), ("rms_norm", 2)]


CODES = np.zeros((2, 4), dtype=np.int8)
FINE = {"input_scale": 0.1, "output_scale": 0.1}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: layer_norm(CODES, kind="runtime", **FINE), SemanticsError, "no runtime has layer_norm"),
        (lambda: layer_norm(CODES, kind="lut", **FINE), IntegerError, "a kind is"),
        (lambda: layer_norm(CODES), IntegerError, "input scale"),
        (lambda: layer_norm(CODES, np.ones(4), weight_scale=1.0, **FINE), IntegerError, "integer codes"),
        (lambda: layer_norm(CODES, np.ones(3, dtype=int), weight_scale=1.0, **FINE), IntegerError, r"\(4,\)"),
        (lambda: layer_norm(CODES, np.ones(4, dtype=int), **FINE), IntegerError, "weight scale"),
        (lambda: rms_norm(CODES, epsilon=-1.0, **FINE), IntegerError, "epsilon"),
        (lambda: rms_norm(CODES.astype(np.int32), **FINE), IntegerError, "takes int8"),
        (lambda: rms_norm(CODES, dtype=np.int32, **FINE), IntegerError, "gives int8"),
        (lambda: rms_norm(CODES, low=5, high=4, **FINE), IntegerError, "the clamp"),
        (lambda: rms_norm(CODES, output_zero_point=200, **FINE), IntegerError, "zero point"),
        (lambda: rms_norm(CODES[:, :0], **FINE), IntegerError, "a row of 0"),
        (lambda: rms_norm(CODES, input_scale=1e-12, output_scale=0.1), IntegerError, "does not fit 64-bit sums"),
        (lambda: rms_norm(CODES, input_scale=0.1, output_scale=1e-30), IntegerError, "too large for the output scale"),
        (lambda: layer_norm(np.zeros((1, 32769), np.int16), **FINE), IntegerError, "does not fit 64-bit sums"),
        (lambda: layer_norm(np.zeros((1, 8421505), np.int8), **FINE), IntegerError, "does not fit 64-bit sums"),
    ],
)
def test_bad_input_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_constants_of_another_operator_are_refused():
    made = normalization_constants(4, centred=True, **FINE)
    with pytest.raises(IntegerError, match="for LayerNorm"):
        rms_norm(CODES, constants=made)
    with pytest.raises(IntegerError, match="rows of 4"):
        layer_norm(np.zeros((2, 5), dtype=np.int8), constants=made)
    with pytest.raises(IntegerError, match="takes int8, uint8 or int16"):
        normalization_constants(4, centred=True, input_dtype=np.int32, **FINE)
