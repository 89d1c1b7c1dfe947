"""Every way to make codes continuous: formulas against a slow oracle, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.grids import parse_grid
from workbench.methods.gradient.variables import VARIABLES, Freedom
from workbench.methods.task import LayerTask

GRIDS = [
    "uniform:bits=3",
    "uniform:bits=3,range=full",
    "uniform:bits=3,range=asymmetric",
    "nf4",
    "power:bits=4,exponent=0.6",
]
GRANULARITIES = ["tensor", "channel", "group:5"]


def made(variable, grid="power:bits=4,exponent=0.6", granularity="channel", *, exponent=False, scale=True, whole=None):
    weight = np.random.default_rng(3).standard_t(4, (6, 12)).astype(np.float32)
    weight[2, 3] = 0.0
    start = LayerTask.of(weight, grid, granularity=granularity, scale="mse").start
    whole = variable != "sigmoid" if whole is None else whole
    freedom = Freedom(whole_range=whole, scale=scale, exponent=exponent)
    return VARIABLES[variable](torch.from_numpy(weight), start, freedom)


def in_double(soft):
    """Carry everything over to float64, so that finite differences mean something."""
    for holder in (soft, soft.axis):
        for name, value in vars(holder).items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                setattr(holder, name, value.double())
    return soft


def slopes_of(soft, gradient, progress=0.3, **regular):
    soft.soft(progress)
    soft.pull(gradient, **regular)
    return {name: value.clone() for name, value in soft.gradients.items()}


def oracle_regularizer(h, beta):
    return float((1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("variable", list(VARIABLES))
def test_weights_at_the_start_are_the_true_or_the_rounded_ones(variable, grid):
    soft = made(variable, grid, scale=False)
    weights = soft.soft(0.0)
    clipped = soft.axis.spread(soft.axis.scale) * (
        soft.u.clamp(float(soft.axis.levels[0]), float(soft.axis.levels[-1])) - soft.axis.spread(soft.axis.offset)
    )
    if soft.straight_through:
        nearest = soft.axis.levels[(soft.u[..., None] - soft.axis.levels).abs().argmin(-1)]
        expected = soft.axis.spread(soft.axis.scale) * (nearest - soft.axis.spread(soft.axis.offset))
    else:
        expected = clipped
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=2e-5)


def test_the_rectified_sigmoid_is_adarounds():
    soft = made("sigmoid", "uniform:bits=3", scale=False)
    soft.codes += 0.7 * torch.randn(soft.codes.shape, generator=torch.Generator().manual_seed(0))
    weights = soft.soft(0.5).numpy()
    scale = soft.axis.scale.numpy().astype(np.float64) / 3.0  # one step of codes -3 ... 3
    alpha = soft.codes.numpy().astype(np.float64)
    weight = soft.weight.numpy().astype(np.float64)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            h = min(max(1.2 / (1.0 + np.exp(-alpha[i, j])) - 0.1, 0.0), 1.0)
            code = min(max(np.floor(weight[i, j] / scale[i, 0]) + h, -3.0), 3.0)
            inside = abs(weight[i, j]) < 3.0 * scale[i, 0]
            if inside:  # beyond the range both neighbours are the last level, and nothing is learned
                assert weights[i, j] == pytest.approx(scale[i, 0] * code, rel=1e-4, abs=1e-6)
    gradients = slopes_of(soft, torch.ones_like(soft.codes))
    assert (gradients["codes"][~soft.inside] == 0.0).all()


def test_free_codes_are_the_formula_of_methods():
    soft = made("free", "uniform:bits=4", scale=False)
    y = torch.rand(soft.codes.shape, generator=torch.Generator().manual_seed(0)) * 14.0
    soft.codes = y.clone()
    weights = soft.soft(0.5).numpy()
    temperature = soft.temperatures[0] * (soft.temperatures[1] / soft.temperatures[0]) ** 0.5
    scale = soft.axis.scale.numpy() / 7.0
    flat = y.numpy().astype(np.float64)
    q = np.floor(flat) + np.clip(1.2 / (1.0 + np.exp(-temperature * (flat - np.floor(flat) - 0.5))) - 0.1, 0.0, 1.0)
    np.testing.assert_allclose(weights, scale * (q - 7.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(soft.hard_index().numpy(), np.floor(flat + 0.5).clip(0, 14))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("variable", ["sigmoid", "free"])
def test_gradients_of_soft_codes_and_scales_by_finite_differences(variable, grid, granularity):
    soft = in_double(made(variable, grid, granularity, exponent=grid.startswith("power")))
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(soft.codes.shape, generator=generator, dtype=torch.float64)
    found = slopes_of(soft, gradient, regularizer=0.7, sharpness=3.0)

    def loss():
        total = float((gradient * soft.soft(0.3)).sum())
        return total + 0.7 * oracle_regularizer(soft._h, 3.0)

    for name, parameter in soft.parameters().items():
        flat = parameter.view(-1)
        checked = range(0, flat.numel(), max(1, flat.numel() // 4))
        for at in checked:
            if name == "codes" and not bool(soft.inside.reshape(-1)[at]) and variable == "sigmoid":
                continue
            before, step = float(flat[at]), 1e-6
            flat[at] = before + step
            up = loss()
            flat[at] = before - step
            down = loss()
            flat[at] = before
            soft.soft(0.3)
            slope = (up - down) / (2.0 * step)
            kink = (
                not bool(soft._open.reshape(-1)[at])
                or float(torch.minimum(soft._h, 1.0 - soft._h).reshape(-1)[at]) < 1e-5
            )
            if name == "codes" and kink:
                continue  # at the clip's corner both one-sided slopes are right
            assert float(found[name].reshape(-1)[at]) == pytest.approx(slope, rel=2e-4, abs=2e-5), name


def test_the_exponents_gradient_is_zero_at_code_zero_and_bounded():
    soft = in_double(made("free", "power:bits=4,exponent=0.6", exponent=True))
    levels, slopes = soft.axis.levels_at(soft.theta)
    middle = soft.axis.count // 2
    assert float(levels[middle]) == 0.0
    assert float(slopes[middle]) == 0.0
    assert float(slopes[0]) == float(slopes[-1]) == 0.0  # v = 1: ln v = 0
    step = 1e-6
    numeric = (soft.axis.levels_at(soft.theta + step)[0] - soft.axis.levels_at(soft.theta - step)[0]) / (2.0 * step)
    torch.testing.assert_close(slopes, numeric, rtol=1e-6, atol=1e-9)
    share = float(torch.sigmoid(soft.theta))
    exponent = soft.axis.exponent_at(soft.theta)
    at_exponent = slopes / (1.3 * share * (1.0 - share))
    assert float(at_exponent.abs().max()) <= 1.0 / (np.e * exponent) + 1e-12
    assert exponent == pytest.approx(0.6, abs=1e-6)
    all_zero = torch.zeros_like(soft.codes)
    soft.codes = all_zero + middle
    assert float(slopes_of(soft, torch.ones_like(soft.codes))["exponent"]) == 0.0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("variable", ["latent", "offset", "divide"])
def test_straight_through_gradients_are_those_of_the_weights_without_rounding(variable, grid, granularity):
    """Inside the range they are the derivatives of s * (u - o), rounding taken as the identity; LSQ's for the scale."""
    soft = in_double(made(variable, grid, granularity))
    generator = torch.Generator().manual_seed(2)
    soft.codes += 0.02 * torch.randn(soft.codes.shape, generator=generator, dtype=torch.float64)
    gradient = torch.randn(soft.codes.shape, generator=generator, dtype=torch.float64)
    found = slopes_of(soft, gradient)
    weights = soft.soft(0.3).clone()
    scale, offset = soft.scale, soft.offset
    before = soft.weight * torch.exp(-(soft.codes + soft.row)) if variable == "divide" else soft.weight
    u = before / scale + offset + (soft._unit * soft.codes if variable == "latent" else 0.0)
    inside = (u >= soft.axis.levels[0]) & (u <= soft.axis.levels[-1])
    if variable == "divide":
        expected = -gradient * before * inside
        torch.testing.assert_close(found["row"], expected.sum(1, keepdim=True))
    elif variable == "latent":
        expected = gradient * scale * soft._unit * inside
    else:
        place = soft.axis.between(u)
        code = (place[0] + place[1] + soft.codes).clamp(0, soft.axis.count - 1)
        cell = code.floor().clamp(0, soft.axis.count - 2).long()
        expected = gradient * scale * (soft.levels[cell + 1] - soft.levels[cell])
    torch.testing.assert_close(found["codes"], expected)
    # The scale: d(s * level)/ds with codes that move against it, times s (its logarithm is learned).
    torch.testing.assert_close(found["scale"], soft.axis.gather(gradient * (weights - before * inside)))


