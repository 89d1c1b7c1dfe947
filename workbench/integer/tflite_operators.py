"""TensorFlow Lite's operators as graph operators: what a file's tensors prepare, and how the codes run through.

Each class stands for one builtin operator (``tflite:CONV_2D``, ...) and computes it as the named runtime does:
``litert-reference`` is LiteRT with its reference kernels, ``tflm`` TensorFlow Lite Micro.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from workbench.integer import activations
from workbench.integer.convolution import conv2d
from workbench.integer.elementwise import add, addition_multipliers, mul, sub
from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.graph import Node
from workbench.integer.linear import accumulate
from workbench.integer.pooling import average_pool2d, max_pool2d, mean, mean_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.softmax import softmax
from workbench.integer.tflite_reader import TFLiteTensor
from workbench.integer.tflite_site import Built, Site, TFLite, operands
from workbench.integer.watch import Observation, merged, note
from workbench.kernels.float64_product import multiply_rows


class Conv2D(TFLite):
    """Convolution, also grouped (fewer weight channels than the input has)."""

    name = "tflite:CONV_2D"
    depthwise: ClassVar[bool] = False

    def build(self, site: Site) -> Built:
        """Prepare weights, bias, multipliers and geometry."""
        source, weight = site.tensor(0), site.tensor(1)
        scale, zero = site.coded(source)
        out_scale, out_zero = site.coded(site.output)
        codes, axis = site.constant(1, "weight"), 3 if self.depthwise else 0
        legacy = source.dtype == np.uint8
        if codes.ndim != 4 or len(source.shape) != 4 or codes.dtype != (np.uint8 if legacy else np.int8):
            raise site.fail(f"weights are {'uint8' if legacy else 'int8'} with four axes, not {weight}")
        if site.output.dtype != source.dtype or not weight.is_quantized:
            raise site.fail("input and output have one type, and the weights a scale")
        if weight.scale.size > 1 and (legacy or weight.axis != axis):
            raise site.fail(f"weights have one scale, or int8 ones one per output channel (axis {axis})")
        if not legacy and weight.zero_point.any():
            raise site.fail("int8 weights have zero point 0")
        if (codes.shape[0] != 1) if self.depthwise else (codes.shape[3] < 1 or source.shape[3] % codes.shape[3]):
            raise site.fail(f"weights of shape {codes.shape} do not fit {source.shape[3]} input channels")
        named = outside_linear(site.semantics)
        factor = effective_scale(
            scale,
            weight.scale if weight.scale.size > 1 else weight.scale[0],
            out_scale,
            named,
            product="float32" if legacy else "float64",
        )
        multiplier, shift = quantize_multiplier(
            np.atleast_1d(factor), named, accumulator_bits=48 if source.dtype == np.int16 else 32
        )
        constants = {"weight": codes, "multiplier": multiplier, "shift": shift, **bias_of(site, 2, codes.shape[axis])}
        options = {
            "input_zero_point": zero,
            "weight_zero_point": int(weight.zero_point[0]),
            "output_zero_point": out_zero,
            "stride": site.positive("StrideH", "StrideW"),
            "dilation": site.positive("DilationHFactor", "DilationWFactor"),
            "padding": site.option("Padding", "SAME").lower(),
            "groups": source.shape[3] if self.depthwise else source.shape[3] // codes.shape[3],
            "dtype": source.dtype,
            **site.clamp(),
        }
        return Built((source,), constants, {"arguments": options})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Convolve."""
        constants = node.constants
        return conv2d(
            operands[0],
            constants["weight"],
            constants.get("bias"),
            multiplier=constants["multiplier"],
            shift=constants["shift"],
            semantics=semantics,
            **node.options["arguments"],
        )


class DepthwiseConv2D(Conv2D):
    """Depthwise convolution, weights (1, rows, columns, outputs)."""

    name = "tflite:DEPTHWISE_CONV_2D"
    depthwise: ClassVar[bool] = True


