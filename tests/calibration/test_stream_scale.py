"""A checkpoint is streamed with the memory of one block, however many there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDTH, INNER, BLOCKS, WORDS = 1024, 2816, 10, 32000

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": WORDS,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}

PROGRAM = """
import json, sys
from pathlib import Path
import torch, transformers
from transformers.models.llama import modeling_llama
from workbench.calibration import BlockStream, Calibration

def peak():
    # ru_maxrss survives exec: VmHWM starts anew with the program.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

ids = torch.arange(48).reshape(2, 24)
before = peak()
stream = BlockStream(sys.argv[1], Calibration.from_loader([{"input_ids": ids}]), folder=sys.argv[2], memory=0)
seen = []
for block in stream:
    if block.name == "lm_head":  # never read: whoever does not look at the head does not pay for it
        seen.append([block.name, sum(each[0][0].numel() for each in block.inputs) // 1024])
        continue
    found = block.statistics(needs={"moments"})
    seen.append([block.name, next(iter(found.values())).count])
    for name in block.places:
        block.replace_weight(name, 0 * block.weight(name))
print(json.dumps({"before": before, "after": peak(), "lazy": stream.lazy, "seen": seen}))
"""


def write(folder: Path) -> Path:
    """Write a sparse checkpoint: real headers, numbers that read as zeros and take no room."""
    shapes = {
        "model.embed_tokens.weight": (WORDS, WIDTH),
        "lm_head.weight": (WORDS, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for number in range(BLOCKS):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
        shapes |= {f"{layer}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_is_that_of_one_block(tmp_path):
    folder = write(tmp_path / "llama")
    if (folder / "model.safetensors").stat().st_blocks * 512 > 50 << 20:
        pytest.skip("this file system has no sparse files")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "spill")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    block = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) / 2**20
    whole = BLOCKS * block + 2 * 4 * WORDS * WIDTH / 2**20
    assert found["lazy"]
    assert found["seen"] == [[f"model.layers.{number}", 48] for number in range(BLOCKS)] + [["lm_head", 48]]
    sys.stdout.write(f"\n  {found['after'] - found['before']:.0f} MB above {found['before']:.0f}; {whole:.0f} in all\n")
    # A block as it runs, a float copy beside it where the streams part, one tensor as it is read, and some room.
    assert found["after"] - found["before"] < 5 * block < whole / 3
