"""Runs that were stopped go on where they were, with the same result bit for bit; other runs are never overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_models import llama_folder, token_calibration

from workbench.errors import Cancelled, CheckpointError, QuantizationError
from workbench.methods import LayerTask, Run, parse_method
from workbench.methods.model_result import QuantizedModel
from workbench.methods.progress_store import ProgressStore
from workbench.methods.runner import quantize_model
from workbench.quantization.recipe import Entry, Recipe

RECIPE = Recipe(
    (
        Entry("*", weight="uniform:bits=3", method="gptq"),
        Entry("*.mlp.*", method="adaround:steps=3", activation="uniform:bits=8"),
        Entry("*.self_attn.o_proj", method="awq"),
    ),
    transforms=("smoothquant:alpha=0.5", "bias-correction"),
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama") / "small-llama")


def same(one: QuantizedModel, other: QuantizedModel) -> None:
    assert list(one.layers) == list(other.layers)
    for name in one.layers:
        a, b = one.layers[name], other.layers[name]
        np.testing.assert_array_equal(a.quantized.codes, b.quantized.codes)
        np.testing.assert_array_equal(a.quantized.scale, b.quantized.scale)
        assert (a.method, a.error, a.start_error, a.energy, a.notes) == (
            b.method,
            b.error,
            b.start_error,
            b.energy,
            b.notes,
        )
        assert a.trace == b.trace
    assert one.ranges == other.ranges
    assert one.notes == other.notes
    first, second = one.module().state_dict(), other.module().state_dict()
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value.numpy(), second[name].numpy())


@pytest.mark.parametrize(("after", "sequential"), [(1, False), (9, False), (6, True)])
def test_a_cancelled_run_goes_on(llama, tmp_path, after, sequential):
    whole = quantize_model(llama, RECIPE, token_calibration(), sequential=sequential)
    heard = []

    def stop(result):
        heard.append(result.name)
        if len(heard) == after:
            raise Cancelled("enough")

    output = tmp_path / "out"
    with pytest.raises(Cancelled):
        quantize_model(llama, RECIPE, token_calibration(), output=output, sequential=sequential, on_layer=stop)
    kept = set(heard)
    learned = []
    found = quantize_model(
        llama,
        RECIPE,
        token_calibration(),
        output=output,
        sequential=sequential,
        on_step=lambda name, step, steps, loss: learned.append(name),
    )
    assert not kept & set(learned), "what was finished is not learned again"
    same(found, whole)
    assert not (output / "partial").exists()


def test_a_killed_process_leaves_what_it_finished(llama, tmp_path):
    output = tmp_path / "out"
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from small_models import token_calibration
from test_resume import RECIPE
from workbench.methods.runner import quantize_model
def wait(result):
    print(result.name, flush=True)
    if result.name.startswith("model.layers.1"):
        time.sleep(60)
quantize_model({str(llama)!r}, RECIPE, token_calibration(), output={str(output)!r}, on_layer=wait)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("model.layers.1"):
            break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    finished = len(list((output / "partial").glob("layer-*.safetensors")))
    assert finished >= 8
    heard = []
    found = quantize_model(
        llama, RECIPE, token_calibration(), output=output, on_layer=lambda result: heard.append(result.name)
    )
    assert len(heard) == 15
    same(found, quantize_model(llama, RECIPE, token_calibration()))


def test_data_free_runs_go_on_too(llama, tmp_path):
    chosen = Recipe((Entry("*", weight="uniform:bits=4", method="rtn-clip"),))
    count = []

    def stop(result):
        count.append(result.name)
        if len(count) == 4:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        quantize_model(llama, chosen, output=tmp_path / "out", on_layer=stop)
    found = quantize_model(llama, chosen, output=tmp_path / "out")
    same(found, quantize_model(llama, chosen))


def test_a_finished_run_is_not_done_again(llama, tmp_path):
    chosen = Recipe((Entry("*", weight="uniform:bits=4", method="rtn"),))
    quantize_model(llama, chosen, output=tmp_path)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    heard = []
    found = quantize_model(llama, chosen, output=tmp_path, on_layer=heard.append)
    assert not heard
    assert len(found.layers) == 15
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp


def test_other_runs_are_never_overwritten(llama, tmp_path):
    chosen = Recipe((Entry("*", weight="uniform:bits=4", method="rtn"),))
    quantize_model(llama, chosen, output=tmp_path / "done")
    with pytest.raises(QuantizationError, match="another recipe; nothing was overwritten"):
        quantize_model(llama, chosen.but("*", weight="nf4"), output=tmp_path / "done")
    with pytest.raises(QuantizationError, match="another model; nothing was overwritten"):
        quantize_model(llama, chosen, output=llama)

    def stop(result):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        quantize_model(llama, chosen, output=tmp_path / "part", on_layer=stop)
    before = sorted((tmp_path / "part" / "partial").iterdir())
    with pytest.raises(QuantizationError, match="unfinished run with another recipe and seed") as caught:
        quantize_model(llama, chosen.but("*", weight="nf4"), output=tmp_path / "part", seed=3)
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "part" / "partial").iterdir()) == before


def test_a_damaged_file_of_a_run_is_told(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    store = ProgressStore(tmp_path, {"seed": 0})
    task = LayerTask.of(weight, "uniform:bits=4", name="a", bias=np.zeros(4, dtype=np.float32))
    result = parse_method("rtn").quantize_layer(task, Run())
    store.save_layer(result)
    assert "a" in store
    assert "b" not in store
    np.testing.assert_array_equal(store.load_layer("a").quantized.codes, result.quantized.codes)
    path = next(store.folder.glob("layer-*"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut short"):
        store.load_layer("a")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        ProgressStore(tmp_path / "file", {"seed": 0})


@pytest.mark.parametrize("when", ["before the settings", "before the tidying"])
def test_a_kill_while_the_end_is_written(llama, tmp_path, when):
    chosen = Recipe((Entry("*", weight="uniform:bits=4", method="rtn"),))
    output = tmp_path / "out"

    def stop(result):
        if result.name == "lm_head":
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        quantize_model(llama, chosen, output=output, on_layer=stop)
    quantize_model(llama, chosen, output=tmp_path / "whole")
    names = ["model.safetensors"]
    if when == "before the tidying":
        names = [path.name for path in (tmp_path / "whole").iterdir()]
    for name in names:
        (output / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    found = quantize_model(llama, chosen, output=output)
    same(found, QuantizedModel.load(tmp_path / "whole"))
    assert not (output / "partial").exists()
