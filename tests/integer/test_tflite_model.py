"""Whole TensorFlow Lite models: every intermediate equals LiteRT's reference kernels and TensorFlow Lite Micro."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_zoo import RUNNERS, codes, one_operator, scale
from tflite_zoo import Net, mobile_net_like, residual

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.judges.tflite_builder import TFLiteModel
from workbench.integer.linear import matmul
from workbench.integer.model import IntegerModel
from workbench.kernels.float64_product import multiply_rows

BOTH = ["litert-reference", "tflm"]


def judge(semantics):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    return RUNNERS[semantics]


@pytest.mark.parametrize("semantics", BOTH)
@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("build", [mobile_net_like, residual])
def test_every_intermediate_equals_the_runtimes(semantics, kind, build):
    run = judge(semantics)
    compared = 0
    for seed in range(4):
        net, x = build(seed, kind)
        content = net.finish([x])
        image = codes(net.rng, x.shape, kind)
        expected = run(content, [image])
        model = IntegerModel.from_tflite(content, semantics)
        got = model.run(image, keep=True)
        assert len(got.outputs) == len(expected) > 10
        for name, ours, theirs in zip(got.output_names, got.outputs, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), f"{name} of seed {seed}"
            compared += ours.size
        assert all(array.dtype.kind in "iu" for array in got.codes.values())
        assert all(array.dtype.kind in "iu" for node in model.graph.nodes for array in node.constants.values())
        # Not a model that is stuck at its clamps.
        assert len(np.unique(got.outputs[2])) > 10
    assert compared > 5000


@pytest.mark.parametrize("semantics", BOTH)
def test_the_two_runtimes_differ_and_each_is_met(semantics):
    judge("tflm")
    judge("litert-reference")
    net, x = mobile_net_like(0)
    content = net.finish([x])
    image = codes(net.rng, x.shape)
    ours = {each: IntegerModel.from_tflite(content, each).run(image).outputs for each in BOTH}
    theirs = {each: RUNNERS[each](content, [image]) for each in BOTH}
    same = all(np.array_equal(a, b) for a, b in zip(theirs["tflm"], theirs["litert-reference"], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(ours[semantics], theirs[semantics], strict=True))
    assert same == all(np.array_equal(a, b) for a, b in zip(ours["tflm"], ours["litert-reference"], strict=True))


@pytest.mark.parametrize("semantics", BOTH)
def test_float_ends_are_quantized_and_dequantized_as_the_runtimes_do(semantics):
    run = judge(semantics)
    net = Net(5)
    x = net.tensor((1, 6, 6, 2))
    y = net.dense(net.conv(x, 4, 3), 7)
    model = net.model
    real = model.tensor("real", (1, 6, 6, 2), np.float32)
    out = model.tensor("out", (1, 7), np.float32)
    # Operators run in the order in which they are added: quantize first.
    model._operators.insert(0, None)
    model.operator("QUANTIZE", [real], [x.index], version=2)
    model._operators[0] = model._operators.pop()
    model.operator("DEQUANTIZE", [y.index], [out], version=2)
    content = model.finish([real], [out])
    image = (codes(net.rng, (1, 6, 6, 2)).astype(np.float32) * x.scale / 2).astype(np.float32)
    (expected,) = run(content, [image])
    ours = IntegerModel.from_tflite(content, semantics)
    assert np.array_equal(ours(image), expected)
    kept = ours.run(image, keep=True).codes
    inner = {name: array.dtype.kind for name, array in kept.items() if name not in {"real", "out"}}
    assert set(inner.values()) == {"i"}


def test_a_model_runs_from_a_path_and_shows_itself(tmp_path):
    net, x = mobile_net_like(1)
    path = tmp_path / "mobile.tflite"
    path.write_bytes(net.finish([x], net.ends[-1:]))
    model = IntegerModel.from_tflite(path)
    assert model.name == "mobile"
    assert model.values["t0"].zero_point == x.zero
    frame = model.to_frame()
    assert frame["operator"].iloc[0] == "tflite:CONV_2D"
    image = codes(net.rng, x.shape)
    real = model(image)
    assert real.shape == (2, 10)
    assert np.all(np.abs(real.sum(axis=1) - 1) < 0.05)
    run = model.run(model.values["t0"].dequantize(image), watch=True, keep=True)
    assert np.array_equal(run.real(run.output_names[0]), real)
    assert {each.observations[0].operator for each in run.watched.values()} >= {"conv2d", "linear", "add"}
    with pytest.raises(IntegerError, match="no float twin"):
        model.run(image, mode="float")


@pytest.mark.parametrize("semantics", BOTH)
@pytest.mark.parametrize("name", ["ADD", "SUB"])
@pytest.mark.parametrize("powers", [(0, 0), (0, 4), (3, 0)])
def test_int16_sums_of_power_of_two_scales(semantics, name, powers):
    run = judge(semantics)
    rng = np.random.default_rng(3)
    a, b = codes(rng, (4, 300), np.int16), codes(rng, (4, 300), np.int16)
    first, second = (np.float32(2.0 ** (-9 - power)) for power in powers)
    output = ((4, 300), np.int16, np.float32(2.0**-9), 0)
    model = one_operator(name, [(a, first, 0), (b, second, 0)], output, {"pot_scale_int16": True}, version=2)
    assert np.array_equal(IntegerModel.from_tflite(model, semantics).run((a, b)).outputs[0], run(model, [a, b])[0])


KERNELS = [
    *((semantics, kind, per) for semantics in BOTH for kind in (np.int8, np.int16) for per in (False, True)),
    ("litert-reference", np.uint8, False),
]


@pytest.mark.parametrize(("semantics", "kind", "per_channel"), KERNELS)
def test_fully_connected_at_ties_and_next_to_them(semantics, kind, per_channel):
    run = judge(semantics)
    rng = np.random.default_rng(4)
    mismatches = 0
    for trial in range(12):
        # Powers of two make exact ties; the others products that float32 would round.
        steps = [np.float32(2.0 ** -rng.integers(1, 6)) if trial % 2 else scale(rng, 1e-4, 0.1) for _ in range(2)]
        x = np.zeros((1, 1), kind)
        weight = np.zeros((500, 1), np.uint8 if kind == np.uint8 else np.int8)
        out = np.float32(steps[0] * steps[1] * 2.0 ** rng.integers(3, 20))
        factor = float(steps[0]) * float(steps[1]) / float(out)
        top = np.iinfo(kind).max
        bias = np.round((rng.integers(-top, top, 500) + 0.5) / factor) + rng.integers(-2, 3, 500)
        bias = bias.astype(np.int64 if kind == np.int16 else np.int32)
        weight_steps = np.full(500, steps[1]) if per_channel else steps[1]
        bias_steps = (steps[0] * weight_steps).astype(np.float32)
        model = one_operator(
            "FULLY_CONNECTED",
            [(x, steps[0], 0)],
            ((1, 500), kind, out, 0),
            constants=[(weight, weight_steps, 0, 0 if per_channel else None), (bias, bias_steps, 0, 0)],
            version=4,
        )
        got = IntegerModel.from_tflite(model, semantics).run(x).outputs[0]
        mismatches += int(np.count_nonzero(got != run(model, [x])[0]))
    assert mismatches == 0


@settings(max_examples=200)
@given(
    st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1, max_size=20),
    st.floats(1e-12, 8.0),
    st.booleans(),
)
def test_the_float64_product_in_integers_is_the_processors(values, factor, near):
    if near:
        factor = float(2.0 ** np.floor(np.log2(factor))) * (1 + 2.0**-52)
    fraction, exponent = np.frexp(factor)
    mantissa = np.array([int(np.ldexp(fraction, 53))])
    product = np.array(values, dtype=np.float64) * factor
    magnitude = np.abs(product)
    whole = np.trunc(magnitude)
    expected = np.copysign(whole + (magnitude - whole >= 0.5), product)
    rows = np.array([values], dtype=np.int64)
    limits = np.iinfo(np.int32)
    got, saturated = multiply_rows(
        rows, mantissa, np.array([int(exponent) - 53]), 0, limits.min, limits.max, np.dtype(np.int32)
    )
    assert np.array_equal(got[0], np.clip(expected, limits.min, limits.max).astype(np.int64))
    assert saturated == np.count_nonzero((expected < limits.min) | (expected > limits.max))


def assert_refused(net_or_model, inputs, outputs, words, semantics="litert-reference"):
    content = net_or_model.finish(inputs, outputs)
    with pytest.raises(IntegerError, match=words):
        IntegerModel.from_tflite(content, semantics)


def refused_net(net, inputs, outputs, words):
    assert_refused(net.model, [each.index for each in inputs], [each.index for each in outputs], words)


def test_an_operator_that_is_missing_is_named():
    model = TFLiteModel()
    x, y, z = (model.tensor(name, (1, 4), np.int8, 0.1) for name in "xyz")
    model.operator("COS", [x], [y])
    model.operator("ELU", [y], [z])
    assert_refused(model, [x], [z], "needs COS, ELU, which are not covered; covered are ADD, ARG_MAX, AVERAGE_POOL_2D")


def test_what_is_not_covered_is_named():
    model = TFLiteModel()
    x = model.tensor("x", (1, 4), np.float32)
    y = model.tensor("y", (1, 4), np.float32)
    model.operator("RELU", [x], [y])
    assert_refused(model, [x], [y], r"operator 0 \(RELU\): tensor 0 .*float32")

    net = Net(0)
    x = net.tensor((1, 4, 4, 2))
    y = net.tensor((1, 4, 4, 2))
    net.operator("CONCATENATION", [x], y, {"axis": 3})
    refused_net(net, [x], [y], "does not rescale")

    net = Net(0)
    x = net.tensor((1, 4, 4, 2))
    y = net.conv(x, 3, activation="TANH")
    refused_net(net, [x], [y], "fused activation TANH")

    net = Net(0)
    x, w = net.tensor((1, 4, 4, 2)), net.tensor((3, 1, 1, 2))
    y = net.operator("CONV_2D", [x, w], net.tensor((1, 4, 4, 3)), {"stride_h": 1, "stride_w": 1})
    refused_net(net, [x, w], [y], "weight is computed")

    net = Net(0)
    x = net.tensor((1, 4))
    y = net.moved("PAD", x, (1, 5), [net.constant(np.array([[0, 0], [1 << 29, 1 << 29]], np.int32))])
    refused_net(net, [x], [y], "does not have the shape")

    model = TFLiteModel()
    x = model.tensor("x", (1, 4), np.int8, 0.1)
    r, s = (model.tensor(name, (1, 4), np.float32) for name in "rs")
    y = model.tensor("y", (1, 4), np.int8, 0.1)
    model.operator("DEQUANTIZE", [x], [r])
    model.operator("QUANTIZE", [r], [y])
    assert_refused(model, [x], [y], "float32 inside the model")
    del s

    net = Net(0, np.uint8)
    x = net.tensor((1, 4, 4, 2))
    y = net.pool(x, "MAX_POOL_2D")
    assert_refused(net.model, [x.index], [y.index], "no uint8 kernel", "tflm")
    assert IntegerModel.from_tflite(net.finish([x])).layers == ("t1",)

    net, x = mobile_net_like(0)
    content = net.finish([x])
    with pytest.raises(SemanticsError, match="onnxruntime"):
        IntegerModel.from_tflite(content, "onnxruntime")


def test_names_may_be_empty_or_taken():
    model = TFLiteModel()
    x, y, z = (model.tensor(name, (1, 4), np.int8, 0.1) for name in ("", "same", "same"))
    model.operator("RELU", [x], [y])
    model.operator("RELU", [y], [z])
    read = IntegerModel.from_tflite(model.finish([x], [z]))
    assert read.graph.inputs == ("tensor0",)
    assert read.layers == ("same", "same#2")


@pytest.mark.parametrize("semantics", BOTH)
@pytest.mark.parametrize("step", [15.9, 16.0, 33.0, 1e4])
def test_softmax_of_a_huge_step(semantics, step):
    run = judge(semantics)
    x = codes(np.random.default_rng(6), (30, 10))
    x[:9, 1:4] = x[:9].max(axis=1, keepdims=True)
    output = (x.shape, np.int8, 1 / 256, -128)
    content = one_operator("SOFTMAX", [(x, np.float32(step), 3)], output, {"beta": 1.0}, version=2)
    assert np.array_equal(IntegerModel.from_tflite(content, semantics).run(x).outputs[0], run(content, [x])[0])


@pytest.mark.parametrize("semantics", BOTH)
def test_split_squeeze_and_constants_as_operands(semantics):
    run = judge(semantics)
    net = Net(9)
    x = net.tensor((1, 3, 4, 6))
    model = net.model
    axis = net.constant(np.array(3, np.int32))
    parts = [net.tensor((1, 3, 4, 2), x.scale, x.zero) for _ in range(3)]
    model.operator("SPLIT", [axis, x.index], [part.index for part in parts], {"num_splits": 3}, version=2)
    flat = net.moved("SQUEEZE", parts[1], (3, 4, 2), options={"squeeze_dims": [0]})
    values = codes(net.rng, (4, 2))
    fixed = model.tensor("fixed", values.shape, np.int8, 0.07, 5, data=values)
    total = net.tensor((3, 4, 2), 0.1)
    model.operator("ADD", [fixed, flat.index], [total.index], {}, version=2)
    product = net.tensor((3, 4, 2), 0.02)
    model.operator("MUL", [total.index, fixed], [product.index], {}, version=2)
    content = net.finish([x])
    image = codes(net.rng, x.shape)
    got = IntegerModel.from_tflite(content, semantics).run(image).outputs
    for ours, theirs in zip(got, run(content, [image]), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("semantics", BOTH)
@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False)])
def test_batched_products(semantics, kind, turned):
    run = judge(semantics)
    rng = np.random.default_rng(8)
    for constant in (False, True):
        a = codes(rng, (2, 3, 6, 10) if not turned[0] else (2, 3, 10, 6), kind)
        b = codes(rng, (2, 3, 10, 7) if not turned[1] else (2, 3, 7, 10), kind)
        steps = [scale(rng) / np.float32(256 if kind == np.int16 else 1) for _ in range(2)]
        zeros = [0] * 3 if kind == np.int16 else [int(codes(rng, ())) for _ in range(3)]
        output = ((2, 3, 6, 7), kind, steps[0] * steps[1] * np.float32(300 if kind == np.int8 else 70_000), zeros[2])
        model = TFLiteModel()
        x = model.tensor("a", a.shape, kind, steps[0], zeros[0])
        y = model.tensor("b", b.shape, kind, steps[1], zeros[1], data=b if constant else None)
        z = model.tensor("c", *output)
        model.operator("BATCH_MATMUL", [x, y], [z], {"adj_x": turned[0], "adj_y": turned[1]}, version=3)
        given = [a] if constant else [a, b]
        content = model.finish([x] if constant else [x, y], [z])
        got = IntegerModel.from_tflite(content, semantics).run(tuple(given) if len(given) > 1 else a).outputs[0]
        assert np.array_equal(got, run(content, given)[0])


@pytest.mark.parametrize("semantics", BOTH)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gather_extrema_and_argmax(semantics, axis):
    run = judge(semantics)
    rng = np.random.default_rng(10)
    net = Net(10)
    model, x = net.model, net.tensor((4, 5, 6))
    indices = rng.integers(0, 4, (2, 3)).astype(np.int32)
    places = model.tensor("places", indices.shape, np.int32)
    shape = np.take(np.zeros(x.shape), indices, axis=axis).shape
    taken = model.tensor("taken", shape, np.int8, x.scale, x.zero)
    model.operator("GATHER", [x.index, places], [taken], {"axis": axis % 3}, version=2)
    largest = model.tensor("largest", x.shape, np.int8, x.scale, x.zero)
    smallest = model.tensor("smallest", x.shape, np.int8, x.scale, x.zero)
    row = codes(rng, (6,))
    fixed = model.tensor("row", (6,), np.int8, x.scale, x.zero, data=row)
    model.operator("MAXIMUM", [x.index, fixed], [largest], version=2)
    model.operator("MINIMUM", [fixed, largest], [smallest], version=2)
    best = model.tensor("best", (4, 5), np.int32)
    last = net.constant(np.array([-1], np.int32))
    model.operator("ARG_MAX", [x.index, last], [best], {"output_type": "INT32"}, version=2)
    content = model.finish([x.index, places], [taken, largest, smallest, best])
    image = codes(rng, x.shape)
    got = IntegerModel.from_tflite(content, semantics).run((image, indices)).outputs
    for ours, theirs in zip(got, run(content, [image, indices]), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("semantics", BOTH)
@pytest.mark.parametrize("source", [np.int8, np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("target", [np.int8, np.uint8, np.int16, np.int32])
def test_quantize_converts_what_the_runtime_converts(semantics, source, target):
    run = judge(semantics)
    rng = np.random.default_rng(7)
    x = codes(rng, (3, 50), np.int8 if source == np.float32 else source).astype(source)
    step = None if source == np.float32 else scale(rng)
    output = ((3, 50), target, np.float32(0.7 if source != np.float32 else 0.5), 0)
    content = one_operator("QUANTIZE", [(x, step, 0)], output, version=2)
    try:
        (expected,) = run(content, [x])
    except (RuntimeError, ValueError):
        with pytest.raises(IntegerError, match="does not quantize"):
            IntegerModel.from_tflite(content, semantics)
        return
    assert np.array_equal(IntegerModel.from_tflite(content, semantics).run(x).outputs[0], expected)


@pytest.mark.parametrize("semantics", BOTH)
def test_matmul_takes_the_product_of_its_scales_as_each_runtime_does(semantics):
    run = judge(semantics)
    rng = np.random.default_rng(12)
    for _ in range(4):
        first, second = scale(rng, 1e-4, 0.1), scale(rng, 1e-4, 0.1)
        out = first * second * np.float32(2.0**21)
        factor = float(first) * float(second) / float(out)
        # Sums next to ties, where one part in 2**24 of the factor shows: 127 a's worth of bulk, then single steps.
        target = np.round((rng.integers(80, 120, 200) + 0.5) / factor).astype(np.int64) + rng.integers(-8, 9, 200)
        b = np.concatenate([np.full(17_000, 127), np.ones(1)]).astype(np.int8)[:, None]
        a = np.repeat(target[:, None] // (127 * 17_000), 17_001, axis=1)
        rest = target - a[:, 0] * 127 * 17_000
        a[:, :-1] += np.arange(17_000) < (rest // 127)[:, None]
        a[:, -1] = rest % 127
        a = a.astype(np.int8)
        output = ((200, 1), np.int8, out, 0)
        content = one_operator("BATCH_MATMUL", [(a, first, 0), (b, second, 0)], output, version=2)
        got = matmul(a, b, a_scale=first, b_scale=second, output_scale=out, semantics=semantics)
        assert np.array_equal(got, run(content, [a, b])[0])


def test_inputs_have_the_shape_that_the_file_was_made_for():
    net, x = residual(0)
    model = IntegerModel.from_tflite(net.finish([x]))
    for shape in ((2, *x.shape[1:]), x.shape[1:], (1, 5, 5, 4)):
        with pytest.raises(IntegerError, match="for which this model was made"):
            model.run(np.zeros(shape, dtype=np.int8))
    with pytest.raises(IntegerError, match="operations are counted in models that integerize made"):
        model.count(np.zeros(x.shape, dtype=np.int8))
