"""TensorFlow Lite's operators that move, pick or join codes or change their coding; and the list of all that are covered."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.integer import activations
from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.gathering import argmax, embedding
from workbench.integer.graph import Node
from workbench.integer.rescaling import concat, rescale_codes
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.tflite_operators import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    LeakyRelu,
    MaxPool2D,
    Mean,
    Mul,
    Softmax,
    Sub,
    curve,
)
from workbench.integer.tflite_products import BatchMatmul
from workbench.integer.tflite_site import CODES, Built, Site, TFLite, operands

FLOAT = np.dtype(np.float32)

#: Which types each runtime's QUANTIZE converts into which (measured).
_CONVERTED = {
    "litert-reference": {
        "float32": {"int8", "uint8", "int16"},
        "int8": {"int8", "uint8", "int16"},
        "uint8": {"int8", "uint8", "int16"},
        "int16": {"int8", "int16", "int32"},
    },
    "tflm": {
        "float32": {"int8", "int16"},
        "int8": {"int8", "uint8", "int16", "int32"},
        "uint8": {"int8"},
        "int16": {"int8", "int16", "int32"},
    },
}


class Concatenation(TFLite):
    """Tensors of one coding, joined."""

    name = "tflite:CONCATENATION"

    def build(self, site: Site) -> Built:
        """Check the codings."""
        tensors = [site.tensor(place) for place in range(len(site.operator.inputs))]
        if not tensors or site.option("FusedActivationFunction", "NONE") != "NONE":
            raise site.fail("it joins one tensor or more, without an activation")
        site.same_coding(site.output, *tensors)
        axis, rank = int(site.option("Axis")), len(site.output.shape)
        if not -rank <= axis < rank or any(len(each.shape) != rank for each in tensors):
            raise site.fail(f"its axis {axis} is no axis of {site.output}")
        running, constants, order = operands(tensors)
        return Built(running, constants, {"operands": order, "axis": axis})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Join."""
        return concat(operands, axis=node.options["axis"], semantics=semantics)


class _Moving(TFLite):
    """One tensor whose codes stay as they are."""

    def move(self, site: Site) -> dict[str, Any]:
        """Return the options."""
        raise NotImplementedError

    def build(self, site: Site) -> Built:
        """Check the coding."""
        source = site.tensor(0)
        site.same_coding(source, site.output)
        running, constants, order = operands([source])
        return Built(running, constants, {"operands": order, **self.move(site)})


class Reshape(_Moving):
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the same codes in order, other axes."""

    def __init__(self, builtin: str) -> None:
        self.name = f"tflite:{builtin}"  # pyright: ignore[reportAttributeAccessIssue]

    def move(self, site: Site) -> dict[str, Any]:
        """Return the output's shape."""
        shape = site.output.shape
        if site.operator.name == "RESHAPE":
            given = site.maybe(1)
            wanted = site.integers(1, "shape") if given is not None else list(site.option("NewShape", shape))
            # The file's own shape of the output may be stale: the operator's is what counts.
            shape = tuple(int(length) for length in wanted)
            if any(length < -1 for length in shape) or shape.count(-1) > 1:
                raise site.fail(f"a shape of {shape} is none")
        if int(np.prod(site.tensor(0).shape)) != int(np.prod(site.output.shape)):
            raise site.fail(f"{site.tensor(0)} has not as many codes as {site.output}")
        return {"shape": shape}

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Give the codes another shape."""
        del semantics
        return operands[0].reshape(node.options["shape"])


class Transpose(_Moving):
    """Axes in another order."""

    name = "tflite:TRANSPOSE"

    def move(self, site: Site) -> dict[str, Any]:
        """Return the order."""
        axes, rank = site.integers(1, "permutation"), len(site.tensor(0).shape)
        if sorted(axis % rank if rank else axis for axis in axes) != list(range(rank)):
            raise site.fail(f"{axes} is no order of {rank} axes")
        return {"axes": tuple(axes)}

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Turn."""
        del semantics
        return np.ascontiguousarray(operands[0].transpose(node.options["axes"]))


