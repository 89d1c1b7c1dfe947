"""Operators of transformers outside attention: embeddings, norms, soft caps, the mean over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.activations import tanh
from workbench.integer.fixed_point import quantize_multiplier
from workbench.integer.gathering import embedding
from workbench.integer.graph import Node, Value
from workbench.integer.operator import INDEX, STREAM, Operator, Setting, clamp_codes, coding
from workbench.integer.semantics import Semantics, outside_linear
from workbench.integer.watch import Observation, note
from workbench.integer.weights import integer_weight, real_weight


class Embedding(Operator):
    """``factor * weight[index]``: rows of a table.

    Constants: ``weight`` (rows, width), quantized as a layer's, with one scale per row. Options: ``factor`` (1.0).
    """

    name = "embedding"
    roles: ClassVar[tuple[str, ...]] = (INDEX,)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        weight = node.constants["weight"]
        (index,) = inputs
        check_index(node, index, len(weight))
        return weight[index] * weight.dtype.type(node.options.get("factor", 1.0))

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Quantize the table; each row gets the multiplier from its scale to the output's."""
        output = values[node.output]
        weight = integer_weight(node.constants["weight"], setting.entry)
        table = weight.integers
        if np.any(weight.zero_point):
            table = (table.astype(np.int16) - weight.zero_point[:, None]).astype(np.int16)
        factor = float(node.options.get("factor", 1.0))
        real = weight.scale.astype(np.float64) * factor / float(output.scale)
        multiplier, shift = quantize_multiplier(real, outside_linear(setting.semantics))
        constants = {"weight": table, "multiplier": multiplier, "shift": shift}
        options = {
            **node.options,
            **clamp_codes(node, output),
            "weight_scale": weight.scale,
            "weight_grid": str(weight.grid),
            "weight_bits": weight.bits,
        }
        return replace(node, constants=constants, options=options)

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers: look the row up, rescale it."""
        output = values[node.output]
        constants = node.constants
        check_index(node, inputs[0], len(constants["weight"]))
        return embedding(
            inputs[0],
            constants["weight"],
            multiplier=constants["multiplier"],
            shift=constants["shift"],
            output_zero_point=output.zero_point,
            dtype=output.dtype,
            low=node.options.get("low"),
            high=node.options.get("high"),
            semantics=semantics,
        )

    def fake_constants(self, node: Node, prepared: Node) -> Mapping[str, np.ndarray]:
        """Return the table as its integers stand for it."""
        table, scale = prepared.constants["weight"], prepared.options["weight_scale"]
        return {"weight": real_weight(table, scale, np.zeros(1, dtype=np.int32))}


class SoftCap(Operator):
    """``cap * tanh(x / cap)``: Gemma 2's bound on attention scores and logits. Options: ``cap``."""

    name = "soft_cap"
    roles: ClassVar[tuple[str, ...]] = (STREAM,)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        (x,) = inputs
        cap = x.dtype.type(node.options["cap"])
        return np.tanh(x / cap) * cap

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers: dividing by the cap only changes what a step stands for, on either side of the tanh."""
        (source,), output = coding(values, node)
        cap, kind = float(node.options["cap"]), node.options.get("kind", "table")
        return tanh(
            inputs[0],
            input_scale=source.scale / cap,
            input_zero_point=source.zero_point,
            output_scale=output.scale / cap,
            output_zero_point=output.zero_point,
            dtype=output.dtype,
            # Runtimes have one tanh of fixed output scale; a cap needs its own.
            kind="table" if kind == "runtime" else kind,
            semantics=semantics,
        )


class MeanPool(Operator):
    """The mean of (sentences, tokens, width) over the tokens that a mask (sentences, 1, 1, tokens) keeps.

    In integers: the exact sum, times a 31-bit multiplier, over the count, rounded once, half away from zero.
    """

    name = "mean_pool"
    roles: ClassVar[tuple[str, ...]] = (STREAM, INDEX)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        del node
        x, mask = inputs
        kept = mask[:, 0, 0, :, None].astype(x.dtype)
        return (x * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Make the multiplier from the input's steps to the output's."""
        del setting
        source, output = values[node.inputs[0]], values[node.output]
        multiplier, shift = quantize_multiplier(float(source.scale) / float(output.scale), "tflite-single")
        if not -8 <= int(shift) <= 30:
            message = f"{node.name!r} would scale by {float(source.scale) / float(output.scale):g}; calibrate it again"
            raise IntegerError(message)
        constants = {"multiplier": multiplier.astype(np.int64), "divisor": np.int64(1) << (31 - shift.astype(np.int64))}
        return replace(node, constants=constants, options={**node.options, **clamp_codes(node, output)})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        del semantics
        source, output = values[node.inputs[0]], values[node.output]
        codes, mask = inputs
        kept = mask[:, 0, 0, :, None].astype(np.int64)
        sums = ((codes.astype(np.int64) - source.zero_point) * kept).sum(axis=1)
        divisor = node.constants["divisor"] * np.maximum(kept.sum(axis=1), 1)
        scaled = sums * node.constants["multiplier"]
        means = np.sign(scaled) * ((np.abs(scaled) + divisor // 2) // divisor) + output.zero_point
        low, high = node.options["low"], node.options["high"]
        limits = np.iinfo(output.dtype)
        outside = int(np.count_nonzero((means < limits.min) | (means > limits.max)))
        note(Observation("mean_pool", outputs=int(means.size), saturated=outside))
        return np.clip(means, low, high).astype(output.dtype)


def check_index(node: Node, index: np.ndarray, rows: int) -> None:
    """Refuse indices that a table does not have: numpy would count negative ones from the end.

    Raises:
        IntegerError: see above.
    """
    if index.dtype.kind not in "iu" or (index.size and (int(index.min()) < 0 or int(index.max()) >= rows)):
        worst = (
            index.dtype
            if index.dtype.kind not in "iu"
            else int(index.max())
            if index.max() >= rows
            else int(index.min())
        )
        message = f"{node.name!r} has rows 0 to {rows - 1} and was asked for {worst}"
        raise IntegerError(message)
