"""One call for one layer: arrays, layers of a model, convolutions; inputs from the caller or from the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.calibration.layer_inputs import layer_inputs
from workbench.calibration.statistics import LayerStatistics
from workbench.checkpoints import open_model
from workbench.errors import Cancelled, QuantizationError
from workbench.methods import all_methods
from workbench.methods.layer import patches, quantize_layer
from workbench.methods.method import METHODS, Method, Outcome
from workbench.quantization import quantize
from workbench.resources import demo_path


class InputHungry(Method):
    """A method that needs inputs, whatever the real ones are called."""

    word = "hungry"
    title = "Hungry"
    summary = "for this test"

    @property
    def needs(self):
        return frozenset({"gram", "inputs"})

    def _quantize(self, task, run):
        assert task.statistics is not None
        run.progress(0.5, task.name)
        return Outcome(task.start, notes=(f"{task.statistics.count} rows", f"{task.bias is not None}"))


def test_an_array_is_enough_for_data_free_methods():
    weight = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    found = quantize_layer(weight, "rtn", "uniform:bits=4", granularity="group:8")
    np.testing.assert_array_equal(found.quantized.codes, quantize(weight, "uniform:bits=4", "group:8").codes)


def test_inputs_come_from_the_model_where_the_method_needs_them():
    model = open_model(demo_path("tiny-gemma3"))
    name = next(layer.name for layer in model.layers.values() if layer.role == "o_proj")
    found = quantize_layer(name, InputHungry(), "uniform:bits=4", model=model)
    rows = int(found.notes[0].split()[0])
    assert rows >= 512
    assert found.name == name


def test_a_depthwise_convolution_has_statistics_by_group():
    found = quantize_layer("blocks.1.depthwise", InputHungry(), "uniform:bits=4", model="demo:tiny-resnet")
    assert np.isfinite(found.error)
    assert found.error > 0.0


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"padding": 1}),
        (3, {"padding": 1, "stride": 2, "groups": 4}),
        ((2, 3), {"padding": (0, 2), "dilation": (2, 1), "groups": 2}),
    ],
)
def test_patches_times_weight_is_the_convolution(kernel, options):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 8, kernel, bias=False, **options)
    images = torch.randn(2, 4, 9, 7)
    padding = options["padding"] if isinstance(options["padding"], tuple) else (options["padding"],) * 2
    geometry = {
        "stride": conv.stride,
        "padding": tuple((side, side) for side in padding),
        "dilation": conv.dilation,
        "groups": conv.groups,
    }
    rows = patches(images.numpy(), tuple(conv.weight.shape), geometry)
    weight = conv.weight.detach().numpy().reshape(conv.groups, 8 // conv.groups, -1)
    expected = conv(images).detach().numpy()
    made = np.einsum("gnd,god->gon", rows, weight).reshape(8, 2, *expected.shape[2:]).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_what_cannot_be_is_refused_in_one_sentence():
    weight = np.ones((4, 8), dtype=np.float32)
    with pytest.raises(QuantizationError, match="give them as inputs="):
        quantize_layer(weight, InputHungry(), "uniform:bits=4")
    with pytest.raises(QuantizationError, match="needs the model that has it"):
        quantize_layer("head", "rtn", "uniform:bits=4")
    with pytest.raises(QuantizationError, match="multiplies 8 inputs"):
        quantize_layer(weight, "rtn", "uniform:bits=4", inputs=np.ones((5, 9), dtype=np.float32))


def test_statistics_pass_through_and_listeners_can_cancel():
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    statistics = LayerStatistics.from_inputs("own", np.random.default_rng(1).standard_normal((30, 8)))
    assert quantize_layer(weight, InputHungry(), "uniform:bits=4", inputs=statistics).notes[0] == "30 rows"

    def stop(fraction, label):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        quantize_layer(weight, InputHungry(), "uniform:bits=4", inputs=statistics, progress=stop)
    assert "hungry" not in METHODS
    assert "hungry" not in all_methods()


def test_captured_inputs_are_taken_as_they_are():
    model = open_model(demo_path("tiny-resnet"))
    name = "blocks.1.depthwise"
    caught = layer_inputs(model, name, rows=256)
    found = quantize_layer(model[name], InputHungry(), "uniform:bits=4", inputs=caught)
    expected = patches(caught.values, tuple(model[name].shape), caught.convolution)
    assert found.notes[0] == f"{expected.shape[1]} rows"


@pytest.mark.parametrize(
    "given",
    [
        lambda rows: torch.from_numpy(rows).bfloat16(),
        lambda rows: torch.from_numpy(rows).requires_grad_(),
        lambda rows: rows.reshape(4, 8, 16),
        lambda rows: rows.astype(np.float64).tolist(),
    ],
)
def test_inputs_of_any_kind_are_rows(given):
    rng = np.random.default_rng(0)
    rows = rng.integers(-8, 8, (32, 16)).astype(np.float32)  # whole, so that bfloat16 holds them
    weight = rng.standard_normal((8, 16)).astype(np.float32)
    expected = quantize_layer(weight, "gptq", "uniform:bits=3", inputs=rows)
    found = quantize_layer(weight, "gptq", "uniform:bits=3", inputs=given(rows))
    assert found.error == expected.error
    np.testing.assert_array_equal(found.quantized.codes, expected.quantized.codes)


@pytest.mark.parametrize("inputs", ["abc", [[1.0, 2.0], [1.0]], np.ones((3, 8), dtype=complex)])
def test_inputs_that_are_no_numbers_are_refused(inputs):
    with pytest.raises(QuantizationError, match="rows of real numbers"):
        quantize_layer(np.ones((4, 8), dtype=np.float32), "gptq", "uniform:bits=4", inputs=inputs)


def test_a_device_that_is_not_there_is_refused():
    weight, rows = np.ones((4, 8), dtype=np.float32), np.ones((5, 8), dtype=np.float32)
    with pytest.raises(QuantizationError, match="cannot use the device 'nowhere'"):
        quantize_layer(weight, "gptq", "uniform:bits=4", inputs=rows, device="nowhere")
