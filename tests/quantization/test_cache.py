"""The sketch cache: hits, misses, damage, size."""

import os
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from workbench.checkpoints.layer import Layer
from workbench.grids import UniformGrid, parse_grid
from workbench.quantization import sketch, sketch_error, sketch_for
from workbench.quantization.cache import cache_folder, clear_cache, key_of, read_sketch, trim, write_sketch
from workbench.quantization.source import ArrayWeights


class Counted(ArrayWeights):
    reads = 0

    def rows(self, start, stop):
        Counted.reads += 1
        return super().rows(start, stop)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    Counted.reads = 0
    return tmp_path / "sketches"


def make(key="key", dtype=np.float32, name="a.b"):
    w = np.random.default_rng(0).standard_normal((16, 64)).astype(dtype)
    return Layer(name, Counted(w), w.shape, str(dtype), "linear", "", key)


FIELDS = ("value_min", "value_max", "n", "m0", "m1", "m2", "weights", "offset_moment")


def same(one, other):
    for name in FIELDS:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right)
    return one.energy == other.energy and one.exact == other.exact and one.count == other.count


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("normalization", ["absmax", "range"])
def test_weights_are_read_once(folder, dtype, granularity, normalization):
    first = sketch(make(dtype=dtype), granularity, normalization)
    reads = Counted.reads
    assert reads > 0
    second = sketch(make(dtype=dtype, name="another.name"), granularity, normalization)
    assert Counted.reads == reads
    assert same(first, second)
    assert second.name == "another.name"
    assert len(list(folder.glob("*.npz"))) == 1
    assert not list(folder.glob("*.part"))


def test_every_choice_has_its_own_file(folder):
    sketch(make(), "channel")
    sketch(make(), "tensor")
    sketch(make(), "channel", "range")
    sketch(make("other"), "channel")
    sketch_for(make(), parse_grid("mxfp4"), "channel")
    sketch_for(make(), UniformGrid(bits=4, range="asymmetric"), "channel")
    assert len(list(folder.glob("*.npz"))) == 6
    sketch(make(), "channel", cache=False)
    sketch(np.ones((2, 2), np.float32))
    assert len(list(folder.glob("*.npz"))) == 6
    assert clear_cache() == 6


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "flip"])
def test_damaged_files_are_made_anew(folder, damage):
    expected = sketch_error(sketch(make(), "channel"), UniformGrid(bits=4)).mse
    (path,) = folder.glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "garbage": os.urandom(1000),
            "empty": b"",
            "flip": whole.replace(b'"count": 1024', b'"count": 1025'),
        }[damage]
    )
    assert read_sketch(path) is None
    reads = Counted.reads
    assert sketch_error(sketch(make(), "channel"), UniformGrid(bits=4)).mse == expected
    assert Counted.reads > reads
    assert read_sketch(path) is not None


def test_another_version_is_not_read(folder, monkeypatch):
    sketch(make(), "channel")
    monkeypatch.setattr("workbench.quantization.cache.FORMAT_VERSION", 999)
    (path,) = folder.glob("*.npz")
    assert read_sketch(path) is None
    assert key_of(("a",)) != path.stem


def test_the_longest_unused_files_go_first(tmp_path):
    made = sketch(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32))
    for age, name in enumerate("abcd"):
        write_sketch(tmp_path / f"{name}.npz", made)
        os.utime(tmp_path / f"{name}.npz", (1000 - age, 1000 - age))
    size = (tmp_path / "a.npz").stat().st_size
    read_sketch(tmp_path / "d.npz")  # used just now
    trim(tmp_path, 2 * size)
    assert sorted(path.stem for path in tmp_path.glob("*.npz")) == ["a", "d"]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("WORKBENCH_CACHE", str(blocked))
    assert sketch(make(), "channel").count == 1024


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    made = sketch(np.ones((2, 2), np.float32))

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sketch(tmp_path / "x.npz", made)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_follows_the_platform_without_the_variable(monkeypatch):
    monkeypatch.delenv("WORKBENCH_CACHE")
    assert cache_folder().name == "sketches"
    assert "quantization-workbench" in str(cache_folder())
    assert replace(sketch(np.ones((2, 2), np.float32)), name="x").name == "x"
