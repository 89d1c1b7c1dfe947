"""Safetensors: the same numbers as the reference package, and one clear sentence for each kind of damage."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from files_by_hand import entry, raw_safetensors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from workbench import open_model
from workbench.checkpoints.files import CheckpointFile
from workbench.checkpoints.safetensors_file import read_safetensors
from workbench.errors import CheckpointError

TORCH_TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def test_every_type_reads_as_the_reference_package_reads_it(tmp_path):
    generator = torch.Generator().manual_seed(1)
    saved = {
        f"t.{str(kind).removeprefix('torch.')}": (torch.randn(7, 5, generator=generator) * 3).to(kind)
        for kind in TORCH_TYPES
    }
    saved |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "row": torch.arange(9, dtype=torch.float32)}
    save_file(saved, tmp_path / "all.safetensors", metadata={"made": "here"})
    file, tensors, metadata = read_safetensors(tmp_path / "all.safetensors")
    reference = load_file(tmp_path / "all.safetensors")
    assert metadata == {"made": "here"}
    assert {tensor.name for tensor in tensors} == set(reference)
    for tensor in tensors:
        expected = reference[tensor.name]
        ours = tensor.read()
        assert ours.shape == tuple(expected.shape)
        assert ours.tobytes() == expected.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert tensor.elements(2, 5).tobytes() == ours.reshape(-1)[2:5].tobytes()
    file.close()


def test_sixteen_bit_weights_stay_sixteen_bit_codes(tmp_path):
    weight = torch.randn(6, 10).to(torch.bfloat16)
    save_file({"a.b.weight": weight}, tmp_path / "m.safetensors")
    layer = open_model(tmp_path / "m.safetensors")["a.b"]
    assert layer.dtype == "bfloat16"
    assert layer.weight.dtype == ml_dtypes.bfloat16
    assert np.array_equal(layer.weight[1:4].view(np.int16), weight[1:4].view(torch.int16).numpy())
    assert layer.weight.nbytes == 120


DAMAGED = {
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "overlap"),
    "gap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 12, 16)}, 16, "belong to no tensor"),
    "hole at the start": ({"a": entry("F32", [2], 8, 16)}, 16, "belong to no tensor"),
    "bytes left over": ({"a": entry("F32", [2], 0, 8)}, 9, "1 bytes at its end belong to no tensor"),
    "beyond the file": ({"a": entry("F32", [2], 0, 8)}, 4, "cut short"),
    "far beyond": ({"a": entry("F32", [2**40], 0, 2**42)}, 4, "cut short"),
    "negative offset": ({"a": entry("F32", [2], -8, 0)}, 8, "data_offsets"),
    "backwards": ({"a": entry("F32", [0], 8, 0)}, 8, "span -8"),
    "wrong size": ({"a": entry("F32", [3], 0, 8)}, 8, "takes 12 bytes"),
    "negative shape": ({"a": entry("F32", [-2, -1], 0, 8)}, 8, "sizes from 0"),
    "fraction in shape": ({"a": entry("F32", [2.0], 0, 8)}, 8, "sizes from 0"),
    "truth in shape": ({"a": entry("F32", [True, 2], 0, 8)}, 8, "sizes from 0"),
    "shape overflow": ({"a": entry("F32", [2**62, 2**62, 0], 0, 0)}, 0, "sizes from 0"),
    "too many dimensions": ({"a": entry("F32", [1] * 40, 0, 4)}, 4, "at most 32"),
    "shape no list": ({"a": entry("F32", 8, 0, 8)}, 8, "must be a list"),  # type: ignore[arg-type]
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, 8, "two whole numbers"),
    "unknown dtype": ({"a": entry("F31", [2], 0, 8)}, 8, "unknown dtype 'F31'"),
    "dtype no text": ({"a": entry(3, [2], 0, 8)}, 8, "unknown dtype 3"),  # type: ignore[arg-type]
    "sub-byte dtype": ({"a": entry("F4", [2], 0, 1)}, 1, "packed type F4"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "exactly dtype, shape and data_offsets"),
    "extra key": ({"a": entry("F32", [2], 0, 8) | {"x": 1}}, 8, "exactly dtype, shape and data_offsets"),
    "entry no object": ({"a": 3}, 0, "exactly dtype, shape and data_offsets"),
    "metadata no object": ({"__metadata__": 3}, 0, "__metadata__"),
    "metadata no texts": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "list": ([], 0, "does not start with"),
    "not a number": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', 4, "NaN"),
    "infinity": (b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}', 4, "Infinity"),
    "huge integer": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 6000 + b'], "data_offsets": [0, 4]}}', 4, "JSON"),
    "twice": (
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        4,
        "names 'a' twice",
    ),
    "not UTF-8": (b'{"\xff": 1}', 0, "UTF-8"),
    "lone surrogate": (b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4, "valid Unicode"),
    "no JSON": (b'{"a": ', 0, "not valid JSON"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, 0, "not valid JSON"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_told_in_one_sentence(case, tmp_path):
    header, data_bytes, words = DAMAGED[case]
    path = raw_safetensors(tmp_path / "bad.safetensors", header, bytes(data_bytes))
    with pytest.raises(CheckpointError) as caught:
        open_model(path)
    text = str(caught.value)
    assert words in text
    assert text.startswith("'bad.safetensors' cannot be opened as safetensors")
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    "case", [case for case in DAMAGED if case not in {"truth in shape", "deep nesting", "sub-byte dtype"}]
)
def test_the_reference_package_refuses_nothing_that_we_accept(case, tmp_path):
    """Each damaged file that we refuse and the reference reads would be a file that users cannot open: list them."""
    header, data_bytes, _ = DAMAGED[case]
    path = raw_safetensors(tmp_path / "bad.safetensors", header, bytes(data_bytes))
    stricter_than_reference = {"extra key", "too many dimensions", "twice"}
    if case in stricter_than_reference:
        return
    with pytest.raises((SafetensorError, OSError, OverflowError)), safe_open(path, framework="np") as opened:
        opened.keys()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "fewer than the 8"),
        (b"\x01\x02", "fewer than the 8"),
        ((2**63).to_bytes(8, "little") + b"{}", "over the format's limit"),
        ((10**8 + 1).to_bytes(8, "little") + b"{}", "over the format's limit"),
        ((500).to_bytes(8, "little") + b"{}", "only 2 follow"),
        ((1).to_bytes(8, "little") + b"{}", "too short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "over the format's limit"),
    ],
)
def test_what_is_no_safetensors_file(content, words, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        open_model(tmp_path / "x.safetensors")


def test_an_empty_model_and_a_padded_header_are_fine(tmp_path):
    assert len(open_model(raw_safetensors(tmp_path / "none.safetensors", {}))) == 0
    padded = json.dumps({"a.weight": entry("F32", [1, 2], 0, 8)}).encode() + b" " * 7
    model = open_model(raw_safetensors(tmp_path / "padded.safetensors", padded, bytes(8)))
    assert model["a"].shape == (1, 2)


def test_a_zero_sized_tensor_is_a_layer_without_weights(tmp_path):
    save_file({"a.weight": torch.zeros(0, 8), "b.weight": torch.zeros(4, 0)}, tmp_path / "m.safetensors")
    model = open_model(tmp_path / "m.safetensors")
    assert np.asarray(model["a"].weight).shape == (0, 8)
    assert np.asarray(model["b"].weight).shape == (4, 0)
    assert model.parameters == 0


def test_a_file_that_shrinks_after_opening_is_reported(tmp_path):
    save_file({"a.weight": torch.randn(64, 64)}, tmp_path / "m.safetensors")
    model = open_model(tmp_path / "m.safetensors")
    with (tmp_path / "m.safetensors").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(CheckpointError, match="cut short after it was opened"):
        model["a"].weight[40:]


def test_closing_is_final_and_files_pickle_by_path(tmp_path):
    import pickle

    save_file({"a.weight": torch.eye(3)}, tmp_path / "m.safetensors")
    with open_model(tmp_path / "m.safetensors") as model:
        layer = model["a"]
        again = pickle.loads(pickle.dumps(layer))
        assert again.content_key == layer.content_key
    assert np.array_equal(np.asarray(again.weight), np.eye(3))
    pickled = pickle.dumps(again)
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(CheckpointError, match="changed since"):
        pickle.loads(pickled)
    with pytest.raises(CheckpointError, match="was closed with its model"):
        layer.weight[0]


def test_content_keys_tell_tensors_and_rewritten_files_apart(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.eye(3), "b.weight": torch.eye(3)}, path)
    first = open_model(path)
    assert first["a"].content_key == open_model(path)["a"].content_key
    assert first["a"].content_key != first["b"].content_key
    path.unlink()
    save_file({"a.weight": torch.zeros(3, 3), "b.weight": torch.eye(3)}, path)
    assert open_model(path)["a"].content_key != first["a"].content_key


def test_files_are_closed_when_a_header_is_refused(tmp_path):
    import psutil

    before = psutil.Process().num_fds()
    path = raw_safetensors(tmp_path / "bad.safetensors", {"a": entry("F31", [2], 0, 8)}, bytes(8))
    for _ in range(20):
        with pytest.raises(CheckpointError):
            read_safetensors(path)
    assert psutil.Process().num_fds() <= before + 1


def test_reads_beyond_the_end_and_on_folders_raise(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    with pytest.raises(CheckpointError, match="ends at byte 5"):
        CheckpointFile(tmp_path / "f").read(3, 10)
    with pytest.raises(CheckpointError, match="no file"):
        CheckpointFile(tmp_path / "missing")
