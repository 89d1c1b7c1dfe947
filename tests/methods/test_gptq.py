"""GPTQ against a dense float64 solve, its invariants, and what it does with poor inputs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.calibration.statistics import LayerStatistics
from workbench.errors import Cancelled, QuantizationError
from workbench.grids import PowerGrid, parse_grid
from workbench.methods import LayerTask, parse_method
from workbench.methods.gptq import GPTQ
from workbench.methods.gptq_columns import factor_inverse, nearest_grid
from workbench.methods.run import Run
from workbench.quantization import quantize
from workbench.quantization.granularity import parse_granularity
from workbench.quantization.scales import find_scales, parse_scale_rule
from workbench.quantization.source import as_matrix

GRIDS = [
    "uniform:bits=3",
    "uniform:bits=4,range=full",
    "uniform:bits=2,range=asymmetric",
    "power:bits=3,exponent=0.6",
    "nf4",
]


def problem(rows=10, depth=24, seed=0, count=150):
    generator = np.random.default_rng(seed)
    weight = (generator.standard_t(4, (rows, depth)) * 0.1).astype(np.float32)
    inputs = (generator.standard_normal((count, depth)) @ generator.standard_normal((depth, depth))).astype(np.float32)
    return weight, inputs


def dense_answer(weight, gram, grid, granularity, rule, *, damp=0.01, order=None, dynamic=False):
    """Round a column, re-solve all weights that are left by least squares against the true ones; float64 throughout."""
    rows, depth = weight.shape
    order = np.arange(depth) if order is None else order
    damped = gram + damp * np.diagonal(gram).mean() * np.eye(depth)
    size = granularity.group_size(depth)
    found = find_scales(as_matrix(weight), grid, granularity, rule)
    scale, offset = found.scale.astype(np.float64).copy(), found.offset.copy()
    truth, now = weight.astype(np.float64), weight.astype(np.float64).copy()
    rounder = nearest_grid(grid)
    indices = np.zeros(weight.shape, dtype=int)
    for step, j in enumerate(order):
        group = j // size
        if dynamic and j % size == 0:
            part = np.ascontiguousarray(now[:, j : j + size], dtype=np.float32)
            fresh = find_scales(as_matrix(part), grid, parse_granularity("channel"), rule)
            scale[:, group], offset[:, group] = fresh.scale[:, 0], fresh.offset[:, 0]
        s, o = (np.broadcast_to(array, (rows, array.shape[1]))[:, group] for array in (scale, offset))
        indices[:, j] = rounder.index(now[:, j] / s + o)
        now[:, j] = s * (rounder.levels[indices[:, j]] - o)
        done, left = order[: step + 1], order[step + 1 :]
        if len(left):
            pulled = (truth[:, done] - now[:, done]) @ damped[np.ix_(done, left)]
            now[:, left] = truth[:, left] + np.linalg.solve(damped[np.ix_(left, left)], pulled.T).T
    return indices


@pytest.mark.parametrize("text", GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_codes_are_those_of_a_dense_solve(text, granularity, rule):
    weight, inputs = problem()
    task = LayerTask.of(weight, text, granularity=granularity, statistics=inputs, scale=rule)
    grid, gram = parse_grid(text), task.statistics.gram[0]
    shares = parse_granularity(granularity)
    common = (weight, gram, grid, shares, parse_scale_rule(rule))
    falling = np.argsort(-np.diagonal(gram), kind="stable")
    for method, expected in (
        (GPTQ(), dense_answer(*common, dynamic=granularity.startswith("group"))),
        (GPTQ(static_groups=True, block=5), dense_answer(*common)),
        (GPTQ(act_order=True, damp=0.1), dense_answer(*common, damp=0.1, order=falling)),
    ):
        found = method.quantize_layer(task)
        np.testing.assert_array_equal(found.quantized.codes, grid.codes[expected], err_msg=str(method))


@pytest.mark.parametrize("block", [1, 3, 8, 16, 24, 1000])
def test_the_block_changes_no_code(block):
    weight, inputs = problem(depth=40, seed=1)
    task = LayerTask.of(weight, "uniform:bits=3", granularity="group:8", statistics=inputs)
    whole = GPTQ(block=40).quantize_layer(task).quantized
    found = GPTQ(block=block).quantize_layer(task).quantized
    np.testing.assert_array_equal(found.codes, whole.codes)
    np.testing.assert_allclose(found.scale, whole.scale, rtol=1e-5)


@pytest.mark.parametrize(("granularity", "act_order"), [("channel", False), ("group:16", False), ("group:16", True)])
def test_torch_gives_the_codes_of_the_kernel(monkeypatch, granularity, act_order):
    from workbench.methods import gptq

    weight, inputs = problem(rows=16, depth=72, seed=2, count=300)
    task = LayerTask.of(weight, "power:bits=4,exponent=0.7", granularity=granularity, statistics=inputs)
    method = GPTQ(act_order=act_order, block=20)
    host = method.quantize_layer(task)
    monkeypatch.setattr(gptq, "HostColumns", lambda *given: gptq.DeviceColumns(*given, "cpu"))
    device = method.quantize_layer(task)
    assert (host.quantized.codes != device.quantized.codes).mean() < 0.01
    assert device.error == pytest.approx(host.error, rel=0.02)


@pytest.mark.parametrize("text", GRIDS)
def test_uncorrelated_inputs_leave_rounding_to_nearest(text):
    weight, _ = problem(seed=3)
    gram = np.diag(np.random.default_rng(0).uniform(0.1, 10.0, 24))[None]
    base = LayerStatistics.from_inputs("layer", np.eye(24, dtype=np.float32))
    task = LayerTask.of(weight, text, granularity="group:8", statistics=replace(base, gram=gram))
    found = GPTQ().quantize_layer(task).quantized
    expected = quantize(weight, nearest_grid(parse_grid(text)), "group:8")
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale, expected.scale)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(GRIDS), st.sampled_from(["tensor", "channel", "group:8"]), st.integers(0, 10**6), st.booleans())
def test_with_refining_no_layer_is_worse_than_rounding_to_nearest(text, granularity, seed, rescale):
    weight, inputs = problem(rows=6, seed=seed, count=30)
    task = LayerTask.of(weight, text, granularity=granularity, statistics=inputs)
    method = GPTQ(refine=3, rescale=rescale)
    found, plain = method.quantize_layer(task), GPTQ().quantize_layer(task)
    assert found.error <= found.start_error * (1 + 1e-9)
    damping = factor_inverse(task.statistics.gram[0], 0.01).damping
    gap = weight.astype(np.float64) - plain.quantized.dequantize()
    assert found.trace.loss[0] == pytest.approx(plain.error + damping * (gap**2).sum(axis=1).mean(), rel=1e-6)
    assert (np.diff(found.trace.loss) <= 1e-9 * found.trace.loss[0]).all()


def test_descent_reaches_what_exhaustive_search_cannot_better_by_one_code():
    weight, inputs = problem(rows=3, depth=6, seed=4)
    task = LayerTask.of(weight, "uniform:bits=2", statistics=inputs)
    found = GPTQ(refine=50).quantize_layer(task)
    gram = task.statistics.gram[0] + factor_inverse(task.statistics.gram[0], 0.01).damping * np.eye(6)
    for row in range(3):
        s = float(found.quantized.scale[row, 0])
        errors = {
            codes: (gap := weight[row] - s * np.array(codes)) @ gram @ gap
            for codes in itertools.product((-1, 0, 1), repeat=6)
        }
        mine = tuple(found.quantized.codes[row].tolist())
        near = [codes for codes in errors if sum(a != b for a, b in zip(codes, mine, strict=True)) == 1]
        assert errors[mine] <= min(errors[codes] for codes in near) * (1 + 1e-9)
        assert errors[mine] <= 3.0 * min(errors.values())


def test_weights_on_the_grid_stay_as_they_are():
    weight, inputs = problem(seed=5)
    for text in GRIDS:
        before = quantize(weight, nearest_grid(parse_grid(text)), "channel").dequantize()
        task = LayerTask.of(before, text, statistics=inputs)
        for method in (GPTQ(), GPTQ(act_order=True), GPTQ(refine=3, rescale=True)):
            after = method.quantize_layer(task).quantized.dequantize()
            np.testing.assert_allclose(after, before, atol=1e-6, err_msg=f"{text} {method}")


def test_groups_of_a_convolution_have_each_their_own_inputs():
    weight, _ = problem(rows=12, seed=6)
    rows = np.random.default_rng(1).standard_normal((3, 80, 24)).astype(np.float32)
    rows = rows @ np.random.default_rng(2).standard_normal((3, 24, 24)).astype(np.float32)
    method = GPTQ(refine=2)
    whole = method.quantize_layer(LayerTask.of(weight, "uniform:bits=3", statistics=rows))
    for number in range(3):
        part = slice(4 * number, 4 * number + 4)
        alone = method.quantize_layer(LayerTask.of(weight[part], "uniform:bits=3", statistics=rows[number]))
        np.testing.assert_array_equal(whole.quantized.codes[part], alone.quantized.codes)
    assert len(whole.trace) in {2, 3}


def test_poor_inputs_are_borne_and_told():
    weight, inputs = problem(seed=7)
    inputs[:, [2, 9]] = 0.0
    weight[4] = 0.25
    weight[5] = 0.0
    found = GPTQ().quantize_layer(LayerTask.of(weight, "uniform:bits=3", statistics=inputs))
    assert "2 inputs were always zero" in found.notes[0]
    np.testing.assert_array_equal(found.quantized.codes[5], 0)
    np.testing.assert_allclose(found.quantized.dequantize()[4], 0.25)
    nearest = quantize(weight, "uniform:bits=3").codes
    np.testing.assert_array_equal(found.quantized.codes[:, [2, 9]], nearest[:, [2, 9]])
    silent = GPTQ(refine=1).quantize_layer(LayerTask.of(weight, "uniform:bits=3", statistics=np.zeros((5, 24))))
    np.testing.assert_array_equal(silent.quantized.codes, nearest)


def test_one_sample_is_enough_to_damp():
    weight, inputs = problem(seed=8, count=1)
    task = LayerTask.of(weight, "uniform:bits=3", statistics=inputs)
    found = GPTQ().quantize_layer(task)
    assert np.isfinite(found.error)
    assert found.error < found.start_error
    undamped = GPTQ(damp=0.0).quantize_layer(task)
    assert "damping had to be raised" in undamped.notes[0]


def test_what_cannot_be_done_is_refused():
    weight, inputs = problem()
    with pytest.raises(QuantizationError, match="needs the Gram matrix"):
        GPTQ().quantize_layer(LayerTask.of(weight, "uniform:bits=4"))
    with pytest.raises(QuantizationError, match="fits its own"):
        GPTQ().quantize_layer(LayerTask.of(weight, "bcq:bits=3", statistics=inputs))
    for wrong in ({"damp": -1.0}, {"block": 0}, {"refine": -1}, {"damp": float("nan")}):
        with pytest.raises(QuantizationError, match="is at least"):
            GPTQ(**wrong)
    negative = -np.eye(24)
    negative[0, 0] = 1.0
    negative[0, 1:] = negative[1:, 0] = 1e9
    with pytest.raises(QuantizationError, match="not positive semidefinite"):
        factor_inverse(negative, 0.01)


def test_the_factor_is_that_of_the_inverse():
    _, inputs = problem()
    gram = inputs.T.astype(np.float64) @ inputs / len(inputs)
    found = factor_inverse(gram, 0.01)
    damped = gram + found.damping * np.eye(24)
    np.testing.assert_allclose(found.upper.T @ found.upper, np.linalg.inv(damped), rtol=1e-8, atol=1e-12)
    assert (np.tril(found.upper, -1) == 0.0).all()


def test_more_exponents_are_never_worse():
    weight, inputs = problem(rows=16, depth=40, seed=9)
    task = LayerTask.of(weight, "power:bits=3,exponent=search", statistics=inputs)
    one, many = (parse_method(text).quantize_layer(task) for text in ("gptq", "gptq:exponents=4"))
    assert many.error <= one.error
    assert isinstance(many.quantized.grid, PowerGrid)


def test_it_can_be_stopped_and_is_the_same_twice():
    weight, inputs = problem(depth=40)
    task = LayerTask.of(weight, "uniform:bits=4", granularity="group:8", statistics=inputs)
    first, second = (GPTQ(refine=2).quantize_layer(task) for _ in range(2))
    np.testing.assert_array_equal(first.quantized.codes, second.quantized.codes)
    told = []

    def stop(fraction, label):
        told.append((fraction, label))
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        GPTQ(block=8).quantize_layer(task, Run(progress=stop))
    assert told == [(0.2, "weight")]
    fractions, steps = [], []
    heard = Run(
        progress=lambda fraction, label: fractions.append(fraction), on_step=lambda *step: steps.append(step[1:3])
    )
    GPTQ(block=8, refine=2).quantize_layer(task, heard)
    assert fractions == sorted(fractions)
    assert 0.0 < fractions[0] <= fractions[-1] <= 1.0
    assert steps[:2] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("text", "granularity"), [("mxfp4", "group:32"), ("nvfp4", "group:16"), ("log:bits=4,rounding=log", "group:20")]
)
def test_block_formats_and_kernels_of_convolutions(text, granularity):
    weight, inputs = problem(rows=12, depth=64, seed=10, count=300)
    task = LayerTask.of(weight.reshape(12, 8, 2, 4), text, granularity=granularity, statistics=inputs)
    for method in (GPTQ(), GPTQ(act_order=True), GPTQ(refine=2, rescale=True)):
        found = method.quantize_layer(task)
        assert found.gain_db > 1.0
        assert found.quantized.dequantize().shape == (12, 8, 2, 4)
        assert found.quantized.scale_format == task.start.scale_format
        assert found.bits_per_weight == task.start.bits_per_weight
