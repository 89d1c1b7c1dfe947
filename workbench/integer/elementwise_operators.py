"""Operators on two values of one shape (or that broadcast): sums and products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from workbench.errors import SemanticsError
from workbench.integer.elementwise import add, addition_multipliers, mul
from workbench.integer.graph import Node, Value
from workbench.integer.operator import (
    STREAM,
    Operator,
    Setting,
    clamp_codes,
    coding,
    float_activation,
    multipliers,
)
from workbench.integer.semantics import Semantics


class _Pair(Operator):
    """Two inputs of the recipe's stream coding."""

    roles: ClassVar[tuple[str, ...]] = (STREAM, STREAM)

    def check(self, node: Node, a: Value, setting: Setting) -> None:
        """Refuse a pair that the semantics' runtime does not have.

        Raises:
            SemanticsError: see above.
        """
        if setting.semantics.rounding == "float32" and a.dtype == np.int16:
            message = (
                f"{setting.semantics} has no {self.name} of int16, which {node.name!r} needs: give a recipe with "
                "stream='int8', or another semantics"
            )
            raise SemanticsError(message)

    @staticmethod
    def places(values: Mapping[str, Value], node: Node) -> dict[str, object]:
        """Return zero points, clamp and type for the integer function."""
        (a, b), output = coding(values, node)
        return {
            "a_zero_point": a.zero_point,
            "b_zero_point": b.zero_point,
            "output_zero_point": output.zero_point,
            "dtype": output.dtype,
            "low": node.options.get("low"),
            "high": node.options.get("high"),
            "multiplier": node.constants["multiplier"],
            "shift": node.constants["shift"],
        }


class Add(_Pair):
    """``a + b``, broadcast. Options: ``activation`` (relu, relu6) if fused."""

    name = "add"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        return float_activation(node, inputs[0] + inputs[1])

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Make the multipliers of the semantics' addition."""
        (a, b), output = coding(values, node)
        self.check(node, a, setting)
        multiplier, shift = addition_multipliers(a.scale, b.scale, output.scale, setting.semantics, a.dtype)
        constants = {"multiplier": multiplier, "shift": shift}
        return replace(node, constants=constants, options={**node.options, **clamp_codes(node, output)})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        return add(inputs[0], inputs[1], semantics=semantics, **self.places(values, node))  # pyright: ignore[reportArgumentType]


class Mul(_Pair):
    """``a * b``, broadcast. Options: ``activation`` (relu, relu6) if fused."""

    name = "mul"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        return float_activation(node, inputs[0] * inputs[1])

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Make the multiplier."""
        (a, b), output = coding(values, node)
        self.check(node, a, setting)
        constants = multipliers(a.scale, np.float32(b.scale), output, setting.semantics, wide=False)
        constants = {name: array.reshape(()) for name, array in constants.items()}
        return replace(node, constants=constants, options={**node.options, **clamp_codes(node, output)})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        return mul(inputs[0], inputs[1], semantics=semantics, **self.places(values, node))  # pyright: ignore[reportArgumentType]
