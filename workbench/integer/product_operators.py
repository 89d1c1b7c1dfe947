"""Operators that multiply weights or two values: linear, conv2d, matmul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from workbench.integer.convolution import conv2d
from workbench.integer.graph import Node, Value
from workbench.integer.linear import linear, matmul
from workbench.integer.operator import (
    OPERAND,
    Operator,
    Setting,
    clamp_codes,
    coding,
    float_activation,
    multipliers,
)
from workbench.integer.semantics import Semantics
from workbench.integer.weights import integer_weight, is_wide, real_weight, with_room_for_bias


class _Weighted(Operator):
    """An operator with one weight (outputs, ...) and perhaps a bias (outputs,)."""

    roles: ClassVar[tuple[str, ...]] = (OPERAND,)

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Quantize the weight by the recipe and the bias to the accumulator's scale; fold all scales into multipliers."""
        (source,), output = coding(values, node)
        weight = integer_weight(node.constants["weight"], setting.entry)
        wide = is_wide(source, weight.integers)
        weight, bias = with_room_for_bias(weight, node.constants.get("bias"), float(source.scale), wide=wide)
        constants: dict[str, np.ndarray] = {"weight": weight.integers}
        if bias is not None:
            constants["bias"] = bias
        if np.any(weight.zero_point):
            constants["weight_zero_point"] = weight.zero_point
        constants.update(multipliers(np.float32(source.scale), weight.scale, output, setting.semantics, wide=wide))
        options = {
            **node.options,
            **clamp_codes(node, output),
            "weight_scale": weight.scale,
            "weight_grid": str(weight.grid),
            "weight_bits": weight.bits,
        }
        return Node(node.name, node.operator, node.inputs, node.output, constants, options)

    def fake_constants(self, node: Node, prepared: Node) -> Mapping[str, np.ndarray]:
        """Return weight and bias as the integers stand for them."""
        points = prepared.constants.get("weight_zero_point", np.zeros(1, dtype=np.int32))
        weight = prepared.constants["weight"]
        found = {"weight": real_weight(weight, prepared.options["weight_scale"], points)}
        if "bias" in node.constants:
            found["bias"] = np.asarray(node.constants["bias"], dtype=np.float32)
        return found

    @staticmethod
    def arguments(node: Node, source: Value, output: Value, semantics: Semantics) -> dict[str, Any]:
        """Return what the integer functions take besides codes, weight and bias."""
        return {
            "multiplier": node.constants["multiplier"],
            "shift": node.constants["shift"],
            "input_zero_point": source.zero_point,
            "weight_zero_point": node.constants.get("weight_zero_point", 0),
            "output_zero_point": output.zero_point,
            "dtype": output.dtype,
            "low": node.options.get("low"),
            "high": node.options.get("high"),
            "semantics": semantics,
        }


class Linear(_Weighted):
    """``y[..., n] = bias[n] + sum_k x[..., k] * weight[n, k]``.

    Constants: ``weight`` (outputs, depth), ``bias`` (outputs,) if any. Options: ``activation`` (relu, relu6) if fused.
    """

    name = "linear"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        (x,) = inputs
        result = x @ node.constants["weight"].T.astype(x.dtype, copy=False)
        if "bias" in node.constants:
            result = result + node.constants["bias"].astype(x.dtype, copy=False)
        return float_activation(node, result)

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), output = coding(values, node)
        return linear(
            source.operand(inputs[0]),
            node.constants["weight"],
            node.constants.get("bias"),
            **self.arguments(node, source, output, semantics),
        )


class Conv2d(_Weighted):
    """Two-dimensional cross-correlation with zero padding.

    Constants: ``weight`` (outputs, channels / groups, rows, columns), ``bias`` (outputs,) if any. Options: ``stride``,
    ``padding`` (one number or ((top, bottom), (left, right))), ``dilation``, ``groups``, ``activation``; images are NCHW.
    """

    name = "conv2d"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float, by torch."""
        import torch
        from torch.nn import functional

        (x,) = inputs
        (top, bottom), (left, right) = np.broadcast_to(node.options.get("padding", 0), (2, 2)).tolist()
        padded = functional.pad(torch.from_numpy(np.ascontiguousarray(x)), (left, right, top, bottom))
        weight, bias = node.constants["weight"], node.constants.get("bias")
        result = functional.conv2d(
            padded,
            torch.from_numpy(weight.astype(x.dtype)),
            None if bias is None else torch.from_numpy(bias.astype(x.dtype)),
            stride=node.options.get("stride", 1),
            dilation=node.options.get("dilation", 1),
            groups=node.options.get("groups", 1),
        )
        return float_activation(node, result.numpy())

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), output = coding(values, node)
        return conv2d(
            source.operand(inputs[0]),
            node.constants["weight"],
            node.constants.get("bias"),
            stride=node.options.get("stride", 1),
            padding=node.options.get("padding", 0),
            dilation=node.options.get("dilation", 1),
            groups=node.options.get("groups", 1),
            layout="NCHW",
            **self.arguments(node, source, output, semantics),
        )


class Matmul(Operator):
    """``factor * (a @ b)`` over the last two axes, leading axes broadcast; ``b`` transposed on request.

    Options: ``transpose_b`` (False), ``factor`` (1.0; e.g. 1/sqrt(head size), folded into the multiplier).
    """

    name = "matmul"
    roles: ClassVar[tuple[str, ...]] = (OPERAND, OPERAND)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        a, b = inputs
        if node.options.get("transpose_b", False):
            b = np.swapaxes(b, -1, -2)
        return (a @ b) * a.dtype.type(node.options.get("factor", 1.0))

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Fold the scales and the factor into one multiplier."""
        (a, b), output = coding(values, node)
        scale = np.float32(float(a.scale) * float(node.options.get("factor", 1.0)))
        constants = multipliers(scale, np.float32(b.scale), output, setting.semantics, wide=is_wide(a, b))
        return replace(node, constants=constants, options={**node.options, **clamp_codes(node, output)})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (a, b), output = coding(values, node)
        return matmul(
            a.operand(inputs[0]),
            b.operand(inputs[1]),
            multiplier=node.constants["multiplier"],
            shift=node.constants["shift"],
            a_zero_point=a.zero_point,
            b_zero_point=b.zero_point,
            output_zero_point=output.zero_point,
            transpose_b=node.options.get("transpose_b", False),
            dtype=output.dtype,
            low=node.options.get("low"),
            high=node.options.get("high"),
            semantics=semantics,
        )
