"""Every step of a trace, evaluated as plain Python, must arrive at the kernels' output: all semantics, all paths."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.follow_rounding import factor_steps, rescale_steps
from workbench.integer.layer_geometry import Window
from workbench.integer.layer_run import LayerRun, run_layer
from workbench.integer.requantize import requantize
from workbench.integer.semantics import SEMANTICS, as_semantics
from workbench.integer.trace import Step, Trace

NAMES = list(SEMANTICS)
RIGHT = {"floor": math.floor, "float32": np.float32, "float64": float}

PATHS = {
    "uniform": {},
    "per tensor": {"granularity": "tensor"},
    "asymmetric weights": {"grid": "uniform:bits=4,range=asymmetric"},
    "full range": {"grid": "uniform:bits=8,range=full"},
    "q*|q|": {"grid": "power:bits=4,exponent=0.5"},
    "level table": {"grid": "power:bits=4,exponent=0.55"},
    "shifted weights": {"grid": "power:bits=4,exponent=0.7,shifted=true"},
    "groups": {"grid": "nf4", "granularity": "group:6"},
    "asymmetric groups": {"grid": "uniform:bits=4,range=asymmetric", "granularity": "group:8"},
    "power inputs": {"activation": "power:bits=8,exponent=0.55,shifted=true"},
    "wide levels": {"grid": "power:bits=8,exponent=0.6", "level_bits": 16, "activation": "power:bits=8,exponent=0.6"},
    "int16 inputs": {"activation": "uniform:bits=16"},
    "full-range inputs": {"activation": "uniform:bits=8,range=full"},
    "int16 outputs": {"output": "uniform:bits=16"},
    "per-product": {"grid": "power:bits=4,exponent=0.5", "method": "per-product"},
    "power domain": {
        "grid": "power:bits=4,exponent=0.5",
        "activation": "power:bits=4,exponent=0.5",
        "method": "power-domain",
    },
    "power domain, root": {
        "grid": "power:bits=4,exponent=0.55",
        "activation": "power:bits=4,exponent=0.55",
        "method": "power-domain",
    },
    "wrap": {"accumulator": "int10:wrap"},
    "saturate": {"accumulator": "int12:saturate"},
    "wrapping groups": {"grid": "nf4", "granularity": "group:9", "accumulator": "int11:wrap"},
    "relu": {"then": "relu"},
    "gelu": {"then": "gelu"},
    "silu polynomial": {"then": "silu", "kind": "polynomial"},
    "softmax": {"then": "softmax"},
    "int16 tanh": {"then": "tanh", "output": "uniform:bits=16"},
}


def linear(**options) -> LayerRun:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((6, 20)).astype(np.float32)
    inputs = generator.standard_normal((5, 20)).astype(np.float32)
    return run_layer(weight, inputs, bias=generator.standard_normal(6), **options)


def convolution(**options) -> LayerRun:
    generator = np.random.default_rng(4)
    weight = generator.standard_normal((6, 2, 3, 3)).astype(np.float32)
    images = generator.standard_normal((2, 6, 5, 5)).astype(np.float32)
    window = Window((3, 3), (2, 1), ((1, 1), (0, 2)), (1, 1), 3)
    return run_layer(weight, images, window=window, bias=generator.standard_normal(6), **options)


def check(step: Step, tables: dict) -> None:
    """Evaluate a step's formula: an integer result exactly, and as an integer; a real one to float32."""
    found = eval(step.formula, {**RIGHT, **tables})
    if isinstance(step.result, int):
        assert not isinstance(found, float | np.floating), step
        assert int(found) == step.result, step
    else:
        assert math.isclose(float(found), step.result, rel_tol=1e-6, abs_tol=1e-30), step


def replay(trace: Trace) -> int:
    """Check every step, and that each starts from what the steps before gave."""
    tables = {**trace.functions, **trace.tables}
    count = 0
    for step in trace.every_step():
        check(step, tables)
        count += 1
    codes = [step.result for step in trace.steps if step.stage in {"clamp", "function"}]
    assert codes[-1] == trace.code
    return count


@pytest.mark.parametrize("build", [linear, convolution])
@pytest.mark.parametrize("path", PATHS)
def test_every_step_of_every_path_replays(path, build):
    run = build(**PATHS[path])
    rows, channels = run.codes.shape
    for name in NAMES:
        codes = run.codes_under(name)
        for row, channel in ((0, 0), (rows - 1, channels - 1), (3, 2)):
            trace = run.follow(row, channel, name)
            assert trace.code == codes[row, channel]
            assert trace.semantics == name
            assert replay(trace) >= len(trace.terms) * 3
            assert trace.integer == pytest.approx(run.stage.final.real(codes)[row, channel])
            assert trace.real == run.real[row, channel]
            assert trace.fake == run.fake[row, channel]


