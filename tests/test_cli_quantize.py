"""``workbench quantize`` and ``workbench recipe`` from a shell: files, tables, going on after a stop, clear refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from workbench.checkpoints import open_model
from workbench.cli import INTERRUPTED, USER_ERROR, main
from workbench.methods.model_result import QuantizedModel
from workbench.methods.runner import quantize_model
from workbench.quantization.recipe import PRESETS, Entry, Recipe
from workbench.quantization.recipe_file import parse_recipe
from workbench.shell.quantize import layers_table, stopped


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


def test_presets_are_listed_and_printed(capsys):
    code, out, _ = run(capsys, "recipe")
    assert code == 0
    assert all(name in out for name in PRESETS)
    code, out, _ = run(capsys, "recipe", "w4-nupes")
    assert code == 0
    assert parse_recipe(out) == PRESETS["w4-nupes"]
    code, _, err = run(capsys, "recipe", "w4-nupse")
    assert code == USER_ERROR
    assert "did you mean w4-nupes" in err


def test_a_recipe_file_runs_headless(tmp_path, capsys):
    recipe = Recipe((Entry("*", weight="uniform:bits=4", method="gptq"), Entry("head", weight="uniform:bits=8")))
    path = recipe.save(tmp_path / "recipe.yaml")
    line = ("quantize", "demo:tiny-resnet", "--recipe", path, "--output", tmp_path / "out", "--samples", 32)
    code, out, err = run(capsys, *line)
    assert (code, err) == (0, "")
    assert "blocks.0.conv1" in out
    assert "bits per weight" in out
    model = open_model(tmp_path / "out")
    loaded = QuantizedModel.load(tmp_path / "out")
    assert loaded.recipe == recipe
    np.testing.assert_array_equal(np.asarray(model["head"].weight), loaded.layers["head"].quantized.dequantize())
    code, out, err = run(capsys, *line, "--json")
    record = json.loads(out)
    assert code == 0
    assert "nothing was computed anew" in err
    assert len(record["layers"]) == 12
    assert record["bits_per_weight"] == pytest.approx(loaded.bits_per_weight)


def test_evaluate_puts_both_models_side_by_side(tmp_path, capsys):
    code, out, _ = run(
        capsys,
        *("quantize", "demo:tiny-resnet", "--recipe", "w4-rtn-clip", "--output", tmp_path / "out", "--evaluate"),
    )
    assert code == 0
    assert "accuracy" in out
    assert "±" in out


def test_ctrl_c_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    from workbench.shell import quantize

    output = tmp_path / "out"

    class Bar:
        def __enter__(self):
            return self.advance

        def __exit__(self, *error):
            return None

        def advance(self, fraction, label):
            if fraction > 0.5:
                raise KeyboardInterrupt

    line = ("quantize", "demo:tiny-resnet", "--recipe", "w4-rtn-clip", "--output", output)
    with monkeypatch.context() as patched:
        patched.setattr(quantize, "progress_bar", Bar)
        code, _, err = run(capsys, *line)
    assert code == INTERRUPTED
    assert err.endswith("the same command goes on from there.\n")
    assert list((output / "partial").glob("layer-*"))
    assert not (output / "config.json").exists()
    code, _, _ = run(capsys, *line)
    assert code == 0
    assert not (output / "partial").exists()
    assert len(QuantizedModel.load(output).layers) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo:tiny-resnet", "--recipe", "no.yaml"), "cannot be read"),
        (("demo:tiny-resnet", "--recipe", "w4-rtm-clip"), "did you mean w4-rtn-clip"),
        (("demo:tiny-resnet", "--recipe", "w4-rtn-clip", "--texts", "no.txt"), "are for language models"),
        (("demo:tiny-gemma3", "--recipe", "w4-rtn-clip", "--texts", "no.txt"), "cannot be read"),
        (
            ("demo:tiny-gemma3", "--recipe", "w4-gptq-g128", "--samples", "0"),
            "--samples is a whole number of at least 1, not 0",
        ),
        (("demo:tiny-resnet", "--recipe", "w4-rtn-clip", "--seed", "-1"), "--seed is a whole number of at least 0"),
        (("demo:tiny-resnet", "--recipe", "w4-rtn-clip", "--device", "abacus"), "(there is no such device)"),
        (("demo:tiny-nothing", "--recipe", "w4-rtn-clip"), "tiny-nothing"),
    ],
)
def test_user_errors_are_one_sentence(tmp_path, capsys, arguments, words):
    code, out, err = run(capsys, "quantize", *arguments, "--output", tmp_path / "out")
    assert code == USER_ERROR
    assert out == ""
    assert words in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_another_recipe_is_refused(tmp_path, capsys):
    line = ("quantize", "demo:tiny-resnet", "--output", tmp_path / "out", "--recipe")
    assert run(capsys, *line, "w4-rtn-clip")[0] == 0
    code, _, err = run(capsys, *line, "w8a8")
    assert code == USER_ERROR
    assert "already holds a model of another recipe" in err


def test_files_of_somebody_are_not_written_over(tmp_path, capsys):
    own = PRESETS["w4-rtn-clip"].save(tmp_path / "recipe.yaml")
    own.write_text("# mine\n" + own.read_text())
    code, _, err = run(capsys, "quantize", "demo:tiny-resnet", "--recipe", own, "--output", tmp_path)
    assert code == USER_ERROR
    assert "holds other files already (recipe.yaml)" in err
    assert own.read_text().startswith("# mine")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_what_ctrl_c_says_is_true(tmp_path):
    assert "before a layer was finished" in stopped(tmp_path / "nothing")
    (tmp_path / "partial").mkdir()
    assert "before a layer was finished" in stopped(tmp_path)
    (tmp_path / "partial" / "layer-1.safetensors").touch()
    assert "finished layers are kept" in stopped(tmp_path)
    (tmp_path / "config.json").touch()
    assert "is whole" in stopped(tmp_path)


def test_the_table_fits_a_terminal_of_80_columns(tmp_path):
    recipe = Recipe((Entry("*", weight="uniform:bits=4,range=asymmetric", granularity="group:32", method="hqq"),))
    result = quantize_model("demo:tiny-resnet", recipe)

    def lines(result):
        console = Console(width=80, file=io.StringIO())
        console.print(layers_table(result, "demo:tiny-resnet", tmp_path / "out"))
        return console.file.getvalue().splitlines()

    shown = lines(result)
    text = "\n".join(shown)
    assert "method hqq" in text
    assert "blocks.1.depthwise" in text
    assert "…" not in text
    assert all(f"{report['row']['sqnr_db']:.2f}" in text for report in result.reports.values())
    mixed = lines(quantize_model("demo:tiny-resnet", recipe.but("head", weight="uniform:bits=8", method="rtn")))
    assert "…" not in "\n".join(mixed)
    assert any(line.startswith("head") and "rtn" in line for line in mixed)


def test_help_loads_nothing_heavy():
    script = "import sys; from workbench.cli import main; main(['quantize', '--help']); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert not {"torch", "transformers", "numba"} & set(done.stdout.split())
