"""Pools: against Python integers and float32 step by step, and with no mismatch against three runtimes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_zoo import ON_X86, RUNNERS, codes, one_operator, scale

from workbench.errors import AccumulatorOverflowError, IntegerError, SemanticsError
from workbench.integer.convolution import geometry
from workbench.integer.pooling import average_pool2d, global_average_pool, max_pool2d, mean, mean_multiplier
from workbench.integer.watch import watch


def windows(x, window, stride, first, output):
    for n, y, z, c in itertools.product(range(len(x)), range(output[0]), range(output[1]), range(x.shape[3])):
        rows = [y * stride[0] - first[0] + i for i in range(window[0])]
        columns = [z * stride[1] - first[1] + j for j in range(window[1])]
        cells = [int(x[n, i, j, c]) for i in rows if 0 <= i < x.shape[1] for j in columns if 0 <= j < x.shape[2]]
        yield (n, y, z, c), cells


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.int8, np.int16]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(["same", "valid"]),
    st.sampled_from(["NHWC", "NCHW"]),
)
def test_pools_follow_their_formulas_in_python_integers(seed, kind, window, stride, padding, layout):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    x = codes(rng, (1, *(int(size) for size in rng.integers(4, 8, 2)), 2), kind)
    output, first = geometry(x.shape[1:3], window, stride, padding, (1, 1))
    lite, tosa, largest = (np.zeros((1, *output, 2), dtype=object) for _ in range(3))
    zero, out_zero = int(codes(rng, (), kind)), int(codes(rng, (), kind))
    limits = np.iinfo(kind)
    for place, cells in windows(x, window, stride, first, output):
        total, count = sum(cells), len(cells)
        lite[place] = (total + count // 2) // count if total > 0 else -((count // 2 - total) // count)
        k = (count - 1).bit_length()
        multiplier, shift = ((1 << 30) + 1 << k) // count, 30 + k
        value = ((total - count * zero) * multiplier + (1 << (shift - 1)) >> shift) + out_zero
        tosa[place] = min(max(value, limits.min), limits.max)
        largest[place] = max(cells)
    shown = np.moveaxis(x, 3, 1) if layout == "NCHW" else x
    options = {"stride": stride, "padding": padding, "layout": layout}

    def back(codes):
        return np.moveaxis(codes, 1, 3) if layout == "NCHW" else codes

    for semantics in ("tflm", "litert-reference"):
        assert np.array_equal(back(average_pool2d(shown, window, semantics=semantics, **options)), lite)
    got = average_pool2d(shown, window, semantics="tosa", input_zero_point=zero, output_zero_point=out_zero, **options)
    assert np.array_equal(back(got), tosa)
    assert np.array_equal(back(max_pool2d(shown, window, **options)), largest)
    assert np.array_equal(back(max_pool2d(shown, window, low=3, high=9, **options)), np.clip(largest, 3, 9))


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference"])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint8])
@pytest.mark.parametrize("name", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_pools_equal_tensorflow_lite(semantics, kind, name):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    run = average_pool2d if name.startswith("AVERAGE") else max_pool2d
    rng = np.random.default_rng(21)
    mismatches = outputs = 0
    for trial in range(12):
        x = codes(rng, (2, *(int(v) for v in rng.integers(5, 12, 2)), int(rng.integers(1, 20))), kind)
        window, stride = (tuple(int(v) for v in rng.integers(1, top, 2)) for top in (5, 4))
        padding = ["same", "valid"][trial % 2]
        step, zero = scale(rng), 0 if kind == np.int16 else int(codes(rng, (), kind))
        relu = trial % 3 == 0
        options = {
            "stride": stride,
            "padding": padding,
            "low": zero if relu else None,
            "semantics": semantics,
            **({"input_zero_point": zero} if run is average_pool2d else {}),
        }
        if semantics == "tflm" and kind == np.uint8:
            with pytest.raises(SemanticsError, match="signed"):
                run(x, window, **options)
            return
        output, _ = geometry(x.shape[1:3], window, stride, padding, (1, 1))
        model = one_operator(
            name,
            [(x, step, zero)],
            ((2, *output, x.shape[3]), kind, step, zero),
            {
                "padding": padding.upper(),
                "stride_h": stride[0],
                "stride_w": stride[1],
                "filter_height": window[0],
                "filter_width": window[1],
                "fused_activation_function": "RELU" if relu else "NONE",
            },
            version=2,
        )
        (expected,) = RUNNERS[semantics](model, [x])
        got = run(x, window, **options)
        assert got.shape == expected.shape
        mismatches += int(np.count_nonzero(got != expected))
        outputs += got.size
    assert outputs > 1000
    assert mismatches == 0


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference"])
@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (1,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("keep", [True, False])
def test_mean_equals_tensorflow_lite(semantics, kind, axes, keep):
    pytest.importorskip("tflite_micro" if semantics == "tflm" else "ai_edge_litert")
    rng = np.random.default_rng(22)
    mismatches = outputs = 0
    for trial in range(10):
        x = codes(rng, (3, *(int(v) for v in rng.integers(2, 9, 2)), 40), kind)
        step, zero = scale(rng), 0 if kind == np.int16 else int(codes(rng, (), kind))
        out, out_zero = (step, zero) if trial % 3 == 0 else (step * np.float32(rng.uniform(0.1, 2)), -zero % 7)
        out_zero = 0 if kind == np.int16 else out_zero
        shape = x.sum(axis=axes, keepdims=keep).shape
        constant = (np.array(axes, np.int32), None, 0, None)
        model = one_operator(
            "MEAN",
            [(x, step, zero)],
            (shape, kind, out, out_zero),
            {"keep_dims": keep},
            constants=[constant],
            version=2,
        )
        (expected,) = RUNNERS[semantics](model, [x])
        options = {"input_zero_point": zero, "output_zero_point": out_zero, "keep_dims": keep, "semantics": semantics}
        got = mean(x, axes, input_scale=step, output_scale=out, **options)
        assert got.shape == expected.shape
        mismatches += int(np.count_nonzero(got != expected))
        outputs += got.size
        multiplier, shift = mean_multiplier(step, out, x.size // got.size, semantics)
        assert np.array_equal(mean(x, axes, multiplier=multiplier, shift=shift, **options), got)
        if axes == (1, 2):
            whole = global_average_pool(x, input_scale=step, output_scale=out, **options)
            assert np.array_equal(whole, got)
    assert outputs >= 30
    assert mismatches == 0


@ON_X86
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_pools_equal_onnxruntime(kind):
    pytest.importorskip("onnxruntime")
    from workbench.integer.judges.runners import onnx_model, run_onnx

    rng = np.random.default_rng(23)
    for trial in range(12):
        x = codes(rng, (2, int(rng.integers(1, 20)), *(int(v) for v in rng.integers(6, 12, 2))), kind)
        window, stride = ([int(v) for v in rng.integers(1, top, 2)] for top in (5, 4))
        step, out = scale(rng), scale(rng)
        zero, out_zero = codes(rng, (), kind), codes(rng, (), kind)
        constants = {"xs": step, "xz": zero, "ys": out, "yz": out_zero}
        constants = {name: np.asarray(value) for name, value in constants.items()}
        pads = [int(rng.integers(0, size)) for size in (*window, *window)]
        coding = {
            "input_scale": step,
            "output_scale": out,
            "input_zero_point": int(zero),
            "output_zero_point": int(out_zero),
            "layout": "NCHW",
            "semantics": "onnxruntime",
        }
        place = {"stride": tuple(stride), "padding": ((pads[0], pads[2]), (pads[1], pads[3]))}
        counted = trial % 2
        model = onnx_model(
            "QLinearAveragePool",
            {"x": x},
            {"y": kind},
            constants,
            domain="com.microsoft",
            kernel_shape=window,
            strides=stride,
            pads=pads,
            count_include_pad=counted,
        )
        (expected,) = run_onnx(model, {"x": x})
        got = average_pool2d(x, tuple(window), count_padding=bool(counted), **place, **coding)
        assert np.array_equal(got, expected)
        model = onnx_model(
            "QLinearGlobalAveragePool", {"x": x}, {"y": kind}, constants, domain="com.microsoft", channels_last=0
        )
        (expected,) = run_onnx(model, {"x": x})
        assert np.array_equal(global_average_pool(x, **coding), expected)
        dilation = [int(v) for v in rng.integers(1, 3, 2)]
        model = onnx_model(
            "MaxPool", {"x": x}, {"y": kind}, kernel_shape=[2, 2], strides=stride, dilations=dilation, pads=[1, 0, 0, 1]
        )
        (expected,) = run_onnx(model, {"x": x})
        got = max_pool2d(
            x,
            2,
            stride=tuple(stride),
            dilation=tuple(dilation),
            padding=((1, 0), (0, 1)),
            layout="NCHW",
            semantics="onnxruntime",
        )
        assert np.array_equal(got, expected)


def test_tosa_mean_is_a_rescale_of_the_sum():
    x = np.arange(-60, 60, dtype=np.int8).reshape(1, 3, 4, 10)
    got = mean(
        x, (1, 2), input_scale=0.5, output_scale=0.25, input_zero_point=3, output_zero_point=-1, semantics="tosa"
    )
    exact = (x.astype(np.int64) - 3).sum(axis=(1, 2)) * 2 / 12 - 1
    assert np.array_equal(got.ravel(), np.clip(np.floor(exact.ravel() + 0.5), -128, 127))


def test_what_is_observed():
    x = np.full((1, 4, 4, 2), 127, np.int8)
    with watch() as seen:
        average_pool2d(x, 2, semantics="tosa", output_zero_point=5)
        max_pool2d(x, 2)
        mean(x, 1, input_scale=1, output_scale=0.5)
    assert [one.operator for one in seen.observations] == ["average_pool2d", "max_pool2d", "mean"]
    assert [one.outputs for one in seen.observations] == [8, 8, 8]
    assert [one.saturated for one in seen.observations] == [8, 0, 8]


def test_an_empty_batch_stays_empty():
    x = np.empty((0, 5, 5, 3), np.int8)
    for semantics in ("tflm", "tosa", "onnxruntime"):
        assert average_pool2d(x, 2, input_scale=0.1, semantics=semantics).shape == (0, 2, 2, 3)
    assert max_pool2d(x, 2).shape == (0, 2, 2, 3)
    assert mean(x, (1, 2), input_scale=1, output_scale=1).shape == (0, 1, 1, 3)


X = np.zeros((1, 4, 4, 2), np.int8)
SCALES = {"input_scale": 0.1, "output_scale": 0.2}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: average_pool2d(X[0], 2), "four axes"),
        (lambda: average_pool2d(X, 2, layout="HWC"), "a layout is 'NHWC' or 'NCHW'"),
        (lambda: average_pool2d(X, 0), "a window"),
        (lambda: average_pool2d(X, 5), "does not fit"),
        (lambda: average_pool2d(X, 2, padding=2), "no cell"),
        (lambda: max_pool2d(X, (2, 1), padding=((0, 2), (0, 0)), stride=1), "no cell"),
        (lambda: average_pool2d(X, 2, **SCALES), "changes the scale"),
        (lambda: average_pool2d(X, 2, output_zero_point=4), "keeps the zero point"),
        (lambda: average_pool2d(X, 2, count_padding=True), "counts padded"),
        (lambda: average_pool2d(X, 2, semantics="onnxruntime"), "input_scale"),
        (lambda: average_pool2d(X.astype(np.int16), 2, input_scale=1, semantics="onnxruntime"), "8-bit"),
        (lambda: max_pool2d(X, 2, dilation=2), "no dilation"),
        (lambda: max_pool2d(X, 2, low=9, high=8), "clamp"),
        (lambda: mean(X, 7, **SCALES), "no axes"),
        (lambda: mean(X, 1), "scales"),
        (lambda: mean(X[:, :0], 1, **SCALES), "nothing to average"),
        (lambda: global_average_pool(X[0], **SCALES), "four axes"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(IntegerError, match=words):
        call()


@pytest.mark.parametrize("semantics", ["tflm", "litert-reference", "tosa-single"])
def test_windows_beyond_the_accumulator_are_refused(semantics: str):
    wide = np.full((1, 300, 300, 1), 32767, dtype=np.int16)
    with pytest.raises(AccumulatorOverflowError, match="a sum of average_pool2d needs 33 bits"):
        average_pool2d(wide, 300, semantics=semantics)
    assert average_pool2d(wide[:, :200], (200, 300), semantics=semantics)[0, 0, 0, 0] == 32767
