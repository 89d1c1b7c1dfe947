from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.errors import QuantizationError
from workbench.grids import CodebookGrid, LogGrid, PowerGrid, UniformGrid, parse_grid
from workbench.quantization import (
    AbsMax,
    BestClip,
    GivenScale,
    Percentile,
    as_matrix,
    error,
    parse_granularity,
    parse_scale_rule,
    quantize,
)
from workbench.quantization.ranges import group_percentiles, group_ranges
from workbench.quantization.scale_formats import round_scale, unit_count
from workbench.quantization.scales import CANDIDATE_CLIPS

quick = settings(max_examples=40, deadline=None)
GRANULARITIES = ["tensor", "channel", "group:4", "group:5"]


def weights(shape=(12, 20), seed=0, dtype=np.float32):
    w = np.random.default_rng(seed).standard_t(4, shape)
    return w.astype(dtype)


def groups_of(w, granularity):
    """Each scale group's weights, in the order of the scale array."""
    if granularity == "tensor":
        return [w.ravel()]
    size = parse_granularity(granularity).group_size(w.shape[1])
    return [row[start : start + size] for row in w for start in range(0, w.shape[1], size)]


# --- rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [AbsMax(), Percentile(99.9), Percentile(50.0), BestClip()])
def test_text_form_round_trips(rule):
    assert parse_scale_rule(str(rule)) == rule
    assert parse_scale_rule(rule) is rule
    assert str(GivenScale(np.ones((1, 1)))) == "given"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_absmax_signed_and_range_scales(granularity, dtype):
    w = weights(dtype=dtype)
    groups = [g.astype(np.float64) for g in groups_of(w, granularity)]
    for clip in (1.0, 0.6):
        narrow = quantize(w, UniformGrid(bits=4), granularity, clip=clip)
        np.testing.assert_array_equal(narrow.scale.ravel(), [np.float32(clip * np.abs(g).max()) for g in groups])
        full = quantize(w, UniformGrid(bits=4, range="full"), granularity, clip=clip)
        strongest = [g[np.argmax(np.abs(g))] for g in groups]
        np.testing.assert_array_equal(full.scale.ravel(), [np.float32(-clip * x) for x in strongest])
        shifted = quantize(w, UniformGrid(bits=4, range="asymmetric"), granularity, clip=clip)
        widths = [max(g.max(), 0) - min(g.min(), 0) for g in groups]
        np.testing.assert_array_equal(shifted.scale.ravel(), [np.float32(clip * x) for x in widths])


def test_the_weight_of_largest_magnitude_goes_to_minus_one_and_the_first_of_two_decides():
    w = np.array([[1.0, -3.0, 3.0, 0.0], [1.0, 3.0, -3.0, 0.0], [0.0, 2.0, 1.0, -1.0]], dtype=np.float32)
    q = quantize(w, UniformGrid(bits=4, range="full"), "channel")
    assert q.scale.ravel().tolist() == [3.0, -3.0, -2.0]
    assert [q.codes[0, 1], q.codes[1, 1], q.codes[2, 1]] == [-8, -8, -8]
    assert quantize(w, UniformGrid(bits=4, range="full"), "tensor").scale.item() == 3.0
    assert quantize(w[::-1], UniformGrid(bits=4, range="full"), "tensor").scale.item() == -3.0
    assert quantize(w, UniformGrid(bits=4, range="full"), "group:2").scale[:2].ravel().tolist() == [3, -3, -3, 3]


def test_a_clipped_range_shrinks_around_its_middle():
    w = np.array([[-1.0, 3.0]], dtype=np.float32)
    grid = PowerGrid(bits=4, exponent=1.0, signed=False, shifted=True)
    q = quantize(w, grid, "channel", clip=0.5)
    assert q.scale.item() == 2.0
    assert q.offset.item() == 0.0  # the range left is [0, 2]
    np.testing.assert_array_equal(q.dequantize(), [[0.0, 2.0]])


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-9, 9, width=16)),
    st.floats(1, 100),
    st.sampled_from(GRANULARITIES),
    st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e5m2]),
)
@quick
def test_percentiles_are_numpys(w, percent, granularity, dtype):
    w = w.astype(dtype)
    ours = group_percentiles(as_matrix(w), parse_granularity(granularity), percent)
    groups = [np.abs(g.astype(np.float64)) for g in groups_of(w, granularity)]
    np.testing.assert_allclose(ours.ravel(), [np.percentile(g, percent) for g in groups], rtol=1e-12)


