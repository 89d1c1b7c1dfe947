"""The nested view and its text form."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import open_model
from workbench.checkpoints.tree import short_count


def block(width: int) -> dict[str, np.ndarray]:
    return {"attn.q_proj.weight": np.ones((width, width), np.float32), "norm.weight": np.ones(width, np.float32)}


@pytest.fixture
def model():
    arrays = {"embed_tokens.weight": np.ones((10, 4), np.float16)}
    for number, width in enumerate([4, 4, 4, 8, 8]):
        arrays |= {f"layers.{number}.{name}": value for name, value in block(width).items()}
    return open_model(arrays | {"lm_head.weight": np.ones((10, 4), np.float16)})


def test_text_shows_alike_blocks_once(model):
    cells = [line.split("  ") for line in str(model.tree).splitlines()]
    assert "\n".join(f"{cell[0].rstrip()} | {cell[-1].strip()}" for cell in map(join_indent, cells)) == TEXT


def join_indent(cells: list[str]) -> list[str]:
    """Put the indent, which holds double spaces, back in front of the label."""
    label = next(index for index, cell in enumerate(cells) if cell.strip(" │"))
    return ["  ".join(cells[: label + 1]), cells[-1]]


TEXT = """\
arrays | (arrays, 12 layers, 284 parameters)
├── embed_tokens | 10x4 float16 embedding
├── layers | 204
│   ├── 0-2 | 3 × 20
│   │   ├── attn | 16
│   │   │   └── q_proj | 4x4 float32 linear
│   │   └── norm | 4 float32 norm
│   └── 3-4 | 2 × 72
│       ├── attn | 64
│       │   └── q_proj | 8x8 float32 linear
│       └── norm | 8 float32 norm
└── lm_head | 10x4 float16 linear"""


def test_every_block_is_shown_on_request(model):
    text = model.tree.text(collapse=False)
    assert all(f" {number} " in text for number in range(5))
    rows = list(model.tree.rows(collapse=False))
    assert sum(row.node.layer is not None for row in rows) == 12
    assert all(row.repeats == 1 for row in rows)


def test_nodes_are_nested_mappings(model):
    layers = model.tree["layers"]
    assert list(layers) == ["0", "1", "2", "3", "4"]
    assert len(layers) == 5
    assert layers["3"]["attn"]["q_proj"].layer is model["layers.3.attn.q_proj"]
    assert model.tree["layers.3.attn.q_proj"].layer is model["layers.3.attn.q_proj"]
    assert layers.path == "layers"
    assert layers["3"].path == "layers.3"
    assert [layer.name for layer in layers["0"].layers()] == ["layers.0.attn.q_proj", "layers.0.norm"]
    assert layers["0"].parameters == 20
    assert "attn" in layers["0"]
    assert bool(layers["0"]["norm"])
    with pytest.raises(KeyError):
        layers["9"]
    assert repr(layers) == "Tree('layers', 10 layers, 204 parameters)"
    assert "<pre>" in model.tree._repr_html_()


def test_parts_of_a_fused_layer_stand_below_it():
    fused = open_model({"in_proj_weight": np.ones((12, 4), np.float32)})
    assert list(fused.tree["in_proj_weight"]) == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (12_345, "12.3k"),
        (5_800_000, "5.8M"),
        (27_432_406_640, "27.4B"),
        (1_234 * 10**12, "1234T"),
        (999_999, "1M"),
        (999_499, "999k"),
        (10**15, "1000T"),
    ],
)
def test_counts(number, text):
    assert short_count(number) == text
