"""Moments, Gram matrices and sampled rows against plain float64 sums over every patch."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.calibration import BlockStream, Calibration
from workbench.calibration.moments import Accumulator, FloatPasses, accumulate, input_rows
from workbench.calibration.statistics import InputGap
from workbench.errors import CheckpointError


def patches_by_hand(layer, value):
    """Every patch that a convolution multiplies, one loop per output position, (groups, rows, depth), float64."""
    sides = len(layer.kernel_size)
    if layer.padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        pads = [(r // 2, r - r // 2) for r in reach]
    else:
        pads = [(p, p) for p in layer.padding]
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[layer.padding_mode]
    wide = np.pad(value.double().numpy(), [(0, 0), (0, 0), *pads], mode=mode)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    counts = [(size - r) // s + 1 for size, r, s in zip(wide.shape[2:], reach, layer.stride, strict=True)]
    inside = wide.shape[1] // layer.groups
    found = []
    for image in wide:
        for place in itertools.product(*map(range, counts)):
            window = tuple(
                slice(p * s, p * s + r, d)
                for p, s, r, d in zip(place, layer.stride, reach, layer.dilation, strict=True)
            )
            patch = image[(slice(None), *window)]
            found.append([patch[g * inside : (g + 1) * inside].reshape(-1) for g in range(layer.groups)])
    assert sides == len(counts)
    return np.asarray(found).transpose(1, 0, 2)


CONVOLUTIONS = [
    torch.nn.Conv2d(4, 6, 3, padding=1, bias=False),
    torch.nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2),
    torch.nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
    torch.nn.Conv2d(4, 3, 4, padding="same", padding_mode="circular"),
    torch.nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    torch.nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2),
    torch.nn.Conv3d(4, 2, (2, 3, 2), padding=(1, 0, 1)),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("most", [1, 1 << 24])
def test_patches_times_the_matrix_view_are_the_convolution(layer, most, monkeypatch):
    monkeypatch.setattr("workbench.calibration.moments.MOST_PATCHES", most)
    torch.manual_seed(0)
    value = torch.randn(3, 4, *[5, 6, 4][: len(layer.kernel_size)])
    parts = list(input_rows(layer, value, None))
    assert len(parts) == (3 if most == 1 else 1)
    rows = torch.cat(parts, dim=1)
    np.testing.assert_allclose(rows.numpy(), patches_by_hand(layer, value), atol=1e-6)
    weight = layer.weight.detach().reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1)
    outputs = torch.cat([rows[g] @ weight[g].T for g in range(layer.groups)], dim=1)
    with torch.no_grad():
        expected = layer(value)
    if layer.bias is not None:
        outputs = outputs + layer.bias.detach()
    torch.testing.assert_close(outputs, expected.movedim(1, -1).reshape(outputs.shape), atol=1e-5, rtol=1e-4)


def accumulated(parts, **options):
    found = Accumulator("layer", **{"gram": True, "gap": False, "rows": 16, "seed": 3, **options})
    for part in parts:
        found.add(iter([part]))
    return found


def check_against_float64(statistics, rows):
    wide = rows.astype(np.float64)
    scale = max(1e-30, float(np.abs(wide).max()))
    np.testing.assert_allclose(statistics.mean, wide.mean(axis=1), rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(statistics.mean_magnitude, np.abs(wide).mean(axis=1), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(statistics.second, (wide**2).mean(axis=1), rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(statistics.absmax, np.abs(wide).max(axis=1))
    gram = wide.transpose(0, 2, 1) @ wide / wide.shape[1]
    np.testing.assert_allclose(statistics.gram, gram, rtol=1e-5, atol=1e-5 * scale**2)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    groups=st.integers(1, 3),
    depth=st.integers(1, 7),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_sums_are_those_of_float64_in_any_batches(sizes, groups, depth, scale, seed):
    generator = np.random.default_rng(seed)
    rows = (generator.standard_normal((groups, sum(sizes), depth)) * scale + 0.3 * scale).astype(np.float32)
    rows[:, :, 0] = 0.0  # a dead input
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    found = accumulated(map(torch.from_numpy, parts)).statistics("layer", None)
    if sum(sizes) == 0:
        assert found is None
        return
    assert found.count == sum(sizes)
    check_against_float64(found, rows)
    assert found.dead[:, 0].all()
    assert found.inputs.shape == (groups, min(16, sum(sizes)), depth)
    if sum(sizes) <= 16:
        np.testing.assert_array_equal(found.inputs, rows)
    else:  # real rows, each once, in their order
        places = [int(np.flatnonzero((rows[0] == row).all(axis=1))[0]) for row in found.inputs[0]]
        assert depth == 1 or places == sorted(set(places))


def test_the_sample_is_uniform_and_seeded():
    rows = torch.arange(4000, dtype=torch.float32).reshape(1, -1, 1)
    parts = list(rows.split(100, dim=1))
    one = accumulated(parts, rows=400).statistics("layer", None).inputs[0, :, 0]
    np.testing.assert_array_equal(one, accumulated(parts, rows=400).statistics("layer", None).inputs[0, :, 0])
    assert not np.array_equal(one, accumulated(parts, rows=400, seed=4).statistics("layer", None).inputs[0, :, 0])
    counts = np.histogram(one, bins=8, range=(0, 4000))[0]
    assert counts.sum() == 400
    assert ((counts - 50.0) ** 2 / 50.0).sum() < 24.3  # chi-squared, 7 degrees of freedom, one in a thousand


def test_wide_layers_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr("workbench.calibration.moments.WIDE_DEPTH", 4)
    rows = torch.randn(1, 50, 5)
    found = accumulated(rows.split(7, dim=1)).statistics("layer", None)
    assert found.gram.dtype == np.float32
    check_against_float64(found, rows.numpy())
    assert accumulated([rows[..., :4]]).statistics("layer", None).gram.dtype == np.float64


class Net(torch.nn.Module):
    """Two residual blocks with a shared input each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(6, 8)
        self.up = torch.nn.Linear(6, 8, bias=False)
        self.down = torch.nn.Linear(8, 6)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.down(self.act(self.gate(x)) * self.up(x))


