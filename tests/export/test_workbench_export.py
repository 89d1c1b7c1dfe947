"""Quantized models as folders: what is written, that it comes back bit for bit, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "methods"))
from small_models import chain, llama_folder, row_calibration, token_calibration

from workbench.checkpoints import open_model
from workbench.checkpoints.safetensors_file import read_safetensors
from workbench.errors import CheckpointError, QuantizationError
from workbench.export.workbench_format import save_model
from workbench.methods.model_result import QuantizedModel
from workbench.methods.runner import quantize_model
from workbench.quantization.recipe import Entry, Recipe
from workbench.resources import demo_path

MIXED = Recipe(
    (
        Entry("*", weight="uniform:bits=3", method="gptq", activation="int8@token"),
        Entry("*.q_proj", weight="power:bits=4,exponent=search", granularity="group:8", method="powerquant"),
        Entry("*.k_proj", weight="uniform:bits=4,range=asymmetric", activation="uniform:bits=8"),
        Entry("*.v_proj", weight="nf4", granularity="group:16", method="rtn"),
        Entry("*.up_proj", weight="mxfp4", granularity="group:32", method="rtn"),
    ),
    transforms=("smoothquant:alpha=0.5",),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = llama_folder(tmp_path_factory.mktemp("export") / "small-llama")
    found = quantize_model(folder, MIXED, token_calibration(), seed=7)
    return found, found.save(folder.parent / "out")


def test_open_model_reads_the_very_numbers(saved):
    found, folder = saved
    model = open_model(folder)
    assert model.quantization == "workbench"
    for name, result in found.layers.items():
        layer = model[name]
        expected = result.quantized.dequantize()
        assert layer.shape == expected.shape
        assert layer.dtype.startswith("workbench-")
        assert np.asarray(layer.weight).tobytes() == expected.tobytes()
        np.testing.assert_array_equal(layer.weight[3:9], expected[3:9])
    assert model["model.embed_tokens"].dtype == "float32"
    assert [layer.name for layer in model.layers.values()] == [
        layer.name for layer in open_model(found.source.source).layers.values()
    ]


def test_loading_gives_the_same_model(saved):
    found, folder = saved
    loaded = QuantizedModel.load(folder)
    assert loaded.recipe == MIXED
    assert (loaded.seed, loaded.calibration, loaded.ranges) == (7, found.calibration, found.ranges)
    assert set(loaded.layers) == set(found.layers)
    assert loaded.bits_per_weight == pytest.approx(found.bits_per_weight)
    assert loaded.nbytes == found.nbytes
    for name, result in found.layers.items():
        again = loaded.layers[name]
        np.testing.assert_array_equal(again.quantized.codes, result.quantized.codes)
        assert again.to_dict() == result.to_dict()
        assert again.trace == result.trace
    tokens = token_calibration().batches[0].options
    with torch.no_grad():
        torch.testing.assert_close(loaded.module()(**tokens).logits, found.module()(**tokens).logits, atol=0, rtol=0)


def test_a_loaded_model_can_be_saved_again(saved, tmp_path):
    _, folder = saved
    again = QuantizedModel.load(folder).save(tmp_path / "again")
    one, other = (read_safetensors(place / "model.safetensors")[1] for place in (folder, again))
    assert {tensor.name: tensor.read().tobytes() for tensor in one} == {
        tensor.name: tensor.read().tobytes() for tensor in other
    }


def test_the_folder_says_where_it_comes_from_without_paths(saved):
    _, folder = saved
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "recipe.yaml", "quantization.json", "LICENSE"} <= names
    _, _, metadata = read_safetensors(folder / "model.safetensors")
    assert metadata["seed"] == "7"
    assert "gptq" in metadata["methods"]
    texts = [(folder / name).read_text() for name in ("config.json", "quantization.json", "recipe.yaml")]
    assert not any(str(folder.parent) in text for text in [*texts, json.dumps(metadata)])
    config = json.loads(texts[0])
    assert config["model_type"] == "llama"
    assert config["quantization_config"]["layers"]["model.layers.0.self_attn.k_proj"]["range"]


def test_the_file_is_as_large_as_its_bits_say(tmp_path):
    chosen = Recipe((Entry("*", weight="uniform:bits=3", granularity="group:64", method="rtn"),))
    found = quantize_model(demo_path("tiny-gemma3"), chosen)
    folder = found.save(tmp_path / "out")
    size = (folder / "model.safetensors").stat().st_size
    assert size == pytest.approx(found.nbytes, rel=0.01)
    quantized = set(found.layers)
    codes = sum(
        tensor.nbytes
        for tensor in read_safetensors(folder / "model.safetensors")[1]
        if tensor.name.split(".weight.")[0] in quantized and ".weight." in tensor.name
    )
    weights = sum(report["weights"] for report in found.reports.values())
    assert codes * 8 / weights == pytest.approx(found.bits_per_weight, rel=0.01)
    assert found.tokenizer is not None
    assert QuantizedModel.load(folder).tokenizer is not None


def test_shards_have_an_index(saved, tmp_path):
    found, folder = saved
    place = save_model(found, tmp_path / "shards", shard_bytes=6000)
    assert len(list(place.glob("model-*-of-*.safetensors"))) > 2
    one, other = open_model(folder), open_model(place)
    for name in one.layers:
        np.testing.assert_array_equal(np.asarray(one[name].weight), np.asarray(other[name].weight))


def test_modules_in_memory_are_saved_too(tmp_path):
    found = quantize_model(
        chain(),
        Recipe((Entry("*", weight="uniform:bits=4", method="gptq"),), transforms=("bias-correction",)),
        row_calibration(),
    )
    model = open_model(found.save(tmp_path / "chain"))
    np.testing.assert_array_equal(np.asarray(model["second"].weight), found.layers["second"].quantized.dequantize())
    np.testing.assert_array_equal(model.tensors["first.bias"].read(), found.changed["first.bias"])
    loaded = QuantizedModel.load(tmp_path / "chain")
    np.testing.assert_array_equal(loaded.layers["first"].bias, found.layers["first"].bias)


def test_convolutions_come_back_as_a_module(tmp_path):
    found = quantize_model("demo:tiny-resnet", Recipe((Entry("*", weight="uniform:bits=5", method="rtn-clip"),)))
    loaded = QuantizedModel.load(found.save(tmp_path / "out"))
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module()(images), found.module()(images), atol=0, rtol=0)


def other_family(folder, family):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":  # weights stored as their transposes, query, key and value in one
        config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, **sizes)
        model = transformers.GPT2LMHeadModel(config)
    else:  # experts that a checkpoint keeps apart and the program joins
        config = transformers.MixtralConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=2,
            **sizes,
        )
        model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_other_layouts_come_back(tmp_path, family):
    model = other_family(tmp_path / "float", family)
    chosen = Recipe((Entry("*", weight="uniform:bits=8", method="rtn-clip"),))
    found = quantize_model(tmp_path / "float", chosen)
    loaded = QuantizedModel.load(found.save(tmp_path / "out"))
    tokens = token_calibration().batches[0].options
    with torch.no_grad():
        made, true = found.module()(**tokens).logits, model(**tokens).logits
        torch.testing.assert_close(loaded.module()(**tokens).logits, made, atol=0, rtol=0)
    assert float((made - true).square().mean() / true.square().mean()) < 1e-3
    with pytest.raises(QuantizationError, match="is stored as workbench"):
        quantize_model(tmp_path / "out", chosen)


def test_nothing_is_overwritten_and_damage_is_told(saved, tmp_path):
    found, folder = saved
    with pytest.raises(CheckpointError, match="already holds a model"):
        found.save(folder)
    with pytest.raises(CheckpointError, match="no model that the workbench quantized"):
        QuantizedModel.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        found.save(tmp_path / "file" / "out")
    place = found.save(tmp_path / "damaged")
    report = json.loads((place / "quantization.json").read_text())
    del report["layers"]["lm_head"]
    (place / "quantization.json").write_text(json.dumps(report))
    with pytest.raises(CheckpointError, match="does not fit its weights"):
        QuantizedModel.load(place)
