from __future__ import annotations

import pickle
from bisect import bisect_right

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.checkpoints.layer import Layer, Weights
from workbench.errors import GridError, QuantizationError
from workbench.grids import CodebookGrid, UniformGrid, parse_grid
from workbench.quantization import GivenScale, PerGroup, QuantizedTensor, error, parse_granularity, quantize
from workbench.quantization.quantize import code_dtype

GRIDS = [
    "uniform:bits=2",
    "uniform:bits=4",
    "uniform:bits=4,range=full",
    "uniform:bits=4,range=asymmetric",
    "uniform:bits=8",
    "uniform:bits=10,range=full",
    "power:bits=4,exponent=0.5",
    "power:bits=4,exponent=0.55,rounding=nearest",
    "power:bits=4,exponent=0.5,signed=False,shifted=True",
    "log:bits=4",
    "apot:bits=4",
    "nf4",
    "e2m1",
    "e4m3",
]
NEAREST = ["uniform:bits=4", "power:bits=4,exponent=0.55,rounding=nearest", "nf4", "e2m1", "e4m3"]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]

quick = settings(max_examples=40, deadline=None)


def oracle(w, grid, granularity, clip=1.0):
    """The definition, weight by weight, in float64: returns codes and float32 weights of a matrix."""
    rows, columns = w.shape
    w = w.astype(np.float64)
    granularity = parse_granularity(granularity)
    size, shared = granularity.group_size(columns), granularity.scale_shape(rows, columns) == (1, 1)
    thresholds, levels, codes = grid.thresholds.tolist(), grid.levels.tolist(), grid.codes.tolist()
    code, decoded = np.zeros(w.shape, dtype=int), np.zeros(w.shape, dtype=np.float32)
    for row in range(rows):
        for start in range(0, columns, size):
            group = w if shared else w[row : row + 1, start : start + size]
            o = 0.0
            if grid.normalization == "range":
                low, high = min(group.min(), 0.0), max(group.max(), 0.0)
                s = float(np.float32(clip * (high - low)))
                if high > low:
                    o = (-low / (high - low) - (1 - clip) / 2) / clip
                    if grid.integer_zero_point:
                        o = round(o * (len(levels) - 1)) / (len(levels) - 1)
            else:
                largest = group.ravel()[np.argmax(np.abs(group))]
                s = float(np.float32(clip * abs(largest)))
                if grid.normalization == "signed" and largest > 0:
                    s = -s
            for column in range(start, min(start + size, columns)):
                if s == 0.0:
                    index = int(np.argmin(np.abs(grid.levels)))
                else:
                    index = bisect_right(thresholds, w[row, column] / s + o)
                code[row, column] = codes[index]
                decoded[row, column] = np.float32(s * (levels[index] - o))
    return code, decoded


