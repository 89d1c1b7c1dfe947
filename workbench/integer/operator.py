"""What every operator of a graph can do: run in float, prepare its integers, run in integers.

An operator says by *roles* how its inputs want to be coded, and ``integerize`` chooses codings and inserts
``requantize`` nodes accordingly:

* ``OPERAND``: multiplied with something; coded as the recipe's ``activation`` of this node (8 bits, or a power grid).
* ``STREAM``: a residual stream, a norm's input, anything that should keep resolution; the recipe's ``stream`` (int16).
* ``ANY``: takes whatever uniform coding the value has.
* ``SAME``: as ``ANY``, and the output has exactly the input's coding (reshape, transpose, max pooling).
* ``INDEX``: plain integers that stand for themselves (token ids, positions, masks); never quantized.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.graph import Node, Value
from workbench.integer.semantics import Semantics, as_semantics
from workbench.quantization.recipe import Entry

OPERAND = "operand"
STREAM = "stream"
ANY = "any"
SAME = "same"
INDEX = "index"

Kind = Literal["runtime", "table", "polynomial"]


@dataclass(frozen=True)
class Setting:
    """What a node is prepared with.

    Attributes:
        entry: all settings that the recipe has for this node.
        semantics: whose rounding.
        kind: how non-linear operators compute: ``table``, ``polynomial``, or ``runtime`` (as the semantics' runtime).
        stream: the recipe's coding of streams, ``int16`` or ``int8``.
    """

    entry: Entry = field(default_factory=Entry)
    semantics: Semantics = field(default_factory=lambda: as_semantics("litert-reference"))
    kind: Kind = "table"
    stream: str = "int16"


class Operator(ABC):
    """One operator of graphs; instances hold no state and stand in ``OPERATORS`` under ``name``."""

    name: ClassVar[str]
    #: Roles of the inputs; the last one stands for all further inputs.
    roles: ClassVar[tuple[str, ...]] = (ANY,)

    def input_roles(self, node: Node) -> tuple[str, ...]:
        """Return the role of each input of a node."""
        given = self.roles[: len(node.inputs)]
        return given + self.roles[-1:] * (len(node.inputs) - len(given))

    def fixed_value(self, node: Node, setting: Setting) -> Value | None:
        """Return the output's coding where it does not depend on calibration (softmax, logistic); else None."""
        del node, setting
        return None

    def output_role(self, node: Node) -> str:
        """Return how the output wants to be coded, whoever reads it.

        ``STREAM`` asks for the recipe's stream coding, ``INDEX`` says plain integers, ``ANY`` leaves it to the readers.
        """
        del node
        return ANY

    @abstractmethod
    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float: the definition that integers approximate.

        Args:
            node: of the float graph, its constants float32.
            inputs: float32 or float64 arrays (integers for ``INDEX`` inputs); the result has the inputs' type.
        """

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Return the integer node: quantized constants, multipliers, tables.

        Args:
            node: of the float graph.
            values: codings of its inputs and its output, by name.
            setting: recipe entry, semantics and kind.

        Raises:
            IntegerError: the codings do not fit this operator.
        """
        del values
        return Node(node.name, node.operator, node.inputs, node.output, {}, {**node.options, "kind": setting.kind})

    @abstractmethod
    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers.

        Args:
            node: an integer node, as ``prepare`` made it.
            inputs: codes.
            values: codings of inputs and output (zero points, levels); real scales are not used here.
            semantics: whose rounding.

        Returns:
            Codes of the output value's type.
        """

    def fake_constants(self, node: Node, prepared: Node) -> Mapping[str, np.ndarray]:
        """Return the float node's constants as the integer node holds them, dequantized (for the fake-quantized run)."""
        del prepared
        return node.constants


def coding(values: Mapping[str, Value], node: Node) -> tuple[list[Value], Value]:
    """Return the codings of a node's inputs and of its output."""
    return [values[name] for name in node.inputs], values[node.output]


def clamp_codes(node: Node, output: Value) -> dict[str, int]:
    """Return the smallest and largest output code of a node with a fused activation (options["activation"]).

    Raises:
        IntegerError: an activation that is no clamp.
    """
    low, high = output.low, output.high
    activation = node.options.get("activation")
    if activation not in {None, "relu", "relu6"}:
        message = (
            f"the activation {activation!r} cannot be fused into {node.operator!r}: only relu and relu6 are clamps"
        )
        raise IntegerError(message)
    if activation is not None:
        low = max(int(low or 0), output.zero_point)
    if activation == "relu6":
        high = min(int(high or 0), int(output.quantize(np.array(6.0))))
    return {"low": int(low or 0), "high": int(high or 0)}


def float_activation(node: Node, result: np.ndarray) -> np.ndarray:
    """Apply a fused activation in float."""
    activation = node.options.get("activation")
    if activation is None:
        return result
    return np.maximum(result, 0) if activation == "relu" else np.clip(result, 0, 6)


def multipliers(
    input_scale: Any, weight_scale: Any, output: Value, semantics: Semantics, *, wide: bool
) -> dict[str, np.ndarray]:
    """Return the constants ``multiplier`` and ``shift`` of one requantization to a value.

    Args:
        input_scale: real scale of the first factor.
        weight_scale: real scale of the second factor: one, or one per channel.
        output: where the accumulator goes.
        semantics: whose arithmetic.
        wide: whether the accumulator has more than 32 bits.
    """
    factor = effective_scale(input_scale, weight_scale, output.scale, semantics)
    multiplier, shift = quantize_multiplier(np.atleast_1d(factor), semantics, accumulator_bits=48 if wide else 32)
    return {"multiplier": multiplier, "shift": shift}


def rescaling_constants(
    source: Value, output: Value, semantics: Semantics, factor: float = 1.0
) -> dict[str, np.ndarray]:
    """Return ``multiplier`` and ``shift`` that bring differences ``code - zero_point`` of one value to another's steps."""
    return multipliers(np.float32(float(source.scale) * factor), np.float32(1.0), output, semantics, wide=False)
