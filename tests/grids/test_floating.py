"""Float grids, judged by ml_dtypes' casts and by gfloat (which has no IEEE 8-bit formats)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from workbench.errors import GridError
from workbench.grids import FloatGrid, parse_grid

JUDGED = {
    "e2m1": (FloatGrid(2, 1), ml_dtypes.float4_e2m1fn, "ocp_e2m1"),
    "e2m3": (FloatGrid(2, 3), ml_dtypes.float6_e2m3fn, "ocp_e2m3"),
    "e3m2": (FloatGrid(3, 2), ml_dtypes.float6_e3m2fn, "ocp_e3m2"),
    "e4m3": (FloatGrid(4, 3), ml_dtypes.float8_e4m3fn, "ocp_e4m3"),
    "e5m2": (FloatGrid(5, 2), ml_dtypes.float8_e5m2, "ocp_e5m2"),
    "ieee e4m3": (FloatGrid(4, 3, special="ieee"), ml_dtypes.float8_e4m3, None),
    "ieee e3m4": (FloatGrid(3, 4, special="ieee"), ml_dtypes.float8_e3m4, None),
    "float16": (FloatGrid(5, 10), np.float16, "binary16"),
    "bfloat16": (FloatGrid(8, 7), ml_dtypes.bfloat16, "bfloat16"),
}
judged = pytest.mark.parametrize(("grid", "dtype"), [known[:2] for known in JUDGED.values()], ids=JUDGED.keys())


def inputs(grid: FloatGrid) -> np.ndarray:
    """All bfloat16 numbers, random float32 numbers, and every tie with its float32 neighbours, within the range."""
    every_bf16 = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    rng = np.random.default_rng(0)
    spread = (rng.choice([-1, 1], 20000) * grid.peak * 2.0 ** rng.uniform(-20, 0, 20000)).astype(np.float32)
    raw = grid.levels * grid.peak
    ties = ((raw[1:] + raw[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([every_bf16, spread, ties, *beside])
    x = x[np.isfinite(x)]
    return x[np.abs(x) <= grid.peak]


@judged
def test_values_are_ml_dtypes_casts(grid, dtype):
    x = inputs(grid)
    assert len(x) > 20000
    cast = x.astype(dtype)
    ours = grid.decode(grid.encode(x.astype(np.float64) / grid.peak)) * grid.peak
    np.testing.assert_array_equal(ours, cast.astype(np.float64))
    bits = np.uint16 if grid.bits > 8 else np.uint8
    pattern = cast.view(bits).astype(np.int32) & (2**grid.bits - 1)
    seen = ours != 0  # the casts keep the sign of zero; one code of ours stands for both zeros
    np.testing.assert_array_equal(grid.encode(x.astype(np.float64) / grid.peak)[seen], pattern[seen])
    np.testing.assert_array_equal(grid.decode(pattern), ours / grid.peak)


@judged
def test_the_range_is_ml_dtypes_range(grid, dtype):
    assert grid.peak == float(ml_dtypes.finfo(dtype).max)
    step = grid.levels[grid.levels > 0][0] * grid.peak
    assert step == float(ml_dtypes.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize(("grid", "gfloat_name"), [(grid, name) for grid, _, name in JUDGED.values() if name], ids=str)
def test_values_are_gfloats(grid, gfloat_name):
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    x = inputs(grid).astype(np.float64)[::7]
    x = np.concatenate([x, grid.peak * np.array([1.01, 1.5, 100, -1.01, -1.5, -100])])  # gfloat can saturate
    rounded = gfloat.round_ndarray(
        getattr(formats, f"format_info_{gfloat_name}"), x, gfloat.RoundMode.TiesToEven, sat=True
    )
    np.testing.assert_array_equal(grid.decode(grid.encode(x / grid.peak)) * grid.peak, rounded)


def test_ties_survive_any_power_of_two_scale():
    """A bf16 weight on a tie of e2m1 under an e8m0 scale: u is weight / (2^k * 6), as quantize computes it."""
    grid = parse_grid("mxfp4")
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    for k in range(-120, 121, 5):
        scale = np.float32(2.0**k * 6)
        weight = (ties * 2.0**k).astype(np.float32)
        u = weight.astype(np.float64) / np.float64(scale)
        np.testing.assert_array_equal(grid.decode(grid.encode(u)) * 6, even)
        np.testing.assert_array_equal(grid.decode(grid.encode(-u)) * 6, -even)


def test_minus_zero_decodes_to_zero():
    assert FloatGrid(2, 1).decode([0, 8]).tolist() == [0.0, 0.0]
    assert FloatGrid(4, 3).decode(np.uint8(0x80)) == 0.0


def test_codes_of_nan_and_infinity_are_refused():
    with pytest.raises(GridError, match="e4m3 has no code 127"):
        FloatGrid(4, 3).decode(0x7F)
    with pytest.raises(GridError, match="e5m2 has no code 124"):
        FloatGrid(5, 2).decode(0x7C)


def test_presets_of_the_block_formats():
    facts = {
        "mxfp4": (4, 32, "e8m0", 6.0),
        "mxfp6-e2m3": (6, 32, "e8m0", 7.5),
        "mxfp6-e3m2": (6, 32, "e8m0", 28.0),
        "mxfp8-e4m3": (8, 32, "e8m0", 448.0),
        "mxfp8-e5m2": (8, 32, "e8m0", 57344.0),
        "nvfp4": (4, 16, "e4m3", 6.0),
        "e2m1": (4, None, None, 6.0),
    }
    for name, fact in facts.items():
        grid = parse_grid(name)
        assert (grid.bits, grid.block, grid.scale_format, grid.peak) == fact


def test_exponent_width_without_subnormals_or_mantissa():
    np.testing.assert_array_equal(FloatGrid(3, 0).levels[FloatGrid(3, 0).levels > 0], 2.0 ** np.arange(-6, 1))
    np.testing.assert_array_equal(FloatGrid(1, 2).levels * 7, np.arange(-7, 8))  # one exponent bit: evenly spaced


def test_labels():
    assert parse_grid("mxfp8-e4m3").label == "MXFP8 E4M3"
    assert FloatGrid(3, 4).label == "float E3M4"
    assert FloatGrid(3, 4, special="ieee", scale_format="e8m0", block=64).label == (
        "float E3M4, special ieee, e8m0 scales of 64"
    )


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"exponent_bits": 0}, "exponent_bits of float lies between 1 and 8, not at 0"),
        ({"mantissa_bits": 11}, "mantissa_bits of float lies between 0 and 10, not at 11"),
        ({"exponent_bits": 8, "mantissa_bits": 10}, "at most 16 bits with its sign, not 19"),
        ({"special": "inf"}, "special of float is one of none, nan, ieee, not 'inf'"),
        ({"scale_format": "e8m1"}, r"one of e8m0, e4m3, not 'e8m1' \(did you mean e8m0"),
        ({"block": 0}, "block of float lies between 1 and 1048576, not at 0"),
        (
            {"exponent_bits": 1, "mantissa_bits": 0, "special": "ieee"},
            "no finite number besides zero; use special=none",
        ),
    ],
)
def test_parameters_out_of_range(parameters, sentence):
    with pytest.raises(GridError, match=sentence):
        FloatGrid(**parameters)
