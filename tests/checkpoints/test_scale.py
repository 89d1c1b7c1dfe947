"""A checkpoint of Gemma 3 27B's shapes opens at once and is read in rows: little time, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import gemma27b
import pytest

PEAK = """
import resource
from pathlib import Path

def peak():
    # ru_maxrss survives exec: it would tell the size of pytest. VmHWM starts anew with the program.
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
"""

MEASURE = """
import json, sys, time
start = time.perf_counter()
from workbench import open_model
model = open_model(sys.argv[1])
text = str(model.tree)
seconds = time.perf_counter() - start
assert "torch" not in sys.modules and "transformers" not in sys.modules and "gguf" not in sys.modules
print(json.dumps({
    "seconds": seconds,
    "megabytes": peak(),
    "layers": len(model), "parameters": model.parameters, "lines": len(text.splitlines()), "text": text,
    "tied": dict(model.tied),
}))
"""

SKETCH = """
import json, sys
from workbench import open_model, sketch
model = open_model(sys.argv[1])
largest = max(model.values(), key=lambda layer: layer.parameters)
sketch(next(iter(model.find("*.layers.0.self_attn.k_proj"))), cache=False)  # compiles the kernels
before = peak()
result = sketch(largest, cache=False)
print(json.dumps({"layer": largest.name, "bytes": largest.weight.nbytes, "before": before, "after": peak(),
                  "count": result.count}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = gemma27b.write(tmp_path_factory.mktemp("gemma") / "gemma-3-27b-sparse")
    used = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    if used > 100 << 20:
        pytest.skip("this file system has no sparse files")
    assert sum(file.stat().st_size for file in folder.iterdir()) > 50 << 30
    return folder


def in_fresh_process(program: str, folder) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK + program, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_opens_and_prints_its_tree_at_once(checkpoint, capsys):
    found = in_fresh_process(MEASURE, checkpoint)
    measured = (
        f"27B checkpoint: opened and printed in {found['seconds']:.2f} s, {found['megabytes']:.0f} MB at the peak"
    )
    with capsys.disabled():
        sys.stdout.write(f"\n  {measured}\n")
    assert found["megabytes"] < 500
    assert found["seconds"] < 10  # 2 s is the goal; a loaded machine must not fail the suite
    assert 27.0e9 < found["parameters"] < 27.5e9
    assert found["layers"] == 62 * 13 + 2 + 27 * 8 + 5
    assert found["lines"] < 60
    assert "0-61" in found["text"]
    assert "62 × " in found["text"]
    assert found["tied"] == {"lm_head": "language_model.model.embed_tokens"}


def test_layers_come_in_the_models_order(checkpoint):
    from workbench import open_model

    with open_model(checkpoint) as model:
        blocks = [int(name.split(".")[3]) for name in model if ".layers." in name and name.startswith("language_model")]
        assert blocks == sorted(blocks)
        first = [name.removeprefix("language_model.model.layers.7.") for name in model if ".model.layers.7." in name]
        assert first[:2] == ["input_layernorm", "self_attn.q_proj"]
        assert [name for name in first if name.startswith("mlp")] == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        assert len(model.find("language_model.*.mlp.down_proj")) == 62


@pytest.mark.slow
def test_the_largest_layer_is_sketched_without_a_float_copy(checkpoint):
    found = in_fresh_process(SKETCH, checkpoint)
    assert found["layer"] == "language_model.model.embed_tokens"
    assert found["count"] == 262208 * 5376
    assert found["bytes"] == 2 * found["count"]
    assert found["after"] - found["before"] < 400  # the layer takes 2,700 MB in 16 bits and 5,400 MB in float32
