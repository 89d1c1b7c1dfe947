"""Every transform leaves what a block computes as it is, for every family; a change that would not is undone."""

from __future__ import annotations

import block_zoo as zoo
import pytest
import torch

from workbench.errors import QuantizationError
from workbench.methods import Run
from workbench.methods.transforms import all_transforms, parse_transform
from workbench.methods.transforms.pairs import FoldablePair, fold, foldable_pairs, gain_offset
from workbench.methods.transforms.verified import change_if_equal

FAMILIES = ["gemma3", "llama", "llama-mha", "mistral", "qwen2", "qwen3", "phi3", "bert", "gpt2", "opt"]
TRANSFORMS = ["smoothquant:alpha=0.7", "smoothquant:inner=true", "awq:points=2", "rotation", "equalization"]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_stay(family):
    for text in TRANSFORMS:
        task = zoo.block_task(family, statistics=False)
        before = zoo.outputs(task)
        weights = {name: value.clone() for name, value in task.module.state_dict().items()}
        notes = parse_transform(text).apply(task)
        assert not [note for note in notes if "undone" in note]
        assert zoo.moved(task, before) < 5e-6
        changed = [name for name, value in task.module.state_dict().items() if not value.equal(weights[name])]
        if text == "equalization":
            assert bool(changed) == (family == "opt")
        elif text.startswith("smoothquant:alpha") and family == "bert":
            assert not changed
            assert "nothing was smoothed" in notes[0]
        elif not (text.startswith("awq") and family == "bert"):  # there no scaling is best
            assert changed, (family, text, notes)


def test_pairs_of_a_sandwich_norm_block_with_shared_values():
    found = foldable_pairs(zoo.block_task("gemma3", statistics=False).module)
    assert [str(pair) for pair in found] == [
        "input_layernorm -> self_attn.q_proj, self_attn.k_proj, self_attn.v_proj",
        "self_attn.v_proj -> self_attn.o_proj",
        "pre_feedforward_layernorm -> mlp.gate_proj, mlp.up_proj",
        "mlp.up_proj -> mlp.down_proj",
    ]
    assert (found[1].heads, found[1].repeats) == (4, 4)


class Expert(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = torch.nn.Linear(8, 12), torch.nn.Linear(8, 12)
        self.down_proj = torch.nn.Linear(12, 8)

    def forward(self, x):
        return self.down_proj(torch.relu(self.gate_proj(x)) * self.up_proj(x))


class Experts(torch.nn.Module):
    """A norm that a router and two experts read."""

    def __init__(self):
        super().__init__()
        self.post_attention_layernorm = torch.nn.LayerNorm(8)
        self.router = torch.nn.Linear(8, 2)
        self.experts = torch.nn.ModuleList([Expert(), Expert()])

    def forward(self, x):
        y = self.post_attention_layernorm(x)
        share = self.router(y).softmax(-1)
        return x + sum(share[..., n : n + 1] * expert(y) for n, expert in enumerate(self.experts))


def test_a_norm_that_several_parts_read_is_left_alone():
    torch.manual_seed(0)
    block = Experts()
    assert [pair.kind for pair in foldable_pairs(block)] == ["product", "product"]
    task = zoo.task_of(block, [((torch.randn(2, 5, 8),), {})], statistics=False)
    before = zoo.outputs(task)
    assert parse_transform("smoothquant:inner=true").apply(task) == ()
    assert zoo.moved(task, before) < 1e-5


def test_shared_values_take_factors_that_are_equal_over_their_heads():
    task = zoo.block_task("llama", statistics=False)
    pair = foldable_pairs(task.module)[1]
    assert pair.repeats == 2
    own = torch.rand(2, 12) + 0.5
    before = zoo.outputs(task)
    with torch.no_grad():
        fold(task.module, pair, own[:, None].expand(2, 2, 12).reshape(-1))
    assert zoo.moved(task, before) < 1e-6


def test_a_gain_is_found_whether_or_not_one_is_added():
    assert gain_offset(zoo.block_task("gemma3", statistics=False).module.input_layernorm) == 1.0
    norm = zoo.block_task("llama", statistics=False).module.input_layernorm
    kept = norm.weight.clone()
    assert gain_offset(norm) == 0.0
    assert norm.weight.equal(kept)
    assert gain_offset(torch.nn.LayerNorm(4)) == 0.0


def test_what_would_change_the_function_is_undone_and_told():
    """A norm that the residual stream reads as well (post-norm) looks like a producer; folding into it is no identity."""
    task = zoo.block_task("bert", statistics=False)
    lie = FoldablePair("norm", "attention.output.LayerNorm", ("intermediate.dense",))
    weights = {name: value.clone() for name, value in task.module.state_dict().items()}
    note = change_if_equal(task, "folding", lambda: fold(task.module, lie, torch.linspace(0.5, 2.0, 48)))
    assert note is not None
    assert "folding was undone" in note
    assert all(value.equal(weights[name]) for name, value in task.module.state_dict().items())


def test_an_error_halfway_leaves_the_block_as_it_was():
    task = zoo.block_task("llama", statistics=False)
    weights = {name: value.clone() for name, value in task.module.state_dict().items()}

    def change():
        task.module.mlp.up_proj.weight.data.zero_()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_if_equal(task, "nothing", change)
    assert all(value.equal(weights[name]) for name, value in task.module.state_dict().items())


def test_without_inputs_nothing_can_be_checked():
    task = zoo.block_task("llama", statistics=False)
    task.inputs = []
    with pytest.raises(QuantizationError, match="at least one batch"):
        parse_transform("rotation").apply(task)
    with pytest.raises(QuantizationError, match="given nothing"):
        parse_transform("smoothquant").apply(task)


def test_factors_must_be_positive_and_as_many_as_channels():
    task = zoo.block_task("llama", statistics=False)
    pair = foldable_pairs(task.module)[0]
    for factors in (torch.ones(3), torch.zeros(48), torch.full((48,), float("nan"))):
        with pytest.raises(QuantizationError, match="48 positive factors"):
            fold(task.module, pair, factors)


@pytest.mark.parametrize(
    "text", ["smoothquant", "smoothquant:alpha=0.8,inner=true", "awq", "rotation:residual=true,seed=3"]
)
def test_text_form_reads_back_equal(text):
    transform = parse_transform(text)
    assert str(transform) == text
    assert parse_transform(transform) is transform


def test_all_transforms_have_words_for_people():
    assert list(all_transforms()) == ["smoothquant", "awq", "rotation", "equalization"]
    assert all(each.title and each.summary for each in all_transforms().values())
    assert parse_transform("rotation").prepare(torch.nn.Linear(2, 2), Run()) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smoothqant", "did you mean smoothquant"),
        ("smoothquant:beta=1", "no setting 'beta'"),
        ("smoothquant:alpha=2", "between 0 and 1"),
        ("awq:points=0", "at least one alpha"),
        ("equalization:rounds=0", "at least one round"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(text, words):
    with pytest.raises(QuantizationError, match=words):
        parse_transform(text)