def bias_of(site: Site, place: int, outputs: int) -> dict[str, np.ndarray]:
    """Return the constant ``bias``, if the operator has one."""
    if site.maybe(place) is None:
        return {}
    bias = site.constant(place, "bias")
    wide = site.tensor(0).dtype == np.int16
    if bias.shape != (outputs,) or bias.dtype not in ((np.int32, np.int64) if wide else (np.int32,)):
        raise site.fail(f"the bias is int32{' or int64' if wide else ''} ({outputs},), not {bias.dtype} {bias.shape}")
    return {"bias": bias}


class FullyConnected(TFLite):
    """Fully-connected layer.

    TensorFlow Lite Micro rounds twice, as everywhere. LiteRT's reference kernel multiplies the accumulator by the
    factor in float64 and rounds half away from zero; that is computed here in integers, bit for bit
    (``workbench.kernels.float64_product``).
    """

    name = "tflite:FULLY_CONNECTED"

    def build(self, site: Site) -> Built:
        """Prepare weights, bias and factors."""
        source, weight = site.tensor(0), site.tensor(1)
        scale, zero = site.coded(source)
        out_scale, out_zero = site.coded(site.output)
        codes = site.constant(1, "weight")
        legacy = source.dtype == np.uint8
        if codes.ndim != 2 or codes.dtype != (np.uint8 if legacy else np.int8) or site.output.dtype != source.dtype:
            raise site.fail(f"weights are {'uint8' if legacy else 'int8'} (outputs, depth), not {weight}")
        if site.option("WeightsFormat") or not weight.is_quantized or (weight.scale.size > 1 and weight.axis != 0):
            raise site.fail("weights are stored plain, with one scale or one per output")
        alone = weight.scale.size == 1
        micro = site.semantics.name == "tflm"
        factor = effective_scale(scale, weight.scale[0] if alone else weight.scale, out_scale, "litert-reference")
        constants = {"weight": codes, **bias_of(site, 2, len(codes))}
        if micro:
            bits = 48 if source.dtype == np.int16 else 32
            named = outside_linear(site.semantics)
            constants["multiplier"], constants["shift"] = quantize_multiplier(
                np.atleast_1d(factor), named, accumulator_bits=bits
            )
        else:
            fraction, exponent = np.frexp(np.atleast_1d(factor))
            constants["mantissa"] = np.ldexp(fraction, 53).astype(np.int64)
            constants["exponent"] = exponent.astype(np.int64) - 53
        zeros = np.unique(weight.zero_point)
        if zeros.size != 1:
            raise site.fail("weights have one zero point")
        options = {
            "input_zero_point": zero,
            "weight_zero_point": int(zeros[0]),
            "output_zero_point": out_zero,
            "keep": bool(site.option("KeepNumDims", False)),
            "dtype": source.dtype,
            **site.clamp(),
        }
        return Built((source,), constants, {"arguments": options})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Multiply and round."""
        (x,), constants, given = operands, node.constants, node.options["arguments"]
        outputs, depth = constants["weight"].shape
        rows = x.reshape(-1, depth)
        with merged("linear"):
            sums = accumulate(
                rows,
                constants["weight"],
                constants.get("bias"),
                input_zero_point=given["input_zero_point"],
                weight_zero_point=given["weight_zero_point"],
                operator="linear",
            )
            if "mantissa" in constants:
                codes, saturated = multiply_rows(
                    sums,
                    constants["mantissa"],
                    constants["exponent"],
                    given["output_zero_point"],
                    given["low"],
                    given["high"],
                    given["dtype"],
                )
                note(Observation("linear", outputs=int(codes.size), saturated=saturated))
            else:
                codes = requantize(
                    sums,
                    constants["multiplier"],
                    constants["shift"],
                    zero_point=given["output_zero_point"],
                    dtype=given["dtype"],
                    low=given["low"],
                    high=given["high"],
                    semantics=outside_linear(semantics),
                    operator="linear",
                )
        return codes.reshape(*x.shape[:-1], outputs) if given["keep"] else codes


class _Pair(TFLite):
    """Two operands, broadcast."""

    def coding(self, site: Site) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return multipliers and further options."""
        raise NotImplementedError

    def build(self, site: Site) -> Built:
        """Prepare multipliers and zero points."""
        tensors = (site.tensor(0), site.tensor(1))
        if len({each.dtype for each in (*tensors, site.output)}) != 1:
            raise site.fail("both operands and the output have one type")
        zeros = [site.coded(each)[1] for each in (*tensors, site.output)]
        running, constants, order = operands(tensors)
        ready, options = self.coding(site)
        arguments = {
            "a_zero_point": zeros[0],
            "b_zero_point": zeros[1],
            "output_zero_point": zeros[2],
            **site.clamp(),
        }
        return Built(running, {**constants, **ready}, {"operands": order, "arguments": arguments, **options})


