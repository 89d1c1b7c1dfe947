"""Checkpoints of the workbench's own format: rows read alone, and files that lie are refused in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from files_by_hand import save_folder

from workbench.checkpoints import open_model
from workbench.errors import CheckpointError
from workbench.quantization import quantize
from workbench.quantization.stored import to_stored


def written(folder, weight, grid, granularity="channel", **more):
    parts = to_stored(quantize(weight, grid, granularity))
    tensors = {f"body.up.weight.{part}": array for part, array in parts.arrays.items()}
    tensors["body.norm.weight"] = np.ones(8, dtype=np.float32)
    layers = {"body.up": {**parts.settings, "tensor": "body.up.weight", **more.pop("settings", {})}}
    settings = {"quant_method": "workbench", "version": 1, "layers": layers, **more}
    return save_folder(folder, tensors, {"model_type": "own", "quantization_config": settings})


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:8"])
@pytest.mark.parametrize(
    "grid", ["uniform:bits=3", "uniform:bits=4,range=asymmetric", "power:bits=4,exponent=0.5", "bcq:bits=2"]
)
def test_rows_are_read_alone(tmp_path, grid, granularity):
    weight = np.random.default_rng(0).standard_normal((10, 24)).astype(np.float32)
    model = open_model(written(tmp_path, weight, grid, granularity))
    expected = quantize(weight, grid, granularity).dequantize()
    layer = model["body.up"]
    assert (layer.kind, layer.shape, model.quantization) == ("linear", (10, 24), "workbench")
    for start, stop in ((0, 10), (3, 4), (7, 10), (5, 5)):
        assert layer.weight[start:stop].tobytes() == expected[start:stop].tobytes()
    assert model["body.norm"].kind == "norm"


def test_the_key_covers_every_part(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    one = open_model(written(tmp_path / "a", weight, "uniform:bits=4"))["body.up"].content_key
    other = open_model(written(tmp_path / "b", weight * 2, "uniform:bits=4"))["body.up"].content_key
    assert one != other


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"version": 2}, "version 2 of the workbench's format"),
        ({"layers": 3}, "list no layers"),
        ({"layers": {"body.down": {}}}, "'body.down' of its quantization settings has no codes"),
        ({"settings": {"grid": "unifrom:bits=4"}}, "do not fit together"),
        ({"settings": {"grid": "uniform:bits=5"}}, "needs 20 numbers of codes, not 16"),
        ({"settings": {"granularity": "row"}}, "do not fit together"),
        ({"settings": {"granularity": "group:2"}}, "needs 16 numbers of scale, not 4"),
        ({"settings": {"shape": [4, 9]}}, "impossible shape"),
        ({"settings": {"shape": "4x8"}}, "do not fit together"),
        ({"settings": {"scale_format": "float8"}}, "float8"),
    ],
)
def test_files_that_lie_are_refused(tmp_path, more, words):
    folder = written(tmp_path, np.ones((4, 8), dtype=np.float32), "uniform:bits=4", **more)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


def test_codes_without_settings_are_no_weights(tmp_path):
    folder = written(tmp_path, np.ones((4, 8), dtype=np.float32), "uniform:bits=4")
    (folder / "config.json").write_text(json.dumps({"model_type": "own"}))
    model = open_model(folder)
    assert "body.up.weight.codes" not in model