@pytest.mark.parametrize("variable", list(VARIABLES))
def test_updown_codes_stay_beside_the_true_weight(variable):
    soft = made(variable, "uniform:bits=4", whole=False)
    generator = torch.Generator().manual_seed(4)
    soft.codes += 3.0 * torch.randn(soft.codes.shape, generator=generator)
    soft.keep_in_bounds()
    away = soft.hard_index() - soft.lower
    assert int(away.min()) >= 0
    assert int(away.max()) <= 1
    assert {0, 1} == set(away.unique().tolist())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", [*GRIDS, "uniform:bits=16", "mxfp4", "log:bits=4"])
def test_the_start_comes_back_from_the_axis(grid, granularity):
    weight = np.random.default_rng(5).standard_normal((4, 64)).astype(np.float32)
    weight[1] = 0.0  # a row without a scale
    granularity = "group:32" if grid == "mxfp4" else granularity
    start = LayerTask.of(weight, parse_grid(grid), granularity=granularity).start
    soft = VARIABLES["free"](torch.from_numpy(weight), start, Freedom())
    np.testing.assert_array_equal(soft.axis.quantized(soft.axis.index).codes, start.codes)
    np.testing.assert_allclose(soft.axis.decode(soft.axis.index).numpy(), start.dequantize(), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(soft.soft(0.0)).all()
