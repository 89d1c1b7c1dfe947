"""Independent packages judge ``quantize``: codes, scales and dequantized weights, bit for bit where the rule is one.

Where a judge rounds by another rule, the test says which, and that nothing but that rule differs.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from workbench.grids import CodebookGrid, UniformGrid, parse_grid
from workbench.quantization import GivenScale, quantize


def weights(rows=48, columns=256, seed=0, dtype=np.float32):
    """Heavy-tailed weights with an all-zero group, groups of one sign, and rows of very different size."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(5, (rows, columns)) * np.exp2(rng.integers(-8, 4, (rows, 1)))
    w[0, :64] = 0.0
    w[1] = np.abs(w[1])
    w[2] = -np.abs(w[2])
    return w.astype(dtype)


def near_tie(u, steps, within=1e-5):
    """Where ``u`` lies so near the middle of two integer codes that float32 arithmetic may fall on either side."""
    return np.abs(np.abs(u * steps - np.floor(u * steps)) - 0.5) < within


# --- llama.cpp -------------------------------------------------------------------------------------------------------


def gguf_blocks(w, kind):
    """Return llama.cpp's float16 scales, unsigned codes, and dequantized weights."""
    gguf = pytest.importorskip("gguf")
    qtype = getattr(gguf.GGMLQuantizationType, kind)
    packed = gguf.quants.quantize(w, qtype)
    blocks = packed.reshape(-1, gguf.GGML_QUANT_SIZES[qtype][1])
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32).reshape(len(w), -1)
    if kind == "Q4_0":
        nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
        codes = nibbles.astype(np.int8) - 8
    else:
        codes = blocks[:, 2:].copy().view(np.int8)
    return d, codes.reshape(w.shape), gguf.quants.dequantize(packed, qtype)


LLAMA = [("Q4_0", UniformGrid(bits=4, range="full"), 8), ("Q8_0", UniformGrid(bits=8, range="narrow"), 127)]


@pytest.mark.parametrize(("kind", "grid", "steps"), LLAMA)
def test_llama_cpp_block_scales_are_ours_bit_for_bit(kind, grid, steps):
    d, _, _ = gguf_blocks(weights(), kind)
    ours = quantize(weights(), grid, "group:32", scale_format="float16")
    np.testing.assert_array_equal(ours.stored_scale, d)


@pytest.mark.parametrize(("kind", "grid", "steps"), LLAMA)
def test_llama_cpp_decoding_is_ours_bit_for_bit(kind, grid, steps):
    _, codes, decoded = gguf_blocks(weights(), kind)
    ours = replace(quantize(weights(), grid, "group:32", scale_format="float16"), codes=codes)
    np.testing.assert_array_equal(ours.dequantize(), decoded)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("kind", "grid", "steps"), LLAMA)
def test_llama_cpp_codes_are_ours_up_to_ties(kind, grid, steps, dtype):
    """llama.cpp encodes with the float32 scale and decodes with its float16 rounding; ties go up (Q4_0) or away (Q8_0)."""
    w = weights(dtype=dtype).astype(np.float32)
    _, codes, decoded = gguf_blocks(w, kind)
    by_float32 = quantize(w, grid, "group:32")
    differs = by_float32.codes != codes
    scale = np.repeat(by_float32.scale.astype(np.float64), 32, axis=1)
    u = w / np.where(scale == 0.0, 1.0, scale)
    assert near_tie(u, steps)[differs].all()
    assert np.abs(by_float32.codes.astype(int) - codes)[differs].max(initial=0) <= 1
    assert differs.mean() < (0.02 if dtype is ml_dtypes.bfloat16 else 1e-3)
    by_float16 = quantize(w, grid, "group:32", scale_format="float16")
    as_llama = replace(by_float32, scale=by_float16.scale, scale_format="float16")
    np.testing.assert_array_equal(as_llama.dequantize()[~differs], decoded[~differs])


