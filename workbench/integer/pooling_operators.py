"""Operators that summarise windows of an image: average, maximum, mean over the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from workbench.integer.graph import Node, Value
from workbench.integer.operator import ANY, SAME, Operator, coding
from workbench.integer.pooling import average_pool2d, global_average_pool, max_pool2d
from workbench.integer.semantics import Semantics


class _Pool(Operator):
    """Options: ``window``, ``stride``, ``padding`` ((top, bottom), (left, right)); images are NCHW; one coding."""

    roles: ClassVar[tuple[str, ...]] = (SAME,)

    @staticmethod
    def windows(node: Node, x: np.ndarray, fill: float) -> np.ndarray:
        """Return a view of all windows, padded: (batch, channels, rows, columns, window rows, window columns)."""
        (top, bottom), (left, right) = np.broadcast_to(node.options.get("padding", 0), (2, 2)).tolist()
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
        down, across = node.options["stride"]
        return np.lib.stride_tricks.sliding_window_view(padded, node.options["window"], axis=(2, 3))[
            :, :, ::down, ::across
        ]

    @staticmethod
    def geometry(node: Node) -> dict[str, Any]:
        """Return what the integer functions take."""
        return {
            "window": tuple(node.options["window"]),
            "stride": tuple(node.options["stride"]),
            "padding": node.options.get("padding", 0),
            "layout": "NCHW",
        }


class AveragePool2d(_Pool):
    """The mean of each window's cells inside the image."""

    name = "average_pool2d"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        (x,) = inputs
        sums = self.windows(node, x, 0.0).sum(axis=(4, 5))
        return sums / self.windows(node, np.ones_like(x[:1, :1]), 0.0).sum(axis=(4, 5))

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), _ = coding(values, node)
        return average_pool2d(
            inputs[0],
            input_scale=source.scale,
            input_zero_point=source.zero_point,
            semantics=semantics,
            **self.geometry(node),
        )


class MaxPool2d(_Pool):
    """The largest of each window's cells inside the image."""

    name = "max_pool2d"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        return self.windows(node, inputs[0], -np.inf).max(axis=(4, 5))

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        del values
        return max_pool2d(inputs[0], semantics=semantics, **self.geometry(node))


class GlobalAveragePool(Operator):
    """The mean of every channel over rows and columns. Options: ``keep`` (False): rows and columns stay, as 1."""

    name = "global_average_pool"
    roles: ClassVar[tuple[str, ...]] = (ANY,)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        return inputs[0].mean(axis=(2, 3), keepdims=bool(node.options.get("keep", False)))

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        (source,), output = coding(values, node)
        return global_average_pool(
            inputs[0],
            input_scale=source.scale,
            output_scale=output.scale,
            input_zero_point=source.zero_point,
            output_zero_point=output.zero_point,
            keep_dims=bool(node.options.get("keep", False)),
            layout="NCHW",
            dtype=output.dtype,
            semantics=semantics,
        )
