"""GGUF: the gguf package writes, reads and dequantizes; we must agree on every tensor, and refuse what lies."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from workbench import open_model
from workbench.checkpoints.gguf_file import read_gguf
from workbench.errors import CheckpointError


def can_dequantize(kind: Type) -> bool:
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


BLOCK_TYPES = [kind for kind in Type if GGML_QUANT_SIZES[kind][0] > 1 and can_dequantize(kind)]
REFUSED_TYPES = [kind for kind in Type if GGML_QUANT_SIZES[kind][0] > 1 and not can_dequantize(kind)]


def block_bytes(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Random blocks: half-precision scales kept finite, all else any bytes."""
    size, width = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(int(kind)).integers(0, 256, (rows, columns // size * width)).astype(np.uint8)
    if kind.name in {"Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1"}:
        return gguf.quantize(np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32), kind)
    return data


def write(path, tensors, *, architecture="llama", fill=lambda writer: None):
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    for name, value, kind in tensors:
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_every_block_type_is_the_packages_dequantization(kind, tmp_path):
    rows, columns = 6, 512
    path = write(tmp_path / "m.gguf", [("blk.0.ffn_up.weight", block_bytes(kind, rows, columns), kind)])
    reader = gguf.GGUFReader(path)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(reader.tensors[0].data, kind)
    layer = open_model(path)["blk.0.ffn_up"]
    assert (layer.shape, layer.dtype, layer.role) == ((rows, columns), kind.name.lower(), "up_proj")
    ours = np.asarray(layer.weight)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, expected, equal_nan=True)
    assert np.array_equal(layer.weight.rows(2, 4), expected[2:4], equal_nan=True)
    tensor = open_model(path).tensors["blk.0.ffn_up.weight"]
    assert np.array_equal(tensor.elements(700, 1111), expected.reshape(-1)[700:1111], equal_nan=True)