class Pad(_Moving):
    """PAD with the code of 0, PADV2 with a constant code."""

    def __init__(self, builtin: str) -> None:
        self.name = f"tflite:{builtin}"  # pyright: ignore[reportAttributeAccessIssue]

    def move(self, site: Site) -> dict[str, Any]:
        """Return the padding and what it holds."""
        value = site.coded(site.output)[1]
        if site.operator.name == "PADV2":
            site.same_coding(site.output, site.tensor(2))
            value = int(site.constant(2, "padding value").ravel()[0])
        rank = len(site.tensor(0).shape)
        cells = np.array(site.integers(1, "padding"))
        if cells.size != 2 * rank or np.any(cells < 0):
            raise site.fail(f"a tensor of {rank} axes takes {2 * rank} paddings of 0 or above, not {cells.tolist()}")
        padded = np.array(site.tensor(0).shape, dtype=np.int64) + cells.reshape(rank, 2).sum(axis=1)
        if tuple(padded.tolist()) != site.output.shape:
            raise site.fail(f"{site.tensor(0)} padded by {cells.tolist()} does not have the shape of {site.output}")
        return {"padding": tuple(map(tuple, cells.reshape(rank, 2).tolist())), "value": value}

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Pad."""
        del semantics
        return np.pad(operands[0], node.options["padding"], constant_values=node.options["value"])


class StridedSlice(_Moving):
    """A constant slice."""

    name = "tflite:STRIDED_SLICE"

    def move(self, site: Site) -> dict[str, Any]:
        """Return one slice (or index) per axis."""
        if site.option("EllipsisMask") or site.option("NewAxisMask") or site.option("Offset", False):
            raise site.fail("ellipses, new axes and offsets are not covered")
        begins, ends, strides = (
            site.integers(place, name) for place, name in ((1, "begin"), (2, "end"), (3, "stride"))
        )
        shape = site.tensor(0).shape
        if not len(begins) == len(ends) == len(strides) <= len(shape) or 0 in strides:
            raise site.fail(f"begins {begins}, ends {ends} and strides {strides} do not fit {site.tensor(0)}")
        parts: list[slice | int] = []
        for axis, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
            if site.option("ShrinkAxisMask") >> axis & 1:
                if not -shape[axis] <= begin < shape[axis]:
                    raise site.fail(f"index {begin} is outside axis {axis} of {site.tensor(0)}")
                parts.append(begin)
                continue
            first = None if site.option("BeginMask") >> axis & 1 else begin
            last = None if site.option("EndMask") >> axis & 1 else end
            parts.append(slice(first, last, stride))
        return {"slices": tuple(parts)}

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Cut."""
        del semantics
        return np.ascontiguousarray(operands[0][node.options["slices"]])


class Split(TFLite):
    """Equal parts along a constant axis; each part is a node of its own (``tflite_model`` tells which)."""

    name = "tflite:SPLIT"

    def build(self, site: Site) -> Built:
        """Return axis and number of parts."""
        source, parts = site.tensor(1), len(site.operator.outputs)
        axis = site.integers(0, "axis")
        for each in site.operator.outputs:
            site.same_coding(source, each)
        if len(axis) != 1 or not -len(source.shape) <= axis[0] < len(source.shape) or not parts:
            raise site.fail(f"its axis {axis} is no axis of {source}")
        if source.shape[axis[0]] % parts or int(site.option("NumSplits", parts)) != parts:
            raise site.fail(f"{source} has no {parts} equal parts along axis {axis[0]}")
        running, constants, order = operands([source])
        return Built(running, constants, {"operands": order, "axis": axis[0], "parts": parts})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Give one part."""
        del semantics
        part = np.split(operands[0], node.options["parts"], axis=node.options["axis"])[node.options["part"]]
        return np.ascontiguousarray(part)


class Extremum(TFLite):
    """MAXIMUM or MINIMUM of two tensors of one coding, broadcast."""

    def __init__(self, builtin: str) -> None:
        self.name = f"tflite:{builtin}"  # pyright: ignore[reportAttributeAccessIssue]

    def build(self, site: Site) -> Built:
        """Check the codings."""
        tensors = (site.tensor(0), site.tensor(1))
        site.same_coding(site.output, *tensors)
        site.coded(site.output)
        running, constants, order = operands(tensors)
        return Built(running, constants, {"operands": order, "greatest": site.operator.name == "MAXIMUM"})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Compare."""
        del semantics
        return (np.maximum if node.options["greatest"] else np.minimum)(*operands)


