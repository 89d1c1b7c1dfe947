"""Random quantized TensorFlow Lite models of several layers: inverted residuals, residual blocks, everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from operator_zoo import codes, scale

from workbench.integer.convolution import geometry
from workbench.integer.judges.tflite_builder import TFLiteModel


@dataclass(frozen=True)
class End:
    index: int
    shape: tuple[int, ...]
    scale: np.float32
    zero: int
    kind: type


class Net:
    """A model under construction; every method adds an operator with random weights and gives its output."""

    def __init__(self, seed, kind=np.int8):
        self.rng = np.random.default_rng(seed)
        self.kind = kind
        self.model = TFLiteModel()
        self.ends = []

    def tensor(self, shape, step=None, zero=None, kind=None):
        kind = kind or self.kind
        step = scale(self.rng) / np.float32(256 if kind == np.int16 else 1) if step is None else np.float32(step)
        if zero is None:
            zero = 0 if kind in {np.int16, np.int32} else int(codes(self.rng, (), kind))
        end = End(self.model.tensor(f"t{len(self.ends)}", shape, kind, step, zero), tuple(shape), step, zero, kind)
        self.ends.append(end)
        return end

    def constant(self, values, step=None, axis=None):
        values = np.asarray(values)
        return self.model.tensor("constant", values.shape, values.dtype, step, 0, data=values, axis=axis)

    def operator(self, name, inputs, output, options=None, version=2, constants=()):  # noqa: PLR0917
        places = [each.index for each in inputs] + list(constants)
        self.model.operator(name, places, [output.index], options or {}, version=version)
        return output

    def weights(self, shape, axis, x, depth, *, per_channel):
        outputs = shape[axis]
        w = self.rng.integers(-127, 128, shape).astype(np.int8)
        # Weights that bring every layer's outputs back to steps of a few hundredths.
        step = scale(self.rng, 0.02, 0.1) / np.float32(256 if self.kind == np.int16 else 1)
        middle = step / (x.scale * np.float32(np.sqrt(depth) * 70))
        steps = middle * np.exp(self.rng.uniform(-1, 1, outputs)).astype(np.float32) if per_channel else middle
        wide = self.kind == np.int16
        bias = self.rng.integers(-3000, 3000, outputs).astype(np.int64 if wide else np.int32)
        bias_step = (x.scale * steps).astype(np.float32)
        return step, [
            self.constant(w, steps, axis if per_channel else None),
            self.constant(bias, bias_step, 0 if per_channel else None),
        ]

    def conv(self, x, outputs, window=1, stride=1, *, padding="SAME", activation="NONE", per_channel=True):
        channels = x.shape[3]
        shape = (outputs, window, window, channels)
        step, constants = self.weights(shape, 0, x, window * window * channels, per_channel=per_channel)
        size, _ = geometry(x.shape[1:3], (window, window), (stride, stride), padding.lower(), (1, 1))
        options = {"padding": padding, "stride_h": stride, "stride_w": stride, "fused_activation_function": activation}
        output = self.tensor((x.shape[0], *size, outputs), step)
        return self.operator("CONV_2D", [x], output, options, 3, constants)

    def depthwise(self, x, window=3, stride=1, multiplier=1, activation="RELU6"):
        outputs = x.shape[3] * multiplier
        step, constants = self.weights((1, window, window, outputs), 3, x, window * window, per_channel=True)
        size, _ = geometry(x.shape[1:3], (window, window), (stride, stride), "same", (1, 1))
        options = {
            "padding": "SAME",
            "stride_h": stride,
            "stride_w": stride,
            "depth_multiplier": multiplier,
            "fused_activation_function": activation,
        }
        output = self.tensor((x.shape[0], *size, outputs), step)
        return self.operator("DEPTHWISE_CONV_2D", [x], output, options, 3, constants)

    def dense(self, x, outputs, activation="NONE", *, per_channel=False):
        depth = int(np.prod(x.shape[1:]))
        step, constants = self.weights((outputs, depth), 0, x, depth, per_channel=per_channel)
        output = self.tensor((x.shape[0], outputs), step)
        options = {"fused_activation_function": activation}
        return self.operator("FULLY_CONNECTED", [x], output, options, 4, constants)

    def pair(self, name, a, b, activation="NONE"):
        step = (a.scale + b.scale) * np.float32(0.6)
        if name == "MUL":
            step = a.scale * b.scale * np.float32(100 * (256 if self.kind == np.int16 else 1))
        options = {"fused_activation_function": activation}
        if name != "MUL":
            options["pot_scale_int16"] = False
        return self.operator(name, [a, b], self.tensor(np.broadcast_shapes(a.shape, b.shape), step), options)

    def pool(self, x, name, window=2, padding="VALID"):
        size, _ = geometry(x.shape[1:3], (window, window), (window, window), padding.lower(), (1, 1))
        options = {
            "padding": padding,
            "stride_h": window,
            "stride_w": window,
            "filter_height": window,
            "filter_width": window,
        }
        return self.operator(name, [x], self.tensor((x.shape[0], *size, x.shape[3]), x.scale, x.zero), options)

    def mean(self, x, axes=(1, 2), *, keep=False):
        shape = np.zeros(x.shape).sum(axis=axes, keepdims=keep).shape
        constants = [self.constant(np.array(axes, np.int32))]
        return self.operator("MEAN", [x], self.tensor(shape, x.scale / 3), {"keep_dims": keep}, 2, constants)

    def unary(self, name, x, options=None, version=2):
        step, zero = None, None
        if name in {"LOGISTIC", "SOFTMAX"}:
            step, zero = (1 / 32768, 0) if self.kind == np.int16 else (1 / 256, -128)
        elif name == "TANH":
            step, zero = (1 / 32768, 0) if self.kind == np.int16 else (1 / 128, 0)
        elif name in {"RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH"}:
            step = x.scale * np.float32(self.rng.uniform(0.4, 1.5))
        return self.operator(name, [x], self.tensor(x.shape, step, zero), options, version)

    def moved(self, name, x, shape, constants=(), options=None):
        return self.operator(name, [x], self.tensor(shape, x.scale, x.zero), options, 1, constants)

    def finish(self, inputs, outputs=None):
        """Every value is an output, so that every intermediate is judged."""
        given = [end.index for end in inputs]
        outputs = self.ends if outputs is None else outputs
        return self.model.finish(given, [end.index for end in outputs if end.index not in given])


def mobile_net_like(seed, kind=np.int8):
    """Two inverted residual blocks between a stem and a classifier."""
    net = Net(seed, kind)
    x = net.tensor((2, 12, 12, 3))
    h = net.conv(x, 8, 3, 2, activation="RELU6")
    for stride in (1, 2):
        wide = net.conv(h, 24, activation="RELU6")
        deep = net.depthwise(wide, 3, stride)
        thin = net.conv(deep, 8)
        h = net.pair("ADD", h, thin) if stride == 1 else thin
    pooled = net.mean(net.conv(h, 16, activation="RELU"))
    net.unary("SOFTMAX", net.dense(pooled, 10), {"beta": 1.0})
    return net, x


def residual(seed, kind=np.int8):
    """A residual block with a projection, pools, a join, and every cheap operator on the way."""
    net = Net(seed, kind)
    x = net.tensor((1, 9, 11, 4))
    padded = net.moved("PAD", x, (1, 11, 13, 4), [net.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))])
    a = net.conv(padded, 8, 3, 2, padding="VALID", activation="RELU", per_channel=False)
    b = net.conv(a, 8, 3)
    project = net.conv(padded, 8, 1, 2)
    cut = net.moved(
        "STRIDED_SLICE",
        project,
        b.shape,
        [net.constant(np.array(each, np.int32)) for each in ([0, 0, 0, 0], [1, *b.shape[1:]], [1, 1, 1, 1])],
        {"begin_mask": 1},
    )
    total = net.pair("ADD", b, cut, "RELU")
    gate = net.unary("LOGISTIC", net.mean(total, keep=True))
    scaled = net.pair("MUL", total, gate)
    pools = [net.pool(scaled, name) for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D")]
    joined = net.tensor((*pools[0].shape[:3], 16), scaled.scale, scaled.zero)
    net.operator("CONCATENATION", pools, joined, {"axis": 3})
    order = net.constant(np.array([0, 3, 1, 2], np.int32))
    turned = net.moved("TRANSPOSE", joined, (1, 16, *joined.shape[1:3]), [order])
    flat = net.moved("RESHAPE", turned, (1, int(np.prod(turned.shape))), [net.constant(np.array([1, -1], np.int32))])
    hidden = net.dense(flat, 20, "RELU", per_channel=True)
    squashed = net.unary("TANH", hidden)
    bent = net.unary("LEAKY_RELU", net.pair("SUB", hidden, squashed), {"alpha": 0.125})
    net.unary("RELU6", net.unary("RELU", bent))
    if kind == np.int8:
        net.unary("HARD_SWISH", bent, version=1)
    net.dense(net.operator("QUANTIZE", [bent], net.tensor(bent.shape)), 5)
    return net, x
