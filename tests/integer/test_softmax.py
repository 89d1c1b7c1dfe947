"""Softmax: nearest codes from tables, stated bounds of the polynomial, masks, and three outside runtimes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError, SemanticsError
from workbench.integer import softmax, watch
from workbench.integer.judges.runners import onnx_model, run_litert, run_onnx, run_tflm
from workbench.integer.judges.tflite_builder import TFLiteModel
from workbench.integer.polynomials import CONSTANTS, argument_multiplier

KINDS = [("table", np.int8), ("table", np.int16), ("polynomial", np.int8), ("polynomial", np.int16)]


def shares(codes: np.ndarray, scale: float, here: np.ndarray | None = None) -> np.ndarray:
    real = np.float32(scale) * codes.astype(np.float64)
    here = np.ones(codes.shape, dtype=bool) if here is None else np.broadcast_to(here, codes.shape)
    top = np.where(here, real, -np.inf).max(axis=-1, keepdims=True, initial=-1e30)
    powers = np.where(here, np.exp(np.minimum(real - top, 0)), 0.0)
    total = powers.sum(axis=-1, keepdims=True)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)


@pytest.mark.parametrize("wanted", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize(("kind", "dtype"), [*KINDS, ("table", np.uint8)])
def test_stated_bounds(kind, dtype, wanted):
    """As docs/integer_operators.md states them; 6.51e-3 is twice i-exp's relative error and its argument's 14 places."""
    generator = np.random.default_rng(1)
    limits = np.iinfo(dtype)
    for depth in (1, 2, 10, 255, 256, 257, 3000):
        for reach in (0.5, 4.0, 30.0):
            scale = float(np.float32(reach / (limits.max - limits.min)))
            codes = generator.integers(limits.min, limits.max + 1, (6, depth)).astype(dtype)
            got = softmax(codes, input_scale=scale, dtype=wanted, kind=kind)
            step = 2.0**-8 if wanted != np.int16 else 2.0**-15 if dtype == np.int16 else 2.0**-16
            zero = 0 if wanted == np.int16 and dtype == np.int16 else np.iinfo(wanted).min
            exact = shares(codes, scale)
            bound = 0.5001 * step if kind == "table" else 0.501 * step + 6.51e-3 * exact
            # A share of 1 is one step beyond some types' largest code.
            real = np.minimum(exact, (np.iinfo(wanted).max - zero) * step)
            assert np.all(np.abs((got.astype(np.int64) - zero) * step - real) <= bound)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-128, 127), min_size=5, max_size=5), min_size=1, max_size=4),
    scale=st.floats(1e-3, 2.0),
    step=st.floats(1e-3, 1.0),
    kind=st.sampled_from(["table", "polynomial"]),
    wide=st.booleans(),
)
def test_the_formula_in_plain_integers(rows, scale, step, kind, wide):
    codes = np.array(rows, dtype=np.int16 if wide else np.int8) * (50 if wide else 1)
    codes = codes.astype(np.int16 if wide else np.int8)
    got = softmax(codes, input_scale=scale, output_scale=step, output_zero_point=-128, dtype=np.int8, kind=kind)
    factor = round(4096 / float(np.float32(step)))
    for row, results in zip(codes.tolist(), got.tolist(), strict=True):
        powers = [plain_power(max(row) - code, float(np.float32(scale)), kind, wide=wide) for code in row]
        total = sum(powers)
        wanted = [(power * factor + (total << 11)) // (total << 12) - 128 for power in powers]
        assert results == [min(max(code, -128), 127) for code in wanted]


def plain_power(distance: int, scale: float, kind: str, *, wide: bool) -> int:
    if kind == "table":
        coarse, fine = divmod(distance, 256) if wide else (0, distance)
        entry = round(math.exp(-scale * fine) * 2**30)
        return (round(math.exp(-scale * 256 * coarse) * 2**30) * entry + 2**29) >> 30 if wide else entry
    m, s = (int(each) for each in argument_multiplier(scale))
    ln2, b, c = (int(each) for each in CONSTANTS[:3])
    z, rest = divmod((distance * m + ((1 << s) >> 1)) >> s, ln2)
    return ((b - rest) ** 2 + c) >> min(z, 62)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("kind", ["runtime", "table", "polynomial"])
def test_masks_and_lengths(kind, dtype):
    """What takes no part gets the code of 0, and the rest are the softmax of what is left."""
    generator = np.random.default_rng(4)
    codes = generator.integers(-100, 100, (2, 3, 6, 9)).astype(dtype)
    options = {"input_scale": 0.02, "kind": kind}
    empty = -128 if dtype == np.int8 else 0
    causal = np.tril(np.ones((6, 9), dtype=bool), 2)
    per_head = generator.random((2, 1, 6, 9)) < 0.7
    for mask in (causal, per_head, causal[None, None], per_head & causal, np.ones(9, dtype=bool)):
        got = softmax(codes, mask=mask, **options)
        here = np.broadcast_to(mask, codes.shape)
        for place in np.ndindex(2, 3, 6):
            chosen = here[place]
            assert np.all(got[place][~chosen] == empty)
            if chosen.any():
                assert np.array_equal(got[place][chosen], softmax(codes[place][chosen], **options))
    lengths = np.arange(3, 9)
    assert np.array_equal(
        softmax(codes, valid_length=lengths, **options),
        softmax(codes, mask=np.tril(np.ones((6, 9), bool), 2), **options),
    )
    assert np.array_equal(softmax(codes, valid_length=9, **options), softmax(codes, **options))
    nothing = softmax(codes, mask=np.zeros(9, dtype=bool), **options)
    assert np.all(nothing == empty) and np.all(softmax(codes, valid_length=0, **options) == empty)
    both = softmax(codes, mask=causal, valid_length=4, **options)
    assert np.array_equal(both, softmax(codes, mask=causal & (np.arange(9) < 4), **options))


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference", "tflite-single", "onnxruntime"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_runtimes_stay_near_the_exact_shares(semantics, dtype):
    """Within one step of 8 bits; the interpolated int16 tables, cut off at exp(-10), within 1 % and 8 steps."""
    if (semantics, dtype) in {("tflm", np.uint8), ("onnxruntime", np.int16)}:
        return
    limits = np.iinfo(dtype)
    codes = np.random.default_rng(6).integers(limits.min, limits.max + 1, (30, 40)).astype(dtype)
    scale = float(np.float32(6.0 / (limits.max - limits.min)))
    step, zero = (2.0**-15, 0) if dtype == np.int16 else (2.0**-8, limits.min)
    got = (softmax(codes, input_scale=scale, semantics=semantics).astype(np.int64) - zero) * step
    exact = shares(codes, scale)
    bound = 0.01 * exact + 8 * step if dtype == np.int16 else step
    assert np.all(np.abs(got - exact) <= bound)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 0, 4), (5,)])
def test_empty_and_flat_shapes(shape):
    for kind in ("runtime", "table", "polynomial"):
        assert softmax(np.zeros(shape, dtype=np.int8), input_scale=0.1, kind=kind).shape == shape


def test_beta_multiplies_the_scale():
    codes = np.random.default_rng(0).integers(-128, 128, (5, 7)).astype(np.int8)
    for kind in ("runtime", "table", "polynomial"):
        assert np.array_equal(
            softmax(codes, input_scale=0.02, beta=2.0, kind=kind), softmax(codes, input_scale=0.04, kind=kind)
        )


def test_it_is_watched():
    with watch() as seen:
        softmax(np.zeros((2, 3), dtype=np.int8), input_scale=0.1)
        for kind, dtype in (("table", np.int8), ("polynomial", np.int16)):
            softmax(np.zeros((2, 1), dtype=dtype), input_scale=0.1, kind=kind, dtype=np.int8)
            softmax(np.zeros((2, 3), dtype=dtype), input_scale=0.1, output_scale=2.0**-12, kind=kind, dtype=np.int8)
    noted = [(each.operator, each.outputs, each.saturated) for each in seen.observations]
    assert noted == [("softmax", 6, 0)] + [("softmax", 2, 0), ("softmax", 6, 6)] * 2


LITE = [(np.int8, np.int8), (np.uint8, np.uint8), (np.int8, np.int16), (np.int16, np.int16)]


@pytest.mark.parametrize(("dtype", "wanted"), LITE)
@pytest.mark.parametrize("runtime", ["litert-reference", "tflm"])
def test_as_tensorflow_lite_gives_it(runtime, dtype, wanted):
    pytest.importorskip("ai_edge_litert" if runtime == "litert-reference" else "tflite_micro")
    if runtime == "tflm" and dtype == np.uint8:
        with pytest.raises(SemanticsError, match="tflm has no softmax from uint8 to uint8"):
            softmax(np.zeros(3, dtype=np.uint8), input_scale=0.1, semantics="tflm")
        return
    generator = np.random.default_rng(9)
    limits, narrow = np.iinfo(dtype), np.dtype(wanted).itemsize == 1
    step, zero = (
        (2.0**-8, np.iinfo(wanted).min) if narrow else (2.0**-15, 0) if dtype == np.int16 else (2.0**-16, -32768)
    )
    compared = 0
    for trial in range(40):
        depth = int(generator.choice([1, 2, 3, 10, 64, 256, 257, 1000]))
        low, high = (1e-5, 1e-2) if dtype == np.int16 else (1e-3, 0.5)
        scale = float(np.float32(np.exp(generator.uniform(np.log(low), np.log(high)))))
        beta = float(generator.choice([0.5, 1.0, 2.0]))
        codes = generator.integers(limits.min, limits.max + 1, (int(generator.integers(1, 30)), depth))
        if trial % 3 == 0:
            middle = (limits.max + limits.min) / 2
            codes = np.clip(np.rint(generator.normal(middle, limits.max / 8, codes.shape)), limits.min, limits.max)
        codes = codes.astype(dtype)
        # Both runtimes abort the process where a row's powers sum to 512 (8-bit outputs) or 131,072.
        if dtype != np.int16 and (1 / shares(codes, scale * beta).max(axis=-1)).max() > (500 if narrow else 1e5):
            continue
        model = TFLiteModel()
        source = model.tensor("x", codes.shape, dtype, scale, 0 if dtype == np.int16 else 3)
        result = model.tensor("y", codes.shape, wanted, step, zero)
        model.operator("SOFTMAX", [source], [result], {"beta": beta})
        run = run_litert if runtime == "litert-reference" else run_tflm
        judged = run(model.finish([source], [result]), [codes])[0]
        got = softmax(codes, input_scale=scale, beta=beta, dtype=wanted, semantics=runtime)
        assert np.array_equal(got, judged), (scale, beta, codes.shape)
        compared += codes.size
    assert compared > 30_000


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_as_onnxruntime_gives_it(dtype):
    pytest.importorskip("onnxruntime")
    generator = np.random.default_rng(10)
    limits = np.iinfo(dtype)
    for _ in range(40):
        depth = int(generator.choice([1, 2, 3, 10, 64, 256, 257, 1000, 5000]))
        scale = np.float32(np.exp(generator.uniform(np.log(1e-3), np.log(0.5))))
        step = np.float32(generator.choice([1 / 256, 1 / 200, 0.004, 0.01]))
        zero = limits.min if generator.random() < 0.5 else int(generator.integers(limits.min, limits.min + 128))
        codes = generator.integers(limits.min, limits.max + 1, (int(generator.integers(1, 30)), depth)).astype(dtype)
        model = onnx_model(
            "QLinearSoftmax",
            {"x": codes},
            {"y": dtype},
            {"s": scale, "z": dtype(0), "t": step, "o": dtype(zero)},
            domain="com.microsoft",
            opset=13,
            axis=-1,
        )
        got = softmax(codes, input_scale=scale, output_scale=step, output_zero_point=zero, semantics="onnxruntime")
        assert np.array_equal(got, run_onnx(model, {"x": codes})[0]), (scale, step, zero, codes.shape)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"input_scale": 0.0}, IntegerError, "input scale"),
        ({"input_scale": 1.0, "beta": 0.0}, IntegerError, "beta"),
        ({"input_scale": 1.0, "kind": "exact"}, IntegerError, "a kind is"),
        ({"input_scale": 1.0, "dtype": np.int32}, IntegerError, "a softmax gives int8"),
        ({"input_scale": 1.0, "mask": np.ones(4)}, IntegerError, "a mask holds booleans"),
        ({"input_scale": 1.0, "mask": np.ones(3, bool)}, IntegerError, "does not broadcast"),
        ({"input_scale": 1.0, "mask": np.ones((5, 2, 4), bool)}, IntegerError, "does not broadcast"),
        ({"input_scale": 1.0, "valid_length": 5}, IntegerError, "valid lengths are integers from 0 to 4"),
        ({"input_scale": 1.0, "valid_length": [1, 2, 3]}, IntegerError, "do not broadcast"),
        ({"input_scale": 1.0, "output_scale": 2.0, "kind": "table"}, IntegerError, "between 2"),
        ({"input_scale": 1.0, "output_zero_point": 200}, IntegerError, "zero point"),
        ({"input_scale": 1.0, "output_scale": 0.01}, SemanticsError, "with this output scale"),
        ({"input_scale": 1.0, "semantics": "tosa-double"}, SemanticsError, "tosa-double has no softmax"),
        ({"input_scale": 1.0, "semantics": "onnxruntime", "dtype": np.int16}, SemanticsError, "from int8 to int16"),
    ],
)
def test_bad_input_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        softmax(np.zeros((2, 4), dtype=np.int8), **options)