def test_partial_sums_end_in_the_kernels_sum_and_overflows_are_those_it_counts():
    for options in ({"accumulator": "int10:wrap"}, {"accumulator": "int9:saturate"}, {}):
        run = linear(**options)
        marked = 0
        for row in range(run.codes.shape[0]):
            for channel in range(run.codes.shape[1]):
                trace = run.follow(row, channel)
                assert trace.terms.partial_sum[-1] == run.sums[row, channel]
                marked += int(trace.terms.overflow.sum())
                marked += any(step.name == "bias in the accumulator" for step in trace.steps)
        assert marked == run.overflows
        assert (marked > 0) == bool(options)


def test_terms_name_their_inputs_and_paddings():
    run = convolution()
    trace = run.follow(0, 5)
    terms = trace.terms
    assert (terms.source < 0).any()
    assert (terms.product[terms.source < 0] == 0).all()
    inside = terms.source >= 0
    np.testing.assert_array_equal(terms.input_real[inside], run.inputs.reshape(-1)[terms.source[inside]])
    np.testing.assert_array_equal(terms.input_code[inside], run.input.codes.reshape(-1)[terms.source[inside]])
    # Channel 5 belongs to the last of three groups: it reads input channels 4 and 5 of the first image.
    channels = terms.source[inside] // 25
    assert set(channels.tolist()) == {4, 5}
    assert len(trace.term(0)) >= 3
    padded = int(np.flatnonzero(terms.source < 0)[0])
    assert any("pads" in step.note for step in trace.term(padded))


@given(
    value=st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-2000, 2000)),
    factor=st.one_of(st.floats(2.0**-33, 2.0**-1, exclude_min=True), st.sampled_from([0.5, 0.25, 0.125])),
    name=st.sampled_from(NAMES),
    wide=st.booleans(),
)
@settings(max_examples=300)
def test_rounding_steps_are_the_kernels_rounding(value, factor, name, wide):
    named = as_semantics(name)
    steps, multiplier, shift = factor_steps(factor, named, wide=wide)
    more, result = rescale_steps(value, multiplier, shift, named, wide=wide)
    for step in (*steps, *more):
        check(step, {})
    if named.rounding == "float64":
        assert (multiplier, shift) == (factor, 0)
    else:
        assert (multiplier, shift) == quantize_multiplier(factor, named, accumulator_bits=48 if wide else 32)
    kind = np.int64 if wide else np.int32
    code = requantize(np.array([value], dtype=kind), scale=factor, dtype=np.int32, semantics=named)[0]
    assert code == min(max(result, -(2**31)), 2**31 - 1)


def test_double_rounding_shows_the_steps_of_its_source():
    trace = linear().follow(1, 2, "tflm")
    names = [step.name for step in trace.steps]
    for name in ("nudge", "high multiply", "mask", "remainder", "threshold", "second rounding", "clamp"):
        assert name in names
    assert "rounding constant" in [step.name for step in linear().follow(1, 2, "tflite-single").steps]
    assert "float64 product" in [step.name for step in linear().follow(1, 2, "litert-reference").steps]


def test_convolutions_of_litert_round_twice():
    assert "high multiply" in [step.name for step in convolution().follow(1, 2, "litert-reference").steps]


def test_long_sums_fold():
    generator = np.random.default_rng(0)
    run = run_layer(generator.standard_normal((2, 500)), generator.standard_normal((2, 500)))
    trace = run.follow(1, 1)
    shown = trace.terms.folded()
    assert shown == [0, 1, 2, 3, 4, None, 497, 498, 499]
    assert len(trace.terms) == 500
    assert len(str(trace).splitlines()) < 40
    assert trace.terms.folded(first=300, last=300) == list(range(500))
    assert len(trace._repr_html_()) < 20_000
    frame = trace.terms.to_frame()
    assert len(frame) == 500 and frame["partial sum"].iloc[-1] == run.sums[1, 1]


def test_shows_itself_and_pickles():
    trace = linear(accumulator="int10:wrap").follow(0, 1)
    frame = trace.to_frame()
    assert list(frame.columns) == ["stage", "name", "formula", "result", "note"]
    assert "overflow" in repr(trace) and "code" in repr(trace)
    assert "<table>" in trace._repr_html_()
    plain = linear().follow(0, 1)
    again = pickle.loads(pickle.dumps(plain))
    assert again.code == plain.code
    assert replay(again) == replay(plain)


@pytest.mark.parametrize(("row", "channel"), [(-1, 0), (5, 0), (0, 6), (0.5, 0), (True, 0)])
def test_outputs_that_do_not_exist_are_refused(row, channel):
    with pytest.raises(IntegerError, match="0 to"):
        linear().follow(row, channel)
