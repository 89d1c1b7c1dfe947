"""Whole-suite setup: nothing is downloaded, nobody's cache is touched, browser tests run last."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports huggingface_hub or the workbench: both read the environment once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Threads that wait by spinning starve each other where several runs share the cores; sleeping ones do not.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "WORKBENCH_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="workbench-test-cache-", ignore_cleanup_errors=True)
    os.environ["WORKBENCH_CACHE"] = _cache.name

settings.register_profile("workbench", max_examples=50, deadline=None, derandomize="CI" in os.environ)
settings.load_profile("workbench")


@pytest.hookimpl(trylast=True)  # after tests/browser/conftest.py has marked its tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run browser tests last: Playwright's event loop stays in the main thread, where others must start their own."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


@pytest.fixture
def fresh_python(tmp_path):
    """Run a program in a new interpreter; return what it printed."""

    def run(program: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": _source_root(), **environment},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _source_root() -> str:
    import workbench  # after the environment above is set

    return str(Path(workbench.__file__).resolve().parent.parent)
