"""compressed-tensors checkpoints, written and judged by the compressed-tensors package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from files_by_hand import save_folder

from workbench import open_model
from workbench.errors import CheckpointError

ROWS, COLUMNS = 72, 256


def parameters(weight: torch.Tensor, args: QuantizationArgs) -> dict[str, torch.Tensor]:
    """Scales and zero points by the package's own rule, from the extremes of each block."""
    rows, columns = weight.shape
    strategy = str(args.strategy)
    global_scale = None
    if strategy in {"group", "tensor_group"}:
        blocks = weight.reshape(rows, columns // args.group_size, args.group_size)
        low, high = blocks.amin(-1), blocks.amax(-1)
        if strategy == "tensor_group":
            global_scale = generate_gparam(weight.min().reshape(1), weight.max().reshape(1))
    elif strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    elif strategy == "block":
        height, width = args.block_structure
        grid = (-(-rows // height), -(-columns // width))
        padded = torch.zeros(grid[0] * height, grid[1] * width)
        padded[:rows, :columns] = weight
        blocks = padded.reshape(grid[0], height, grid[1], width)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    else:
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    scale, zero = calculate_qparams(low, high, args, global_scale=global_scale)
    found = {"weight_scale": scale.float() if not str(scale.dtype).endswith("uint8") else scale}
    if global_scale is not None:
        found["weight_global_scale"] = global_scale
    if not args.symmetric:
        found["weight_zero_point"] = zero.to(torch.int8)
    return found


CASES = {
    "int4 group": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": True},
        "int4-packed",
    ),
    "int4 group asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False},
        "int4-packed",
    ),
    "int4 channel asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "channel", "symmetric": False},
        "int4-packed",
    ),
    "int8 channel": ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}, "int8-packed"),
    "int3 group asymmetric": (
        "pack-quantized",
        {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False},
        "int3-packed",
    ),
    "int2 group": (
        "pack-quantized",
        {"num_bits": 2, "strategy": "group", "group_size": 32, "symmetric": True},
        "int2-packed",
    ),
    "int5 channel": ("pack-quantized", {"num_bits": 5, "strategy": "channel", "symmetric": True}, "int5-packed"),
    "int8 plain": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}, "int8-scaled"),
    "int8 plain asymmetric": (
        "int-quantized",
        {"num_bits": 8, "strategy": "channel", "symmetric": False},
        "int8-scaled",
    ),
    "int8 tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": True}, "int8-scaled"),
    "fp8 channel": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "fp8-e4m3",
    ),
    "fp8 tensor": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
        "fp8-e4m3",
    ),
    "fp8 block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 96], "symmetric": True},
        "fp8-e4m3",
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": 16,
            "symmetric": True,
            "scale_dtype": torch.float8_e4m3fn,
            "zp_dtype": torch.float8_e4m3fn,
        },
        "nvfp4",
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {
            "num_bits": 4,
            "type": "float",
            "strategy": "group",
            "group_size": 32,
            "symmetric": True,
            "scale_dtype": torch.uint8,
            "zp_dtype": torch.uint8,
        },
        "mxfp4",
    ),
    "mxfp6": (
        "mxfp6-pack-quantized",
        {
            "num_bits": 6,
            "type": "float",
            "strategy": "group",
            "group_size": 32,
            "symmetric": True,
            "scale_dtype": torch.uint8,
            "zp_dtype": torch.uint8,
        },
        "mxfp6-e2m3",
    ),
    "mxfp8": (
        "mxfp8-quantized",
        {
            "num_bits": 8,
            "type": "float",
            "strategy": "group",
            "group_size": 32,
            "symmetric": True,
            "scale_dtype": torch.uint8,
            "zp_dtype": torch.uint8,
        },
        "mxfp8-e4m3",
    ),
}


