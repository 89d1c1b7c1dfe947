"""The compiled step against the plain one: the same weights, gradients, codes and curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.calibration.statistics import LayerStatistics
from workbench.methods import LayerTask, parse_method
from workbench.methods.gradient.fused import FusedCodes, FusedOffsets
from workbench.methods.gradient.variables import VARIABLES, Freedom


def made(variable, granularity, grid, *, whole, exponent):
    weight = np.random.default_rng(3).standard_t(4, (9, 1500)).astype(np.float32)
    weight[2] = 0.0
    start = LayerTask.of(weight, grid, granularity=granularity, scale="mse").start
    freedom = Freedom(whole_range=whole, scale=True, exponent=exponent)
    return VARIABLES[variable](torch.from_numpy(weight), start, freedom)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:70"])
@pytest.mark.parametrize("grid", ["uniform:bits=3", "uniform:bits=4,range=asymmetric", "power:bits=4,exponent=0.6"])
@pytest.mark.parametrize(("variable", "whole"), [("sigmoid", False), ("free", True), ("free", False)])
def test_compiled_steps_are_the_plain_steps(variable, whole, grid, granularity):
    exponent = grid.startswith("power")
    plain, fast = (made(variable, granularity, grid, whole=whole, exponent=exponent) for _ in range(2))
    quick = FusedCodes(fast)
    adam = torch.optim.Adam([plain.codes], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        progress = step / 6
        beta, regularizer = (20.0, 0.0) if step < 2 else (18.0 - 2.5 * step, 0.3)
        one, two = plain.soft(progress), quick.soft(progress)
        torch.testing.assert_close(two, one, rtol=1e-4, atol=2e-5)
        gradient = torch.randn(one.shape, generator=generator)
        plain.pull(gradient * 7.0, regularizer, beta)
        # Where a soft code touches the clip's rim, the last bit decides whether it is open; those are left out.
        rim = (plain._h < 1e-4) | (plain._h > 1.0 - 1e-4)
        quick.step(gradient, 7.0, regularizer=regularizer, sharpness=beta, rate=0.05)
        plain.codes.grad = plain.gradients["codes"]
        adam.step()
        plain.keep_in_bounds()
        fast.keep_in_bounds(codes=False)
        close = torch.isclose(fast.codes, plain.codes, rtol=1e-4, atol=1e-3)
        assert float((close | rim).float().mean()) > 0.999
        for name in ("scale", "exponent"):
            if name in plain.gradients:
                found, expected = fast.gradients[name], plain.gradients[name]
                assert found.shape == expected.shape
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max() + 1.0))
        fast.codes.copy_(plain.codes)  # so that single rims do not add up
        quick.kernel.first[:] = adam.state[plain.codes]["exp_avg"].numpy()
        quick.kernel.second[:] = adam.state[plain.codes]["exp_avg_sq"].numpy()


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:70"])
@pytest.mark.parametrize("grid", ["uniform:bits=3", "uniform:bits=4,range=asymmetric", "uniform:bits=2,range=full"])
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_offsets_are_the_plain_offsets(whole, grid, granularity):
    plain, fast = (made("offset", granularity, grid, whole=whole, exponent=False) for _ in range(2))
    assert FusedOffsets.fits(fast, "signsgd") and not FusedOffsets.fits(fast, "adam")
    assert not FusedOffsets.fits(made("offset", granularity, "power:bits=4", whole=whole, exponent=False), "signsgd")
    quick = FusedOffsets(fast)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        one, two = plain.soft(0.0), quick.soft(0.0)
        alike = torch.isclose(two, one, rtol=1e-5, atol=1e-6)
        assert float(alike.float().mean()) > 0.9995  # a weight that stands on a border may round to either side
        gradient = torch.randn(one.shape, generator=generator)
        gradient[:, ::7] = 0.0  # what nothing pulls stays
        plain.pull(gradient * 7.0)
        quick.step(gradient, 7.0, regularizer=0.0, sharpness=2.0, rate=0.05)
        plain.codes.sub_(plain.gradients["codes"].sign(), alpha=0.05)
        plain.keep_in_bounds()
        fast.keep_in_bounds(codes=False)
        torch.testing.assert_close(fast.codes, plain.codes, rtol=0.0, atol=1e-6)
        found, expected = fast.gradients["scale"], plain.gradients["scale"]
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max() + 1.0))
        for each in (plain, fast):
            each.log_scale.sub_(expected.sign(), alpha=0.003)
    assert float((plain.hard_index() == fast.hard_index()).float().mean()) > 0.9995


def test_the_kernels_sigmoid_is_the_sigmoid_where_it_is_open():
    from workbench.kernels.rounding_step import SoftCodes

    x = np.linspace(-30.0, 30.0, 4001, dtype=np.float32)[None]
    codes = SoftCodes(
        x.copy(),
        np.zeros(x.shape, dtype=np.int32),
        np.ones_like(x),
        free=False,
        whole=False,
        offset=np.zeros((1, 1), dtype=np.float32),
        size=x.shape[1],
    )
    found = codes.soft(1.0, np.array([0.0, 1.0], dtype=np.float32), np.ones((1, 1), dtype=np.float32))
    truth = np.clip(1.2 / (1.0 + np.exp(-x.astype(np.float64))) - 0.1, 0.0, 1.0)
    np.testing.assert_allclose(found, truth, atol=5e-7)


@pytest.mark.parametrize("word", ["adaround", "adaround:optimizer=signsgd", "nupes:optimizer=adam", "nupes"])
def test_the_same_curve_with_and_without(word, monkeypatch):
    generator = np.random.default_rng(0)
    weight = generator.standard_t(5, (24, 40)).astype(np.float32)
    inputs = (generator.standard_normal((200, 40)) @ generator.standard_normal((40, 40))).astype(np.float32)
    # The quantized model's inputs are not the float model's: else the first gradient would be rounding noise alone, and
    # Adam makes as large a step of it as of any other.
    seen = LayerStatistics.from_inputs("layer", inputs)
    seen = replace(seen, float_inputs=seen.inputs * generator.normal(1.0, 0.1, inputs.shape).astype(np.float32))
    task = LayerTask.of(weight, "power:bits=4,exponent=0.7", statistics=seen, scale="mse")
    method = parse_method(word).but(steps=60, inputs="quantized")
    fast = method.quantize_layer(task)
    monkeypatch.setattr(FusedCodes, "fits", staticmethod(lambda layer, optimizer: False))
    plain = method.quantize_layer(task)
    # Both fall alike; single weights that stand on a border may round differently.
    np.testing.assert_allclose(fast.trace.loss[5:30], plain.trace.loss[5:30], rtol=0.02)
    assert fast.error == pytest.approx(plain.error, rel=0.03)
    assert (fast.quantized.codes == plain.quantized.codes).mean() > 0.97


def test_offsets_learn_alike_with_and_without(monkeypatch):
    generator = np.random.default_rng(0)
    weight = generator.standard_t(5, (24, 40)).astype(np.float32)
    inputs = (generator.standard_normal((200, 40)) @ generator.standard_normal((40, 40))).astype(np.float32)
    task = LayerTask.of(weight, "uniform:bits=3", statistics=LayerStatistics.from_inputs("layer", inputs), scale="mse")
    fast = parse_method("autoround:steps=60").quantize_layer(task)
    monkeypatch.setattr(FusedOffsets, "fits", staticmethod(lambda layer, optimizer: False))
    plain = parse_method("autoround:steps=60").quantize_layer(task)
    assert fast.error == pytest.approx(plain.error, rel=0.03)
    assert (fast.quantized.codes == plain.quantized.codes).mean() > 0.97