@pytest.mark.parametrize(("kind", "grid", "steps"), LLAMA)
def test_llama_cpp_blocks_come_out_whole_where_float16_holds_the_scale(kind, grid, steps):
    """On weights that already are float16 scale times code nothing is left to rounding rules: all equal gguf exactly."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-steps + 1, steps, (32, 8, 32))
    codes[..., 5] = -steps
    d = rng.uniform(0.01, 3.0, (32, 8, 1)).astype(np.float16).astype(np.float64)
    w = (codes * d).astype(np.float32).reshape(32, 256)
    _, theirs, decoded = gguf_blocks(w, kind)
    ours = quantize(w, grid, "group:32", scale_format="float16")
    np.testing.assert_array_equal(ours.codes, theirs)
    np.testing.assert_array_equal(ours.dequantize(), decoded)
    np.testing.assert_array_equal(ours.dequantize(), w)


def test_llama_cpp_mxfp4_is_ours_up_to_ties():
    """ggml takes the first nearest value of its table: ties go towards zero, OCP's go to the even mantissa."""
    gguf = pytest.importorskip("gguf")
    w = weights(seed=2)
    qtype = gguf.GGMLQuantizationType.MXFP4
    decoded = gguf.quants.dequantize(gguf.quants.quantize(w, qtype), qtype)
    ours = quantize(w, parse_grid("mxfp4"), "group:32")
    raw = np.abs(w / np.where(ours.scale == 0, 1, ours.stored_scale).repeat(32, axis=1))
    ties = np.isin(raw, [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    np.testing.assert_array_equal(ours.dequantize()[~ties], decoded[~ties])
    assert ties.mean() < 1e-3
    w = (np.random.default_rng(3).integers(-24, 25, (16, 64)) / 4).astype(np.float32)
    w[:, ::32] = 6.0
    decoded = gguf.quants.dequantize(gguf.quants.quantize(w, qtype), qtype)
    tie_up = np.isin(np.abs(w), [0.75, 1.75, 3.5])
    ours = quantize(w, parse_grid("mxfp4"), "group:32").dequantize()
    np.testing.assert_array_equal(ours[~tie_up], decoded[~tie_up])
    assert (np.abs(ours[tie_up]) > np.abs(decoded[tie_up])).all()


# --- OCP microscaling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2"])
def test_gfloat_block_formats_are_ours_bit_for_bit(name):
    pytest.importorskip("gfloat")
    from gfloat.block import compute_scale_amax, quantize_block
    from gfloat.formats import all_block_formats

    form = next(f for f in all_block_formats if f.name.replace("_", "-").startswith(name))
    assert form.k == 32
    w = weights(rows=6, columns=64, seed=4)
    w[3, :32] = 2.0 ** np.arange(-20, 12)
    w[4, 5] = 7.9999995
    wide = w.astype(np.float64)  # gfloat takes log2 in the input's precision: float32 rounds log2(7.9999995) up to 3
    theirs = np.stack(
        [
            np.concatenate([quantize_block(form, part, compute_scale_amax) for part in row.reshape(-1, 32)])
            for row in wide
        ]
    )
    ours = quantize(w, parse_grid(name), "group:32")
    np.testing.assert_array_equal(ours.dequantize().astype(np.float64), theirs)
    assert ours.bits_per_weight == form.block_size_bytes * 8 / 32


def test_compressed_tensors_nvfp4_is_ours():
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import fake_quantize
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = preset_name_to_scheme("NVFP4A16", ["Linear"]).weights
    assert args is not None
    w = weights(seed=5)
    w[0, :64] = 0.25  # an all-zero group takes a placeholder scale there
    x = torch.from_numpy(w)
    parts = x.reshape(len(w), -1, 16)
    low, high = parts.amin(-1), parts.amax(-1)
    top = generate_gparam(x.amin(), x.amax())
    scale, zero = calculate_qparams(low, high, args, global_scale=top)
    theirs = fake_quantize(x, scale, zero, args, global_scale=top).numpy()
    ours = quantize(w, parse_grid("nvfp4"), "group:16")
    assert ours.tensor_scale == pytest.approx(1.0 / top.item(), rel=1e-6)
    blocks = scale.to(torch.float32).numpy()
    np.testing.assert_allclose(ours.stored_scale, np.maximum(blocks, 2.0**-9), rtol=1e-6)
    steady = np.repeat(blocks >= 2.0**-9, 16, axis=1)
    np.testing.assert_allclose(ours.dequantize()[steady], theirs[steady], rtol=1e-6)
    assert steady.mean() > 0.9


# --- compressed-tensors and torch integers -----------------------------------------------------------------------------


def compressed_tensors_int4(w, *, symmetric):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs, fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=32)
    x = torch.from_numpy(w)
    parts = x.reshape(len(w), -1, 32)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    return scale.numpy(), zero.numpy().astype(int), fake_quantize(x, scale, zero, args).numpy()


def test_compressed_tensors_asymmetric_int4_groups_are_ours():
    w = weights(seed=6)
    w[0, :64] = np.linspace(-1, 1, 64)  # an all-zero group takes a placeholder scale there
    scale, zero, theirs = compressed_tensors_int4(w, symmetric=False)
    ours = quantize(w, UniformGrid(bits=4, range="asymmetric"), "group:32")
    np.testing.assert_allclose(ours.stored_scale, scale, rtol=2e-7)
    np.testing.assert_array_equal(ours.zero_point, zero + 8)
    u = w / ours.scale.repeat(32, axis=1).astype(np.float64) + ours.offset.repeat(32, axis=1)
    clear = ~near_tie(u, 15)
    np.testing.assert_allclose(ours.dequantize()[clear], theirs[clear], rtol=3e-7, atol=0)
    assert clear.mean() > 0.99


def test_compressed_tensors_symmetric_int4_groups_are_ours_at_their_scales():
    """They divide absmax by 7.5 and use all 16 codes; at those scales the full-range grid is the same quantizer."""
    w = weights(seed=7)
    w[0, :64] = 0.5
    scale, _, theirs = compressed_tensors_int4(w, symmetric=True)
    ours = quantize(w, UniformGrid(bits=4, range="full"), "group:32", GivenScale(8 * scale))
    clear = ~near_tie(w / np.repeat(8.0 * scale, 32, axis=1), 8)
    np.testing.assert_array_equal(ours.dequantize()[clear], theirs[clear])
    assert clear.mean() > 0.95  # the largest weight of each group of 32 lands on 7.5, a tie


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_torch_fake_quantize_per_channel_is_ours(bits):
    torch = pytest.importorskip("torch")
    w = weights(seed=8)
    n = 2 ** (bits - 1) - 1
    ours = quantize(w, UniformGrid(bits=bits), "channel")
    x, scale = torch.from_numpy(w), torch.from_numpy(ours.stored_scale[:, 0])
    theirs = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(len(w), dtype=torch.int32), 0, -n, n).numpy()
    clear = ~near_tie(w / ours.scale.astype(np.float64), n, within=1e-4)
    np.testing.assert_allclose(ours.dequantize()[clear], theirs[clear], rtol=3e-7)
    assert clear.mean() > 0.99


# --- bitsandbytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_bitsandbytes_nf4_is_ours(dtype):
    """bitsandbytes blocks the flattened tensor; with 64 dividing the columns those are the groups of a row."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    w = weights(seed=9, dtype=dtype).astype(np.float32)
    packed, state = functional.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state).numpy()
    ours = quantize(w, CodebookGrid("nf4"), "group:64")
    np.testing.assert_array_equal(ours.scale.ravel(), state.absmax.numpy())
    scale = np.repeat(ours.scale.astype(np.float64), 64, axis=1)
    u = w / np.where(scale == 0, 1, scale)
    clear = np.abs(u[..., None] - ours.grid.thresholds).min(axis=-1) > 1e-6
    np.testing.assert_array_equal(ours.dequantize()[clear], theirs[clear])
    assert clear.mean() > 0.999
