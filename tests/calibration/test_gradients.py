"""Gradients of the loss at blocks and layers against autograd on the model itself, and what they estimate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.calibration import BlockStream, Calibration
from workbench.calibration.blocks import is_layer
from workbench.calibration.runnable import resnet_module
from workbench.errors import CheckpointError
from workbench.resources import demo_path


@pytest.fixture(scope="module")
def gemma():
    import transformers

    folder = demo_path("tiny-gemma3")
    module = transformers.Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    calibration = Calibration.from_texts(
        folder, ["x = [1, 2]\n" * 40, "def f(a):\n    return a\n" * 20], samples=3, length=24, batch=2
    )
    return folder, module, calibration


def test_a_language_models_gradients_are_autograds(gemma):
    folder, module, calibration = gemma
    outputs: dict[str, list[torch.Tensor]] = {}

    def note(path):
        def hook(_module, _given, output):
            output.retain_grad()
            outputs.setdefault(path, []).append(output)

        return hook

    watched = [path for path, child in module.named_modules() if is_layer(child)]
    watched += [f"model.layers.{number}" for number in range(6)]
    handles = [module.get_submodule(path).register_forward_hook(note(path)) for path in watched]
    for batch in calibration.batches:
        ids = batch.options["input_ids"]
        logits = module(**batch.options).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum"
        ).backward()
    for handle in handles:
        handle.remove()
    module.zero_grad()
    stream = BlockStream(folder, calibration)
    assert stream.lazy
    for block in stream:
        found = block.statistics(needs={"fisher"})
        gradients = block.output_gradients()
        assert len(gradients) == len(calibration.batches)
        for number, gradient in enumerate(gradients):
            assert gradient.shape == block.targets[number].shape
            expected = outputs[block.name][number].grad
            torch.testing.assert_close(gradient, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)
        for name, statistics in found.items():
            rows = torch.cat([each.grad.reshape(-1, each.shape[-1]) for each in outputs[name]])
            np.testing.assert_allclose(
                statistics.fisher, (rows.double() ** 2).mean(dim=0), rtol=2e-3, atol=1e-6 * float((rows**2).max())
            )


def test_a_classifiers_gradients_are_those_of_its_own_predictions():
    net = resnet_module().load(demo_path("tiny-resnet"))
    calibration = Calibration.from_images(net, samples=12, batch=5)
    stream = BlockStream(net, calibration)
    again = BlockStream(net, calibration)
    parameters = [each.requires_grad for each in net.parameters()]
    for block, other in zip(stream, again, strict=True):
        for gradient, same, target in zip(
            block.output_gradients(), other.output_gradients(), block.targets, strict=True
        ):
            assert gradient.shape == target.shape
            torch.testing.assert_close(gradient, same)  # labels are drawn by seed
        if block.name == "head":  # there d loss / d logits is softmax - one-hot of some label
            gradient = torch.cat(list(block.output_gradients())) - torch.cat(list(block.targets)).softmax(dim=1)
            torch.testing.assert_close(gradient.sort(dim=1).values[:, 1:], torch.zeros(12, 9), atol=1e-5, rtol=0)
            torch.testing.assert_close(gradient.min(dim=1).values, torch.full((12,), -1.0), atol=1e-5, rtol=0)
        for name, statistics in block.statistics(needs={"fisher"}).items():
            assert statistics.fisher is not None and (statistics.fisher >= 0).all()
            assert statistics.fisher.shape == (len(block.weight(name)),)
    assert parameters == [each.requires_grad for each in net.parameters()]
    assert not any(child._forward_hooks for child in net.modules())


def test_drawn_labels_estimate_the_fisher_information():
    """Of a linear classifier E[g g^T] at the logits is diag(p) - p p^T: its diagonal is p (1 - p)."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    calibration = Calibration.from_loader([torch.ones(4000, 4)])
    block = next(steps := iter(BlockStream(net, calibration)))
    fisher = block.statistics(needs={"fisher"})["0"].fisher
    with torch.no_grad():
        chances = net(torch.ones(1, 4))[0].softmax(dim=0).double().numpy()
    assert next(steps, None) is None  # the only block
    error = np.sqrt(chances * (1 - chances) * (1 - 2 * chances) ** 2 / 4000)
    assert (np.abs(fisher - chances * (1 - chances)) < 4.5 * error + 1e-6).all()


def test_features_without_a_head_have_the_gauss_newton_diagonal():
    """The gradient at y = W x of <e, W2 y> is W2^T e, and its expected square the squared column norms of W2."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, vocab_size=31,
        max_position_embeddings=16,
    )  # fmt: skip
    net = transformers.BertModel(config).eval()
    ids = torch.randint(1, 31, (40, 8))
    stream = BlockStream(net, Calibration.from_loader([{"input_ids": ids}]))
    found = {}
    for block in stream:
        found |= block.statistics(needs={"fisher"})
    last = found["pooler.dense"].fisher  # of tanh(z): E[(1 - tanh^2)^2], at most 1
    assert last is not None and (last > 0).all() and (last <= 2.0).all()
    assert all(each.fisher is not None and (each.fisher > 0).all() for name, each in found.items() if "key" not in name)


def test_what_has_no_gradients_says_so(gemma, monkeypatch):
    folder, _, calibration = gemma
    monkeypatch.setattr("workbench.calibration.lazy_module.available_memory", lambda: 1 << 20)
    with pytest.raises(CheckpointError, match="gradients need the whole of tiny-gemma3 in memory"):
        next(iter(BlockStream(folder, calibration))).output_gradients()

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            return {"words": str(self.layer(x).sum() > 0)}

    with pytest.raises(CheckpointError, match=r"no tensor|neither logits nor features"):
        next(iter(BlockStream(Words(), Calibration.from_loader([torch.ones(1, 2)])))).output_gradients()


def test_gradients_do_not_depend_on_how_samples_are_batched(gemma):
    folder, _, calibration = gemma
    whole = torch.cat([batch.options["input_ids"] for batch in calibration.batches])
    found = []
    for size in (1, 3):
        parts = Calibration.from_loader([{"input_ids": part} for part in whole.split(size)])
        block = next(iter(BlockStream(folder, parts)))
        found.append((block.statistics(needs={"fisher"}), torch.cat(list(block.output_gradients()))))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)
    for name, one in found[0][0].items():
        np.testing.assert_allclose(one.fisher, found[1][0][name].fisher, rtol=1e-3, atol=1e-12)
