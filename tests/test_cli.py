from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import workbench
from workbench.cli import main
from workbench.resources import notebooks_path
from workbench.shell import launch, measure, show


@pytest.fixture(scope="module")
def weights():
    generator = np.random.default_rng(7)
    return {
        "blocks.0.attention.q_proj.weight": generator.standard_normal((24, 40)).astype(np.float32),
        "blocks.0.mlp.down_proj.weight": generator.standard_t(3, (40, 96)).astype(np.float32),
        "blocks.1.mlp.down_proj.weight": generator.laplace(size=(40, 96)).astype(np.float32),
        "blocks.0.norm.weight": np.ones(40, dtype=np.float32),
    }


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(weights, path)
    return str(path)


def uniform_mse(weight, bits=4, axis=1):
    """Mean squared error of the symmetric narrow-range uniform grid under absmax, in float64."""
    wide = weight.astype(np.float64)
    scale = np.abs(weight).max(axis=axis, keepdims=True).astype(np.float64)
    steps = 2 ** (bits - 1) - 1
    decoded = (scale * np.round(wide / scale * steps) / steps).astype(np.float32)
    return float(np.mean((wide - decoded) ** 2))


def test_error_agrees_with_plain_numpy(checkpoint, weights, capsys):
    code = main(["error", checkpoint, "blocks.0.mlp.down_proj", "--grid", "uniform:bits=4", "--json"])
    out, err = capsys.readouterr()
    record = json.loads(out)
    weight = weights["blocks.0.mlp.down_proj.weight"]
    assert (code, err) == (0, "")
    assert record["mse"] == pytest.approx(uniform_mse(weight), rel=1e-9)
    energy = float(np.mean(weight.astype(np.float64) ** 2))
    assert record["sqnr_db"] == pytest.approx(10 * np.log10(energy / record["mse"]), abs=1e-6)
    assert record["grid"] == "uniform:bits=4"
    assert record["granularity"] == "channel"
    assert record["shape"] == [40, 96]
    assert record["bits_per_weight"] > 4  # scales are counted
    assert record["approximate"] is False


