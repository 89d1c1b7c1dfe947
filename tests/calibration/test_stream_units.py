"""Modules that are no stack of like blocks: the units that are found, and what flows through them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from workbench.calibration import BlockStream, Calibration
from workbench.calibration.runnable import resnet_module
from workbench.errors import CheckpointError
from workbench.resources import demo_path


def inputs_by_hand(net, calibration, paths):
    seen = {path: [] for path in paths}
    handles = [
        net.get_submodule(path).register_forward_hook(
            lambda _m, given, out, path=path: seen[path].append((given[0].clone(), out.clone()))
        )
        for path in paths
    ]
    with torch.no_grad():
        for batch in calibration.batches:
            net(*batch.arguments, **batch.options)
    for handle in handles:
        handle.remove()
    return seen


def check_both_streams(net, calibration, expected_names, scale=1.5):
    """Scale every weight of each block; both streams must be those of the float and of the scaled network."""
    changed = copy.deepcopy(net)
    stream = BlockStream(net, calibration)
    assert [place.name for place in stream.blocks] == expected_names
    with torch.no_grad():
        for place in stream.blocks:
            for name in place.layers:
                changed.get_submodule(name).weight.mul_(scale)
    floats, now = (inputs_by_hand(each, calibration, expected_names) for each in (net, changed))
    for block in stream:
        for name in block.places:
            block.replace_weight(name, scale * block.weight(name))
        assert len(block.inputs) == len(floats[block.name])
        for number, (given, gave) in enumerate(floats[block.name]):
            torch.testing.assert_close(block.float_inputs[number][0][0], given, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(block.targets[number], gave, atol=1e-5, rtol=1e-4)
            if number % 2 and block.name == "shared":
                continue  # its second input depends on itself, and it still had its own weights when it was caught
            wanted = now[block.name][number][0]
            torch.testing.assert_close(
                block.inputs[number][0][0], wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=1e-4
            )


def test_the_demo_resnet_by_blocks():
    net = resnet_module().load(demo_path("tiny-resnet"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calibration = Calibration.from_images("demo:tiny-resnet", samples=10, batch=6)
    names = ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
    check_both_streams(net, calibration, names)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    from_folder = BlockStream("demo:tiny-resnet", calibration)
    assert [place.name for place in from_folder.blocks] == names
    assert from_folder.blocks[2].layers == ("blocks.1.depthwise", "blocks.1.pointwise", "blocks.1.shortcut")


def test_a_plain_cnn_layer_by_layer():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(4, 6, 3, stride=2),
        torch.nn.ReLU(inplace=True),
        torch.nn.Flatten(),
        torch.nn.Linear(54, 5),
    ).train()
    images = torch.randn(5, 1, 8, 8)
    calibration = Calibration.from_images(net, images, samples=5, batch=2)
    net.eval()
    check_both_streams(net, calibration, ["0", "3", "6"])
    net.train()
    statistics = net[1].running_mean.clone()
    for block in BlockStream(net, calibration):
        block.statistics(needs={"gram"})
    assert net.training and torch.equal(net[1].running_mean, statistics)  # looked at, not trained


class Twice(torch.nn.Module):
    """One layer that is used two times, between two that are used once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 6)
        self.shared = torch.nn.Linear(6, 6)
        self.unused = torch.nn.Linear(6, 6)
        self.last = torch.nn.Linear(6, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.shared(x))
        return self.last(torch.relu(self.shared(x)))


def test_a_layer_that_is_called_twice_sees_both_inputs():
    torch.manual_seed(1)
    net = Twice().eval()
    calibration = Calibration.from_loader([torch.randn(3, 4) for _ in range(2)])
    check_both_streams(net, calibration, ["first", "shared", "last"])
    for block in BlockStream(net, calibration):
        found = block.statistics(needs={"moments"})
        assert next(iter(found.values())).count == (12 if block.name == "shared" else 6)


class Between(torch.nn.Module):
    """Like blocks, but the model adds something between them: no stack, though it looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(3)])

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            x = block(x) + number
        return x


class Remembering(torch.nn.Module):
    """Like blocks, each told about the outputs of those before beside its hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Told() for _ in range(3)])

    def forward(self, x):
        sums = torch.zeros(())
        for block in self.blocks:
            x = block(x, sums)
            sums = sums + x.sum()
        return x


class Told(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x, sums):
        return self.layer(x) + sums.tanh()


@pytest.mark.parametrize(("kind", "layer"), [(Between, "0"), (Remembering, "layer")])
def test_what_only_looks_like_a_stack_is_run_anew(kind, layer):
    torch.manual_seed(2)
    net = kind().eval()
    calibration = Calibration.from_loader([torch.randn(3, 4) for _ in range(2)])
    stream = BlockStream(net, calibration)
    assert not stream._plan.stack
    names = [f"blocks.{number}" if kind is Remembering else f"blocks.{number}.{layer}" for number in range(3)]
    check_both_streams(net, calibration, names)


def test_half_precision_runs_as_float32():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).to(torch.bfloat16)
    blocks = BlockStream(net, Calibration.from_loader([torch.randn(3, 4)]))
    for block in blocks:
        assert block.weight(next(iter(block.places))).dtype == np.float32
        assert block.targets[0].dtype == torch.float32
    assert net[0].weight.dtype == torch.bfloat16


def test_a_network_without_layers_says_so():
    with pytest.raises(CheckpointError, match="no linear layer or convolution"):
        BlockStream(torch.nn.Sequential(torch.nn.ReLU()), Calibration.from_loader([torch.ones(1, 2)]))


def test_importing_calibration_loads_nothing_heavy(fresh_python):
    program = (
        "import sys, workbench.calibration; print(*[n in sys.modules for n in ('torch', 'transformers', 'sklearn')])"
    )
    assert fresh_python(program).split() == ["False"] * 3