def test_all_types_that_the_package_dequantizes_were_tried():
    assert len(BLOCK_TYPES) >= 22
    assert {"Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "TQ1_0", "NVFP4"} <= {kind.name for kind in BLOCK_TYPES}


@pytest.mark.parametrize("kind", REFUSED_TYPES, ids=lambda kind: kind.name)
def test_types_without_a_decoder_are_refused_by_name(kind, tmp_path):
    path = write(tmp_path / "m.gguf", [("a.weight", block_bytes(kind, 2, 512), kind)])
    with pytest.raises(CheckpointError, match=f"type {kind.name}, which the installed gguf package cannot dequantize"):
        open_model(path)


def test_plain_types_keep_their_bits_and_metadata_their_words(tmp_path):
    values = np.random.default_rng(2).normal(size=(8, 64))

    def fill(writer):
        writer.add_name("A small model")
        writer.add_embedding_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_token_list([f"token {number}" for number in range(3000)])
        writer.add_array("some.numbers", [1, 2, 3])
        writer.add_array("many.numbers", [0.5] * 3000)
        writer.add_bool("a.truth", True)

    path = write(
        tmp_path / "m.gguf",
        [
            ("token_embd.weight", values.astype(np.float16), None),
            ("blk.10.attn_qkv.weight", np.concatenate([values] * 16).astype(np.float32), None),
            ("blk.2.attn_qkv.weight", np.concatenate([values] * 16).astype(np.float32), None),
            ("blk.2.attn_qkv.bias", values[0].astype(np.float32), None),
            ("output_norm.weight", values[0].astype(np.float32), None),
            ("blk.2.attn_norm.weight", values[0].astype(np.float32), None),
            ("blk.2.ffn_gate_exps.weight", np.stack([values] * 3).astype(np.float32), None),
            ("counts", np.arange(4, dtype=np.int32), None),
        ],
        fill=fill,
    )
    model = open_model(path)
    assert list(model.layers) == [
        "token_embd",
        "blk.2.attn_norm",
        *[f"blk.2.attn_qkv.{part}_proj" for part in "qkv"],
        "blk.2.ffn_gate_exps",
        *[f"blk.10.attn_qkv.{part}_proj" for part in "qkv"],
        "output_norm",
    ]
    assert model["token_embd"].weight.dtype == np.float16
    assert model["token_embd"].kind == "embedding"
    assert model.tied == {"output": "token_embd"}
    assert model["blk.2.attn_qkv.k_proj"].weight.shape == (32, 64)
    assert model["blk.2.attn_qkv"].weight.shape == (128, 64)
    assert np.array_equal(
        np.asarray(model["blk.2.attn_qkv.v_proj"].weight), np.concatenate([values] * 4).astype(np.float32)
    )
    assert model["blk.2.ffn_gate_exps"].weight.shape == (24, 64)
    assert model.config["tokenizer.ggml.tokens"] == "3000 texts"
    assert model.config["many.numbers"] == "3000 numbers"
    assert model.config["some.numbers"] == [1, 2, 3]
    assert model.config["a.truth"] is True
    assert model.tensors["counts"].read().tolist() == [0, 1, 2, 3]
    reference = gguf.GGUFReader(path)
    assert {tensor.name for tensor in reference.tensors} == set(model.tensors)
    for tensor in reference.tensors:
        assert np.array_equal(model.tensors[tensor.name].read(), tensor.data)


def test_a_second_scale_in_a_tensor_of_its_own(tmp_path):
    blocks = block_bytes(Type.Q8_0, 4, 64)
    path = write(
        tmp_path / "m.gguf",
        [("blk.0.attn_q.weight", blocks, Type.Q8_0), ("blk.0.attn_q.scale", np.array([0.25], np.float32), None)],
        architecture="bitnet",
    )
    model = open_model(path)
    assert list(model.layers) == ["blk.0.attn_q"]
    assert np.array_equal(
        np.asarray(model["blk.0.attn_q"].weight), gguf.dequantize(blocks, Type.Q8_0) * np.float32(0.25)
    )
    wrong = write(
        tmp_path / "w.gguf",
        [("blk.0.attn_q.weight", blocks, Type.Q8_0), ("blk.0.attn_q.scale", np.ones(3, np.float32), None)],
    )
    with pytest.raises(CheckpointError, match="holds 3 scales"):
        open_model(wrong)


def split_parts(folder, count):
    for number in range(count):

        def fill(writer, number=number):
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", count)
            writer.add_int32("split.tensors.count", count)

        write(
            folder / f"big-{number + 1:05}-of-{count:05}.gguf",
            [(f"blk.{number}.attn_q.weight", np.full((4, 32), number, np.float32), None)],
            fill=fill,
        )


def test_split_models_open_whole_from_any_part_or_the_folder(tmp_path):
    split_parts(tmp_path, 3)
    for source in (tmp_path, tmp_path / "big-00002-of-00003.gguf"):
        model = open_model(source)
        assert list(model.layers) == [f"blk.{number}.attn_q" for number in range(3)]
        assert model["blk.2.attn_q"].weight[0][0] == 2
    (tmp_path / "big-00003-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"big-00003-of-00003\.gguf"):
        open_model(tmp_path)
    (tmp_path / "big-00001-of-00003.gguf").rename(tmp_path / "alone.gguf")
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        open_model(tmp_path / "alone.gguf")


def test_a_folder_with_several_models_asks_for_one(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name, [("a.weight", np.ones((2, 32), np.float32), None)])
    with pytest.raises(CheckpointError, match=r"2 gguf files \(a.gguf, b.gguf\) and no index"):
        open_model(tmp_path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, version=3, tensors=1, keys=0, body=b"", data=b"\0" * 256) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body
    return head + b"\0" * (-len(head) % 32) + data


def tensor(name="a.weight", sides=(32, 2), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


DAMAGED = {
    "empty": (b"", "does not start with"),
    "letters": (b"GGML" + bytes(40), "does not start with"),
    "version 1": (header(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many tensors": (header(tensors=2**40), "more than any model has"),
    "too many keys": (header(keys=2**63), "more than any model has"),
    "tensors missing": (header(tensors=9, body=tensor(), data=b""), "cut short"),
    "no data": (header(body=tensor(), data=b""), "beyond the end"),
    "offset beyond": (header(body=tensor(offset=2**40)), "beyond the end"),
    "offset not aligned": (header(body=tensor(offset=8)), "no multiple of the alignment"),
    "huge sides": (header(body=tensor(sides=(2**60, 2**60))), "impossible size"),
    "five dimensions": (header(body=tensor(sides=(1, 1, 1, 1, 1))), "5 dimensions"),
    "unknown type": (header(body=tensor(kind=4)), "unknown ggml type 4"),
    "half a block": (header(body=tensor(sides=(33, 2), kind=2)), "no multiple of Q4_0's blocks"),
    "overlap": (header(tensors=2, body=tensor() + tensor("b.weight", offset=32), data=bytes(600)), "overlap"),
    "same name": (header(tensors=2, body=tensor() + tensor(offset=256), data=bytes(600)), "twice"),
    "key twice": (header(tensors=0, keys=2, body=(text("k") + struct.pack("<IB", 0, 1)) * 2), "names 'k' twice"),
    "unknown value type": (header(tensors=0, keys=1, body=text("k") + struct.pack("<I", 99)), "unknown type 99"),
    "long text": (header(tensors=0, keys=1, body=struct.pack("<Q", 2**50)), "bytes long"),
    "long array": (header(tensors=0, keys=1, body=text("k") + struct.pack("<IIQ", 9, 8, 2**50)), "elements"),
    "long numbers": (header(tensors=0, keys=1, body=text("k") + struct.pack("<IIQ", 9, 4, 2**50)), "cut short"),
    "nested arrays": (
        header(tensors=0, keys=1, body=text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9),
        "unknown type 9",
    ),
    "no UTF-8": (header(tensors=0, keys=1, body=struct.pack("<Q", 2) + b"\xff\xfe"), "UTF-8"),
    "alignment 0": (
        header(tensors=0, keys=1, body=text("general.alignment") + struct.pack("<II", 4, 0)),
        "no power of two",
    ),
    "alignment 48": (
        header(tensors=0, keys=1, body=text("general.alignment") + struct.pack("<II", 4, 48)),
        "no power of two",
    ),
    "alignment text": (
        header(tensors=0, keys=1, body=text("general.alignment") + struct.pack("<I", 8) + text("x")),
        "no power of two",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_told_in_one_sentence(case, tmp_path):
    content, words = DAMAGED[case]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_gguf([tmp_path / "bad.gguf"])
    assert words in str(caught.value)
    assert str(caught.value).startswith("'bad.gguf' cannot be opened as GGUF")
    assert "\n" not in str(caught.value)


def test_the_header_built_by_hand_is_right(tmp_path):
    (tmp_path / "good.gguf").write_bytes(header(body=tensor()))
    assert open_model(tmp_path / "good.gguf")["a"].shape == (2, 32)
