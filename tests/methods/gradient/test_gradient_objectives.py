"""Losses of a layer: moments against the loss over rows, QDrop's expectation against drawing it, their gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.calibration.statistics import InputGap, LayerStatistics
from workbench.methods import LayerTask
from workbench.methods.gradient.inputs import coded_moments
from workbench.methods.gradient.moments import mixed_moments
from workbench.methods.gradient.objectives import GramObjective, RowsObjective, mixed_arguments


def two_streams(groups=1, rows=50, depth=6):
    generator = np.random.default_rng(0)
    quantized = generator.standard_normal((groups, rows, depth)).astype(np.float32) + 0.5
    floating = quantized + 0.3 * generator.standard_normal(quantized.shape).astype(np.float32)
    known = LayerStatistics.from_inputs("layer", quantized)
    return LayerStatistics(**{**vars(known), "float_inputs": floating})


def a_task(statistics, rows=4, **options):
    weight = np.random.default_rng(1).standard_normal((rows, statistics.depth)).astype(np.float32)
    return LayerTask.of(weight, "uniform:bits=3", statistics=statistics, **options)


def oracle(task, approximate, bias, inputs):
    """The loss over rows in float64, one output at a time."""
    known = task.statistics
    per = len(task.weight) // known.groups
    total = 0.0
    for row in range(len(task.weight)):
        group = row // per
        floats = known.float_inputs if known.float_inputs is not None else known.inputs
        target = floats[group].astype(np.float64) @ task.weight[row].astype(np.float64)
        output = inputs[group].astype(np.float64) @ approximate[row].astype(np.float64) + bias[row]
        total += ((target - output) ** 2).mean()
    return total / len(task.weight)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_loss_through_moments_is_the_loss_over_rows(groups, share):
    task = a_task(two_streams(groups))
    weight = torch.from_numpy(task.weight)
    near = torch.from_numpy(task.start.dequantize())
    bias = torch.linspace(-0.2, 0.3, len(weight))
    gram = GramObjective(task, weight, share)
    rows = RowsObjective(
        task, weight, loss="mse", batch=None, share_of_float=share, generator=torch.Generator().manual_seed(0)
    )
    known = task.statistics
    inputs = known.float_inputs if share == 1.0 else known.inputs
    for added in (None, bias):
        truth = oracle(task, near.numpy(), np.zeros(len(weight)) if added is None else added.numpy(), inputs)
        assert gram.value([near], [added]) == pytest.approx(truth, rel=1e-4)
        assert rows.value([near], [added]) == pytest.approx(truth, rel=1e-4)
        one, two = gram.step([near], [added]), rows.step([near], [added])
        torch.testing.assert_close(one[1][0], two[1][0], rtol=1e-3, atol=1e-4)
        if added is not None:
            torch.testing.assert_close(one[2][0], two[2][0], rtol=1e-3, atol=1e-4)


def test_row_weights_weigh_rows():
    task = a_task(two_streams())
    weight, near = torch.from_numpy(task.weight), torch.from_numpy(task.start.dequantize())
    weights = np.array([0.0, 1.0, 2.0, 1.0])
    weighed = GramObjective(task, weight, 0.0, weights)
    alone = 0.0
    for row, factor in enumerate(weights):
        only = near.clone()
        for other in range(4):
            if other != row:
                only[other] = weight[other]
        rest = GramObjective(task, weight, 0.0)
        base = rest.value([weight], [None])
        alone += factor * (rest.value([only], [None]) - base)
        # the floor of other inputs than the float ones is each row's own
        floors = GramObjective(task, weight, 0.0, np.eye(4)[row]).value([weight], [None])
        alone += factor * floors
    assert weighed.value([near], [None]) == pytest.approx(alone, rel=1e-4)
    gradient = weighed.step([near], [torch.zeros(4)])
    assert (gradient[1][0][0] == 0.0).all()
    assert float(gradient[2][0][0]) == 0.0


def test_qdrops_mixture_in_expectation_is_the_mean_over_draws():
    known = two_streams(rows=8, depth=4)
    moments = mixed_moments(known, 0.5)
    generator = np.random.default_rng(3)
    quantized, floating = known.inputs[0].astype(np.float64), known.float_inputs[0].astype(np.float64)
    total = dict.fromkeys(("gram", "cross", "gap", "mean", "mean_gap"), 0.0)
    draws = 20_000
    for _ in range(draws):
        x = np.where(generator.random(quantized.shape) < 0.5, floating, quantized)
        d = floating - x
        total["gram"] += x.T @ x / 8 / draws
        total["cross"] += d.T @ x / 8 / draws
        total["gap"] += d.T @ d / 8 / draws
        total["mean"] += x.mean(0) / draws
        total["mean_gap"] += d.mean(0) / draws
    for name, value in total.items():
        np.testing.assert_allclose(getattr(moments, name)[0], value, atol=0.01)


def test_one_stream_has_no_gap():
    known = LayerStatistics.from_inputs("layer", np.ones((3, 2), dtype=np.float32))
    for share in (0.0, 0.5, 1.0):
        moments = mixed_moments(known, share)
        assert moments.cross is None
        np.testing.assert_array_equal(moments.gram, known.gram)


@pytest.mark.parametrize("loss", ["mse", "lp", "fisher", "cosine"])
def test_gradients_over_rows_by_finite_differences(loss):
    known = two_streams(groups=2)
    known = LayerStatistics(**{**vars(known), "fisher": np.array([1.0, 2.0, 0.5, 3.0])})
    task = a_task(known)
    objective = RowsObjective(
        task,
        torch.from_numpy(task.weight).double(),
        loss=loss,
        batch=None,
        share_of_float=0.0,
        generator=torch.Generator(),
    )
    objective.inputs, objective.floats = objective.inputs.double(), objective.floats.double()
    near = torch.from_numpy(task.start.dequantize()).double()
    bias = torch.linspace(-0.2, 0.3, 4, dtype=torch.float64)
    _, [at_weight], [at_bias] = objective.step([near], [bias])
    for parameter, found in ((near, at_weight), (bias, at_bias)):
        flat = parameter.view(-1)
        for at in range(flat.numel()):
            before = float(flat[at])
            values = []
            for step in (1e-6, -1e-6):
                flat[at] = before + step
                values.append(objective.value([near], [bias]))
            flat[at] = before
            assert float(found.reshape(-1)[at]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_mixed_arguments_mix_only_what_differs():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 4, dtype=torch.bool)
    one = (torch.zeros(40, 40), {"mask": mask, "pair": (torch.zeros(3), 7)})
    two = (torch.ones(40, 40), {"mask": mask, "pair": (torch.ones(3), 7)})
    hidden, options = mixed_arguments(one, two, 0.5, generator)
    assert 0.4 < float(hidden.mean()) < 0.6
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    assert options["mask"] is mask
    assert options["pair"][1] == 7
    assert mixed_arguments(one, two, 0.0, generator) is one
    assert mixed_arguments(one, two, 1.0, generator) is two


def test_moments_over_all_rows_where_the_gap_is_known_and_over_the_kept_ones_where_not():
    generator = np.random.default_rng(3)
    quantized = generator.standard_normal((1, 400, 8)).astype(np.float32)
    floating = quantized + 0.2 * generator.standard_normal(quantized.shape).astype(np.float32)
    whole = LayerStatistics.from_inputs("layer", quantized, keep=5)
    kept = np.linspace(0, 399, 5).astype(int)
    with_gap = replace(whole, float_inputs=floating[:, kept], gap=InputGap.of(quantized, floating))
    wide = floating.astype(np.float64)
    np.testing.assert_allclose(
        mixed_moments(with_gap, 1.0).gram, wide.transpose(0, 2, 1) @ wide / 400, rtol=1e-6, atol=1e-9
    )
    without = mixed_moments(replace(whole, float_inputs=floating[:, kept]), 1.0)
    few = floating[:, kept].astype(np.float64)
    np.testing.assert_allclose(without.gram, few.transpose(0, 2, 1) @ few / 5, rtol=1e-6, atol=1e-9)
    assert np.linalg.eigvalsh(without.gram[0])[0] > -1e-9  # moments of some inputs, if of few


@pytest.mark.parametrize("gain", [1.0, 0.9])
def test_coded_moments_are_those_of_a_gain_and_noise(gain):
    generator = np.random.default_rng(4)
    inputs = (generator.standard_normal((1, 20_000, 6)) @ generator.standard_normal((6, 6))).astype(np.float32)
    coded = (gain * inputs + 0.3 * generator.standard_normal(inputs.shape)).astype(np.float32)
    known, seen = (LayerStatistics.from_inputs("layer", each) for each in (inputs, coded))
    found, truth = coded_moments(known, seen), InputGap.of(coded, inputs)
    np.testing.assert_allclose(found.gram, seen.gram, atol=0.02 * np.abs(seen.gram).max())
    for field in ("across", "among", "mean"):
        one, other = getattr(found.gap, field), getattr(truth, field)
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(seen.gram).max(), err_msg=field)
    deep = LayerStatistics.from_inputs("layer", inputs, keep=3)
    few = coded_moments(deep, LayerStatistics.from_inputs("layer", coded[:, np.linspace(0, 19_999, 3).astype(int)]))
    assert np.linalg.eigvalsh(few.gram[0])[0] > 0.0
