"""Modules, state dicts and arrays: shared weights once, types kept, pickles with code refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from workbench import open_model
from workbench.errors import CheckpointError


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(12, 4)
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.head = torch.nn.Linear(4, 12, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.block[0]
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.register_buffer("table", torch.ones(3, 3))


def test_a_module_shows_shared_parameters_once():
    module = Tied()
    model = open_model(module)
    assert list(model) == ["embed", "block.0", "block.1"]
    assert model.tied == {"head": "embed", "again": "block.0"}
    assert model["head"] is model["embed"]
    assert model.format == "module"
    assert model.parameters == 12 * 4 + 16 + 4
    assert {"block.1.running_mean", "table", "scale", "block.0.bias"} <= set(model.tensors)
    assert [model[name].kind for name in model] == ["embedding", "linear", "norm"]


def test_a_modules_weights_are_read_when_asked_and_its_key_follows_them():
    module = torch.nn.Linear(6, 3)
    layer = open_model(module)["weight"]
    first = layer.content_key
    assert first == open_model(module)["weight"].content_key
    with torch.no_grad():
        module.weight.data[1, 2] = 42
    assert layer.weight[1][2] == 42
    assert layer.content_key != first
    copy = layer.weight[0]
    copy[:] = 0
    assert module.weight[0].abs().sum() > 0


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_every_float_type_comes_out_bit_for_bit(dtype, contiguous):
    weight = torch.randn(7, 9).to(dtype)
    if not contiguous:
        weight = weight.t().contiguous().t()
    layer = open_model({"a.weight": weight})["a"]
    ours = np.asarray(layer.weight)
    assert ours.dtype.name == str(dtype).removeprefix("torch.")
    assert ours.tobytes() == weight.contiguous().view(torch.uint8).numpy().tobytes()
    assert layer.weight.rows(2, 5).tobytes() == ours[2:5].tobytes()


def test_arrays_of_any_layout():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    model = open_model({"a.weight": base.T, "b.weight": base.astype(ml_dtypes.bfloat16), "c": base[:, ::2]})
    assert np.array_equal(np.asarray(model["a"].weight), base.T)
    assert np.array_equal(model["a"].weight[2:4], base.T[2:4])
    assert model["b"].weight.dtype == ml_dtypes.bfloat16
    assert np.array_equal(np.asarray(model["c"].weight), base[:, ::2])
    key = model["a"].content_key
    base[0, 0] = 9
    assert model["a"].content_key != key


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "is a list"),
        (torch.zeros(3, 3, device="meta"), "meta device"),
        (torch.eye(3).to_sparse(), "make it dense"),
    ],
)
def test_values_without_plain_numbers(value, words):
    with pytest.raises(CheckpointError, match=words):
        open_model({"a.weight": value})


def test_encoded_modules_are_refused_by_their_package():
    import bitsandbytes

    module = torch.nn.Sequential(bitsandbytes.nn.Linear8bitLt(4, 4))
    with pytest.raises(CheckpointError, match="bitsandbytes Linear8bitLt"):
        open_model(module)


def test_gpt2_is_seen_as_out_in_rows_in_every_form(tmp_path):
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=20, bos_token_id=0, eos_token_id=0)
    module = transformers.GPT2LMHeadModel(config)
    expected = module.transformer.h[1].mlp.c_fc.weight.detach().numpy().T
    module.save_pretrained(tmp_path / "folder")
    torch.save(module.state_dict(), tmp_path / "alone.pt")
    sources = [module, tmp_path / "folder", tmp_path / "alone.pt", tmp_path / "folder" / "model.safetensors"]
    (tmp_path / "bare").mkdir()
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "bare" / "m.safetensors")
    (tmp_path / "folder" / "model.safetensors").symlink_to(tmp_path / "bare" / "m.safetensors")
    for source in [*sources, tmp_path / "bare"]:
        model = open_model(source)
        layer = model["transformer.h.1.mlp.c_fc"]
        assert layer.shape == layer.weight.shape == (64, 16)
        assert layer.role == "up_proj"
        assert np.array_equal(np.asarray(layer.weight), expected)
        assert np.array_equal(layer.weight[10:20], expected[10:20])
        assert model["transformer.h.0.attn.c_proj"].role == "o_proj"
        assert model["transformer.h.0.mlp.c_proj"].role == "down_proj"
        assert "transformer.h.0.attn.c_attn.k_proj" in model
        if source != tmp_path / "bare":
            assert model.tied == {"lm_head": "transformer.wte"}


def test_state_dicts_in_files(tmp_path):
    module = Tied()
    torch.save(module.state_dict(), tmp_path / "plain.pt")
    torch.save({"epoch": 3, "model": module.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pth")
    torch.save(module.state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("plain.pt", "wrapped.pth", "old.bin"):
        model = open_model(tmp_path / name)
        assert list(model) == ["table", "embed", "block.0", "block.1"]
        assert model.tied == {"head": "embed", "again": "block.0"} | (
            {"again.bias": "block.0.bias"} if "again.bias" in model.tied else {}
        )
        assert np.array_equal(np.asarray(model["embed"].weight), module.embed.weight.detach().numpy())
        assert model["embed"].content_key == open_model(tmp_path / name)["embed"].content_key
        assert model.format == "torch"


def test_folders_with_torch_files_only(tmp_path):
    import json

    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b.weight": torch.ones(3, 2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    index = {
        "weight_map": {"a.weight": "pytorch_model-00001-of-00002.bin", "b.weight": "pytorch_model-00002-of-00002.bin"}
    }
    assert list(open_model(tmp_path)) == ["a", "b"]
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert list(open_model(tmp_path)) == ["a", "b"]
    index["weight_map"]["b.weight"] = "../x.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        open_model(tmp_path)


class Bomb:
    def __reduce__(self):
        import os

        return (os.system, ("touch exploded",))


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, options in (("new.pt", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        torch.save({"a.weight": torch.ones(2, 2), "x": Bomb()}, tmp_path / name, **options)
        with pytest.raises(CheckpointError, match=r"holds more than tensors.*could run code") as caught:
            open_model(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save(Tied(), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"save model\.state_dict\(\) instead"):
        open_model(tmp_path / "module.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no readable torch file"),
        (b"nothing of the kind" * 10, "no readable torch file|more than tensors"),
        (b"PK\x03\x04" + bytes(100), "no readable torch file"),
        (b"\x80\x02}q\x00.", "no readable torch file|more than tensors|no state dict"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    ],
)
def test_files_that_are_no_state_dict(content, words, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_a_state_dict_that_was_cut_short(tmp_path):
    torch.save({"a.weight": torch.randn(100, 100)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no readable torch file"):
        open_model(tmp_path / "x.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        open_model(tmp_path / "list.pt")
