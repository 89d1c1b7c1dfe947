"""Fake quantization of activations against the grids' own encode and decode in float64, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.calibration.ranges import RangeObserver
from workbench.calibration.statistics import LayerStatistics
from workbench.errors import QuantizationError
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.methods.activations import ActivationQuantizer, ActivationRange, activation_range, attach, observe
from workbench.quantization.activations import parse_activation

GRIDS = [
    "uniform:bits=4",
    "uniform:bits=3,range=full",
    "uniform:bits=4,range=asymmetric",
    "power:bits=4,exponent=0.6,signed=true",
    "power:bits=4,exponent=0.5,signed=false",
    "power:bits=5,exponent=0.7,shifted=true",
    "e4m3",
]


def oracle(values: np.ndarray, text: str, low: float, high: float) -> np.ndarray:
    """Encode and decode one range's values by the grid itself, float64."""
    grid = parse_grid(text)
    low, high = min(low, 0.0), max(high, 0.0)
    offset = 0.0
    if grid.normalization == "range":
        scale = high - low
        offset = -low / scale if scale else 0.0
        if grid.integer_zero_point:
            offset = np.rint(offset * (len(grid.levels) - 1)) / (len(grid.levels) - 1)
    else:
        scale = max(-low, high)
        if grid.normalization == "signed" and high >= -low:
            scale = -scale
    scale = scale or 1.0
    u = values.astype(np.float64) / scale + offset
    return scale * (grid.decode(grid.encode(u)) - offset)


@pytest.mark.parametrize("text", GRIDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), shape=st.sampled_from([(1,), (5,), (2, 7), (3, 2, 8), (4, 1)]), kind=st.integers(0, 3)
)
def test_every_mode_is_encode_and_decode(text, seed, shape, kind):
    generator = np.random.default_rng(seed)
    values = generator.standard_t(3, shape)
    if kind == 1:
        values = np.full(shape, generator.normal())
    if kind == 2:
        values = np.zeros(shape)
    if kind == 3:
        values = np.abs(values)
    x = torch.from_numpy(values)
    close = {"rtol": 1e-12, "atol": 1e-15}
    low, high = -1.5, 2.0
    static = ActivationQuantizer(text, (low, high))(x)
    np.testing.assert_allclose(static.numpy(), oracle(values, text, low, high), **close)
    rows = values.reshape(-1, shape[-1])
    token = ActivationQuantizer(f"{text}@token")(x)
    expected = np.stack([oracle(row, text, row.min(), row.max()) for row in rows]).reshape(shape)
    np.testing.assert_allclose(token.numpy(), expected, **close)
    grouped = ActivationQuantizer(f"{text}@group:3")(x)
    expected = rows.copy()
    for row in expected:
        for start in range(0, shape[-1], 3):
            part = row[start : start + 3].copy()
            row[start : start + 3] = oracle(part, text, part.min(), part.max())
    np.testing.assert_allclose(grouped.numpy(), expected.reshape(shape), **close)


def test_images_share_a_scale_over_all_their_channels():
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    token = ActivationQuantizer("uniform:bits=4@token", image=True)(x)
    for image, found in zip(x.numpy(), token.numpy(), strict=True):
        np.testing.assert_allclose(found, oracle(image, "uniform:bits=4", image.min(), image.max()))
    grouped = ActivationQuantizer("uniform:bits=4@group:2", image=True)(x)
    part = x.numpy()[1, 4:]
    np.testing.assert_allclose(grouped.numpy()[1, 4:], oracle(part, "uniform:bits=4", part.min(), part.max()))


@pytest.mark.parametrize("text", ["uniform:bits=4", "power:bits=4,exponent=0.5,signed=true"])
def test_float32_differs_from_float64_only_at_borders(text):
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    found = ActivationQuantizer(f"{text}@token")(x).double()
    exact = ActivationQuantizer(f"{text}@token")(x.double())
    scale = x.double().abs().amax(1, keepdim=True)
    assert ((found - exact).abs() > 1e-6 * scale).double().mean() < 1e-3
    assert ActivationQuantizer(f"{text}@token")(x.half()).dtype == torch.float16


