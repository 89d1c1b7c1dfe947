"""A wheel carries notebooks and demo models: unpacked far from any checkout, the command line finds all of it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("hatchling", reason="building the wheel needs hatchling (the dev extra)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from hatchling.builders.wheel import WheelBuilder

    built = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(next(iter(built)))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The environment of a process that has the wheel, and not the checkout, in front of its path."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return {**os.environ, "PYTHONPATH": str(site), "WHEEL_SITE": str(site)}


def test_the_wheel_holds_notebooks_models_texts_and_the_page_s_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    share = "workbench/_share"
    assert {f"{share}/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= names
    for model in ("tiny-gemma3", "tiny-resnet"):
        assert {f"{share}/data/{model}/{file}" for file in ("config.json", "model.safetensors", "README.md")} <= names
    assert f"{share}/data/text/stdlib_held_out.txt" in names
    assets = {
        path.relative_to(ROOT).as_posix()
        for kind in ("js", "css", "html")
        for path in (ROOT / "workbench").rglob(f"*.{kind}")
    }
    assert assets <= names
    assert not any("__pycache__" in name or name.startswith("tests/") for name in names)
    assert wheel.stat().st_size < 40_000_000


def test_both_commands_are_entry_points(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    text = archive.read(entry_points).decode()
    assert "workbench = workbench.cli:main" in text
    assert "jupyter-workbench = workbench.cli:main" in text  # what makes `jupyter workbench` work


def test_an_installed_command_measures_a_shipped_model(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "error", "demo:tiny-resnet", "head", "--grid", "nf4", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["shape"] == [10, 128]
    assert 0 < record["mse"] < record["max_abs"] ** 2


def test_lab_starts_in_any_folder_with_the_notebook_in_it(environment, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    isolated = {
        name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    here = tmp_path / "anywhere"
    here.mkdir()
    arguments = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "workbench.cli", "lab", *arguments],
            cwd=here,
            env={**environment, **isolated, "JUPYTER_TOKEN": token},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}/api/contents/00_workbench.ipynb?content=0&token={token}"
    try:
        found = answer(address, server)
    finally:
        server.terminate()
        server.wait(20)
    assert found is not None, (tmp_path / "log").read_text()
    assert found["name"] == "00_workbench.ipynb"
    assert {path.name for path in here.glob("*.ipynb")} == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}


def answer(address: str, server: subprocess.Popen) -> dict | None:
    """Return the server's answer once it gives one; None if it never does."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return json.load(reply)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    return None
