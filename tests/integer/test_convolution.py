"""Convolutions: against sums of Python integers, both layouts against each other, and three runtimes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_zoo import RUNNERS, codes, one_operator, scale

from workbench.errors import AccumulatorOverflowError, IntegerError
from workbench.integer.convolution import conv2d, convolve, geometry
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.watch import watch


def slow_sums(x, weight, bias, *, zero, zeros, stride, first, dilation, output, groups):
    """NHWC and OHWI, one Python integer at a time."""
    batch, height, width, channels = x.shape
    outputs, rows, columns, _ = weight.shape
    each, own = channels // groups, outputs // groups
    sums = np.zeros((batch, *output, outputs), dtype=object)
    for n, y, z, o in itertools.product(range(batch), range(output[0]), range(output[1]), range(outputs)):
        total = 0 if bias is None else int(bias[o])
        for i, j, c in itertools.product(range(rows), range(columns), range(each)):
            v, h = y * stride[0] - first[0] + i * dilation[0], z * stride[1] - first[1] + j * dilation[1]
            if 0 <= v < height and 0 <= h < width:
                value = int(x[n, v, h, o // own * each + c]) - zero
                total += value * (int(weight[o, i, j, c]) - int(zeros[o]))
        sums[n, y, z, o] = total
    return sums


@st.composite
def layers(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    own, each = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    image = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    sides = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = draw(st.one_of(st.just("same"), st.integers(2, 4), st.tuples(sides, sides)))
    kind = draw(st.sampled_from([np.int8, np.uint8, np.int16]))
    weight_kind = draw(st.sampled_from([np.int8, np.uint8]))
    x = codes(rng, (draw(st.integers(0, 2)), *image, groups * each), kind)
    weight = codes(rng, (groups * own, *window, each), weight_kind)
    zero = int(codes(rng, (), kind))
    zeros = codes(rng, (groups * own,) if draw(st.booleans()) else (), weight_kind)
    bias = None if draw(st.booleans()) else rng.integers(-(2**20), 2**20, groups * own).astype(np.int32)
    return x, weight, bias, zero, zeros, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@settings(max_examples=80, deadline=None)
@given(layers())
def test_sums_are_those_of_python_integers_in_every_layout(layer):
    x, weight, bias, zero, zeros, place = layer
    try:
        output, first = geometry(x.shape[1:3], weight.shape[1:3], place["stride"], place["padding"], place["dilation"])
    except IntegerError as error:
        assert "does not fit" in str(error)
        with pytest.raises(IntegerError, match="does not fit"):
            convolve(x, weight, bias, **place)
        return
    expected = slow_sums(
        x,
        weight,
        bias,
        zero=zero,
        zeros=np.broadcast_to(zeros, len(weight)),
        stride=place["stride"],
        dilation=place["dilation"],
        first=first,
        output=output,
        groups=place["groups"],
    )
    options = {"input_zero_point": zero, "weight_zero_point": zeros, **place}
    by_rows = convolve(x, weight, bias, **options)
    assert by_rows.dtype == (np.int64 if x.dtype == np.int16 else np.int32)
    assert by_rows.shape == expected.shape
    assert np.array_equal(by_rows, expected)
    assert np.array_equal(convolve(x, weight, bias, method="im2win", **options), by_rows)
    turned = convolve(np.moveaxis(x, 3, 1), np.moveaxis(weight, 3, 1), bias, layout="NCHW", method="im2win", **options)
    assert np.array_equal(np.moveaxis(turned, 1, 3), by_rows)
    if weight.shape[3] == 1 and place["groups"] == x.shape[3]:
        flat = np.moveaxis(weight[..., 0], 0, 2)[None]
        assert np.array_equal(convolve(x, flat, bias, **options), by_rows)


def test_scratch_of_im2win_is_smaller_and_holds_each_column_once():
    from workbench.kernels.windows import im2col, im2win

    x = np.arange(6 * 9 * 2, dtype=np.int16).reshape(1, 6, 9, 2)
    place = {"stride": (1, 1), "first": (0, 0), "dilation": (1, 1), "fill": 0}
    rows, (columns, starts) = im2col(x, (3, 3), (4, 7), **place), im2win(x, (3, 3), (4, 7), **place)
    assert rows.shape == (1, 4, 7, 18)
    assert columns.shape == (1, 4, 9, 3, 2)
    assert columns.size == 1 * 4 * 9 * 3 * 2 < rows.size
    assert starts.tolist() == list(range(7))
    window = columns[0, 2, 3:6]
    assert np.array_equal(window.transpose(1, 0, 2).ravel(), rows[0, 2, 3])


def test_a_dilated_window_is_contiguous_in_im2win():
    from workbench.kernels.windows import im2win

    x = np.arange(12, dtype=np.int8).reshape(1, 1, 12, 1)
    columns, starts = im2win(x, (1, 3), (1, 8), stride=(1, 1), first=(0, 0), dilation=(1, 2), fill=0)
    for column, start in enumerate(starts):
        assert columns[0, 0, start : start + 3, 0, 0].tolist() == [column, column + 2, column + 4]


@pytest.mark.parametrize("method", ["im2col", "im2win"])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_narrow_accumulator_wraps_saturates_or_refuses(method, groups):
    rng = np.random.default_rng(3)
    x, weight = codes(rng, (1, 5, 5, 4)), codes(rng, (4, 3, 3, 4 // groups))
    options = {"groups": groups, "method": method}
    exact = convolve(x, weight, **options).astype(np.int64)
    with watch() as seen:
        wrapped = convolve(x, weight, accumulator="int14:wrap", **options)
    assert np.array_equal(wrapped, (exact + 2**13) % 2**14 - 2**13)
    assert seen.overflows > 0
    assert len(seen.observations) == 1
    assert seen.observations[0].operator == "conv2d"
    saturated = convolve(x, weight, accumulator="int14:saturate", **options)
    assert saturated.min() >= -(2**13)
    assert saturated.max() <= 2**13 - 1
    with pytest.raises(AccumulatorOverflowError, match="int14:wrap"):
        convolve(x, weight, accumulator="int14", **options)


@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_observed(groups):
    rng = np.random.default_rng(4)
    x, weight = codes(rng, (1, 5, 5, 4)), codes(rng, (4, 3, 3, 4 // groups))
    with watch() as seen:
        conv2d(x, weight, input_scale=0.1, weight_scale=0.1, output_scale=0.2, groups=groups)
    (one,) = seen.observations
    assert one.operator == "conv2d"
    assert one.outputs == 36
    assert 32 == one.accumulator_bits >= one.worst_case_bits >= one.observed_bits > 0


def test_ready_multipliers_equal_real_scales():
    rng = np.random.default_rng(5)
    x, weight, bias = codes(rng, (2, 6, 7, 3)), codes(rng, (5, 3, 2, 3)), rng.integers(-999, 999, 5).astype(np.int32)
    scales = np.exp(rng.uniform(-6, -3, 5)).astype(np.float32)
    for semantics in ("tflm", "litert-reference", "onnxruntime", "tosa-single", "tosa-double"):
        place = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "semantics": semantics, "output_zero_point": -3}
        real = conv2d(x, weight, bias, input_scale=0.05, weight_scale=scales, output_scale=0.25, **place)
        factor = np.float32(0.05) * scales / np.float32(0.25)
        if semantics != "onnxruntime":
            factor = float(np.float32(0.05)) * scales.astype(np.float64) / 0.25
        multiplier, shift = quantize_multiplier(factor, semantics)
        assert np.array_equal(conv2d(x, weight, bias, multiplier=multiplier, shift=shift, **place), real)
        by_axis = conv2d(
            np.moveaxis(x, 3, 1),
            np.moveaxis(weight, 3, 1),
            bias,
            multiplier=multiplier,
            shift=shift,
            layout="NCHW",
            **place,
        )
        assert np.array_equal(np.moveaxis(by_axis, 1, 3), real)


def test_litert_rounds_twice_in_convolutions():
    accumulator = np.arange(-40, 40, dtype=np.int32).reshape(1, 1, 80, 1)
    x, weight = np.zeros((1, 1, 1, 1), dtype=np.int8), np.zeros((80, 1, 1, 1), dtype=np.int8)
    scales = {"input_scale": 0.5, "weight_scale": 0.5, "output_scale": 1.0}
    got = conv2d(x, weight, accumulator.ravel(), **scales, semantics="litert-reference")
    twice = requantize(accumulator, scale=0.25, semantics="tflm")
    once = requantize(accumulator, scale=0.25, semantics="litert-reference")
    assert np.array_equal(got.ravel(), twice.ravel())
    assert not np.array_equal(once, twice)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"stride": 0}, "a stride"),
        ({"dilation": (1, 2, 3)}, "a dilation"),
        ({"padding": "reflect"}, "padding"),
        ({"padding": -1}, "padding"),
        ({"padding": ((1, 2), (1,))}, "padding"),
        ({"layout": "CHWN"}, "layout"),
        ({"method": "winograd"}, "im2col"),
        ({"input_zero_point": 200}, "zero point"),
        ({"weight_zero_point": np.zeros(3, np.int8)}, "zero point"),
        ({"bias": np.zeros(3, np.int32)}, "bias"),
        ({"bias": np.zeros(2, np.float32)}, "bias"),
        ({"weight_scale": np.ones(3, np.float32)}, "weight scale"),
        ({"output_scale": None}, "scales"),
        ({"weight": np.zeros((2, 7, 1, 4), np.int8)}, "does not fit"),
        ({"weight": np.zeros((2, 4), np.int8)}, "four axes"),
        ({"x": np.zeros((1, 5, 5, 4), np.float32)}, "int8"),
    ],
)
def test_bad_input_is_named(change, words):
    layer = {
        "x": np.zeros((1, 5, 5, 4), np.int8),
        "weight": np.zeros((2, 3, 3, 4), np.int8),
        "bias": None,
        "input_scale": 0.1,
        "weight_scale": 0.1,
        "output_scale": 0.1,
    }
    layer.update(change)
    with pytest.raises(IntegerError, match=words):
        conv2d(layer.pop("x"), layer.pop("weight"), layer.pop("bias"), **layer)


def random_layer(rng, *, wide, depthwise, per_channel):
    kind = np.int16 if wide else np.int8
    window = tuple(int(size) for size in rng.integers(1, 4, 2))
    dilation = tuple(int(size) for size in rng.integers(1, 3, 2))
    # TensorFlow Lite dilates only where the stride is 1.
    stride = (1, 1) if dilation != (1, 1) else tuple(int(size) for size in rng.integers(1, 3, 2))
    channels, image = int(rng.integers(1, 9)), tuple(int(size) for size in rng.integers(7, 13, 2))
    x = codes(rng, (2, *image, channels), kind)
    outputs = channels * int(rng.integers(1, 3)) if depthwise else int(rng.integers(2, 9))
    shape = (1, *window, outputs) if depthwise else (outputs, *window, channels)
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    bias = rng.integers(-9000, 9000, outputs).astype(np.int64 if wide else np.int32)
    weight_scale = np.exp(rng.uniform(-6, -3, outputs)).astype(np.float32) if per_channel else scale(rng, 0.002, 0.05)
    input_scale = scale(rng) / np.float32(256 if wide else 1)
    depth = window[0] * window[1] * (1 if depthwise else channels)
    output_scale = np.float32(input_scale * np.mean(weight_scale) * np.sqrt(depth) * 60)
    zeros = (0, 0) if wide else (int(rng.integers(-128, 128)), int(rng.integers(-128, 128)))
    return {
        "x": x,
        "weight": weight,
        "bias": bias,
        "scales": {"input_scale": input_scale, "weight_scale": weight_scale, "output_scale": output_scale},
        "zeros": zeros,
        "place": {"stride": stride, "dilation": dilation, "groups": channels if depthwise else 1},
    }


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_equals_tensorflow_lite(semantics, wide, depthwise, per_channel):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    rng = np.random.default_rng(100 * wide + 10 * depthwise + per_channel)
    outputs = mismatches = 0
    for trial in range(12):
        layer = random_layer(rng, wide=wide, depthwise=depthwise, per_channel=per_channel)
        x, weight, bias, place = layer["x"], layer["weight"], layer["bias"], layer["place"]
        scales, (zero, out_zero) = layer["scales"], layer["zeros"]
        padding = ["same", "valid"][trial % 2]
        window = weight.shape[1:3]
        size, _ = geometry(x.shape[1:3], window, place["stride"], padding, place["dilation"])
        clamp = [("NONE", None, None), ("RELU", out_zero, None)][trial // 2 % 2]
        count = weight.shape[3] if depthwise else weight.shape[0]
        options = {
            "padding": padding.upper(),
            "stride_h": place["stride"][0],
            "stride_w": place["stride"][1],
            "dilation_h_factor": place["dilation"][0],
            "dilation_w_factor": place["dilation"][1],
            "fused_activation_function": clamp[0],
        }
        if depthwise:
            options["depth_multiplier"] = count // x.shape[3]
        axis = (3 if depthwise else 0) if per_channel else None
        bias_scale = (scales["input_scale"] * scales["weight_scale"]).astype(np.float32)
        model = one_operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [(x, scales["input_scale"], zero)],
            ((2, *size, count), x.dtype, scales["output_scale"], out_zero),
            options,
            constants=[(weight, scales["weight_scale"], 0, axis), (bias, bias_scale, 0, 0)],
            version=3,
        )
        (expected,) = RUNNERS[semantics](model, [x])
        for method in ("im2col", "im2win"):
            got = conv2d(
                x,
                weight,
                bias,
                **scales,
                **place,
                input_zero_point=zero,
                output_zero_point=out_zero,
                padding=padding,
                dtype=x.dtype,
                low=clamp[1],
                high=clamp[2],
                semantics=semantics,
                method=method,
            )
            assert got.shape == expected.shape
            outputs += got.size
            mismatches += int(np.count_nonzero(got != expected))
    assert outputs > 1000
    assert mismatches == 0


@pytest.mark.parametrize("kinds", [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_equals_onnxruntime(kinds, per_channel):
    pytest.importorskip("onnxruntime")
    from workbench.integer.judges.runners import onnx_model, run_onnx

    rng = np.random.default_rng(7)
    outputs = mismatches = 0
    for trial in range(20):
        groups = [1, 1, 2, 4][trial % 4]
        each, own = (1, int(rng.integers(1, 3))) if groups == 4 else (int(rng.integers(1, 5)), int(rng.integers(1, 4)))
        window, stride, dilation = ([int(v) for v in rng.integers(1, top, 2)] for top in (4, 3, 3))
        pads = [int(v) for v in rng.integers(0, 2, 4)]
        x = codes(rng, (2, groups * each, *(int(v) for v in rng.integers(7, 12, 2))), kinds[0])
        # Without VNNI onnxruntime multiplies uint8 by int8 in saturating 16-bit pairs: 7-bit weights avoid that.
        weight = rng.integers(-64, 64, (groups * own, each, *window)).astype(np.int8)
        weight = weight if kinds[1] == np.int8 else (weight.astype(np.int16) + 64).astype(np.uint8)
        count = len(weight)
        zero, out_zero = codes(rng, (), kinds[0]), codes(rng, (), kinds[0])
        weight_zero = np.uint8(67) if kinds[1] == np.uint8 else np.int8(0)
        weight_scale = np.exp(rng.uniform(-6, -3, count)).astype(np.float32) if per_channel else scale(rng, 0.002, 0.05)
        weight_zeros = np.full(count, weight_zero) if per_channel else weight_zero
        input_scale = scale(rng)
        output_scale = np.float32(input_scale * np.mean(weight_scale) * np.sqrt(weight[0].size) * 40)
        bias = rng.integers(-9000, 9000, count).astype(np.int32)
        constants = {
            "xs": input_scale,
            "xz": zero,
            "w": weight,
            "ws": weight_scale,
            "wz": weight_zeros,
            "ys": output_scale,
            "yz": out_zero,
            "b": bias,
        }
        model = onnx_model(
            "QLinearConv",
            {"x": x},
            {"y": kinds[0]},
            {name: np.asarray(values) for name, values in constants.items()},
            strides=stride,
            dilations=dilation,
            pads=pads,
            group=groups,
        )
        (expected,) = run_onnx(model, {"x": x})
        got = conv2d(
            x,
            weight,
            bias,
            input_scale=input_scale,
            weight_scale=weight_scale,
            output_scale=output_scale,
            input_zero_point=int(zero),
            weight_zero_point=weight_zeros,
            output_zero_point=int(out_zero),
            stride=tuple(stride),
            dilation=tuple(dilation),
            padding=((pads[0], pads[2]), (pads[1], pads[3])),
            groups=groups,
            layout="NCHW",
            dtype=kinds[0],
            semantics="onnxruntime",
        )
        assert got.shape == expected.shape
        outputs += got.size
        mismatches += int(np.count_nonzero(got != expected))
    assert outputs > 1000
    assert mismatches == 0
