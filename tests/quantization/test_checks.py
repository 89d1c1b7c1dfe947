"""What the public calls say to a grid, a clip or a sketch that is none."""

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.grids import parse_grid
from workbench.quantization import (
    best_clip,
    best_group_clips,
    bits_per_weight,
    exact_error,
    landscape,
    parse_scale_rule,
    quantize,
    sketch,
    sketch_error,
)

WEIGHT = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
CALLS = {
    "quantize": lambda grid: quantize(WEIGHT, grid).dequantize().sum(),
    "exact_error": lambda grid: exact_error(WEIGHT, grid).mse,
    "sketch_error": lambda grid: sketch_error(sketch(WEIGHT), grid).mse,
    "sketch": lambda grid: sketch_error(sketch(WEIGHT, grid=grid), grid).mse,
    "best_clip": lambda grid: best_clip(sketch(WEIGHT), grid).mse,
    "best_group_clips": lambda grid: best_group_clips(WEIGHT, grid).sum(),
    "bits_per_weight": lambda grid: bits_per_weight(grid, "channel", WEIGHT.shape),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_takes_a_grid_as_text(call):
    assert call("power:bits=4,exponent=0.6") == call(parse_grid("power:bits=4,exponent=0.6"))
    with pytest.raises(WorkbenchError, match=r"no grid named 'unifrm'.*did you mean uniform"):
        call("unifrm:bits=4")
    with pytest.raises(WorkbenchError, match="a grid is a Grid or its text form"):
        call(4)


@pytest.mark.parametrize("clip", ["0.5", None, [0.5], float("nan"), 0, 1.01])
def test_a_clip_that_is_none_is_refused_in_words(clip):
    grid = parse_grid("uniform:bits=4")
    for call in (
        lambda: exact_error(WEIGHT, grid, clip=clip),
        lambda: quantize(WEIGHT, grid, clip=clip),
        lambda: sketch_error(sketch(WEIGHT), grid, clip=clip),
    ):
        with pytest.raises(WorkbenchError, match="a clip is the fraction of absmax"):
            call()


def test_a_weight_in_place_of_a_sketch_is_refused_in_words():
    for call in (sketch_error, best_clip):
        with pytest.raises(WorkbenchError, match="made with sketch\\(layer, granularity\\), not to a ndarray"):
            call(WEIGHT, parse_grid("uniform:bits=4"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("percent", ["0", "-1", "101", "nan"])
def test_a_percentile_out_of_range_says_the_range(percent):
    with pytest.raises(WorkbenchError, match="above 0 and at most at 100"):
        parse_scale_rule(f"percentile:{percent}")


@pytest.mark.parametrize("axis", ["abc", object(), [None, "x"], [[0.5]], []])
@pytest.mark.parametrize("name", ["exponents", "clips"])
def test_an_axis_of_the_landscape_that_is_none_is_refused_in_words(name, axis):
    with pytest.raises(WorkbenchError, match=f"{name} are a list of at least one number"):
        landscape(WEIGHT, 4, **{name: axis})


def test_the_landscape_of_zeros_has_no_noise():
    flat = landscape(np.zeros((4, 8), dtype=np.float32), 4)
    assert np.all(flat.mse == 0.0)
    assert np.all(np.isposinf(flat.sqnr_db))