def test_percentile_scales_saturate_the_largest_weights_only():
    w = weights((50, 200))
    q = quantize(w, UniformGrid(bits=8), "tensor", "percentile:99")
    assert q.scale.item() == pytest.approx(np.percentile(np.abs(w), 99), rel=1e-6)
    assert quantize(w, UniformGrid(bits=8), "tensor", "percentile:100").scale.item() == np.abs(w).max()
    clipped = np.abs(w) > q.scale.item()
    assert clipped.sum() == 100
    assert (np.abs(q.codes[clipped]) == 127).all()
    ranged = quantize(np.abs(w), UniformGrid(bits=8, range="asymmetric"), "tensor", "percentile:99")
    assert ranged.scale.item() == q.scale.item()
    assert ranged.zero_point.item() == 0
    half = quantize(w, UniformGrid(bits=8), "tensor", "percentile:99", clip=0.5)
    assert half.scale.item() == pytest.approx(q.scale.item() / 2)


def test_a_sparse_group_does_not_vanish_by_its_percentile():
    w = np.zeros((2, 100), dtype=np.float32)
    w[0, 3] = 5.0
    q = quantize(w, UniformGrid(bits=4), "channel", "percentile:50")
    assert q.scale.ravel().tolist() == [5.0, 0.0]
    assert q.dequantize()[0, 3] == 5.0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("grid", "scale_format"),
    [
        ("uniform:bits=3", None),
        ("uniform:bits=4,range=full", "float16"),
        ("uniform:bits=4,range=asymmetric", None),
        ("power:bits=4,exponent=0.6", "bfloat16"),
        ("nf4", None),
        ("mxfp4", None),
        ("nvfp4", None),
    ],
)
def test_mse_takes_the_best_candidate_of_every_group(grid, scale_format, granularity):
    """Quantize at every candidate clip in turn: no group of any of them beats the one that the rule chose."""
    w, grid = weights(seed=3), parse_grid(grid)
    found = quantize(w, grid, granularity, "mse", scale_format=scale_format)

    def group_errors(q):
        gaps = (w.astype(np.float64) - q.dequantize()) ** 2
        return np.array([g.sum() for g in groups_of(gaps, granularity)])

    clips = [1.0, 0.5, 0.25] if grid.scale_format == "e8m0" else list(CANDIDATE_CLIPS)
    tried = np.array(
        [group_errors(quantize(w, grid, granularity, clip=clip, scale_format=scale_format)) for clip in clips]
    )
    best = group_errors(found)
    if grid.scale_format == "e8m0":  # it may also go one power of two above OCP's floor
        assert (best <= tried.min(axis=0) * (1 + 1e-12)).all()
        assert set(np.unique(found.clip)) <= {2.0**k for k in range(1, -6, -1)}
    else:
        np.testing.assert_allclose(best, tried.min(axis=0), rtol=1e-12)
        assert (found.clip.ravel() == np.asarray(clips)[tried.argmin(axis=0)]).mean() > 0.98  # last-bit ties aside


def test_mse_with_own_candidates_and_a_ceiling():
    w = weights()
    only = quantize(w, UniformGrid(bits=4), "channel", BestClip((0.5,)))
    np.testing.assert_array_equal(only.codes, quantize(w, UniformGrid(bits=4), "channel", clip=0.5).codes)
    ceiling = quantize(w, UniformGrid(bits=8), "channel", "mse", clip=0.5)
    assert ceiling.clip.max() <= 0.5
    with pytest.raises(QuantizationError, match="candidate"):
        BestClip(())
    with pytest.raises(QuantizationError, match="candidate"):
        BestClip((0.5, -1.0))


def test_ranges_hold_zero_and_know_the_first_extreme():
    w = np.array([[1.0, 2.0, -4.0, 4.0], [-3.0, -1.0, -2.0, -0.5]], dtype=np.float32)
    ranges = group_ranges(as_matrix(w), parse_granularity("channel"), extremes=True)
    assert ranges.low.ravel().tolist() == [-4.0, -3.0]
    assert ranges.high.ravel().tolist() == [4.0, 0.0]
    assert ranges.extreme.ravel().tolist() == [-4.0, -3.0]
    assert ranges.absmax.ravel().tolist() == [4.0, 3.0]
    assert ranges.reach("range").ravel().tolist() == [8.0, 3.0]


# --- formats --------------------------------------------------------------------------------------------------------------


