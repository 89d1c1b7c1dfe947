"""The power-domain approximation: what it computes, and the error that it always carries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer.grid_linear import prepare_linear
from workbench.integer.level_table import level_table
from workbench.integer.power_domain import best_scaled_error, power_domain
from workbench.integer.power_root import integer_root, power_root
from workbench.quantization import quantize


def gaussian(exponent: float, bits: int = 8, rows: int = 64, outputs: int = 64, depth: int = 512):
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((outputs, depth)).astype(np.float32)
    inputs = np.abs(generator.standard_normal((rows, depth))).astype(np.float32)
    q = quantize(weight, f"power:bits={bits},exponent={exponent}", "tensor")
    coded = quantize(inputs, f"power:bits={bits},exponent={exponent},signed=false", "tensor")
    return weight, inputs, q, coded


def test_half_of_a_gaussian_layer_is_lost():
    """Reference: correlation 0.85, 52 % after the best scaling (Gaussian weights, half-normal inputs, depth 512, a = 1/2)."""
    _, _, q, coded = gaussian(0.5, rows=500, outputs=500)
    done = power_domain(
        coded.codes,
        q,
        input_table=level_table(coded.grid, 16),
        input_scale=float(coded.scale[0, 0]),
        output_scale=1.0,
        dtype=np.int16,
    )
    assert done.error_after_scaling == pytest.approx(0.52, abs=0.02)
    assert done.correlation == pytest.approx(0.85, abs=0.01)
    assert done.relative_error > done.error_after_scaling
    assert "% off" in repr(done)


@pytest.mark.parametrize("exponent", [0.5, 0.55, 0.4, 1.0])
def test_the_sum_and_its_root_are_plain_integers(exponent):
    _, _, q, coded = gaussian(exponent, bits=4, rows=5, outputs=6, depth=30)
    layer = prepare_linear(q, level_table(coded.grid, 16), float(coded.scale[0, 0]), method="power-domain")
    combined = layer.combine(layer.sums(layer.operand(coded.codes)))
    p, r = layer.root.numerator, layer.root.denominator
    assert p / r == pytest.approx(1 / exponent, rel=1e-3)
    for m in range(5):
        for n in range(6):
            total = sum(int(x) * int(w) for x, w in zip(coded.codes[m], q.codes[n], strict=True))
            value = integer_root(abs(total) ** p, r) * (-1 if total < 0 else 1)
            if layer.sum_shift:
                value = (value + (1 << (layer.sum_shift - 1))) >> layer.sum_shift
            assert combined[m, n] == value


def test_one_term_is_exact():
    """Powers keep products: with one term in each sum the approximation is the layer."""
    _, _, q, coded = gaussian(0.5, rows=50, outputs=20, depth=1)
    done = power_domain(
        coded.codes,
        q,
        np.linspace(-1, 1, 20),
        input_table=level_table(coded.grid, 16),
        input_scale=float(coded.scale[0, 0]),
        output_scale=0.001,
        dtype=np.int16,
    )
    assert np.abs(done.real - done.true).max() <= 0.0006


@given(st.integers(0, 2**200), st.integers(1, 12))
def test_integer_root_is_the_floor(value, degree):
    root = integer_root(value, degree)
    assert root**degree <= value < (root + 1) ** degree


def test_best_scaled_error_against_least_squares():
    generator = np.random.default_rng(1)
    one, other = generator.standard_normal(100), generator.standard_normal(100)
    factor = np.linalg.lstsq(one[:, None], other, rcond=None)[0][0]
    left, correlation = best_scaled_error(one, other)
    assert left == pytest.approx(np.linalg.norm(other - factor * one) / np.linalg.norm(other))
    assert correlation == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert best_scaled_error(np.zeros(3), np.zeros(3)) == (0.0, 0.0)
    assert best_scaled_error(np.zeros(3), np.ones(3)) == (1.0, 0.0)


def test_what_it_cannot_do_is_refused():
    weight, _, q, coded = gaussian(0.5, rows=3, outputs=4, depth=16)
    with pytest.raises(IntegerError, match="on power grids"):
        power_root(quantize(weight, "nf4"), coded.grid)
    with pytest.raises(IntegerError, match="one exponent"):
        power_root(quantize(weight, "power:bits=8,exponent=0.6"), coded.grid)
    with pytest.raises(IntegerError, match="one positive scale"):
        power_root(quantize(weight, "power:bits=8,exponent=0.5", "group:4"), coded.grid)
    shifted = level_table("power:bits=8,exponent=0.5,shifted=true", 16)
    with pytest.raises(IntegerError, match="not a shifted"):
        prepare_linear(q, shifted, 1.0, 0.3, method="power-domain")