def run_by_hand(net, calibration, path):
    """All inputs of a layer, one array a batch."""
    seen = []
    handle = net.get_submodule(path).register_forward_pre_hook(lambda _m, given: seen.append(given[0].detach().clone()))
    with torch.no_grad():
        for batch in calibration.batches:
            net(*batch.arguments, **batch.options)
    handle.remove()
    return seen


@pytest.fixture
def net():
    torch.manual_seed(2)
    return Net().eval()


@pytest.fixture
def calibration():
    generator = torch.Generator().manual_seed(1)
    return Calibration.from_loader([(torch.randn(3, 5, 6, generator=generator),) for _ in range(4)])


ALL = {"moments", "gram", "inputs"}


def test_layers_of_a_block_get_their_own_statistics(net, calibration):
    for block in BlockStream(net, calibration):
        found = block.statistics(needs=ALL, rows=1000)
        assert list(found) == list(block.places)
        for name, statistics in found.items():
            rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in run_by_hand(net, calibration, name)])
            assert statistics.name == name and statistics.float_inputs is None
            check_against_float64(statistics, rows.numpy()[None])
            np.testing.assert_allclose(statistics.inputs[0], rows.numpy(), atol=1e-6)
    assert found["head"].fisher is None


def test_the_same_rows_in_both_streams(net, calibration):
    changed = copy.deepcopy(net)
    with torch.no_grad():
        for each in (*changed.blocks.parameters(), changed.head.weight):
            each.mul_(1.25)
    for number, block in enumerate(BlockStream(net, calibration)):
        if number:
            found = block.statistics(needs=ALL, rows=17, seed=5)
            for name, statistics in found.items():
                if name.endswith((".gate", ".up")) or name == "head":  # nothing of this block is changed yet
                    now = torch.cat([e.reshape(-1, e.shape[-1]) for e in run_by_hand(changed, calibration, name)])
                    before = torch.cat([e.reshape(-1, e.shape[-1]) for e in run_by_hand(net, calibration, name)])
                    assert statistics.inputs.shape == statistics.float_inputs.shape == (1, 17, now.shape[1])
                    check_against_float64(statistics, now.numpy()[None])
                    for row, float_row in zip(statistics.inputs[0], statistics.float_inputs[0], strict=True):
                        place = int((now - torch.from_numpy(row)).abs().sum(dim=1).argmin())
                        np.testing.assert_allclose(row, now[place], atol=1e-5)
                        np.testing.assert_allclose(float_row, before[place], atol=1e-5)
        with torch.no_grad():
            for each in block.module.parameters():
                each.mul_(1.25)


def test_how_the_streams_differ_is_summed_over_all_rows(net, calibration):
    changed = copy.deepcopy(net)
    with torch.no_grad():
        for each in changed.blocks.parameters():
            each.mul_(1.25)
    seen = 0
    for number, block in enumerate(BlockStream(net, calibration)):
        # ``inputs`` beside it takes rows of the same pass: neither may disturb the other, nor the float outputs.
        found = block.statistics(needs={"gram", "gap", "inputs"}, rows=1000)
        for name, statistics in found.items():
            if number == 0:
                assert statistics.gap is None
            elif name.endswith((".gate", ".up")) or name == "head":  # nothing of this block is changed yet
                now, before = (
                    np.concatenate([e.reshape(-1, e.shape[-1]).numpy() for e in run_by_hand(each, calibration, name)])
                    for each in (changed, net)
                )
                truth = InputGap.of(now[None], before[None])
                for field in ("across", "among", "mean"):
                    np.testing.assert_allclose(
                        getattr(statistics.gap, field), getattr(truth, field), rtol=1e-4, atol=1e-6
                    )
                seen += 1
        if number:
            targets = [each.clone() for each in block.targets]
            hands = [block.module(*given, **options) for given, options in block.float_inputs]
            for target, hand in zip(targets, hands, strict=True):
                torch.testing.assert_close(target, hand.detach() if isinstance(hand, torch.Tensor) else hand[0])
        with torch.no_grad():
            for each in block.module.parameters():
                each.mul_(1.25)
    assert seen > 2