def test_units_of_grids():
    units = {
        UniformGrid(bits=4): 7,
        UniformGrid(bits=4, range="full"): 8,
        UniformGrid(bits=4, range="asymmetric"): 15,
        UniformGrid(bits=16): 32767,
        parse_grid("e2m1"): 6,
        parse_grid("e4m3"): 448,
        parse_grid("e5m2"): 57344,
        PowerGrid(bits=4, exponent=0.5): 1,
        LogGrid(bits=4): 1,
        CodebookGrid("nf4"): 1,
    }
    assert {grid: unit_count(grid) for grid in units} == units


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 2.0**15, width=32)), st.sampled_from([1.0, 7.0, 127.0]))
@quick
def test_sixteen_bit_scales_are_casts_of_the_unit(full, units):
    for name, kind in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        rounded = round_scale(full, name, units, 0.0)
        stored = (full / np.float32(units)).astype(kind).astype(np.float64)
        np.testing.assert_array_equal(rounded.scale, stored * units)
        assert rounded.tensor_scale is None


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "e3m2", "e4m3", "e5m2"])
def test_e8m0_is_the_floor_rule_of_the_mx_specification(name):
    peak = parse_grid(name).peak
    emax = {"e2m1": 2, "e2m3": 2, "e3m2": 4, "e4m3": 8, "e5m2": 15}[name]  # OCP MX 1.0, table 1 with OFP8
    absmax = np.array([[1.0, 1.5, 1.9999999, 2.0, 3.0, 6.0, 7.99, 1e-30, 3e38]])
    rounded = round_scale(absmax, "e8m0", peak, 0.0).scale / peak
    expected = 2.0 ** (np.floor(np.log2(absmax.astype(np.float32).astype(np.float64))) - emax)
    np.testing.assert_array_equal(rounded, expected)
    judged = rounded.astype(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    np.testing.assert_array_equal(judged, rounded)
    smallest = round_scale(np.array([[1e-45, 0.0]]), "e8m0", peak, 0.0).scale
    assert smallest[0, 0] == np.float32(2.0**-127 * peak)
    assert smallest[0, 1] == 0.0


def test_e8m0_under_grids_without_a_unit_rounds_up_so_that_nothing_is_cut():
    w = weights()
    q = quantize(w, PowerGrid(bits=4, exponent=0.5), "channel", scale_format="e8m0")
    absmax = np.abs(w).max(axis=1, keepdims=True)
    assert (q.scale >= absmax).all()
    assert (q.scale < 2 * absmax).all()
    assert round_scale(np.array([[1.0, 2.0, 2.5]]), "e8m0", 1.0, 0.0).scale.tolist() == [[1.0, 2.0, 4.0]]


def test_nvfp4_has_two_levels_of_scales():
    w = weights((8, 64)) * np.exp2(np.arange(8))[:, None].astype(np.float32)
    q = quantize(w, "nvfp4", "group:16")
    assert q.scale_format == "e4m3"
    assert q.tensor_scale == pytest.approx(np.abs(w).max() / (448 * 6), rel=1e-7)
    stored = q.stored_scale
    np.testing.assert_array_equal(stored.astype(ml_dtypes.float8_e4m3fn).astype(np.float32), stored)
    assert stored.max() == 448.0
    np.testing.assert_allclose(q.scale, stored * q.tensor_scale * 6, rtol=1e-6)
    w[0] *= 1e-9  # far below the smallest e4m3: kept at 2^-9 rather than lost
    assert quantize(w, "nvfp4", "group:16").stored_scale[0].tolist() == [2.0**-9] * 4
    assert quantize(np.zeros((2, 16), np.float32), "nvfp4", "group:16").tensor_scale == 0.0
    signed = quantize(w, UniformGrid(bits=4, range="full"), "group:16", scale_format="e4m3")
    assert (signed.scale < 0).any()
    assert (signed.scale > 0).any()


def test_a_grids_own_format_yields_to_the_one_named():
    w = weights((4, 32))
    assert quantize(w, "mxfp4", "group:32").scale_format == "e8m0"
    plain = quantize(w, "mxfp4", "group:32", scale_format="float32")
    np.testing.assert_array_equal(plain.scale, np.abs(w).max(axis=1, keepdims=True))
    assert quantize(w, "e2m1", "group:32").scale_format == "float32"
    assert error(w, plain).mse < error(w, quantize(w, "mxfp4", "group:32")).mse


def test_coarser_scales_are_never_silently_exact():
    """A float16 scale changes the weights, and the error knows it."""
    w = weights((16, 64))
    exact, rounded = (quantize(w, "uniform:bits=8", "group:32", scale_format=f) for f in ("float32", "bfloat16"))
    assert error(w, exact).mse < error(w, rounded).mse
    assert rounded.bits_per_weight == 8.5
    assert exact.bits_per_weight == 9.0
