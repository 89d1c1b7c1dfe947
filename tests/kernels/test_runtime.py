"""Threads, the kernels' lock, and numba's disk cache."""

import threading

import numpy as np
import pytest

from workbench.grids import PowerGrid
from workbench.kernels.exact import error_sums
from workbench.kernels.runtime import exclusive, lock


def test_the_lock_is_reentrant_and_exclusive():
    inside, seen = threading.Event(), []

    @exclusive
    def enter():
        with lock:
            inside.set()

    with lock:
        thread = threading.Thread(target=lambda: (enter(), seen.append(True)))
        thread.start()
        assert not inside.wait(0.05)
    thread.join(5)
    assert seen == [True]


def test_threads_may_ask_at_once():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 256)).astype(np.float32)
    scale, offset = np.abs(w).max(axis=1, keepdims=True), np.zeros((64, 1))
    grid = PowerGrid(bits=4, exponent=0.5)
    expected = error_sums(w, grid, scale, offset, 256).error
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(error_sums(w, grid, scale, offset, 256).error for _ in range(20))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 80
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
def test_kernels_are_kept_on_disk_also_where_the_package_is_read_only(fresh_python, tmp_path):
    # The folder beside the module refuses to be written to (permissions would not stop root, so numba's own check is
    # made to say so): numba must then keep the kernels in the user's cache directory.
    program = """
from numba.core import caching
def refuse(self):
    raise OSError(30, "Read-only file system")
beside = getattr(caching, "InTreeCacheLocator", None) or caching._InTreeCacheLocator  # its name before numba 0.62
beside.ensure_cache_path = refuse
import numpy as np
from workbench.kernels.extrema import _extrema, group_extrema
group_extrema(np.ones((2, 8), dtype=np.float32), 8)
print(sum(_extrema.stats.cache_hits.values()), sum(_extrema.stats.cache_misses.values()))
"""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert fresh_python(program, **home).split() == ["0", "1"]
    assert list(tmp_path.rglob("*.nbi"))
    assert fresh_python(program, **home).split() == ["1", "0"]


def test_importing_the_room_does_not_import_numba(fresh_python):
    printed = fresh_python("import sys, workbench.kernels; print('numba' in sys.modules)")
    assert printed.strip() == "False"