class Add(_Pair):
    """Sum. int16 tensors whose scales are powers of two are added by shifts where the file allows it (LiteRT only)."""

    name = "tflite:ADD"
    sign: ClassVar[int] = 1

    def coding(self, site: Site) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return three multipliers, or two shifts."""
        tensors = (site.tensor(0), site.tensor(1), site.output)
        scales = [site.coded(each)[0] for each in tensors]
        shifts = self.powers(site, tensors)
        if shifts is not None:
            return {}, {"shifts": shifts}
        named = outside_linear(site.semantics)
        multiplier, shift = addition_multipliers(scales[0], scales[1], scales[2], named, site.output.dtype)
        return {"multiplier": multiplier, "shift": shift}, {}

    @staticmethod
    def powers(site: Site, tensors: tuple[TFLiteTensor, ...]) -> tuple[int, int] | None:
        """Return the right shifts of both operands where LiteRT adds them in fixed point; else None."""
        parts = [np.frexp(each.scale[0]) for each in tensors]
        if (
            site.semantics.name == "tflm"
            or site.output.dtype != np.int16
            or not site.option("PotScaleInt16", True)
            or any(float(fraction) != 0.5 for fraction, _ in parts)
            or any(each.zero_point[0] for each in tensors)
        ):
            return None
        first, second = (int(parts[2][1] - parts[place][1]) for place in (0, 1))
        if min(first, second) != 0:
            raise site.fail("of int16 scales that are powers of two one must be the output's and none above it")
        return first, second

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Add or subtract."""
        arguments = node.options["arguments"]
        if "shifts" in node.options:
            parts = [
                _divided(each.astype(np.int32), places)
                for each, places in zip(operands, node.options["shifts"], strict=True)
            ]
            total = np.clip(parts[0] + self.sign * parts[1], -(1 << 15), (1 << 15) - 1)
            note(Observation("add", outputs=int(total.size)))
            return np.clip(total, arguments["low"], arguments["high"]).astype(np.int16)
        run = add if self.sign > 0 else sub
        multiplier, shift = node.constants["multiplier"], node.constants["shift"]
        return run(*operands, multiplier=multiplier, shift=shift, semantics=semantics, **arguments)


def _divided(values: np.ndarray, places: int) -> np.ndarray:
    # gemmlowp's RoundingDivideByPOT: half away from zero.
    mask = (1 << places) - 1
    return (values >> places) + ((values & mask) > (mask >> 1) + (values < 0))


class Sub(Add):
    """Difference."""

    name = "tflite:SUB"
    sign: ClassVar[int] = -1


class Mul(_Pair):
    """Product. LiteRT computes the factor in float32, TensorFlow Lite Micro in float64."""

    name = "tflite:MUL"

    def coding(self, site: Site) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return one multiplier."""
        scales = [site.coded(each)[0] for each in (site.tensor(0), site.tensor(1), site.output)]
        single = site.semantics.name == "litert-reference"
        rule = "onnxruntime" if single else site.semantics
        factor = effective_scale(scales[0], scales[1], scales[2], rule)
        multiplier, shift = quantize_multiplier(factor, outside_linear(site.semantics))
        return {"multiplier": multiplier, "shift": shift}, {}

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Multiply."""
        multiplier, shift = node.constants["multiplier"], node.constants["shift"]
        return mul(*operands, multiplier=multiplier, shift=shift, semantics=semantics, **node.options["arguments"])