def test_error_is_the_library_s_own_number(checkpoint, capsys):
    grid, granularity = "power:bits=4,exponent=0.55", "group:32"
    arguments = ["error", checkpoint, "blocks.1.mlp.down_proj", "--grid", grid, "--granularity", granularity]
    assert main([*arguments, "--scale", "mse", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    model = workbench.open_model(checkpoint)
    layer, parsed = model["blocks.1.mlp.down_proj"], workbench.parse_grid(grid)
    report = workbench.exact_error(layer, parsed, granularity=granularity, scale="mse")
    assert record["mse"] == report.mse
    assert record["scale"] == "mse"
    absmax = workbench.exact_error(layer, parsed, granularity=granularity)
    assert record["mse"] < absmax.mse
    model.close()


def test_error_fits_a_binary_coding_and_refuses_what_it_cannot_take(checkpoint, capsys):
    arguments = ["error", checkpoint, "blocks.1.mlp.down_proj", "--grid", "bcq:bits=3", "--granularity", "group:32"]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    model = workbench.open_model(checkpoint)
    layer = model["blocks.1.mlp.down_proj"]
    assert record["mse"] == workbench.error(layer, workbench.quantize(layer, "bcq:bits=3", "group:32")).mse
    assert record["bits_per_weight"] == 3 + (3 + 1) * 32 / 32
    model.close()
    assert main([*arguments, "--scale", "mse"]) == 2
    assert "takes neither a scale rule nor a clip" in capsys.readouterr().err


def test_error_prints_a_readable_table(checkpoint, capsys):
    assert main(["error", checkpoint, "blocks.0.mlp.down_proj", "--grid", "nf4", "--clip", "0.9"]) == 0
    out = capsys.readouterr().out
    for words in ("blocks.0.mlp.down_proj", "nf4 per channel", "clip 0.9", "SQNR", "steps", "bits per weight"):
        assert words in out


def test_inspect_gives_every_layer_as_json(checkpoint, weights, capsys):
    assert main(["inspect", checkpoint, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    by_name = {record["name"]: record for record in answer["layers"]}
    assert {f"{name}.weight" for name in by_name} == set(weights)
    record, weight = by_name["blocks.1.mlp.down_proj"], weights["blocks.1.mlp.down_proj.weight"].astype(np.float64)
    assert record["mse"] == pytest.approx(uniform_mse(weights["blocks.1.mlp.down_proj.weight"]), rel=1e-9)
    assert record["std"] == pytest.approx(weight.std(), rel=1e-6)
    assert record["max_over_sigma"] == pytest.approx(np.abs(weight).max() / weight.std(), rel=1e-6)
    assert record["dtype"] == "float32"
    assert by_name["blocks.0.norm"]["mse"] is None  # a norm keeps its own precision
    total = answer["total"]
    assert total["parameters"] == sum(w.size for w in weights.values())
    assert total["quantized_parameters"] == total["parameters"] - 40


def test_inspect_prints_a_tree(checkpoint, capsys):
    assert main(["inspect", checkpoint, "--grid", "power:bits=3,exponent=0.5", "--granularity", "tensor"]) == 0
    out = capsys.readouterr().out
    assert "├─ " in out
    assert "└─ " in out
    assert "attention.q_proj" in out
    assert "40×96" in out
    assert "power:bits=3,exponent=0.5 per tensor" in out


def test_inspect_keeps_to_a_pattern(checkpoint, capsys):
    assert main(["inspect", checkpoint, "--layer", "*.mlp.down_proj", "--json"]) == 0
    names = [record["name"] for record in json.loads(capsys.readouterr().out)["layers"]]
    assert names == ["blocks.0.mlp.down_proj", "blocks.1.mlp.down_proj"]


def test_a_layer_of_nan_is_named_and_the_others_are_measured(tmp_path, capsys):
    good, bad = np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)
    bad[2, 3] = np.nan
    save_file({"good.weight": good, "bad.weight": bad}, tmp_path / "m.safetensors")
    assert main(["inspect", str(tmp_path / "m.safetensors"), "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)["layers"]}
    assert "bad" in records["bad"]["problem"]
    assert records["bad"]["mse"] is None
    assert records["good"]["sqnr_db"] is None  # an error of zero: infinite, which JSON cannot say
    assert records["good"]["mse"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "no/such/folder"], "no/such/folder"),
        (["inspect", "demo:tiny-gema3"], "did you mean tiny-gemma3?"),
        (["error", "CHECKPOINT", "blocks.0.mlp.down_proj", "--grid", "powr:bits=4"], "powr"),
        (["error", "CHECKPOINT", "blocks.0.mlp.down_projj", "--grid", "nf4"], "blocks.0.mlp.down_proj"),
        (["error", "CHECKPOINT", "blocks.0.mlp.down_proj", "--grid", "nf4", "--granularity", "row"], "group:128"),
        (["error", "CHECKPOINT", "blocks.0.mlp.down_proj", "--grid", "nf4", "--scale", "best"], "absmax"),
        (["error", "CHECKPOINT", "blocks.0.mlp.down_proj", "--grid", "nf4", "--clip", "0"], "fraction above 0"),
        (["inspect", "CHECKPOINT", "--layer", "*.attn.*"], "no layer of"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(checkpoint, arguments, sentence, capsys):
    code = main([checkpoint if argument == "CHECKPOINT" else argument for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.parametrize("arguments", [["error", "x", "y"], ["inspct", "x"], ["inspect", "x", "--jsn"], []])
def test_misuse_of_the_command_line_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: workbench" in "".join(capsys.readouterr())


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"workbench {workbench.__version__}"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("lab", "app", "inspect", "error"))


def test_a_process_has_a_clean_json_output_and_never_loads_torch(checkpoint, tmp_path):
    """Run as a person would, with both streams apart."""
    program = (
        "import sys; from workbench.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('torch' in sys.modules) * 3 or ('transformers' in sys.modules) * 4)"
    )
    source = str(Path(workbench.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", checkpoint, "--layer", "*.q_proj", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"][0]["name"] == "blocks.0.attention.q_proj"
    assert done.stderr == ""


def test_json_ready_has_no_infinities_and_no_numpy():
    value = {"a": float("inf"), "b": [np.float32(0.5), np.int64(3)], "c": (float("nan"), True, None, "x")}
    assert measure.json_ready(value) == {"a": None, "b": [0.5, 3], "c": [None, True, None, "x"]}
    assert json.dumps(measure.json_ready(value), allow_nan=False)


def test_a_module_with_a_weight_and_children_keeps_both_lines():
    records = [{"name": name} for name in ("a.b", "a.b.c", "d.e.f")]
    lines = [(label, record and record["name"]) for _, label, record in show.lines(show.nest(records))]
    assert lines == [("a.b", "a.b"), ("c", "a.b.c"), ("d.e.f", "d.e.f")]


@pytest.fixture
def installed_notebooks(tmp_path, monkeypatch):
    """Notebooks as a wheel has them: far from the folder where the command is given."""
    share = tmp_path / "share" / "notebooks"
    share.mkdir(parents=True)
    for name in ("00_workbench.ipynb", "01_grids.ipynb"):
        (share / name).write_text(f'{{"installed": "{name}"}}')
    monkeypatch.setattr(launch, "notebooks_path", lambda: share)
    return share


def test_lab_copies_missing_notebooks_and_keeps_changed_ones(installed_notebooks, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    (here / "01_grids.ipynb").write_text("mine")
    monkeypatch.chdir(here)
    monkeypatch.delenv("JUPYTER_PREFER_ENV_PATH", raising=False)
    started = []
    monkeypatch.setattr(launch.os, "execvp", lambda file, arguments: started.append((file, arguments)))
    assert main(["lab", "--no-browser", "--port=9999"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "00_workbench.ipynb copied into" in err
    assert "01_grids.ipynb is here already and differs from the installed one: yours is kept as it is" in err
    assert (here / "01_grids.ipynb").read_text() == "mine"
    assert (here / "00_workbench.ipynb").read_bytes() == (installed_notebooks / "00_workbench.ipynb").read_bytes()
    ((file, arguments),) = started
    assert file == sys.executable
    assert arguments[1:] == ["-m", "jupyterlab", str(here / "00_workbench.ipynb"), "--no-browser", "--port=9999"]
    assert main(["app"]) == 0
    assert "copied" not in capsys.readouterr().err  # the second time all is there
    assert started[-1][1][1:] == ["-m", "voila", str(here / "00_workbench.ipynb")]


def test_a_checkout_s_notebooks_are_opened_in_place(installed_notebooks):
    for folder in (installed_notebooks, installed_notebooks.parent):
        copies = launch.copy_notebooks(folder)
        assert copies.folder.resolve() == installed_notebooks
        assert copies.copied == copies.kept == []


def test_a_folder_that_cannot_be_written_is_named(installed_notebooks, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(launch.shutil, "copyfile", refuse)
    assert main(["lab"]) == 2
    err = capsys.readouterr().err
    assert "cannot write" in err
    assert "Permission denied" in err
    assert "start the workbench in a folder of your own" in err


def test_a_missing_jupyterlab_says_how_to_install_it(installed_notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert main(["lab"]) == 2
    assert "-m pip install jupyterlab" in capsys.readouterr().err


def test_the_shipped_notebooks_have_the_one_that_lab_opens():
    assert (notebooks_path() / launch.START).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_full_disk_is_one_sentence(checkpoint, extra):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "workbench.cli", "inspect", checkpoint, *extra]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Error: No space left on device\n"
