import numpy as np
import pytest

from workbench.errors import QuantizationError
from workbench.grids import CodebookGrid, PowerGrid, UniformGrid, parse_grid
from workbench.quantization import bits_per_weight, quantize, storage

WIDE = (4096, 4096)


@pytest.mark.parametrize(
    ("grid", "granularity", "scale_format", "published"),
    [
        # llama.cpp: Q4_0 is 18 bytes for 32 weights, Q8_0 34 bytes
        ("uniform:bits=4,range=full", "group:32", "float16", 4.5),
        ("uniform:bits=8", "group:32", "float16", 8.5),
        # OCP MX 1.0, table 1: 8 scale bits for 32 elements
        ("mxfp4", "group:32", None, 4.25),
        ("mxfp6-e2m3", "group:32", None, 6.25),
        ("mxfp8-e4m3", "group:32", None, 8.25),
        # NVFP4: 8 scale bits for 16 elements; its float32 scale of the tensor vanishes in the fourth digit
        ("nvfp4", "group:16", None, 4.5),
        # GPTQ/AWQ-style int4: float16 scales of 128, with 4-bit zero points
        ("uniform:bits=4", "group:128", "float16", 4.125),
        ("uniform:bits=4,range=asymmetric", "group:128", "float16", 4.15625),
        # QLoRA (arXiv 2305.14314), section 3: NF4 with float32 scales of 64 costs 0.5 bits on top
        ("nf4", "group:64", "float32", 4.5),
        ("uniform:bits=8", "channel", "float32", 8 + 32 / 4096),
        ("uniform:bits=8", "tensor", "float32", 8 + 32 / 4096**2),
    ],
)
def test_bits_per_weight_of_published_formats(grid, granularity, scale_format, published):
    assert bits_per_weight(parse_grid(grid), granularity, WIDE, scale_format) == pytest.approx(published, abs=3e-6)


def test_second_level_scale_and_codebook_are_counted():
    nvfp4 = storage(parse_grid("nvfp4"), "group:16", (16, 16))
    assert (nvfp4.codes, nvfp4.scales, nvfp4.total) == (1024, 16 * 8 + 32, 1024 + 160)
    fitted = storage(CodebookGrid((-1.0, -0.2, 0.3, 0.9)), "tensor", (8, 8))
    assert (fitted.codes, fitted.codebook) == (128, 4 * 32)
    assert storage(CodebookGrid("nf4"), "tensor", (8, 8)).codebook == 0


def test_offsets_without_an_integer_zero_point_are_floats():
    grid = PowerGrid(bits=4, exponent=0.5, signed=False, shifted=True)
    assert (grid.normalization, grid.integer_zero_point) == ("range", False)
    assert storage(grid, "channel", (10, 8), "float16").zero_points == 10 * 16
    assert storage(grid, "channel", (10, 8), "float32").zero_points == 10 * 32
    assert storage(grid, "channel", (10, 8), "e4m3").zero_points == 10 * 32


def test_sizes_are_those_of_the_arrays():
    w = np.random.default_rng(0).standard_normal((6, 3, 5, 5)).astype(np.float32)
    q = quantize(w, UniformGrid(bits=3, range="asymmetric"), "group:32", scale_format="float16")
    assert q.scale.shape == (6, 3)  # 75 columns: two whole groups and a short one
    assert q.storage.codes == 3 * w.size == 3 * q.codes.size
    assert q.storage.scales == 16 * q.scale.size
    assert q.storage.zero_points == 3 * q.zero_point.size
    assert q.bits_per_weight == (3 * 450 + 18 * 16 + 18 * 3) / 450
    assert bits_per_weight(q.grid, "group:32", w.shape, "float16") == q.bits_per_weight
    assert quantize(w[:, 0, 0, 0], UniformGrid(bits=3), "channel").storage.scales == 32  # a 1-D tensor is one row


def test_a_zero_point_outside_the_codes_costs_its_width():
    """A clip below 1 on weights of one sign moves the range away from zero; no 4-bit number names that zero."""
    w = np.full((2, 8), 1.0, dtype=np.float32)
    q = quantize(w, UniformGrid(bits=4, range="asymmetric"), "channel", clip=0.25)
    assert q.zero_point.tolist() == [[-22], [-22]]
    assert q.storage.zero_points == 2 * 6


def test_bad_questions():
    with pytest.raises(QuantizationError, match="no weights"):
        bits_per_weight(UniformGrid(), "channel", (0, 4))
    with pytest.raises(QuantizationError, match="scale format"):
        bits_per_weight(UniformGrid(), "channel", (4, 4), "int8")
    with pytest.raises(QuantizationError, match="granularity"):
        bits_per_weight(UniformGrid(), "block", (4, 4))
