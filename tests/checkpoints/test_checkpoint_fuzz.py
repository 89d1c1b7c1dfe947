"""Damaged bytes make a CheckpointError or a model that can be read: no other error, no hang, no giant allocation."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from workbench import open_model
from workbench.errors import CheckpointError, WorkbenchError

SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MOST_MEGABYTES = 300


def good_safetensors() -> bytes:
    return save(
        {
            "model.embed.weight": torch.zeros(4, 6),
            "model.layers.0.mlp.up_proj.weight": torch.ones(6, 4, dtype=torch.bfloat16),
            "model.layers.0.mlp.up_proj.bias": torch.zeros(6),
            "ids": torch.arange(3),
        },
        {"format": "pt"},
    )


def good_gguf(folder: Path) -> bytes:
    writer = gguf.GGUFWriter(folder / "good.gguf", "llama")
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_array("tokens", ["a", "bc", "def"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((2, 64), np.float32))
    blocks = gguf.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "good.gguf").read_bytes()


@st.composite
def mutations(draw) -> list[tuple[str, int, bytes]]:
    """A few edits: overwrite, insert, delete, cut; places as fractions so that they fit any file."""
    kinds = st.sampled_from(["overwrite", "insert", "delete", "cut", "number"])
    edges = [0, 1, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
    edits = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(kinds)
        place = draw(st.integers(0, 10_000))
        if kind == "number":
            edits.append(("overwrite", place, draw(st.sampled_from(edges)).to_bytes(8, "little")))
        else:
            edits.append((kind, place, draw(st.binary(min_size=1, max_size=12))))
    return edits


def mutate(content: bytes, edits: list[tuple[str, int, bytes]], *, head: int) -> bytes:
    """Apply edits, most of them within the first ``head`` bytes, where the header is."""
    data = bytearray(content)
    for kind, place, piece in edits:
        where = place % max(1, min(head, len(data)))
        if kind == "overwrite":
            data[where : where + len(piece)] = piece
        elif kind == "insert":
            data[where:where] = piece
        elif kind == "delete":
            del data[where : where + len(piece)]
        else:
            del data[place % max(1, len(data)) :]
    return bytes(data)


def survives(path: Path) -> None:
    """Open and read everything; only the workbench's own errors may come out, in one line."""
    try:
        with open_model(path) as model:
            str(model.tree)
            for layer in model.values():
                if layer.weight.nbytes < 1 << 20:
                    np.asarray(layer.weight)
    except CheckpointError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 < START_MEGABYTES + MOST_MEGABYTES


START_MEGABYTES = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + 600


@SETTINGS
@given(edits=mutations())
def test_damaged_safetensors(edits, tmp_path):
    content = good_safetensors()
    head = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "x.safetensors"
    path.write_bytes(mutate(content, edits, head=head))
    survives(path)


@SETTINGS
@given(content=st.binary(max_size=300))
def test_any_bytes_as_safetensors(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    survives(path)
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    survives(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
header_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F8_E4M3", "X", ""]) | json_values,
        "shape": st.lists(st.integers(-2, 6) | st.integers(), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-4, 64), min_size=2, max_size=2) | json_values,
    }
)


@SETTINGS
@given(
    header=st.dictionaries(st.text(max_size=12), header_entries | json_values, max_size=4), data=st.binary(max_size=64)
)
def test_any_header_as_safetensors(header, data, tmp_path):
    content = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    survives(path)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    return good_gguf(tmp_path_factory.mktemp("gguf"))


@SETTINGS
@given(edits=mutations())
def test_damaged_gguf(edits, gguf_bytes, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(mutate(gguf_bytes, edits, head=400))
    survives(path)


@SETTINGS
@given(content=st.binary(max_size=300))
def test_any_bytes_as_gguf(content, tmp_path):
    path = tmp_path / "x.gguf"
    for start in (b"", b"GGUF\x03\0\0\0", b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"):
        path.write_bytes(start + content)
        survives(path)


@SETTINGS
@given(
    config=st.dictionaries(
        st.sampled_from(
            [
                "model_type",
                "quantization_config",
                "text_config",
                "tie_word_embeddings",
                "architectures",
                "num_attention_heads",
                "hidden_size",
                "head_dim",
                "quantization",
            ]
        ),
        json_values,
        max_size=5,
    )
)
def test_any_configuration(config, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(good_safetensors())
    (tmp_path / "config.json").write_text(json.dumps(config))
    survives(tmp_path)


quantization_settings = st.fixed_dictionaries(
    {
        "quant_method": st.sampled_from(
            ["gptq", "awq", "compressed-tensors", "bitsandbytes", "mxfp4", "fp8", "modelopt"]
        )
    },
    optional=dict.fromkeys(
        (
            "bits",
            "group_size",
            "weight_block_size",
            "config_groups",
            "format",
            "dynamic",
            "sparsity_config",
            "version",
            "checkpoint_format",
        ),
        json_values,
    ),
)
parts = st.dictionaries(
    st.sampled_from(
        [
            "a.weight",
            "a.qweight",
            "a.qzeros",
            "a.scales",
            "a.g_idx",
            "a.weight_packed",
            "a.weight_scale",
            "a.weight_shape",
            "a.weight_zero_point",
            "a.weight_global_scale",
            "a.weight_g_idx",
            "a.SCB",
            "a.weight.absmax",
            "a.weight.quant_map",
            "a.weight.quant_state.bitsandbytes__nf4",
            "a_blocks",
            "a_scales",
            "a.weight_scale_inv",
            "a.weight_scale_2",
        ]
    ),
    st.tuples(
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from([torch.int32, torch.uint8, torch.int8, torch.float32, torch.float8_e4m3fn, torch.float16]),
    ),
    max_size=6,
)


@settings(SETTINGS, max_examples=150)
@given(settings_=quantization_settings, tensors=parts)
def test_any_parts_of_quantized_layers(settings_, tensors, tmp_path):
    made = {name: torch.zeros(shape).to(dtype) for name, (shape, dtype) in tensors.items()}
    (tmp_path / "model.safetensors").write_bytes(save(made))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings_}))
    survives(tmp_path)


def test_errors_are_the_workbenchs():
    assert issubclass(CheckpointError, WorkbenchError)