class Gather(TFLite):
    """Slices along one axis, by indices that the model is given or holds."""

    name = "tflite:GATHER"

    def build(self, site: Site) -> Built:
        """Check coding and axis."""
        source, indices = site.tensor(0), site.tensor(1)
        site.same_coding(source, site.output)
        axis, rank = int(site.option("Axis")), len(source.shape)
        if not -rank <= axis < rank or site.option("BatchDims"):
            raise site.fail(f"its axis {axis} is no axis of {source}, or it gathers in batches")
        if indices.dtype not in {np.dtype(np.int32), np.dtype(np.int64)}:
            raise site.fail(f"indices are int32 or int64, not {indices.dtype}")
        running, constants, order = operands((source, indices))
        return Built(running, constants, {"operands": order, "axis": axis})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Look up."""
        del semantics
        x, indices = operands
        axis = node.options["axis"] % x.ndim
        rows = np.moveaxis(x, axis, 0)
        found = embedding(indices, np.ascontiguousarray(rows).reshape(len(rows), -1))
        shape = (*indices.shape, *rows.shape[1:])
        order = [
            *range(indices.ndim, indices.ndim + axis),
            *range(indices.ndim),
            *range(indices.ndim + axis, len(shape)),
        ]
        return np.ascontiguousarray(found.reshape(shape).transpose(order))


class ArgMax(TFLite):
    """The place of the largest code along a constant axis."""

    name = "tflite:ARG_MAX"

    def build(self, site: Site) -> Built:
        """Check the axis."""
        source = site.tensor(0)
        site.coded(source)
        axis = site.integers(1, "axis")
        if len(axis) != 1 or not -len(source.shape) <= axis[0] < len(source.shape):
            raise site.fail(f"its axis {axis} is no axis of {source}")
        if site.output.dtype not in {np.dtype(np.int32), np.dtype(np.int64)}:
            raise site.fail(f"it gives int32 or int64, not {site.output.dtype}")
        return Built((source,), {}, {"axis": axis[0], "dtype": site.output.dtype})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Find."""
        del semantics
        return argmax(operands[0], node.options["axis"]).astype(node.options["dtype"])


class Quantize(TFLite):
    """Codes of another coding; or, at the model's edge, codes of float32 numbers."""

    name = "tflite:QUANTIZE"

    def build(self, site: Site) -> Built:
        """Prepare the multiplier."""
        source = site.tensor(0)
        wide = (*CODES, np.dtype(np.int32))
        if site.output.dtype.name not in _CONVERTED[site.semantics.name].get(source.dtype.name, set()):
            raise site.fail(f"{site.semantics} does not quantize {source.dtype} to {site.output.dtype}")
        scale, zero = site.coded(site.output, wide)
        running, constants, order = operands([source])
        options: dict[str, Any] = {"operands": order, "dtype": site.output.dtype, "output_zero_point": zero}
        if source.dtype == FLOAT:
            return Built(running, constants, {**options, "scale": scale})
        in_scale, in_zero = site.coded(source, wide)
        factor = effective_scale(in_scale, 1.0, scale, "litert-reference")
        multiplier, shift = quantize_multiplier(factor, outside_linear(site.semantics))
        ready = {"multiplier": multiplier, "shift": shift}
        return Built(running, {**constants, **ready}, {**options, "input_zero_point": in_zero})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Rescale, or quantize."""
        (x,), options = operands, node.options
        kind, zero = options["dtype"], options["output_zero_point"]
        if "scale" in options:
            ratio = (np.asarray(x, dtype=np.float32) / options["scale"]).astype(np.float64)
            whole = np.copysign(np.floor(np.abs(ratio) + 0.5), ratio)
            limits = np.iinfo(kind)
            return np.clip(whole + zero, limits.min, limits.max).astype(kind)
        return rescale_codes(
            x,
            multiplier=node.constants["multiplier"],
            shift=node.constants["shift"],
            input_zero_point=options["input_zero_point"],
            output_zero_point=zero,
            dtype=kind,
            semantics=semantics,
        )


class Dequantize(TFLite):
    """Real numbers of codes, at the model's edge."""

    name = "tflite:DEQUANTIZE"

    def build(self, site: Site) -> Built:
        """Check the coding."""
        source = site.tensor(0)
        scale, zero = site.coded(source)
        if site.output.dtype != FLOAT:
            raise site.fail(f"it gives float32, not {site.output.dtype}")
        running, constants, order = operands([source])
        return Built(running, constants, {"operands": order, "scale": scale, "input_zero_point": zero})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Multiply by the scale."""
        del semantics
        steps = operands[0].astype(np.int32) - np.int32(node.options["input_zero_point"])
        return steps.astype(np.float32) * node.options["scale"]


#: Every operator that is covered, by its builtin name.
COVERED: dict[str, TFLite] = {
    each.name.removeprefix("tflite:"): each
    for each in (
        Conv2D(),
        DepthwiseConv2D(),
        FullyConnected(),
        BatchMatmul(),
        Add(),
        Sub(),
        Mul(),
        Concatenation(),
        AveragePool2D(),
        MaxPool2D(),
        Mean(),
        Softmax(),
        curve("LOGISTIC", activations.logistic),
        curve("TANH", activations.tanh),
        curve("HARD_SWISH", activations.hard_swish),
        curve("RELU", activations.relu),
        curve("RELU6", activations.relu6),
        LeakyRelu(),
        Reshape("RESHAPE"),
        Reshape("SQUEEZE"),
        Reshape("EXPAND_DIMS"),
        Pad("PAD"),
        Pad("PADV2"),
        Transpose(),
        StridedSlice(),
        Split(),
        Extremum("MAXIMUM"),
        Extremum("MINIMUM"),
        Gather(),
        ArgMax(),
        Quantize(),
        Dequantize(),
    )
}
