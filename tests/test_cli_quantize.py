"""``workbench quantize`` and ``workbench recipe`` from a shell: files, tables, going on after a stop, clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workbench.checkpoints import open_model
from workbench.cli import INTERRUPTED, USER_ERROR, main
from workbench.methods.model_result import QuantizedModel
from workbench.quantization.recipe import PRESETS, Entry, Recipe
from workbench.quantization.recipe_file import parse_recipe


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
    code, out, _ = run(capsys, *line, "--json")
    record = json.loads(out)
    assert code == 0
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
    assert "the same command goes on" in err
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
        (("demo:tiny-gemma3", "--recipe", "w4-gptq-g128", "--samples", "0"), "at least 1"),
        (("demo:tiny-resnet", "--recipe", "w4-rtn-clip", "--device", "abacus"), "torch cannot use the device"),
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


def test_help_loads_nothing_heavy():
    script = "import sys; from workbench.cli import main; main(['quantize', '--help']); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert not {"torch", "transformers", "numba"} & set(done.stdout.split())
