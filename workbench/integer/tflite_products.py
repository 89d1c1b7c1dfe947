"""TensorFlow Lite's product of two tensors that the model computes (attention's scores and contexts)."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.graph import Node
from workbench.integer.linear import matmul
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.tflite_site import Built, Site, TFLite, operands


class BatchMatmul(TFLite):
    """Batched matrix product; leading axes broadcast.

    Both runtimes round twice. LiteRT takes the product of the two scales in float32, TensorFlow Lite Micro in float64.
    """

    name = "tflite:BATCH_MATMUL"

    def build(self, site: Site) -> Built:
        """Prepare the multiplier."""
        tensors = (site.tensor(0), site.tensor(1))
        if len({each.dtype for each in (*tensors, site.output)}) != 1 or site.output.dtype == np.uint8:
            raise site.fail("both operands and the output are int8, or all are int16")
        if min(len(each.shape) for each in tensors) < 2:
            raise site.fail("its operands have two axes or more")
        (first, a_zero), (second, b_zero), (third, zero) = (site.coded(each) for each in (*tensors, site.output))
        named = outside_linear(site.semantics)
        product = "float64" if named.name == "tflm" else "float32"
        factor = effective_scale(first, second, third, named, product=product)
        bits = 48 if site.output.dtype == np.int16 else 32
        multiplier, shift = quantize_multiplier(factor, named, accumulator_bits=bits)
        running, constants, order = operands(tensors)
        arguments: dict[str, Any] = {
            "a_zero_point": a_zero,
            "b_zero_point": b_zero,
            "output_zero_point": zero,
            "dtype": site.output.dtype,
        }
        turned = tuple(bool(site.option(name, False)) for name in ("AdjX", "AdjY"))
        options = {"operands": order, "arguments": arguments, "turned": turned}
        return Built(running, {**constants, "multiplier": multiplier, "shift": shift}, options)

    def compute(self, node: Node, operands: list[np.ndarray], semantics: Semantics) -> np.ndarray:
        """Multiply."""
        a, b = operands
        first, second = node.options["turned"]
        return matmul(
            np.swapaxes(a, -1, -2) if first else a,
            b,
            transpose_b=second,
            multiplier=node.constants["multiplier"],
            shift=node.constants["shift"],
            semantics=semantics,
            **node.options["arguments"],
        )
