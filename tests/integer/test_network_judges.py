"""The integerized demo network as a TensorFlow Lite file: LiteRT and TensorFlow Lite Micro must give the same codes.

This judges the whole preparation, not single kernels: folded BatchNorm, quantized weights and biases, multipliers made
from scales, fused clamps, codings of the residual sums.
"""

from __future__ import annotations

import numpy as np
import pytest
from digits import digits

from workbench.integer import integerize
from workbench.quantization.recipe import Recipe

pytest.importorskip("tflite")

RUNTIMES = {"litert-reference": ("ai_edge_litert", "run_litert"), "tflm": ("tflite_micro", "run_tflm")}


def nhwc(shape):
    return shape if len(shape) != 4 else (shape[0], shape[2], shape[3], shape[1])


class Writer:
    """Writes the integer nodes of a convolutional network, images turned from NCHW to NHWC."""

    def __init__(self, model, shapes):
        from workbench.integer.judges.tflite_builder import TFLiteModel

        self.model, self.file = model, TFLiteModel()
        self.index = {}
        for name in model.graph.values:
            value = model.values[name]
            self.index[name] = self.file.tensor(
                name, nhwc(shapes[name]), value.dtype, np.float32(value.scale), value.zero_point
            )

    def constant(self, name, array, scale=None, zero=0, axis=None):
        return self.file.tensor(
            name, array.shape, array.dtype, scale, zero, data=np.ascontiguousarray(array), axis=axis
        )

    def weighted(self, node):
        """Weight and bias with their scales, the weight's axes in TensorFlow Lite's order."""
        weight, scale = node.constants["weight"], node.options["weight_scale"]
        axis = 0
        if weight.ndim == 4:
            weight = weight.transpose(0, 2, 3, 1)
            if node.options["groups"] > 1:
                weight, axis = weight.transpose(3, 1, 2, 0), 3
        inner = np.float32(self.model.values[node.inputs[0]].scale)
        single = np.ndim(scale) == 0 or np.all(scale == scale[0])
        scale = np.asarray(scale).reshape(-1)[:1] if single else np.asarray(scale)
        bias_scale = (inner * scale).astype(np.float32)
        return (
            self.constant(f"{node.name}/w", weight, scale, axis=axis),
            self.constant(f"{node.name}/b", node.constants["bias"], bias_scale, axis=0),
        )

    def finish(self):
        for node in self.model.graph.nodes:
            inputs = [self.index[name] for name in node.inputs]
            output = [self.index[node.output]]
            options = {"fused_activation_function": (node.options.get("activation") or "none").upper()}
            if node.operator == "conv2d":
                stride, window = node.options["stride"], node.constants["weight"].shape[2:]
                options |= {"stride_h": stride[0], "stride_w": stride[1], "padding": "SAME"}
                options |= {"dilation_h_factor": 1, "dilation_w_factor": 1}
                # TensorFlow Lite pads an even image of stride 2 only below; a symmetric pad is an operator of its own.
                if stride == (2, 2) and window == (3, 3):
                    inputs = [self.padded(node, inputs[0])]
                    options["padding"] = "VALID"
                depthwise = node.options["groups"] > 1
                if depthwise:
                    options["depth_multiplier"] = 1
                name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
                self.file.operator(name, [*inputs, *self.weighted(node)], output, options, version=3)
            elif node.operator == "linear":
                self.file.operator("FULLY_CONNECTED", [*inputs, *self.weighted(node)], output, options, version=5)
            elif node.operator == "add":
                self.file.operator("ADD", inputs, output, options, version=2)
            else:
                assert node.operator == "global_average_pool", node
                axes = self.constant(f"{node.name}/axes", np.array([1, 2], dtype=np.int32))
                self.file.operator("MEAN", [*inputs, axes], output, {"keep_dims": False}, version=2)
        ends = [self.index[name] for name in self.model.graph.inputs]
        return self.file.finish(ends, [self.index[name] for name in self.model.graph.outputs])

    def padded(self, node, source):
        value = self.model.values[node.inputs[0]]
        batch, rows, columns, channels = self.shapes_of(source)
        pads = self.constant(f"{node.name}/pads", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], dtype=np.int32))
        shape = (batch, rows + 2, columns + 2, channels)
        wide = self.file.tensor(f"{node.name}/padded", shape, value.dtype, np.float32(value.scale), value.zero_point)
        self.file.operator("PAD", [source, pads], [wide], {}, version=2)
        return wide

    def shapes_of(self, index):
        return self.file._tensors[index].shape


@pytest.mark.parametrize("semantics", RUNTIMES)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_runtimes_give_the_same_logits(semantics, granularity):
    package, runner = RUNTIMES[semantics]
    pytest.importorskip(package)
    from workbench.integer.judges import runners

    images = digits()[0]
    recipe = Recipe(stream="int8").but("*", granularity=granularity).but("head", granularity="tensor")
    model = integerize("demo:tiny-resnet", recipe, images[:128], semantics=semantics)
    assert {value.dtype for value in model.values.values()} == {np.dtype(np.int8)}
    part = images[128:160]
    run = model.run(part, keep=True)
    content = Writer(model, {name: array.shape for name, array in run.codes.items()}).finish()
    codes = run.codes["x"].transpose(0, 2, 3, 1)
    (theirs,) = getattr(runners, runner)(content, [np.ascontiguousarray(codes)])
    assert np.array_equal(theirs, run.outputs[0])
