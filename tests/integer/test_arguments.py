"""Whatever an operator is given: a result, or one clear sentence; never an error of numpy, never something ignored."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from workbench import integer
from workbench.errors import IntegerError, WorkbenchError
from workbench.integer.arguments import clamp_limits, code_type, one_integer, real_numbers, shown

_generator = np.random.default_rng(5)


def codes(*shape: int) -> np.ndarray:
    return _generator.integers(-128, 128, shape).astype(np.int8)


LAYER = {"input_scale": 0.1, "weight_scale": 0.02, "output_scale": 0.3}
PAIR = {"a_scale": 0.1, "b_scale": 0.2, "output_scale": 0.3}
ONE = {"input_scale": 0.1, "output_scale": 0.2}
BIAS = np.arange(3, dtype=np.int32)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "linear": ((codes(4, 8), codes(3, 8), BIAS), LAYER),
    "accumulate": ((codes(4, 8), codes(3, 8), BIAS), {}),
    "matmul": ((codes(2, 3, 8), codes(2, 8, 4)), PAIR),
    "conv2d": ((codes(1, 5, 5, 2), codes(3, 3, 3, 2), BIAS), LAYER),
    "convolve": ((codes(1, 5, 5, 2), codes(3, 3, 3, 2), BIAS), {}),
    "requantize": ((np.arange(12, dtype=np.int32).reshape(3, 4),), {"scale": 0.01}),
    "add": ((codes(3, 4), codes(3, 4)), PAIR),
    "sub": ((codes(3, 4), codes(3, 4)), PAIR),
    "mul": ((codes(3, 4), codes(3, 4)), PAIR),
    "average_pool2d": ((codes(1, 4, 4, 2), 2), {}),
    "max_pool2d": ((codes(1, 4, 4, 2), 2), {}),
    "global_average_pool": ((codes(1, 4, 4, 2),), ONE),
    "mean": ((codes(1, 4, 4, 2), (1, 2)), ONE),
    "concat": (([codes(2, 3), codes(2, 4)],), {"input_scales": [0.1, 0.2], "output_scale": 0.2}),
    "embedding": ((np.array([0, 2, 1]), codes(3, 4)), {"table_scale": 0.1, "output_scale": 0.2}),
    "argmax": ((codes(3, 4),), {}),
    "rescale_codes": ((codes(3, 4),), ONE),
    "logistic": ((codes(3, 4),), {"input_scale": 0.1}),
    "tanh": ((codes(3, 4),), {"input_scale": 0.1}),
    **{name: ((codes(3, 4),), ONE) for name in ("gelu", "hard_swish", "relu", "relu6", "leaky_relu")},
    "silu": ((codes(3, 4),), {**ONE, "kind": "table"}),
    "softmax": ((codes(3, 4),), {"input_scale": 0.1}),
    "layer_norm": ((codes(3, 8), codes(8), codes(8)), {**ONE, "weight_scale": 0.1, "bias_scale": 0.1}),
    "rms_norm": ((codes(3, 8), codes(8)), {**ONE, "weight_scale": 0.1}),
    "rotary": ((codes(2, 3, 8), integer.rotary_table(5, 8)), ONE),
    "rotary_table": ((5, 8), {}),
    "integer_sqrt": ((np.arange(4),), {}),
    "integer_power": ((np.arange(4), "2/3"), {}),
    "lookup_table": (("tanh", 0.1, 0, 0.01), {}),
    "quantize_multiplier": ((0.1,), {}),
    "effective_scale": ((0.1, 0.1, 0.1, "tflm"), {}),
    "needed_bits": ((-1, 5), {}),
    "worst_case": ((codes(3, 4), -128, 127), {}),
    "addition_multipliers": ((0.1, 0.2, 0.3), {}),
    "mean_multiplier": ((0.1, 0.2, 3), {}),
    "normalization_constants": ((8,), {**ONE, "centred": True}),
    "i_exp": ((-np.arange(5), 2.0**-10), {}),
    "i_gelu": ((np.arange(5), 2.0**-10), {}),
    "i_softmax": ((np.arange(5), 2.0**-10), {}),
}
FLAGS = {"keep_dims", "count_padding", "transpose_b", "return_steps", "centred", "default_bits"}
BAD: list[Any] = [
    None,
    float("nan"),
    float("inf"),
    -1,
    0,
    -1.5,
    2**40,
    2**70,
    "nonsense",
    [],
    [0.1, float("nan"), 0.1, 0.1],
    [1, 2, 3, 4, 5],
    [[1, 2], [3]],
    {},
    object(),
    1 + 2j,
    1e-300,
    1e300,
    np.zeros((0, 4), dtype=np.int8),
    np.zeros((3, 8), dtype=np.float32),
    np.zeros((3, 8), dtype=np.complex64),
    np.zeros((2, 2, 2), dtype=np.int64),
    np.array([None, 1], dtype=object),
    np.float32,
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CALLS)
def test_anything_is_taken_or_refused_in_one_line(name: str):
    arguments, options = CALLS[name]
    function = getattr(integer, name)
    function(*arguments, **options)
    refused = 0
    for place, parameter in enumerate(inspect.signature(function).parameters):
        if parameter in FLAGS:
            continue
        for bad in BAD:
            given, words = list(arguments), dict(options)
            if place < len(given):
                given[place] = bad
            else:
                words[parameter] = bad
            try:
                function(*given, **words)
            except WorkbenchError as problem:
                refused += 1
                assert "\n" not in str(problem), (parameter, bad)
                assert len(str(problem)) < 250, (parameter, bad)
    assert refused >= len(BAD) // 2


SCALES = {"input_scale": 0.1, "output_scale": 0.2}
READY = {"multiplier": np.int32(1 << 30), "shift": np.int32(-1)}


@pytest.mark.parametrize(
    "call",
    [
        lambda **options: integer.linear(codes(4, 8), codes(3, 8), **LAYER, **options),
        lambda **options: integer.conv2d(codes(1, 5, 5, 2), codes(3, 3, 3, 2), **LAYER, **options),
        lambda **options: integer.matmul(codes(4, 8), codes(8, 3), **PAIR, **options),
        lambda **options: integer.add(codes(4, 8), codes(4, 8), **PAIR, **options),
        lambda **options: integer.mul(codes(4, 8), codes(4, 8), **PAIR, **options),
        lambda **options: integer.mean(codes(4, 8), 0, **SCALES, **options),
        lambda **options: integer.rescale_codes(codes(4, 8), **SCALES, **options),
        lambda **options: integer.embedding(BIAS, codes(4, 8), table_scale=0.1, output_scale=0.1, **options),
        lambda **options: integer.requantize(BIAS, scale=0.1, **options),
    ],
)
@pytest.mark.parametrize("ready", [READY, {"shift": np.int32(1)}, {"multiplier": np.int32(1 << 30)}])
def test_nothing_is_silently_ignored_beside_scales(call: Any, ready: dict[str, Any]):
    with pytest.raises(IntegerError, match="either real scales or ready multipliers"):
        call(**ready)


@pytest.mark.parametrize("bound", [-1.5, 0.5, True, np.float32(3), [1, 2]])
def test_a_clamp_is_two_integers(bound: Any):
    with pytest.raises(IntegerError, match="two integers"):
        clamp_limits(bound, None, np.dtype(np.int8))
    with pytest.raises(IntegerError, match="two integers"):
        integer.requantize(BIAS, scale=0.1, high=bound)


@pytest.mark.parametrize("name", ["add", "mul", "rescale_codes", "mean"])
def test_zero_points_of_single_tensors_are_single(name: str):
    arguments, options = CALLS[name]
    word = "a_zero_point" if "a_scale" in options else "input_zero_point"
    with pytest.raises(IntegerError, match="a zero point of int8 is an integer"):
        getattr(integer, name)(*arguments, **options, **{word: [1, 2, 3, 4]})


def test_tensors_join_along_one_axis():
    with pytest.raises(IntegerError, match="an axis to join along is a whole number from -2 to 1, not None"):
        integer.concat([codes(2, 3), codes(2, 4)], axis=None)  # pyright: ignore[reportArgumentType]


def test_a_mask_may_be_one_truth():
    given = codes(3, 4)
    assert np.array_equal(integer.softmax(given, input_scale=0.1, mask=True), integer.softmax(given, input_scale=0.1))
    assert (integer.softmax(given, input_scale=0.1, mask=False) == -128).all()


def test_checks_give_what_they_checked():
    assert clamp_limits(None, np.int64(5), np.dtype(np.uint8)) == (0, 5)
    assert one_integer(np.uint8(3), "a number", 0, 3) == 3
    assert code_type("int16") == np.int16
    assert real_numbers(2**70, "a scale") == 2.0**70
    assert shown(np.int8) == "int8"
    assert shown("word") == "'word'"
    assert len(shown(list(range(100)))) == 60


@pytest.mark.parametrize("semantics", ["litert-reference", "onnxruntime"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu"])
def test_results_far_outside_keep_their_side(name: str, semantics: str):
    """A step of 1e-25 sends every result beyond 64 bits: a cast alone would give the least integer for all."""
    given = np.array([-2, 0, 2], dtype=np.int8)
    got = integer.gelu if name == "gelu" else getattr(integer, name)
    try:
        out = got(given, input_scale=1.0, output_scale=1e-25, semantics=semantics)
    except WorkbenchError as problem:  # a fixed-point multiplier has its own limit
        assert "too large" in str(problem) or "lies between" in str(problem)
        return
    assert out[2] == 127
    assert out[0] == (0 if name == "relu" else -128)


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference", "onnxruntime", "tosa-single"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "logistic", "tanh", "softmax"])
def test_one_operator_is_observed_once_and_the_same_every_time(name: str, semantics: str):
    options: dict[str, Any] = {"input_scale": 0.0937, "semantics": semantics}
    if name in {"relu", "leaky_relu"}:
        options["output_scale"] = 0.05
    elif semantics == "tosa-single":
        options["kind"] = "table"
    given = np.arange(-128, 128).astype(np.int8)
    seen = []
    for _ in range(2):
        with integer.watch() as watched:
            getattr(integer, name)(given, **options)
        seen.append(watched.observations)
    assert [each.operator for each in seen[0]] == [name]
    assert seen[0] == seen[1]
    if name == "relu":
        assert seen[0][0].saturated == sum(code * 0.0937 / 0.05 > 127.5 for code in range(128))


def test_softmax_takes_its_zero_point_as_every_operator_does():
    given = codes(3, 4)
    plain = integer.softmax(given, input_scale=0.1)
    assert np.array_equal(integer.softmax(given, input_scale=0.1, input_zero_point=-7), plain)
    with pytest.raises(IntegerError, match="a zero point of int8"):
        integer.softmax(given, input_scale=0.1, input_zero_point=200)


def test_global_pools_take_ready_multipliers():
    given = codes(2, 4, 4, 3)
    multiplier, shift = integer.mean_multiplier(0.1, 0.2, 16, "tflm")
    ready = integer.global_average_pool(given, multiplier=multiplier, shift=shift, semantics="tflm")
    assert np.array_equal(
        ready, integer.global_average_pool(given, input_scale=0.1, output_scale=0.2, semantics="tflm")
    )


@pytest.mark.parametrize("text", ["int", "int16:", "uint16", "int16:wrap:wrap", "int-3", "int\u0663", "INT16", "int99"])
def test_accumulators_that_are_none(text: str):
    with pytest.raises(IntegerError, match="an accumulator"):
        integer.as_accumulator(text)