def test_an_expert_with_other_tokens_has_no_gap():
    own = Accumulator("expert", gram=True, gap=True, rows=4, seed=0)
    own.add(iter([torch.ones(1, 3, 2)]), iter([torch.ones(1, 3, 2)]))
    assert own.statistics("expert", None).gap is not None
    own.add(iter([torch.ones(1, 3, 2)]), iter([torch.ones(1, 2, 2)]))
    own.add(iter([torch.ones(1, 3, 2)]), iter([torch.ones(1, 3, 2)]))
    found = own.statistics("expert", None)
    assert found is not None and found.count == 9 and found.gap is None and found.float_inputs is None
    assert found.inputs.shape == (1, 4, 2)


class Switch(torch.nn.Module):
    """Calls its layer only where the input's mean is above 0."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, given):
        return self.layer(given) if given.mean() > 0 else given


@pytest.mark.parametrize("off", [0, 1])
def test_an_expert_that_only_the_float_model_reached_in_a_pass_has_no_gap(off):
    module = Switch()
    floats = [((torch.rand(2, 3) + 0.1,), {}) for _ in range(3)]
    calls = [((-each[0] if number == off else each[0],), {}) for number, (each, _) in enumerate(floats)]
    asked = {"gram": True, "gap": True, "rows": 8, "seed": 0, "told": lambda number, output: None}
    places, masks = {"layer": "layer"}, [None] * 3
    passes = FloatPasses(module, floats, places, lambda number, output: None)
    found = accumulate(module, calls, places, masks, **asked, floats=passes)["layer"].statistics("layer", None)
    assert found.count == 4 and found.gap is None and found.float_inputs is None
    same = accumulate(module, floats, places, masks, **asked, floats=passes)["layer"].statistics("layer", None)
    assert same.count == 6 and not same.gap.among.any()
    np.testing.assert_array_equal(same.float_inputs, same.inputs)


def test_statistics_in_the_middle_of_a_block_follow_its_changes(net, calibration):
    block = next(iter(BlockStream(net, calibration)))
    before = block.statistics(needs=ALL, names=["blocks.0.down"])["blocks.0.down"]
    assert before.float_inputs is None
    block.replace_weight("blocks.0.up", 2 * block.weight("blocks.0.up"))
    after = block.statistics(needs=ALL, names="blocks.0.down")["blocks.0.down"]
    np.testing.assert_allclose(after.gram, 4 * before.gram, rtol=1e-5)
    np.testing.assert_allclose(after.float_inputs, before.inputs, rtol=1e-6)


def test_padding_is_not_counted(net):
    values = torch.randn(2, 5, 6)
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    stream = BlockStream(net, Calibration.from_loader([{"x": values, "attention_mask": mask}]))
    found = next(iter(stream)).statistics(needs=ALL)["blocks.0.gate"]
    assert found.count == 8
    check_against_float64(found, values[mask.bool()].numpy()[None])


def test_a_hook_that_quantizes_inputs_does_not_hide_them(net, calibration):
    block = next(iter(BlockStream(net, calibration)))
    plain = block.statistics(needs={"moments"})["blocks.0.gate"]
    handle = block.module.gate.register_forward_pre_hook(lambda _m, given: (given[0].round(),))
    assert block.changed
    np.testing.assert_array_equal(block.statistics(needs={"moments"})["blocks.0.gate"].second, plain.second)
    handle.remove()
    assert not block.changed


def test_bad_inputs_say_which_layer(net, calibration):
    bad = torch.zeros(1, 2, 6)
    bad[0, 1, 2] = float("nan")
    block = next(iter(BlockStream(net, Calibration.from_loader([torch.ones(1, 2, 6), bad]))))
    with pytest.raises(CheckpointError, match=r"inputs of blocks\.0\.gate hold 1 numbers that are not finite"):
        block.statistics(needs={"moments"})
    good = next(iter(BlockStream(net, calibration)))
    with pytest.raises(CheckpointError, match="not hessian"):
        good.statistics(needs={"hessian"})
    with pytest.raises(CheckpointError, match="needs are a set of words"):
        good.statistics(needs="gram")
    with pytest.raises(CheckpointError, match="has no layer 'gate'"):
        good.statistics(needs={"gram"}, names=["gate"])


def test_one_sample_is_enough(net):
    one = next(iter(BlockStream(net, Calibration.from_loader([torch.ones(1, 1, 6)])))).statistics(needs=ALL)
    assert one["blocks.0.gate"].count == 1
    np.testing.assert_array_equal(one["blocks.0.gate"].gram[0], np.ones((6, 6)))
