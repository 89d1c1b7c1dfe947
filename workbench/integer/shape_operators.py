"""Operators that move numbers without changing them: their output has exactly the input's coding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from workbench.integer.graph import Node, Value
from workbench.integer.operator import SAME, Operator
from workbench.integer.semantics import Semantics


class _Moving(Operator):
    """Runs alike on real numbers and on codes."""

    roles: ClassVar[tuple[str, ...]] = (SAME,)

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run on codes: the same movement."""
        del values, semantics
        return self.floating(node, inputs)


class Reshape(_Moving):
    """Options: ``shape`` (0 keeps an axis, -1 is what remains)."""

    name = "reshape"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Give the array another shape."""
        (x,) = inputs
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(node.options["shape"])]
        return x.reshape(shape)


class Flatten(_Moving):
    """Options: ``start`` (1), ``end`` (-1): the axes that become one."""

    name = "flatten"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Make one axis of several."""
        (x,) = inputs
        start, end = node.options.get("start", 1) % x.ndim, node.options.get("end", -1) % x.ndim
        return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


class Transpose(_Moving):
    """Options: ``axes``, the order of the axes."""

    name = "transpose"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Reorder the axes."""
        return np.ascontiguousarray(np.transpose(inputs[0], node.options["axes"]))


class Slice(_Moving):
    """Options: ``axis``, ``start``, ``stop`` (None for the end), ``step`` (1)."""

    name = "slice"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Cut a range out of one axis."""
        (x,) = inputs
        place = [slice(None)] * x.ndim
        options = node.options
        place[options["axis"]] = slice(options.get("start"), options.get("stop"), options.get("step", 1))
        return np.ascontiguousarray(x[tuple(place)])


class Repeat(_Moving):
    """Options: ``axis``, ``times``: every entry along an axis, ``times`` in a row (shared key and value heads)."""

    name = "repeat"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Repeat along an axis."""
        return np.repeat(inputs[0], node.options["times"], axis=node.options["axis"])


class Concat(_Moving):
    """Values that share one coding, joined: branches of a network, a cache and its newest entries. Options: ``axis``.

    TensorFlow Lite's 8-bit concatenation has the same condition.
    """

    name = "concat"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Concatenate."""
        return np.concatenate(inputs, axis=node.options["axis"])
