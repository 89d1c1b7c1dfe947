"""A layer three ways: the integer run against the public operators, fake quantization, and float."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.calibration.layer_inputs import LayerInputs
from workbench.errors import AccumulatorOverflowError, IntegerError, QuantizationError, SemanticsError
from workbench.integer.accumulator import needed_bits
from workbench.integer.convolution import conv2d
from workbench.integer.layer_geometry import Window, patches
from workbench.integer.layer_run import needed_bits_of, run_layer
from workbench.integer.linear import linear
from workbench.integer.semantics import SEMANTICS


def sample(rows=12, depth=40, outputs=7, seed=0):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((outputs, depth)).astype(np.float32)
    inputs = generator.standard_normal((rows, depth)).astype(np.float32)
    return weight, inputs, generator.standard_normal(outputs)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_uniform_layer_is_the_linear_operator(semantics, granularity):
    weight, inputs, bias = sample()
    run = run_layer(weight, inputs, granularity=granularity, semantics=semantics, bias=bias)
    layer = run.layers[0]
    scale = layer.weight.scale[:, 0]
    codes = linear(
        run.operand,
        layer.weight.values,
        layer.bias.astype(np.int32),
        input_scale=layer.input_scale,
        weight_scale=scale if len(scale) > 1 else scale[0],
        output_scale=run.output.scale,
        input_zero_point=layer.input_zero_point,
        output_zero_point=run.output.zero_point,
        semantics=semantics,
    )
    assert run.codes.dtype == np.int8
    assert (run.codes == codes).all()


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    ("channels", "outputs", "window"),
    [
        (3, 8, Window((3, 3), padding=((1, 1), (1, 1)))),
        (4, 6, Window((3, 2), (2, 1), ((0, 1), (1, 0)), (1, 2), 2)),
        (6, 6, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6)),
        (5, 9, Window((1, 1), (2, 2))),
    ],
)
def test_a_convolution_is_the_conv2d_operator(semantics, channels, outputs, window):
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((outputs, channels // window.groups, *window.kernel)).astype(np.float32)
    images = generator.standard_normal((2, channels, 7, 6)).astype(np.float32)
    run = run_layer(weight, images, window=window, semantics=semantics, bias=generator.standard_normal(outputs))
    values = np.concatenate([layer.weight.values for layer in run.layers]).reshape(weight.shape)
    bias = np.concatenate([layer.bias for layer in run.layers]).astype(np.int32)
    codes = conv2d(
        run.operand,
        values,
        bias,
        input_scale=run.layers[0].input_scale,
        weight_scale=np.concatenate([layer.weight.scale[:, 0] for layer in run.layers]),
        output_scale=run.output.scale,
        input_zero_point=run.layers[0].input_zero_point,
        output_zero_point=run.output.zero_point,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=window.groups,
        layout="NCHW",
        semantics=semantics,
    )
    assert run.shaped(run.codes).shape == codes.shape
    assert (run.shaped(run.codes) == codes).all()


def test_float_outputs_are_those_of_torch():
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(2)
    weight = generator.standard_normal((6, 2, 3, 3))
    images = generator.standard_normal((2, 4, 6, 7)).astype(np.float32)
    bias = generator.standard_normal(6)
    window = Window((3, 3), (2, 1), ((1, 1), (2, 2)), (1, 2), 2)
    run = run_layer(weight, images, window=window, bias=bias)
    other = torch.nn.functional.conv2d(
        torch.from_numpy(images).double(),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=(2, 1),
        padding=(1, 2),
        dilation=(1, 2),
        groups=2,
    )
    np.testing.assert_allclose(run.shaped(run.real), other.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid": "power:bits=4,exponent=0.5"},
        {"grid": "uniform:bits=4,range=asymmetric", "granularity": "group:8"},
        {"activation": "uniform:bits=16", "output": "uniform:bits=16"},
        {"activation": "power:bits=8,exponent=0.6,shifted=true"},
        {"then": "relu"},
    ],
)
def test_exact_paths_stay_within_one_step_of_fake_quantization(options):
    weight, inputs, bias = sample(rows=60)
    run = run_layer(weight, inputs, bias=bias, **options)
    reach = 4 if "power" in str(options.get("activation")) or "16" in str(options) else 1
    assert np.abs(run.steps_off_fake).max() <= reach
    assert (run.steps_off_fake != 0).mean() < 0.05
    assert run.errors["integer vs fake"].mse <= run.errors["integer vs float"].mse


@pytest.mark.parametrize("kind", ["table", "polynomial"])
@pytest.mark.parametrize("then", ["gelu", "gelu_tanh", "silu", "tanh", "logistic", "softmax"])
def test_functions_after_the_layer(then, kind):
    weight, inputs, _ = sample()
    run = run_layer(weight, inputs, then=then, kind=kind)
    assert run.codes.shape == run.real.shape
    assert np.abs(run.steps_off_fake).max() <= 4
    table = run.stage.table(run.semantics) if then != "softmax" else None
    if table is not None:
        assert (run.codes == table[run.linear_codes.astype(int) + 128]).all()
    if kind == "table" and then != "softmax":
        assert np.abs(run.steps_off_fake).max() <= 1


def test_a_runtime_without_the_function_says_so():
    weight, inputs, _ = sample()
    with pytest.raises(SemanticsError):
        run_layer(weight, inputs, then="silu", kind="runtime")


def test_off_by_counts_every_output_once():
    weight, inputs, _ = sample(rows=300, depth=90, outputs=30)
    run = run_layer(weight, inputs)
    for name in SEMANTICS:
        counts = run.off_by(name, "onnxruntime")
        assert sum(counts.values()) == run.codes.size
        gap = run.codes_under(name).astype(int) - run.codes_under("onnxruntime")
        assert counts == {int(step): int((gap == step).sum()) for step in np.unique(gap)}
        assert max(map(abs, counts)) <= 1
    assert run.off_by("tflm", "tflm") == {0: run.codes.size}
    assert (run.codes_under(run.semantics) == run.codes).all()


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=20))
def test_bits_of_sums(values):
    found = needed_bits_of(np.array(values))
    assert found.tolist() == [needed_bits(min(value, 0), max(value, 0)) for value in values]


def test_bits_and_counts():
    weight, inputs, _ = sample(rows=50)
    run = run_layer(weight, inputs)
    assert run.sums_by_bits.sum() == run.codes.size
    assert run.observed_bits <= run.worst_case_bits <= 32
    assert run.overflows == 0
    assert (run.sums == run.exact_sums).all()
    narrow = run_layer(weight, inputs, accumulator="int12:wrap")
    assert narrow.overflows > 0
    assert (narrow.exact_sums == run.sums).all()
    assert ((narrow.sums - narrow.exact_sums) % 4096 == 0).all()
    assert narrow.observed_bits == run.observed_bits
    with pytest.raises(AccumulatorOverflowError, match="use a wider one"):
        run_layer(weight, inputs, accumulator="int12")


def test_saturation_is_counted_and_a_relu_is_none():
    weight, inputs, _ = sample(rows=50)
    relu = run_layer(weight, inputs, then="relu")
    assert relu.saturated <= 1
    assert relu.codes.min() == relu.output.zero_point
    # Sums in the power domain are far larger than the float outputs that the output range was made for.
    grids = {"grid": "power:bits=8,exponent=0.5", "activation": "power:bits=8,exponent=0.5"}
    run = run_layer(weight, inputs, method="power-domain", semantics="tosa-single", **grids)
    raw = np.rint(run.combined * run.layers[0].accumulator_scale / run.step) + run.output.zero_point
    assert run.saturated > 0
    assert run.saturated == int(((raw > 127) | (raw < -128)).sum())


def test_histograms_hold_everything():
    weight, inputs, _ = sample(rows=30)
    run = run_layer(weight, inputs)
    for what in ("codes", "sums", "inputs", "integer - float", "integer - fake"):
        counts, edges = run.histogram(what, bins=64)
        assert len(edges) == len(counts) + 1
        assert counts.sum() == (inputs.size if what == "inputs" else run.codes.size)
    with pytest.raises(IntegerError, match="not of 'noise'"):
        run.histogram("noise")


def test_the_power_domain_carries_its_error():
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((32, 512)).astype(np.float32)
    inputs = np.abs(generator.standard_normal((32, 512))).astype(np.float32)
    grids = {"grid": "power:bits=8,exponent=0.5", "activation": "power:bits=8,exponent=0.5,signed=false"}
    run = run_layer(weight, inputs, method="power-domain", granularity="tensor", **grids)
    assert "another layer" in run.approximation
    assert "another layer" in run._repr_html_()
    assert run.errors["integer vs fake"].relative > 0.2
    assert run_layer(weight, inputs, **grids).approximation == ""


def test_inputs_bring_bias_geometry_labels_and_origin():
    weight, inputs, bias = sample(rows=3)
    given = LayerInputs(inputs, "real", "fc", bias=bias.astype(np.float32), labels=("a", "b", "c"))
    run = run_layer(weight, given)
    assert run.origin == "real" and run.labels == ("a", "b", "c")
    np.testing.assert_allclose(run.bias, bias.astype(np.float32))
    assert run_layer(weight, given, bias=None).bias is None
    images = LayerInputs(
        np.ones((1, 2, 4, 4), dtype=np.float32),
        "gaussian",
        "conv",
        convolution={"stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1},
    )
    conv = run_layer(np.ones((3, 2, 3, 3), dtype=np.float32), images)
    assert conv.shaped(conv.codes).shape == (1, 3, 2, 2)
    assert conv.row_of(0, 1, 1) == 3
    with pytest.raises(IntegerError, match="2 x 2 outputs"):
        conv.row_of(0, 2, 0)
    with pytest.raises(IntegerError, match="linear layer"):
        run.row_of(0, 0, 0)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=40)
def test_patches_are_what_the_loops_say(kernel, stride, padding, dilation, groups):
    images = np.arange(2 * 4 * 6 * 7).reshape(2, 4, 6, 7)
    window = Window(kernel, stride, padding, dilation, groups)
    height, width = window.output_size(images.shape)
    found = patches(images, window, padding=-1)
    assert found.shape == (groups, 2 * height * width, 4 // groups * kernel[0] * kernel[1])
    for row in {0, found.shape[1] - 1, found.shape[1] // 2}:
        image, place = divmod(row, height * width)
        y, x = divmod(place, width)
        for group in range(groups):
            by_hand = []
            for channel in range(group * 4 // groups, (group + 1) * 4 // groups):
                for i in range(kernel[0]):
                    for j in range(kernel[1]):
                        v = y * stride[0] - padding[0][0] + i * dilation[0]
                        h = x * stride[1] - padding[1][0] + j * dilation[1]
                        inside = 0 <= v < 6 and 0 <= h < 7
                        by_hand.append(int(images[image, channel, v, h]) if inside else -1)
            assert found[group, row].tolist() == by_hand
        assert (patches(images, window, padding=-1, row=row)[:, 0] == found[:, row]).all()


def test_leading_axes_zeros_and_extremes():
    weight, inputs, _ = sample(rows=6)
    run = run_layer(weight, inputs.reshape(2, 3, -1))
    assert run.shaped(run.codes).shape == (2, 3, 7)
    nothing = run_layer(np.zeros((3, 4), dtype=np.float32), np.zeros((2, 4), dtype=np.float32))
    assert (nothing.integer == 0).all() and (nothing.real == 0).all()
    huge = run_layer(np.full((1, 2), 1e30, dtype=np.float32), np.full((1, 2), 1e-30, dtype=np.float32))
    np.testing.assert_allclose(huge.integer, huge.real, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"then": "swish"}, "after a layer comes"),
        ({"then": "gelu", "kind": "magic"}, "'runtime', 'table' or 'polynomial'"),
        ({"output": "nf4"}, "uniform grid of 2 to 16 bits"),
        ({"level_bits": 12}, "8 or 16 bits"),
        ({"bias": np.zeros(3)}, "each of the 7 channels"),
        ({"bias": "mine"}, "'own'"),
        ({"semantics": "mars"}, "no semantics"),
        ({"activation": "power:bits=4,exponent=0.5,signed=false"}, "no negative levels"),
        ({"method": "guess"}, "not by 'guess'"),
    ],
)
def test_bad_options_are_refused(options, message):
    weight, inputs, _ = sample()
    with pytest.raises(IntegerError, match=message):
        run_layer(weight, inputs, **options)


def test_bad_shapes_are_refused():
    weight, inputs, _ = sample()
    with pytest.raises(IntegerError, match=r"takes inputs \(\.\.\., 40\)"):
        run_layer(weight, inputs[:, :-1])
    with pytest.raises(IntegerError, match="at least one row"):
        run_layer(weight, inputs[:0])
    with pytest.raises(IntegerError, match=r"is linear .* or a 2-d convolution"):
        run_layer(np.ones((2, 3, 4), dtype=np.float32), np.ones((1, 4), dtype=np.float32))
    conv = np.ones((4, 2, 3, 3), dtype=np.float32)
    with pytest.raises(IntegerError, match="takes images"):
        run_layer(conv, np.ones((1, 3, 5, 5), dtype=np.float32))
    with pytest.raises(IntegerError, match="does not fit"):
        run_layer(conv, np.ones((1, 2, 2, 2), dtype=np.float32))
    with pytest.raises(IntegerError, match="window is for"):
        run_layer(conv, np.ones((1, 2, 5, 5), dtype=np.float32), window=Window((1, 1)))
    with pytest.raises(IntegerError, match="divide into"):
        run_layer(conv[:3], np.ones((1, 4, 5, 5), dtype=np.float32), window=Window((3, 3), groups=2))
    with pytest.raises(QuantizationError, match="NaN"):
        run_layer(weight, np.full((2, 40), np.nan, dtype=np.float32))


def test_progress_can_cancel():
    from workbench.errors import Cancelled

    weight, inputs, _ = sample()
    told: list[float] = []

    def tell(fraction, label=None):
        told.append(fraction)
        if fraction > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_layer(weight, inputs, progress=tell)
    assert told == sorted(told)


def test_shows_itself_and_pickles():
    weight, inputs, _ = sample()
    run = run_layer(weight, inputs, then="gelu")
    again = pickle.loads(pickle.dumps(run))
    assert (again.codes == run.codes).all()
    assert np.isnan(again.follow(0, 0).terms.weight_real).all()
    assert "LayerRun" in repr(run) and "dB" in repr(run)
    assert "<table" in run._repr_html_()
    assert list(run.to_frame().index) == ["weight"]


def test_tables_suit_the_weights_own_codes():
    generator = np.random.default_rng(3)
    weight = generator.standard_t(4, (16, 200)).astype(np.float32)
    inputs = generator.standard_normal((4, 200)).astype(np.float32)
    run = run_layer(weight, inputs, grid="power:bits=4,exponent=0.55", granularity="tensor")
    from workbench.integer.level_tensor import level_tensor

    even = level_tensor(run.weight, 8)
    assert run.table_error == pytest.approx(run.layers[0].weight.table_error)
    assert 0 < run.table_error <= even.table_error
    assert run_layer(weight, inputs).table_error == 0.0
    groups = Window((1, 1), groups=2)
    conv = run_layer(
        weight.reshape(16, 200, 1, 1)[:, :2], np.ones((1, 4, 3, 3)), window=groups, grid="nf4", granularity="tensor"
    )
    assert 0 < conv.table_error < 0.02


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("then", [None, "relu"])
def test_litert_gives_the_same_codes(granularity, then):
    pytest.importorskip("ai_edge_litert")
    from workbench.integer.judges.runners import run_litert
    from workbench.integer.judges.tflite_builder import TFLiteModel

    weight, inputs, bias = sample(rows=200, depth=96, outputs=32, seed=5)
    run = run_layer(weight, inputs, granularity=granularity, bias=bias, then=then)
    layer = run.layers[0]
    model = TFLiteModel()
    scale = layer.weight.scale[:, 0].astype(np.float32)
    per_channel = granularity == "channel"

    def given(values):
        return {"scale": values if per_channel else float(values[0]), "axis": 0 if per_channel else None}

    x = model.tensor("x", run.operand.shape, np.int8, layer.input_scale, layer.input_zero_point)
    w = model.tensor("w", weight.shape, np.int8, data=layer.weight.values, **given(scale))
    b = model.tensor(
        "b", (32,), np.int32, data=layer.bias.astype(np.int32), **given(np.float32(layer.input_scale) * scale)
    )
    y = model.tensor("y", run.codes.shape, np.int8, run.output.scale, run.output.zero_point)
    options = {"fused_activation_function": "RELU"} if then else {}
    model.operator("FULLY_CONNECTED", [x, w, b], [y], options)
    codes = run_litert(model.finish([x], [y]), [run.operand], resolver="reference")[0]
    assert (codes == run.codes).all()


@pytest.mark.parametrize(
    "parts",
    [
        {"kernel": (3,)},
        {"kernel": (3, 3), "stride": (0, 1)},
        {"kernel": (3, 3), "padding": 1},
        {"kernel": (3, 3), "padding": ((-1, 0), (0, 0))},
        {"kernel": (3, 3), "dilation": (1.5, 1)},
        {"kernel": (3, 3), "groups": 0},
        {"kernel": "33"},
    ],
)
def test_windows_that_no_convolution_has_are_refused(parts):
    with pytest.raises(IntegerError, match="a window has a kernel"):
        Window(**parts)


def test_a_window_is_not_silently_ignored():
    with pytest.raises(IntegerError, match="a window belongs to a convolution"):
        run_layer(np.eye(3, dtype=np.float32), np.ones((1, 3), dtype=np.float32), window=Window((1, 1)))