class AveragePool2D(TFLite):
    """Average over windows; input and output share their coding."""

    name = "tflite:AVERAGE_POOL_2D"
    maximum: ClassVar[bool] = False

    def build(self, site: Site) -> Built:
        """Prepare the geometry."""
        source = site.tensor(0)
        site.same_coding(source, site.output)
        zero = site.coded(source)[1]
        options = {
            "window": site.positive("FilterHeight", "FilterWidth"),
            "stride": site.positive("StrideH", "StrideW"),
            "padding": site.option("Padding", "SAME").lower(),
            **({} if self.maximum else {"input_zero_point": zero}),
            **site.clamp(),
        }
        return Built((source,), {}, {"arguments": options})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Pool."""
        run = max_pool2d if self.maximum else average_pool2d
        return run(operands[0], semantics=semantics, **node.options["arguments"])


class MaxPool2D(AveragePool2D):
    """Maximum over windows; input and output share their coding."""

    name = "tflite:MAX_POOL_2D"
    maximum: ClassVar[bool] = True


class Mean(TFLite):
    """Mean over constant axes."""

    name = "tflite:MEAN"

    def build(self, site: Site) -> Built:
        """Prepare the axes and the multiplier."""
        source = site.tensor(0)
        scale, zero = site.coded(source)
        out_scale, out_zero = site.coded(site.output, (source.dtype,))
        rank = len(source.shape)
        axes = site.integers(1, "axes")
        if not axes or any(not -rank <= axis < rank for axis in axes):
            raise site.fail(f"its axes {axes} are not axes of {source}")
        unique = tuple(dict.fromkeys(axis % rank for axis in axes))
        count = int(np.prod([source.shape[axis] for axis in unique]))
        if count < 1:
            raise site.fail("there is nothing to average")
        multiplier, shift = mean_multiplier(scale, out_scale, count, site.semantics)
        options = {
            "axis": unique,
            "keep_dims": bool(site.option("KeepDims", False)),
            "input_zero_point": zero,
            "output_zero_point": out_zero,
        }
        return Built((source,), {"multiplier": multiplier, "shift": shift}, {"arguments": options})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Average."""
        multiplier, shift = node.constants["multiplier"], node.constants["shift"]
        return mean(operands[0], multiplier=multiplier, shift=shift, semantics=semantics, **node.options["arguments"])


class Curve(TFLite):
    """A function of one value, by the runtime's own table or fixed-point recipe."""

    function: ClassVar[Any]

    def extra(self, site: Site) -> dict[str, Any]:
        """Return what the function takes besides codes and codings."""
        del site
        return {}

    def build(self, site: Site) -> Built:
        """Prepare the codings (the tables are made, and kept, by the function itself)."""
        source = site.tensor(0)
        scale, zero = site.coded(source)
        out_scale, out_zero = site.coded(site.output)
        options = {
            "input_scale": scale,
            "input_zero_point": zero,
            "output_scale": out_scale,
            "output_zero_point": out_zero,
            "dtype": site.output.dtype,
            **self.extra(site),
        }
        return Built((source,), {}, {"arguments": options})

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Look up."""
        return type(self).function(operands[0], kind="runtime", semantics=semantics, **node.options["arguments"])


def curve(builtin: str, function: Any) -> TFLite:
    """Return the operator of one builtin function."""
    return type(builtin.title().replace("_", ""), (Curve,), {"name": f"tflite:{builtin}", "function": function})()


class LeakyRelu(Curve):
    """Leaky ReLU."""

    name = "tflite:LEAKY_RELU"
    function: ClassVar[Any] = staticmethod(activations.leaky_relu)

    def extra(self, site: Site) -> dict[str, Any]:
        """Return the slope."""
        return {"slope": float(site.option("Alpha", 0.0))}


class Softmax(Curve):
    """Softmax over the last axis."""

    name = "tflite:SOFTMAX"
    function: ClassVar[Any] = staticmethod(softmax)

    def extra(self, site: Site) -> dict[str, Any]:
        """Return beta."""
        return {"beta": float(site.option("Beta", 1.0))}

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Normalize (the input's zero point cancels)."""
        given = {name: value for name, value in node.options["arguments"].items() if name != "input_zero_point"}
        return softmax(operands[0], kind="runtime", semantics=semantics, **given)
