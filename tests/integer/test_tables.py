"""Tables of real functions: 8-bit entries are the nearest codes, int16 interpolation keeps its stated bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer import lookup_table, watch
from workbench.integer.tables import FUNCTIONS, tflite_anchors
from workbench.kernels.nonlinear import interpolate

BYTES = (np.int8, np.uint8)


def every(dtype) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.arange(limits.min, limits.max + 1).astype(dtype)


def slow_real(name: str, x: float) -> float:
    """Return the function by the plain formula, one number at a time."""
    half = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return {
        "logistic": lambda: 1 / (1 + math.exp(-x)),
        "tanh": lambda: math.tanh(x),
        "gelu": lambda: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
        "gelu-tanh": lambda: 0.5 * x * (1 + math.tanh(half)),
        "silu": lambda: x / (1 + math.exp(-x)),
        "hard-swish": lambda: x * min(max(x + 3, 0), 6) / 6,
        "relu": lambda: max(x, 0.0),
        "relu6": lambda: min(max(x, 0.0), 6.0),
        "exp": lambda: math.exp(x),
        "identity": lambda: x,
    }[name]()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_what_their_names_say(name):
    for x in (-20.0, -3.0, -1.5, -0.1, 0.0, 0.3, 1.0, 2.9, 5.0, 17.0):
        assert FUNCTIONS[name](np.array([x]))[0] == pytest.approx(slow_real(name, x), rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([name for name in FUNCTIONS if name != "exp"]),
    dtype=st.sampled_from(BYTES),
    wanted=st.sampled_from((np.int8, np.uint8, np.int16)),
    scale=st.floats(1e-4, 1.0),
    step=st.floats(1e-5, 1.0),
    data=st.data(),
)
def test_entries_of_8_bits_are_the_nearest_codes(name, dtype, wanted, scale, step, data):  # noqa: PLR0917
    limits, out = np.iinfo(dtype), np.iinfo(wanted)
    zero = data.draw(st.integers(limits.min, limits.max))
    zero_point = data.draw(st.integers(out.min, out.max))
    table = lookup_table(name, scale, zero, step, zero_point, dtype, output_dtype=wanted)
    scale, step = float(np.float32(scale)), float(np.float32(step))
    got = table(every(dtype))
    assert got.dtype == wanted and not table.is_interpolated
    for code, result in zip(every(dtype).tolist(), got.tolist(), strict=True):
        exact = slow_real(name, scale * (code - zero)) / step + zero_point
        if out.min < result < out.max:
            assert abs(result - exact) <= 0.5 + 1e-9
        else:
            assert exact >= result - 0.5 if result == out.max else exact <= result + 0.5


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (4, 5, 6)])
def test_any_shape_and_many_threads(shape):
    table = lookup_table("identity", 0.5, 3, 0.5, 3)
    codes = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    assert np.array_equal(table(codes), codes) and table(codes).shape == shape
    many = np.random.default_rng(1).integers(-128, 128, (300, 401)).astype(np.int8)
    assert np.array_equal(table(many[:, ::2]), many[:, ::2])


# Largest |f''| over the reals, rounded up; with h = 128 input steps linear interpolation with half of the midpoint's
# error given back is off by at most h**2 / 8 * that, and by rounding.
CURVATURE = {"logistic": 0.0963, "tanh": 0.7699, "gelu": 0.7979, "gelu-tanh": 0.9, "silu": 0.5, "identity": 0.0}
# A jump of f' costs a quarter of an interval times itself.
CURVATURE |= {"hard-swish": 1 / 3, "relu": 0.0, "relu6": 0.0}
JUMP = {"hard-swish": 0.5, "relu": 1.0, "relu6": 1.0}


@pytest.mark.parametrize("name", CURVATURE)
@pytest.mark.parametrize("wanted", [np.int8, np.int16])
def test_interpolation_keeps_its_bound_on_every_code(name, wanted):
    codes = every(np.int16)
    for reach, zero in ((1.0, 0), (8.0, -1000), (30.0, 20000)):
        scale = float(np.float32(reach / 32768))
        real = FUNCTIONS[name](scale * (codes.astype(np.float64) - zero))
        step = float(np.float32(np.abs(real).max() / np.iinfo(wanted).max * 1.001))
        got = lookup_table(name, scale, zero, step, 0, np.int16, output_dtype=wanted)(codes)
        width = 128 * scale
        bound = (width**2 / 8 * CURVATURE[name] + width / 4 * JUMP.get(name, 0.0)) / step + 0.501
        assert np.abs(got - real / step).max() <= bound


def test_interpolation_is_the_formula_in_plain_integers():
    generator = np.random.default_rng(3)
    entries = generator.integers(-(2**29), 2**29, 513).astype(np.int32)
    codes = np.concatenate([[-32768, -32767, -1, 0, 127, 128, 32767], generator.integers(-32768, 32768, 500)])
    got, saturated = interpolate(codes.astype(np.int16), entries, 13, -7, np.dtype(np.int16))
    wanted, left = [], 0
    for code in codes.tolist():
        place, offset = divmod(code + 32768, 128)
        base, following = int(entries[place]), int(entries[place + 1])
        value = ((base * 128 + (following - base) * offset + 2**19) >> 20) - 7
        left += not -32768 <= value <= 32767
        wanted.append(min(max(value, -32768), 32767))
    assert got.tolist() == wanted and saturated == left > 0


def test_tflite_layout_is_its_populating_loop():
    """Against a loop over single float32 numbers that follows LUTPopulateInt16 line by line."""
    f = np.float32
    low, high, span = f(-8.0), f(7.5), f(2.0)
    step, inverse = f((high - low) / f(512)), f(f(65536) / span)
    wanted = []
    for i in range(512):
        at = [
            f(math.tanh(float(x))) for x in (low + f(i) * step, low + f(i) * step + step / f(2), low + f(i + 1) * step)
        ]
        value, middle, following = (f(x * inverse) for x in at)
        bent = round_away((following + round_away(value)) / f(2)) - round_away(middle)
        wanted.append(min(max(round_away(value) - round_away(bent / f(2)), -32768), 32767))
    wanted.append(min(max(round_away(f(math.tanh(7.5)) * inverse), -32768), 32767))
    assert tflite_anchors(np.tanh, -8.0, 7.5, 2.0).tolist() == wanted
    table = lookup_table("tanh", 2.0**-12, 0, 2.0**-15, 0, np.int16, layout="tflite")
    real = np.tanh(every(np.int16) * 2.0**-12) * 32768
    # TensorFlow Lite spreads 65,535 steps over 512 intervals and looks 65,536 up: half a step off at 0, 4 codes here.
    assert np.abs(table(every(np.int16)) - real).max() < 3.1 + 4


def round_away(x) -> float:
    return math.copysign(math.floor(abs(float(x)) + 0.5), float(x))


def test_clamped_codes_are_counted_when_watched():
    codes = np.arange(-128, 128).astype(np.int8)
    with watch() as seen:
        lookup_table("identity", 1.0, 0, 0.5, 0)(codes)
        lookup_table("identity", 1.0, 0, 0.5, 0, np.int16)(np.array([20000, -20000, 5], dtype=np.int16))
    assert [each.saturated for each in seen.observations] == [256 - 128, 2]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("tan", 1.0, 0, 1.0), "no function is called 'tan'"),
        (("tanh", 0.0, 0, 1.0), "input scale is one finite float32 number above 0"),
        (("tanh", 1.0, 0, None), "output scale"),
        (("tanh", 1.0, 0, 1e-60), "output scale"),
        (("tanh", 1.0, 300, 1.0), "zero point of int8"),
        (("tanh", 1.0, 0, 1.0, 0, np.int32), "a table takes int8"),
        ((np.log, 1.0, 0, 1.0), "finite number"),
        ((lambda x: x[:3], 1.0, 0, 1.0), "one finite number for every input"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_tables_are_refused(arguments, match):
    with pytest.raises(IntegerError, match=match):
        lookup_table(*arguments)


def test_bad_codes_and_layouts_are_refused():
    with pytest.raises(IntegerError, match="takes int8 codes, not int16"):
        lookup_table("tanh", 1.0, 0, 1.0)(np.zeros(3, dtype=np.int16))
    with pytest.raises(IntegerError, match="'exact' or 'tflite'"):
        lookup_table("tanh", 1.0, 0, 1.0, layout="micro")
    with pytest.raises(IntegerError, match="zero points 0"):
        lookup_table("tanh", 1.0, 5, 1.0, 0, np.int16, layout="tflite")
