"""Operators that apply a curve to every number: logistic, tanh, GELU, SiLU, hard-swish, leaky ReLU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from workbench.integer import activations
from workbench.integer.graph import Node, Value
from workbench.integer.operator import ANY, Operator, Setting, coding
from workbench.integer.semantics import Semantics
from workbench.integer.tables import FUNCTIONS


class _Curve(Operator):
    """One function of one value; computed as the model's ``kind`` says."""

    roles: ClassVar[tuple[str, ...]] = (ANY,)

    def arguments(self, node: Node) -> dict[str, Any]:
        """Return what the function takes besides codes and codings."""
        del node
        return {}

    def curve(self, node: Node) -> Callable[[np.ndarray], np.ndarray]:
        """Return the real function, float64 to float64."""
        del node
        return FUNCTIONS[self.name.replace("_", "-")]

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float (float64 inside, as the curves are defined)."""
        (x,) = inputs
        return self.curve(node)(x.astype(np.float64)).astype(x.dtype)

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), output = coding(values, node)
        return getattr(activations, self.name)(
            inputs[0],
            input_scale=source.scale,
            input_zero_point=source.zero_point,
            output_scale=output.scale,
            output_zero_point=output.zero_point,
            dtype=output.dtype,
            kind=node.options.get("kind", "table"),
            semantics=semantics,
            **self.arguments(node),
        )


class Logistic(_Curve):
    """``1 / (1 + exp(-x))``."""

    name = "logistic"

    def fixed_value(self, node: Node, setting: Setting) -> Value | None:
        """Return the runtimes' one output coding, 1/256 from -128, where the runtime's kernel is asked for."""
        if setting.kind != "runtime":
            return None
        wide = setting.entry.activation == "int16"
        return Value(node.output, np.dtype(np.int16), 2.0**-15) if wide else _int8(node.output, 2.0**-8, -128)


class Tanh(_Curve):
    """The hyperbolic tangent."""

    name = "tanh"

    def fixed_value(self, node: Node, setting: Setting) -> Value | None:
        """Return the runtimes' one output coding, 1/128, where the runtime's kernel is asked for."""
        if setting.kind != "runtime":
            return None
        wide = setting.entry.activation == "int16"
        return Value(node.output, np.dtype(np.int16), 2.0**-15) if wide else _int8(node.output, 2.0**-7, 0)


class Gelu(_Curve):
    """``x * Phi(x)``. Options: ``approximate`` (``"none"`` or ``"tanh"``)."""

    name = "gelu"

    def arguments(self, node: Node) -> dict[str, Any]:
        """Return which form."""
        return {"approximate": node.options.get("approximate", "none")}

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float, by torch (the table of erf in Python would be slow)."""
        import torch
        from torch.nn import functional

        (x,) = inputs
        tensor = torch.from_numpy(np.ascontiguousarray(x))
        return functional.gelu(tensor, approximate=node.options.get("approximate", "none")).numpy()


class Silu(_Curve):
    """``x * logistic(x)``."""

    name = "silu"


class HardSwish(_Curve):
    """``x * clip(x + 3, 0, 6) / 6``."""

    name = "hard_swish"


class LeakyRelu(_Curve):
    """``x`` above zero, ``slope * x`` below. Options: ``slope`` (0.01)."""

    name = "leaky_relu"

    def arguments(self, node: Node) -> dict[str, Any]:
        """Return the slope."""
        return {"slope": float(node.options.get("slope", 0.01))}

    def curve(self, node: Node) -> Callable[[np.ndarray], np.ndarray]:
        """Return the two lines."""
        slope = float(node.options.get("slope", 0.01))
        return lambda x: np.where(x >= 0, x, slope * x)


def _int8(name: str, scale: float, zero_point: int) -> Value:
    return Value(name, np.dtype(np.int8), scale, zero_point)