def compress(case: str) -> tuple[str, QuantizationArgs, dict[str, torch.Tensor], torch.Tensor]:
    """Quantize a weight by the package; return its stored tensors, and what the package decodes them to."""
    form, settings, _ = CASES[case]
    weight = (
        torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.2, 3, ROWS)[:, None]
    )
    args = QuantizationArgs(**settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress({"weight": weight, **parameters(weight, args)}, scheme)
    decoded = compressor.decompress(dict(stored), scheme)["weight"]
    assert (decoded.float() - weight).abs().mean() < weight.abs().mean(), "the judge itself must have quantized"
    return form, args, {name: value for name, value in stored.items() if value is not None}, decoded


@pytest.mark.parametrize("case", CASES)
def test_decoded_weights_are_the_packages(case, tmp_path):
    form, args, stored, expected = compress(case)
    config = {
        "model_type": "llama",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}},
        },
    }
    tensors = {f"model.layers.0.mlp.down_proj.{name}": value for name, value in stored.items()}
    model = open_model(save_folder(tmp_path / "m", tensors | {"model.norm.weight": torch.ones(8)}, config))
    layer = model["model.layers.0.mlp.down_proj"]
    assert layer.dtype == CASES[case][2]
    assert model.quantization == "compressed-tensors"
    assert set(model.layers) == {"model.layers.0.mlp.down_proj", "model.norm"}
    assert layer.shape == (ROWS, COLUMNS)
    ours = np.asarray(layer.weight)
    assert ours.dtype == np.float32
    # The package may decode in bfloat16; our float32 numbers round to exactly its numbers.
    assert torch.equal(torch.from_numpy(ours).to(expected.dtype), expected)
    for start, stop in ((0, 1), (31, 33), (40, ROWS), (5, 5)):
        assert np.array_equal(layer.weight.rows(start, stop), ours[start:stop])


def test_activation_order_groups_are_followed(tmp_path):
    generator = np.random.default_rng(0)
    codes = generator.integers(-8, 8, (8, 64)).astype(np.int8)
    scale = generator.uniform(0.5, 2, (8, 4)).astype(np.float32)
    groups = generator.permutation(np.repeat(np.arange(4), 16)).astype(np.int32)
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    stored = {
        "a.weight_packed": pack_to_int32(torch.from_numpy(codes), 4),
        "a.weight_scale": torch.from_numpy(scale),
        "a.weight_shape": torch.tensor([8, 64]),
        "a.weight_g_idx": torch.from_numpy(groups),
    }
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    model = open_model(save_folder(tmp_path / "m", stored, {"quantization_config": settings}))
    oracle = np.array([[codes[o, i] * scale[o, groups[i]] for i in range(64)] for o in range(8)], dtype=np.float32)
    assert np.array_equal(np.asarray(model["a"].weight), oracle)


@pytest.mark.parametrize("form", ["marlin-24", "sparse-24-bitmask", "sparse-bitmask"])
def test_sparse_formats_are_refused_by_name(form, tmp_path):
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": form}}
    with pytest.raises(CheckpointError, match=form):
        open_model(save_folder(tmp_path / "m", {"a.weight": torch.ones(2, 2)}, config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a.weight_scale": None}, "lacks its weight_scale"),
        ({"a.weight_shape": None}, "weight_shape"),
        ({"a.weight_shape": torch.tensor([8, 65, 1])}, "weight_shape"),
        ({"a.weight_shape": torch.tensor([9, 64])}, "do not fit"),
        ({"a.weight_shape": torch.tensor([8, 6400])}, "do not fit"),
        ({"a.weight_scale": torch.ones(8, 3)}, "fit no known granularity"),
        ({"a.weight_zero_point": torch.zeros(3, 3, dtype=torch.int8)}, "zero points"),
        ({"a.weight_g_idx": torch.full((64,), 9, dtype=torch.int32)}, "weight_g_idx"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words, tmp_path):
    stored = {
        "a.weight_packed": torch.zeros(8, 8, dtype=torch.int32),
        "a.weight_scale": torch.ones(8, 4),
        "a.weight_shape": torch.tensor([8, 64]),
    } | change
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    with pytest.raises(CheckpointError, match=words):
        open_model(
            save_folder(tmp_path / "m", {name: value for name, value in stored.items() if value is not None}, config)
        )
