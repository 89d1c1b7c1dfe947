"""Tensors in memory or in files are the same tensors; statistics on disk are read back or made again, never wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.calibration import BlockStream, Calibration, LayerStatistics, layer_statistics, statistics_cache
from workbench.calibration.store import CallStore, TensorStore
from workbench.errors import Cancelled, CheckpointError, LayerNotFoundError


@settings(max_examples=30)
@given(
    memory=st.integers(0, 400),
    tensors=st.lists(
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=8,
    ),
)
def test_what_is_kept_comes_back(tmp_path_factory, memory, tensors):
    folder = tmp_path_factory.mktemp("store")
    store = TensorStore(folder, memory)
    kept, expected = store.new_list(), []
    for kind, shape in tensors:
        value = (torch.randn(shape) * 3).to(kind)
        expected.append(value.float().clone() if value.is_floating_point() else value.clone())
        kept.append(value)
        value.zero_()  # what is kept is a copy
    for found, wanted in zip(kept, expected, strict=True):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    assert store.used <= memory
    assert len(kept[1:]) == max(0, len(tensors) - 1)
    files = list(folder.rglob("*.bin"))
    assert sum(file.stat().st_size for file in files) == store.spilled
    kept.release()
    assert store.used == store.spilled == len(kept) == 0
    assert not list(folder.rglob("*.bin"))
    store.close()
    assert not list(folder.iterdir())


def test_a_mapped_tensor_may_be_written_to(tmp_path):
    kept = TensorStore(tmp_path, memory=0).new_list()
    kept.append(torch.ones(4))
    kept[0].add_(1)
    torch.testing.assert_close(kept[0], torch.ones(4))


def test_equal_tensors_of_calls_are_kept_once():
    store = TensorStore(memory=1 << 20)
    calls = CallStore(store)
    mask = torch.ones(2, 1, 8, 8)
    both = [calls.keep(((None, mask.clone()), {"tables": (mask, torch.zeros(3)), "cache": None})) for _ in range(5)]
    assert store.used == 4 * (128 + 3)
    arguments, options = calls.restore(both[3], "cpu")
    assert (
        arguments[0] is None and torch.equal(arguments[1], mask) and torch.equal(options["tables"][1], torch.zeros(3))
    )
    calls.release()
    assert store.used == 0


class Chain(torch.nn.Module):
    """Three layers in a row; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.ModuleList(
            [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()) for _ in range(3)]
        )
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        for layer in self.layers:
            x = layer(x)
        return x