@st.composite
def matrices(draw, dtypes=DTYPES):
    """Small weights of any supported dtype: exact ties, zeros, both signs, huge and tiny rows, subnormals."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    small = st.one_of(
        st.floats(-1, 1, width=16), st.sampled_from([0.0, -0.0, 0.5, -1.0, 1.0, 0.25]), st.floats(-300, 300, width=16)
    )
    w = draw(hnp.arrays(np.float64, shape, elements=small))
    w *= 2.0 ** draw(st.integers(-7, 7))
    return w.astype(dtype)


# --- against the definition --------------------------------------------------------------------------------------------


@given(
    matrices(),
    st.sampled_from(GRIDS),
    st.sampled_from(["tensor", "channel", "group:1", "group:3", "group:32"]),
    st.sampled_from([1.0, 0.5, 0.8, 0.05]),
)
@settings(max_examples=50, deadline=None)
def test_codes_and_weights_equal_the_slow_oracle(w, grid, granularity, clip):
    grid = parse_grid(grid)
    q = quantize(w, grid, granularity, clip=clip)
    codes, decoded = oracle(w, grid, granularity, clip)
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(q.dequantize(), decoded)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:7"])
def test_row_blocks_change_nothing(grid, granularity, monkeypatch):
    """The same layer in one block and in many: identical codes and scales."""
    from workbench.quantization import blocks

    w = np.random.default_rng(0).standard_normal((37, 20)).astype(np.float32)
    w[20, 3] = -np.abs(w).max()  # a tie of magnitude with an earlier block, for the sign of full-range scales
    whole = [quantize(w, parse_grid(grid), granularity, rule) for rule in ("absmax", "percentile:90", "mse")]
    small = Weights.blocks
    monkeypatch.setattr(Weights, "blocks", lambda self, max_bytes=0: small(self, max_bytes=3 * 20 * 4))
    assert len(list(blocks.row_blocks(layer(w).weight))) == 13
    pieces = [quantize(w, parse_grid(grid), granularity, rule) for rule in ("absmax", "percentile:90", "mse")]
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.scale, b.scale)
        np.testing.assert_array_equal(a.offset, b.offset)


# --- laws --------------------------------------------------------------------------------------------------------------


@given(matrices([np.float32]), st.sampled_from(GRIDS), st.sampled_from(["tensor", "channel", "group:3"]))
@quick
def test_quantizing_what_was_dequantized_gives_the_same_codes(w, grid, granularity):
    q = quantize(w, parse_grid(grid), granularity)
    again = quantize(q.dequantize(), q.grid, granularity, GivenScale(q.scale, q.offset))
    np.testing.assert_array_equal(again.codes, q.codes)
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())


@given(matrices(), st.sampled_from(NEAREST), st.sampled_from(["tensor", "channel", "group:3"]))
@quick
def test_inside_the_range_no_error_exceeds_half_a_step(w, grid, granularity):
    report = error(w, quantize(w, parse_grid(grid), granularity))
    assert report.max_steps <= 0.5 + 1e-6


@given(matrices([np.float32]), st.sampled_from([g for g in GRIDS if "shifted" not in g]))
@quick
def test_zero_stays_zero(w, grid):
    w[0, :] = 0.0
    decoded = quantize(w, parse_grid(grid), "channel").dequantize()
    assert (decoded[w == 0.0] == 0.0).all()


@given(matrices([np.float32]), st.sampled_from(["uniform:bits=4", "uniform:bits=4,range=full", "power:bits=3", "e2m1"]))
@quick
def test_scaling_by_a_power_of_two_scales_the_result(w, grid):
    one, four = (quantize(part, parse_grid(grid), "channel") for part in (w, w * np.float32(4.0)))
    np.testing.assert_array_equal(one.codes, four.codes)
    np.testing.assert_array_equal(one.dequantize() * 4, four.dequantize())


@given(matrices([np.float32]), st.sampled_from(["uniform:bits=4", "power:bits=4,exponent=0.6", "e4m3"]))
@quick
def test_flipping_the_sign_flips_the_result(w, grid):
    np.testing.assert_array_equal(
        quantize(-w, parse_grid(grid), "group:2").dequantize(), -quantize(w, parse_grid(grid), "group:2").dequantize()
    )


@given(matrices())
@quick
def test_sixteen_bits_are_enough_for_sixteen_bit_weights(w):
    report = error(w, quantize(w, UniformGrid(bits=16), "group:1"))
    assert report.sqnr_db > 90.0


# --- shapes and dtypes -------------------------------------------------------------------------------------------------


class Rows(Weights):
    def __init__(self, array):
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def rows(self, start, stop):
        self.most = max(self.most, (stop - start) * self.shape[1])
        return self.array[start:stop]


def layer(array, name="model.layers.3.self_attn.q_proj", shape=None):
    return Layer(name, Rows(array), shape or array.shape, str(array.dtype), "linear", "q_proj", "key")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (70,), (5, 7), (4, 3, 2, 2), (2, 1, 1, 1, 3)])
def test_every_shape_comes_back(shape, dtype):
    w = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for granularity in ("tensor", "channel", "group:4"):
        q = quantize(w, UniformGrid(bits=8), granularity)
        assert q.dequantize().shape == q.shape == shape
        assert q.dequantize().dtype == np.float32
        assert q.codes.shape == ((1, w.size) if len(shape) == 1 else (shape[0], w.size // shape[0]))
        np.testing.assert_allclose(q.dequantize(), w.astype(np.float32), atol=0.02)


def test_layers_arrays_and_torch_tensors_give_the_same():
    torch = pytest.importorskip("torch")
    tensor = torch.randn(6, 2, 3, 3, dtype=torch.bfloat16)
    array = tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    three = [
        quantize(source, "power:bits=4,exponent=0.6", "group:8")
        for source in (tensor, array, layer(array.reshape(6, 18), shape=(6, 2, 3, 3)))
    ]
    for q in three:
        np.testing.assert_array_equal(q.codes, three[0].codes)
        assert q.dequantize().shape == (6, 2, 3, 3)
    assert three[2].name == "model.layers.3.self_attn.q_proj"
    assert repr(three[2]) == (
        "QuantizedTensor('model.layers.3.self_attn.q_proj', 6x2x3x3, power:bits=4,exponent=0.6, group:8, "
        "18 float32 scales, 9.333 bits per weight)"
    )


def test_a_large_layer_is_read_in_small_pieces():
    source = layer(np.ones((3000, 1024), dtype=np.float16))
    quantize(source, "uniform:bits=4", "channel")
    assert source.weight.most <= 1 << 20


@pytest.mark.parametrize(
    ("grid", "dtype"),
    [
        ("uniform:bits=2", np.int8),
        ("uniform:bits=8", np.int8),
        ("uniform:bits=8,range=full", np.int8),
        ("uniform:bits=9", np.int16),
        ("uniform:bits=16,range=full", np.int16),
        ("uniform:bits=8,range=asymmetric", np.uint8),
        ("uniform:bits=16,range=asymmetric", np.uint16),
        ("nf4", np.uint8),
        ("mxfp4", np.uint8),
        ("e4m3", np.uint8),
    ],
)
def test_codes_take_the_smallest_integer_type(grid, dtype):
    assert code_dtype(parse_grid(grid)) == dtype
    assert quantize(np.ones((2, 2), np.float32), grid, "channel", scale_format="float32").codes.dtype == dtype


def test_float_codes_are_bit_patterns():
    w = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    q = quantize(w, "e4m3", "tensor", GivenScale(np.array([[448.0]])))
    np.testing.assert_array_equal(q.codes & 0x7F, w.astype(ml_dtypes.float8_e4m3fn).view(np.uint8) & 0x7F)
    np.testing.assert_array_equal(q.dequantize(), w.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    minus_zero = np.full((1, 2), 0x80, dtype=np.uint8)
    foreign = QuantizedTensor(minus_zero, q.scale, q.offset, q.grid, q.granularity, (1, 2))
    assert foreign.dequantize().tolist() == [[0.0, 0.0]]
    stray = QuantizedTensor(np.array([[0x7F]], np.uint8), q.scale, q.offset, q.grid, q.granularity, (1, 1))
    with pytest.raises(GridError, match="127"):
        stray.dequantize()


def test_zero_points_are_whole_codes_and_zero_is_exact():
    w = np.array([[-1.0, 0.0, 0.37, 2.0], [0.5, 1.0, 2.0, 4.0], [-3.0, -2.0, -1.0, -0.5]], dtype=np.float32)
    q = quantize(w, UniformGrid(bits=4, range="asymmetric"), "channel")
    assert q.zero_point.dtype == np.int32
    assert q.zero_point.ravel().tolist() == [5, 0, 15]
    assert q.codes[0, 1] == 5
    assert q.dequantize()[0, 1] == 0.0
    np.testing.assert_allclose(
        q.dequantize(), (q.codes.astype(int) - q.zero_point) * q.stored_scale.astype(float), rtol=1e-6
    )
    assert quantize(w, "uniform:bits=4").zero_point is None


def test_tables_pickles_and_arrays():
    w = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    q = quantize(w, UniformGrid(bits=4, range="asymmetric"), PerGroup(4), "mse")
    table = q.to_frame()
    assert list(table.index.names) == ["row", "group"]
    assert len(table) == 9
    assert table.loc[(2, 1), "scale"] == q.scale[2, 1]
    assert table.loc[(2, 1), "clip"] == q.clip[2, 1]
    assert table.loc[(2, 1), "zero_point"] == q.zero_point[2, 1]
    assert "zero_point" not in quantize(w, "nf4").to_frame()
    assert "offset" in quantize(w, "power:bits=4,exponent=0.5,signed=False,shifted=True").to_frame()
    page = q._repr_html_()
    assert "9 float32" in page
    zeros = q.storage.zero_points / w.size
    assert f"{q.bits_per_weight:.4g} = 4 codes + 9.6 scales + {zeros:.4g} zero points" in page
    tricky = quantize(layer(w, name="<script>"), "nf4")
    assert "<script>" not in tricky._repr_html_()
    again = pickle.loads(pickle.dumps(q))
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())
    np.testing.assert_array_equal(np.asarray(q), q.dequantize())
    assert np.asarray(q, dtype=np.float16).dtype == np.float16


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bad", "says"), [(np.nan, "1 NaN, 0 infinite"), (-np.inf, "0 NaN, 1 infinite")])
def test_non_finite_weights_are_counted_and_named(dtype, bad, says):
    w = np.ones((4, 6), dtype=dtype)
    w[2, 5] = bad
    for granularity in ("tensor", "channel", "group:4"):
        with pytest.raises(QuantizationError, match=f"q_proj holds 1 non-finite weight .*{says}"):
            quantize(layer(w), "uniform:bits=4", granularity)
    w[:] = bad
    with pytest.raises(QuantizationError, match="weight holds 24 non-finite weights"):
        quantize(w, "nf4")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clip": 0.0}, "clip"),
        ({"clip": 1.5}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"granularity": "row"}, "granularity"),
        ({"scale": "minmax"}, "scale rule"),
        ({"scale": "percentile"}, "scale rule"),
        ({"scale": "percentile:101"}, "percentile"),
        ({"scale": "percentile:nan"}, "percentile"),
        ({"scale": "mse:3"}, "scale rule"),
        ({"scale_format": "int8"}, "scale format"),
        ({"grid": 4}, "a grid is"),
        ({"grid": UniformGrid(bits=4, range="full"), "scale_format": "e8m0"}, "no sign"),
        ({"scale": GivenScale(np.ones((1, 3)))}, "shape"),
        ({"scale": GivenScale(np.array([[np.nan], [1.0]]))}, "NaN"),
        ({"scale": GivenScale(np.ones((2, 1))), "clip": 0.5}, "clip at 1"),
    ],
)
def test_bad_questions_get_one_sentence(change, says):
    given = {"weight": np.ones((2, 2), dtype=np.float32), "grid": UniformGrid(), **change}
    with pytest.raises(QuantizationError, match=says) as caught:
        quantize(**given)
    assert "\n" not in str(caught.value)


def test_unreadable_grids_are_grid_errors():
    with pytest.raises(GridError):
        quantize(np.ones((2, 2), np.float32), "unifrom:bits=4")


def test_scales_that_their_format_cannot_hold_are_refused():
    with pytest.raises(QuantizationError, match="overflows float16"):
        quantize(np.full((1, 2), 1e6, np.float32), "uniform:bits=4", scale_format="float16")
    with pytest.raises(QuantizationError, match="overflows float32"):
        quantize(np.full((1, 2), 1e300), "uniform:bits=4")
    wide = np.array([[-3e38, 3e38]], dtype=np.float32)
    with pytest.raises(QuantizationError, match="overflows float32"):
        quantize(wide, UniformGrid(bits=4, range="asymmetric"))


def test_extremes_of_float32_are_fine():
    tiny = np.array([[1e-45, -3e-45, 0.0]], dtype=np.float32)
    np.testing.assert_array_equal(quantize(tiny, "uniform:bits=8").dequantize(), tiny)
    huge = np.array([[3.4e38, -3.4e38, 1.0]], dtype=np.float32)
    assert np.isfinite(quantize(huge, "uniform:bits=8").dequantize()).all()
    vanished = quantize(np.full((1, 3), 1e-60), "uniform:bits=8")  # below float32: the scale is 0
    assert not vanished.scale.any()
    assert not vanished.codes.any()
    assert not vanished.dequantize().any()
    lost = quantize(np.full((1, 3), 1e-9, np.float32), "uniform:bits=8", scale_format="float16")
    assert not lost.dequantize().any()


@pytest.mark.parametrize("grid", [*GRIDS, CodebookGrid((-0.9, -0.1, 0.2, 1.0))])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:2"])
def test_an_all_zero_weight_decodes_to_zeros(grid, granularity):
    w = np.zeros((3, 5), dtype=ml_dtypes.bfloat16)
    for rule in ("absmax", "percentile:50", "mse"):
        q = quantize(w, grid, granularity, rule)
        assert not q.dequantize().any()
        report = error(w, q)
        assert (report.mse, report.sqnr_db, report.max_steps) == (0.0, np.inf, 0.0)
