"""The compiled column loop and the descent on codes against plain float64 loops that follow the definition."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.grids import UniformGrid, parse_grid
from workbench.kernels.gptq import descend, round_columns
from workbench.methods.gptq_columns import nearest_grid


def problem(rows=7, columns=12, seed=0):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((rows, columns))
    root = generator.standard_normal((columns, columns))
    return weight, root @ root.T / columns + 0.05 * np.eye(columns)


def upper_of(gram):
    return np.linalg.cholesky(np.linalg.inv(gram)).T


@pytest.mark.parametrize(
    "text", ["uniform:bits=3", "uniform:bits=2,range=asymmetric", "power:bits=4,exponent=0.5", "nf4"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_rounded_as_the_definition_says(text, dtype):
    weight, gram = problem()
    grid = nearest_grid(parse_grid(text))
    scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float32)
    offset = np.full(scale.shape, 0.5 if grid.normalization == "range" else 0.0)
    upper = np.ascontiguousarray(upper_of(gram), dtype=dtype)
    moving = weight.astype(dtype)
    indices = np.zeros(weight.shape, dtype=np.uint16)
    errors = np.zeros((len(weight), 5), dtype=dtype)
    round_columns(moving, upper, (4, 9, 4), np.zeros(12, dtype=np.int32), scale, offset, grid, indices, errors)
    for row in range(len(weight)):
        w = weight[row].astype(dtype).astype(np.float64)
        s, o = float(scale[row, 0]), offset[row, 0]
        for j in range(4, 9):
            index = int(grid.index(w[j] / s + o))
            error = (w[j] - s * (grid.levels[index] - o)) / upper[j, j]
            w[j + 1 : 9] -= error * upper[j, j + 1 : 9]
            assert indices[row, j] == index
            assert errors[row, j - 4] == pytest.approx(error, rel=1e-4 if dtype == np.float32 else 1e-6, abs=1e-5)
    np.testing.assert_array_equal(moving[:, :4], weight[:, :4].astype(dtype))
    np.testing.assert_array_equal(moving[:, 9:], weight[:, 9:].astype(dtype))


def test_a_scale_of_zero_takes_the_level_nearest_zero():
    weight, gram = problem(rows=2)
    grid = UniformGrid(bits=3)
    indices = np.full(weight.shape, 99, dtype=np.uint16)
    errors = np.zeros((2, 12), dtype=np.float64)
    scale = np.zeros((2, 1), dtype=np.float32)
    upper = np.ascontiguousarray(upper_of(gram))
    round_columns(
        weight.copy(), upper, (0, 12, 0), np.zeros(12, dtype=np.int32), scale, np.zeros((2, 1)), grid, indices, errors
    )
    assert (grid.levels[indices] == 0.0).all()


@pytest.mark.parametrize("text", ["uniform:bits=2", "uniform:bits=3,range=asymmetric", "nf4"])
def test_every_step_of_the_descent_is_the_best_one(text):
    weight, gram = problem(rows=5, columns=9, seed=3)
    grid = parse_grid(text)
    group_of = np.repeat(np.arange(3, dtype=np.int32), 3)
    scale = np.random.default_rng(1).uniform(0.5, 2.0, (5, 3)).astype(np.float32)
    offset = np.full(scale.shape, 3 / 7 if grid.normalization == "range" else 0.0)
    wide = scale.astype(np.float64)[:, group_of]
    values = [(wide * (level - offset[:, group_of])).astype(np.float32).astype(np.float64) for level in grid.levels]
    values = np.stack(values, axis=-1)
    indices = np.zeros(weight.shape, dtype=np.uint16)
    decoded = np.take_along_axis(values, indices[..., None].astype(int), axis=-1)[..., 0]
    expected = indices.astype(int).copy()
    for row in range(5):  # brute force: every level of every weight, in order
        now = decoded[row].copy()
        for j in range(9):
            costs = []
            for level in range(len(grid.levels)):
                now[j] = values[row, j, level]
                gap = weight[row] - now
                costs.append(gap @ gram @ gap)
            expected[row, j] = int(np.argmin(costs))
            now[j] = values[row, j, expected[row, j]]
    gradient = (weight - decoded) @ gram
    moved = descend(decoded, gradient, gram, group_of, scale, offset, grid, indices)
    np.testing.assert_array_equal(indices, expected)
    assert moved == (expected != 0).sum()
    np.testing.assert_allclose(gradient, (weight - decoded) @ gram, atol=1e-9)


def test_the_descent_ends_and_leaves_dead_inputs_alone():
    weight, gram = problem(rows=4, seed=5)
    gram[:, 3] = gram[3] = 0.0
    grid = UniformGrid(bits=2)
    scale, offset, group_of = np.ones((1, 1), np.float32), np.zeros((1, 1)), np.zeros(12, dtype=np.int32)
    indices = np.ones(weight.shape, dtype=np.uint16)
    decoded = np.zeros(weight.shape)
    gradient = (weight - decoded) @ gram
    errors = []
    for _ in range(50):
        moved = descend(decoded, gradient, gram, group_of, scale, offset, grid, indices)
        gap = weight - decoded
        errors.append(float(np.einsum("ij,jk,ik->", gap, gram, gap)))
        if not moved:
            break
    assert not moved
    assert (np.diff(errors) <= 0.0).all()
    assert (indices[:, 3] == 1).all()