NAMES = [f"layers.{number}.0" for number in range(3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    return tmp_path / "statistics"


@pytest.fixture
def calibration():
    generator = torch.Generator().manual_seed(1)
    return Calibration.from_loader([torch.randn(6, 4, generator=generator) for _ in range(3)])


def same(one: LayerStatistics, other: LayerStatistics) -> bool:
    arrays = ("second", "mean", "mean_magnitude", "absmax", "gram", "inputs", "float_inputs", "fisher")
    return one.count == other.count and all(
        (getattr(one, name) is None and getattr(other, name) is None)
        or np.array_equal(getattr(one, name), getattr(other, name))
        for name in arrays
    )


ALL = {"moments", "gram", "inputs", "fisher"}


def test_a_second_call_does_not_run_the_model(cache, calibration):
    net = Chain()
    one = layer_statistics(net, calibration, needs=ALL, rows=5)
    assert list(one) == NAMES and one[NAMES[0]].fisher is not None and one[NAMES[0]].inputs.shape == (1, 5, 4)
    assert len(list(cache.glob("*.npz"))) == 4  # three layers, and the list of blocks
    passes = net.passes
    two = layer_statistics(net, calibration, needs=ALL, rows=5)
    assert net.passes == passes
    assert all(same(one[name], two[name]) for name in NAMES)
    assert list(layer_statistics(net, calibration, layers=["*.2.0", "layers.0.*"], needs=ALL, rows=5)) == [
        NAMES[0],
        NAMES[2],
    ]
    assert net.passes == passes
    for other in ({"rows": 6}, {"seed": 1}, {"needs": {"gram"}}, {"cache": False}):
        layer_statistics(net, calibration, **{"needs": ALL, "rows": 5, **other})
        assert net.passes > passes, other
        passes = net.passes
    layer_statistics(net, Calibration.from_loader([torch.ones(2, 4)]), needs=ALL, rows=5)
    assert net.passes > passes
    passes = net.passes
    with torch.no_grad():
        net.layers[2][0].weight[0, 0] += 1  # weights that changed are another model
    layer_statistics(net, calibration, needs=ALL, rows=5)
    assert net.passes > passes


def test_what_was_finished_before_a_stop_is_kept(cache, calibration, monkeypatch):
    net = Chain()
    expected = layer_statistics(net, calibration, needs={"gram"}, cache=False)

    def stop(fraction, label):
        if label == "layers.1":
            raise Cancelled

    with pytest.raises(Cancelled):
        layer_statistics(net, calibration, needs={"gram"}, progress=stop)
    measured = []
    from workbench.calibration.block import StreamBlock

    plain = StreamBlock.statistics
    monkeypatch.setattr(
        StreamBlock, "statistics", lambda self, **options: measured.append(self.name) or plain(self, **options)
    )
    told = []
    found = layer_statistics(net, calibration, needs={"gram"}, progress=lambda f, label: told.append(f))
    assert measured == ["layers.1", "layers.2"]
    assert all(same(found[name], expected[name]) for name in NAMES)
    assert told[-1] == 1.0


def test_a_damaged_file_is_made_again(cache, calibration):
    net = Chain()
    one = layer_statistics(net, calibration, needs={"gram"})
    for number, path in enumerate(sorted(cache.glob("*.npz"))):
        path.write_bytes([b"", b"nonsense", path.read_bytes()[:-30], path.read_bytes()[:100]][number])
    two = layer_statistics(net, calibration, needs={"gram"})
    assert all(same(one[name], two[name]) for name in NAMES)


def test_contradicting_numbers_are_not_believed(cache):
    sound = LayerStatistics.from_inputs("a", np.ones((4, 3), dtype=np.float32))
    assert statistics_cache.keep_statistics("key", sound)
    assert same(statistics_cache.kept_statistics("key", "other name"), sound)
    assert statistics_cache.kept_statistics("key", "other name").name == "other name"
    from dataclasses import replace

    for wrong in ({"gram": np.ones((1, 3, 2))}, {"count": 0}, {"mean": np.full((1, 3), np.nan)}, {"mean": np.ones(3)}):
        assert statistics_cache.keep_statistics("key", replace(sound, **wrong))
        assert statistics_cache.kept_statistics("key", "a") is None, wrong


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, calibration, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    assert list(layer_statistics(Chain(), calibration)) == NAMES


def test_bad_words_get_one_sentence(cache, calibration):
    with pytest.raises(LayerNotFoundError, match=r"'layers\.7\.0' \(there are layers\.0\.0, \.\.\., layers\.2\.0\)"):
        layer_statistics(Chain(), calibration, layers="layers.7.0")
    with pytest.raises(CheckpointError, match="not hessian"):
        layer_statistics(Chain(), calibration, needs={"hessian"})
    with pytest.raises(CheckpointError, match="at least one row"):
        layer_statistics(Chain(), calibration, needs={"inputs"}, rows=0)
    with pytest.raises(CheckpointError, match="brings no tokenizer"):
        layer_statistics(Chain())


def test_the_stream_gives_the_same_statistics(cache, calibration):
    net = Chain()
    found = layer_statistics(net, calibration, needs={"gram"})
    for block in BlockStream(net, calibration):
        for name, statistics in block.statistics(needs={"gram"}).items():
            assert same(found[name], statistics)
