"""Hadamard matrices, rotated values, and whole models whose residual stream is rotated."""

from __future__ import annotations

import block_zoo as zoo
import numpy as np
import pytest
import torch

from workbench.errors import QuantizationError
from workbench.methods import Run
from workbench.methods.transforms import parse_transform, rotate
from workbench.methods.transforms.hadamard import hadamard, orthogonal
from workbench.methods.transforms.rotation import fold_gains, residual_block, rotate_block


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 24, 28, 36, 64, 84, 96, 384])
def test_hadamard_rows_are_orthogonal_signs(size):
    found = hadamard(size)
    assert np.array_equal(np.abs(found), np.ones((size, size)))
    assert np.array_equal(found @ found.T, size * np.eye(size))


@pytest.mark.parametrize("size", [0, 3, 6, 172])
def test_where_no_construction_is_known_there_is_none(size):
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [1, 7, 16, 48, 172])
def test_rotations_are_orthogonal_and_by_seed(size):
    found = orthogonal(size, 3)
    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)
    np.testing.assert_array_equal(found, orthogonal(size, 3))
    if size > 1:
        assert not np.array_equal(found, orthogonal(size, 4))
    with pytest.raises(QuantizationError, match="at least one dimension"):
        orthogonal(0)


def test_rotated_values_lose_their_outliers():
    task = zoo.block_task("llama-mha", statistics=False)
    with torch.no_grad():
        task.module.self_attn.v_proj.weight[5] *= 30.0
    before, peak = zoo.outputs(task), float(task.module.self_attn.v_proj.weight.detach().abs().max())
    parse_transform("rotation").apply(task, Run(seed=1))
    assert zoo.moved(task, before) < 1e-6
    assert float(task.module.self_attn.v_proj.weight.detach().abs().max()) < 0.5 * peak


@pytest.mark.parametrize("family", ["llama", "llama-mha", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_rotated_model_computes_the_same(family):
    model = zoo.model(family)
    ids = zoo.tokens(model)[0]
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        embedding = model.model.embed_tokens.weight.clone()
        notes = parse_transform("rotation:residual=true").prepare(model, Run(seed=5))
        after = model(ids, use_cache=False).logits
    assert float((after - before).norm() / before.norm()) < 1e-5
    assert not torch.allclose(embedding, model.model.embed_tokens.weight)
    assert bool(notes) == (family == "qwen2")  # its head was tied to the embedding
    assert bool((model.model.norm.weight == 1.0).all())


def test_a_rotated_model_keeps_its_function_through_block_transforms():
    model = zoo.model("llama")
    ids = zoo.tokens(model)[0]
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        rotate(model, 1)
        inputs = []
        block = model.model.layers[1]
        handle = block.register_forward_pre_hook(lambda _, a, o: inputs.append((a, dict(o))), with_kwargs=True)
        model(ids, use_cache=False)
        handle.remove()
        task = zoo.task_of(block, inputs, statistics=False)
        parse_transform("smoothquant").apply(task)
        parse_transform("rotation").apply(task)
        after = model(ids, use_cache=False).logits
    assert float((after - before).norm() / before.norm()) < 1e-5


def test_one_block_alone_turns_its_inputs_and_outputs():
    """f'(x R) = f(x) R; transformers' RMSNorm computes in float32 whatever it is given."""
    task = zoo.block_task("llama-mha", statistics=False)
    block = task.module.double()
    matrix = torch.from_numpy(orthogonal(48, 2))

    def run(turn):
        (hidden, *rest), options = task.inputs[0]
        options = {
            name: tuple(each.double() for each in value) if name == "position_embeddings" else value
            for name, value in options.items()
        }
        if options.get("attention_mask") is not None and options["attention_mask"].is_floating_point():
            options["attention_mask"] = options["attention_mask"].double()
        with torch.no_grad():
            found = block(hidden.double() @ turn, *rest, **options)
        return found if isinstance(found, torch.Tensor) else found[0]

    before = run(torch.eye(48, dtype=torch.float64))
    with torch.no_grad():
        part = residual_block(block)
        fold_gains(part)
        rotate_block(part, matrix)
    assert float((run(matrix) - before @ matrix).norm() / before.norm()) < 1e-6


@pytest.mark.parametrize(
    ("family", "words"),
    [("gemma3", "behind its output layers"), ("bert", "parts of a pre-norm"), ("gpt2", "parts of a pre-norm")],
)
def test_families_whose_function_would_change_are_refused_untouched(family, words):
    model = zoo.model(family)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(QuantizationError, match=words):
        rotate(model)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_norms_that_take_the_mean_away_are_refused():
    with pytest.raises(QuantizationError, match="not made of one attention"):
        residual_block(zoo.block_task("opt", statistics=False).module)
    block = zoo.block_task("llama", statistics=False).module
    block.input_layernorm = torch.nn.LayerNorm(48)
    with pytest.raises(QuantizationError, match="takes the mean away"):
        residual_block(block)
