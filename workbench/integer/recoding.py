"""Codes of one value to codes of another: ``requantize`` nodes, and clamps that stand alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from workbench.integer.graph import Node, Value
from workbench.integer.operator import ANY, Operator, Setting, clamp_codes, coding, rescaling_constants
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics


class Requantize(Operator):
    """The same real numbers in another coding; in float it does nothing.

    To equal steps it multiplies by one multiplier; to a power grid it looks every code up in a table that holds the
    nearest new code of each old one.
    """

    name = "requantize"
    roles: ClassVar[tuple[str, ...]] = (ANY,)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the numbers as they are."""
        del node
        return inputs[0]

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Make the multiplier, or the table."""
        (source,), output = coding(values, node)
        if output.levels is None:
            constants = rescaling_constants(source, output, setting.semantics)
            return replace(node, constants=constants, options={**node.options, **clamp_codes(node, output)})
        bits = source.dtype.itemsize * 8
        codes = np.arange(1 << bits, dtype=np.uint32).astype(f"uint{bits}").view(source.dtype)
        return replace(node, constants={"table": output.quantize(source.dequantize(codes, np.float64))})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), output = coding(values, node)
        (codes,) = inputs
        if "table" in node.constants:
            return node.constants["table"][codes.view(f"uint{codes.dtype.itemsize * 8}")]
        return _rescale(node, source.operand(codes), source, output, semantics)


class Relu(Operator):
    """``max(x, 0)`` on its own, where it could not be fused into the node before it."""

    name = "relu"
    roles: ClassVar[tuple[str, ...]] = (ANY,)
    clamp: ClassVar[str] = "relu"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Clamp at zero."""
        del node
        return np.maximum(inputs[0], 0)

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Make the multiplier from the input's steps to the output's, and the clamp."""
        (source,), output = coding(values, node)
        clamped = node.with_options(activation=self.clamp)
        constants = rescaling_constants(source, output, setting.semantics)
        return replace(node, constants=constants, options={**node.options, **clamp_codes(clamped, output)})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), output = coding(values, node)
        return _rescale(node, source.operand(inputs[0]), source, output, semantics)


class Relu6(Relu):
    """``min(max(x, 0), 6)`` on its own."""

    name = "relu6"
    clamp: ClassVar[str] = "relu6"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Clamp between zero and six."""
        del node
        return np.clip(inputs[0], 0, 6)


def _rescale(node: Node, codes: np.ndarray, source: Value, output: Value, semantics: Semantics) -> np.ndarray:
    return requantize(
        codes.astype(np.int32) - np.int32(source.zero_point),
        node.constants["multiplier"],
        node.constants["shift"],
        zero_point=output.zero_point,
        dtype=output.dtype,
        low=node.options.get("low"),
        high=node.options.get("high"),
        semantics=semantics,
        operator=node.operator,
    )
