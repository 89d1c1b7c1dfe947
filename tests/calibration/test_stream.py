"""Streamed blocks give what the whole model gives, in the float stream and in the one of changed weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.calibration import BlockStream, Calibration
from workbench.calibration.blocks import is_layer
from workbench.calibration.forwarding import output_of
from workbench.checkpoints import open_model
from workbench.errors import Cancelled, CheckpointError
from workbench.resources import demo_path


def tiny(family: str):
    import transformers

    torch.manual_seed(5)
    if family == "llama":
        config = transformers.LlamaConfig(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, intermediate_size=48,
            vocab_size=61, max_position_embeddings=32,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_head=4, n_layer=3, vocab_size=61, n_positions=32, bos_token_id=1, eos_token_id=2
        )
        return transformers.GPT2LMHeadModel(config).eval()
    if family == "bert":
        config = transformers.BertConfig(
            hidden_size=32, num_attention_heads=4, num_hidden_layers=3, intermediate_size=48, vocab_size=61,
            max_position_embeddings=32,
        )  # fmt: skip
        return transformers.BertForSequenceClassification(config).eval()
    if family == "t5":
        config = transformers.T5Config(d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=48, vocab_size=61)
        return transformers.T5EncoderModel(config).eval()
    config = transformers.ViTConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, image_size=8, patch_size=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def inputs_of(family: str) -> Calibration:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return Calibration.from_loader([{"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}] * 2)
    batches = []
    for length in (9, 12):
        ids = torch.randint(3, 61, (2, length), generator=generator)
        mask = torch.ones_like(ids)
        if family == "bert":
            mask[1, 6:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return Calibration.from_loader(batches)


def plain(module, calibration, paths):
    """Inputs and outputs of modules, and the model's own output, of every batch: the model run as it is."""
    seen = {path: [] for path in paths}
    handles = [
        module.get_submodule(path).register_forward_hook(
            lambda _m, given, named, out, path=path: seen[path].append(
                (given[0] if given else named["hidden_states"], output_of(out))
            ),
            with_kwargs=True,
        )
        for path in paths
    ]
    with torch.no_grad():
        for batch in calibration.batches:
            module(*batch.arguments, **batch.options)
    for handle in handles:
        handle.remove()
    return seen


def hidden(call):
    given, named = call
    return given[0] if given else named["hidden_states"]


FAMILIES = ["llama", "gpt2", "bert", "t5", "vit"]