def test_gradient_passes_inside_and_stops_outside():
    x = torch.tensor([-3.0, -0.4, 0.7, 3.0], requires_grad=True)
    ActivationQuantizer("uniform:bits=4", (-1.0, 1.0))(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_the_learned_step_has_the_gradient_of_lsq():
    """d x_hat / d step = round(x / step) - x / step inside, +-Q outside, times 1 / sqrt(N Q)."""
    x = torch.tensor([-3.0, -0.42, 0.71, 0.9, 3.0], dtype=torch.float64)
    quantizer = ActivationQuantizer("uniform:bits=3", (-1.0, 1.0), learn=True)
    quantizer.prepare(dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    (weights * quantizer(x)).sum().backward()
    step = 1.0 / 3.0
    inside = np.rint(x.numpy() / step) - x.numpy() / step
    expected = np.where(np.abs(x.numpy()) > 1.0, 3 * np.sign(x.numpy()), inside)
    total = float((weights.numpy() * expected).sum()) / np.sqrt(5 * 3)
    assert float(quantizer.parameters()[0].grad) == pytest.approx(total, rel=1e-10)


def test_a_learned_step_finds_a_better_scale():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(3))
    quantizer = ActivationQuantizer("uniform:bits=3", (float(x.min()), float(x.max())), learn=True)
    quantizer.prepare()
    before = float(((quantizer(x) - x) ** 2).mean().detach())
    optimiser = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        ((quantizer(x) - x) ** 2).mean().backward()
        optimiser.step()
    assert float(((quantizer(x) - x) ** 2).mean().detach()) < 0.8 * before


def test_dropping_keeps_values_at_random_and_by_seed():
    x = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    quantizer = ActivationQuantizer("uniform:bits=2@token")
    coded = quantizer(x)
    quantizer.drop(0.5, torch.Generator().manual_seed(1))
    first = quantizer(x)
    quantizer.drop(0.5, torch.Generator().manual_seed(1))
    assert torch.equal(first, quantizer(x))
    kept = (first == x) & (coded != x)
    assert 0.45 < float(kept.float().mean()) < 0.55
    assert bool(((first == x) | (first == coded)).all())
    quantizer.drop(1.0)
    assert torch.equal(quantizer(x), x)
    with pytest.raises(QuantizationError, match="probability"):
        quantizer.drop(1.5)


def test_a_range_of_zeros_and_an_empty_tensor():
    assert ActivationQuantizer("uniform:bits=4", (0.0, 0.0))(torch.tensor([0.0, 0.5])).tolist() == pytest.approx(
        [0.0, 4 / 7]
    )
    assert ActivationQuantizer("int8@token")(torch.zeros(0, 4)).shape == (0, 4)
    assert torch.equal(ActivationQuantizer("int8@token")(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_ranges_follow_the_rules():
    observer = RangeObserver()
    values = np.concatenate([np.random.default_rng(0).normal(size=10_000), [20.0, -15.0]])
    observer.update(values)
    assert activation_range("int8", observer, "minmax") == ActivationRange(observer.low, observer.high)
    assert activation_range("uniform:bits=4", observer).high < 10.0
    assert activation_range("int16", observer).high == 20.0
    narrow = activation_range("uniform:bits=4", observer)
    assert narrow.low == pytest.approx(-narrow.high)

    def loss(reach):
        return float(
            (
                (ActivationQuantizer("uniform:bits=4", (-reach, reach))(torch.from_numpy(values)).numpy() - values) ** 2
            ).mean()
        )

    assert loss(narrow.high) <= 1.02 * min(loss(reach) for reach in np.linspace(0.5, 20, 200))
    searched = activation_range("power:bits=4,exponent=search", observer)
    assert searched.exponent is not None
    found = ActivationQuantizer("power:bits=4,exponent=search", searched)
    assert found.grid == PowerGrid(bits=4, exponent=searched.exponent)


def test_ranges_from_statistics():
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    statistics = LayerStatistics.from_inputs("layer", rows)
    found = activation_range("int8", statistics, "minmax")
    assert (found.low, found.high) == (pytest.approx(rows.min()), pytest.approx(rows.max()))
    with pytest.raises(QuantizationError, match="two finite numbers"):
        ActivationRange(float("nan"), 1.0)


def test_attach_codes_inputs_until_removed():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 4))
    x = torch.randn(5, 2, 4, 4)
    plain = block(x)
    seen = observe(block, ["0", "3"], [((x,), {})])
    ranges = {path: activation_range("uniform:bits=4,range=asymmetric", seen[path]) for path in seen}
    with attach(
        block, {"0": "uniform:bits=4@token", "3": "uniform:bits=4,range=asymmetric", "1": None}, ranges
    ) as handles:
        assert set(handles.quantizers) == {"0", "3"}
        assert handles.quantizers["0"].image
        inside = block[0].weight.new_tensor(ActivationQuantizer("uniform:bits=4@token", image=True)(x).numpy())
        expected = block[3](
            torch.flatten(torch.relu(torch.nn.functional.conv2d(inside, block[0].weight, block[0].bias)), 1)
        )
        torch.testing.assert_close(block(x), expected)
        assert not torch.allclose(block(x), plain)
        handles.drop(1.0)
        torch.testing.assert_close(block(x), plain)
    torch.testing.assert_close(block(x), plain)
    handles.remove()
    alone = torch.nn.Linear(3, 2)
    with attach(alone, {"": "int8"}, {"": (-1.0, 1.0)}, learn=True) as handles:
        assert len(handles.parameters()) == 1


def test_what_cannot_be_is_refused():
    block = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(QuantizationError, match="has no layer"):
        attach(block, {"7": "int8@token"})
    with pytest.raises(QuantizationError, match="calibrated range"):
        attach(block, {"0": "int8"})
    with pytest.raises(QuantizationError, match="give its range"):
        ActivationQuantizer("int8")
    with pytest.raises(QuantizationError, match="cannot be learned"):
        ActivationQuantizer("int8@token", learn=True)
    with pytest.raises(QuantizationError, match="left to calibration"):
        ActivationQuantizer("power:bits=4,exponent=search@token")
    with pytest.raises(QuantizationError, match="not coded at all"):
        ActivationQuantizer("float")
    assert ActivationQuantizer(parse_activation("int8"), (0.0, 1.0)).grid == UniformGrid(bits=8, range="asymmetric")