@pytest.fixture(scope="module", params=[*FAMILIES, "tiny-gemma3"])
def case(request, tmp_path_factory):
    """A model in memory, the same in a folder, and inputs."""
    if request.param == "tiny-gemma3":
        import transformers

        folder = demo_path("tiny-gemma3")
        module = transformers.Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return (
            module,
            folder,
            Calibration.from_texts(folder, ["import os\n" * 60, "import re\n" * 60], samples=3, length=150, batch=2),
        )
    module = tiny(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    module.save_pretrained(folder)
    return module, folder, inputs_of(request.param)


@pytest.mark.parametrize("lazily", [True, False])
def test_streamed_blocks_are_those_of_the_whole_model(case, lazily):
    module, folder, calibration = case
    stream = BlockStream(folder if lazily else module, calibration)
    assert stream.lazy == lazily
    names = [block.name for block in stream.blocks]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = plain(module, calibration, names)
    called = 0
    for block in stream:
        assert block.inputs is block.float_inputs
        assert not any(each.requires_grad or each.is_inference() for each in block.module.parameters())
        for number in range(len(calibration.batches)):
            given, gave = expected[block.name][number]
            torch.testing.assert_close(hidden(block.inputs[number]), given, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(block.targets[number], gave, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                output_of(block.module(*block.inputs[number][0], **block.inputs[number][1])), gave
            )
        called += 1
    assert called == len(stream) == len(names)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any("forward" in child.__dict__ for child in module.modules())
    listed = [layer for place in stream.blocks for layer in place.layers]
    assert len(set(listed)) == len(listed)
    assert all(layer in stream.model for layer in listed)


@pytest.mark.parametrize("lazily", [True, False])
def test_changes_travel_and_the_float_stream_stays(case, lazily):
    module, folder, calibration = case
    stream = BlockStream(folder if lazily else module, calibration)
    names = [block.name for block in stream.blocks]
    floats = plain(module, calibration, names)
    import copy

    changed = copy.deepcopy(module)
    if hasattr(changed, "lm_head"):  # changing a tied head must not change the embedding here
        changed.lm_head.weight = torch.nn.Parameter(changed.lm_head.weight.detach().clone())
    for path in names:
        for layer in changed.get_submodule(path).modules():
            if is_layer(layer) and path != "lm_head":
                layer.weight.data = (layer.weight.data * 8).round() / 8
    now = plain(changed, calibration, names)
    for number, block in enumerate(stream):
        targets = None if number % 2 else [target.clone() for target in block.targets]
        assert (block.inputs is block.float_inputs) == (number == 0)
        for name in block.places:
            if not block.tied:
                block.replace_weight(name, np.round(block.weight(name) * 8) / 8)
        for each in range(len(calibration.batches)):
            torch.testing.assert_close(hidden(block.inputs[each]), now[block.name][each][0], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(
                hidden(block.float_inputs[each]), floats[block.name][each][0], atol=1e-5, rtol=1e-5
            )
            # Asked for before or after the change: targets are the float block's.
            found = block.targets[each] if targets is None else targets[each]
            torch.testing.assert_close(found, floats[block.name][each][1], atol=1e-5, rtol=1e-5)


def test_gpt2_weights_are_shown_as_outputs_by_inputs(tmp_path):
    module = tiny("gpt2")
    module.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    block = next(iter(BlockStream(model, inputs_of("gpt2"))))
    names = [name for name in block.places if name.endswith(("c_attn", "c_fc"))]
    assert len(names) == 2
    for name in names:
        np.testing.assert_array_equal(block.weight(name), np.asarray(model[name].weight))
        block.replace_weight(name, block.weight(name) * 2)
        np.testing.assert_array_equal(block.weight(name), 2 * np.asarray(model[name].weight))
        bias = block.bias(name)
        assert bias is not None and bias.shape == (len(block.weight(name)),)
    assert block.changed


def test_gemma_blocks_are_told_their_own_masks(case):
    module, folder, calibration = case
    if "gemma" not in type(module).__name__.lower():
        pytest.skip("local and global layers are Gemma's")
    calls = [(block.name, block.inputs[0][1]) for block in BlockStream(folder, calibration) if "layers" in block.name]
    local, last = calls[0][1], calls[-1][1]
    assert local["attention_mask"] is not None  # 150 tokens, a window of 128
    assert last["attention_mask"] is None  # plain causal attention needs no mask
    assert not torch.equal(local["position_embeddings"][0], last["position_embeddings"][0])
    assert [place.tied for place in BlockStream(folder, calibration).blocks][-1]


def test_hidden_states_go_to_files_and_away(case, tmp_path):
    _, folder, calibration = case
    stream = BlockStream(folder, calibration, folder=tmp_path / "spill", memory=0)
    within = BlockStream(folder, calibration)
    for block, other in zip(stream, within, strict=True):
        assert list((tmp_path / "spill").rglob("*.bin"))
        assert torch.equal(block.targets[0], other.targets[0])
    assert not list((tmp_path / "spill").rglob("*.bin"))
    steps = iter(stream)
    next(steps)
    steps.close()  # a consumer that stops early
    blocks = list(stream)
    with pytest.raises(CheckpointError, match="has passed this block"):
        blocks[0].statistics(needs={"moments"})
    assert not list((tmp_path / "spill").rglob("*.bin"))


def test_progress_rises_and_stops_a_run(case):
    _, folder, calibration = case
    told = []
    for block in BlockStream(folder, calibration, progress=lambda fraction, label: told.append(fraction)):
        block.statistics(needs={"moments"})
        if block.name.endswith(".1"):
            block.output_gradients()
    assert told == sorted(told)
    assert told[-1] == 1.0

    def stop(fraction, label):
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        for block in BlockStream(folder, calibration, progress=stop):
            block.statistics(needs={"moments"})


def test_a_family_whose_experts_are_restacked_is_read_whole(tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=48,
        vocab_size=61, num_local_experts=4, max_position_embeddings=32,
    )  # fmt: skip
    module = transformers.MixtralForCausalLM(config).eval()
    module.save_pretrained(tmp_path)
    calibration = inputs_of("llama")
    stream = BlockStream(tmp_path, calibration)
    assert not stream.lazy
    expected = plain(module, calibration, [block.name for block in stream.blocks])
    for block in stream:
        torch.testing.assert_close(block.targets[1], expected[block.name][1][1], atol=1e-5, rtol=1e-5)
        assert not any("experts" in name for name in block.places)  # one stacked parameter is no layer of its own


def test_what_cannot_run_says_why(tmp_path):
    module = tiny("llama")
    with pytest.raises(CheckpointError, match="cannot run on these inputs"):
        BlockStream(module, Calibration.from_loader([torch.zeros(2, 3)]))
    module.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot run on these inputs"):
        BlockStream(tmp_path, Calibration.from_loader([torch.full((1, 4), 99)]))
    with pytest.raises(CheckpointError, match="is called with these inputs"):
        BlockStream(torch.nn.Sequential(torch.nn.ReLU()), Calibration.from_loader([torch.zeros(2, 3)]))
