"""Operators of attention: positions, masks, rotary embedding, softmax over visible keys, probabilities times values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.graph import Node, Value
from workbench.integer.operator import ANY, INDEX, OPERAND, SAME, STREAM, Operator, Setting
from workbench.integer.product_operators import Matmul
from workbench.integer.semantics import Semantics
from workbench.integer.softmax import softmax


class _Index(Operator):
    """Plain integers from plain integers; nothing is quantized, so all runs are alike."""

    roles: ClassVar[tuple[str, ...]] = (INDEX,)

    def output_role(self, node: Node) -> str:
        """Ask for plain integers."""
        del node
        return INDEX

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run as in float."""
        del values, semantics
        return self.floating(node, inputs)


class Positions(_Index):
    """Token ids (sequences, tokens) -> positions (tokens,), from 0; a run with a cache counts on from there."""

    name = "positions"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Count."""
        if inputs[0].ndim != 2:
            message = f"{node.name!r} counts token ids (sequences, tokens), not of shape {inputs[0].shape}: tokens[None] is one sequence"
            raise IntegerError(message)
        return np.arange(inputs[0].shape[-1], dtype=np.int64)


class CausalMask(_Index):
    """Positions of queries (tokens,) -> which keys they see, uint8 (tokens, keys): itself and what came before.

    Keys are positions 0 to the last query's. Options: ``window`` (None): how many newest keys are seen.
    """

    name = "causal_mask"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Compare positions."""
        queries = inputs[0][:, None]
        keys = np.arange(int(inputs[0].max(initial=-1)) + 1)[None, :]
        seen = keys <= queries
        window = node.options.get("window")
        if window is not None:
            seen &= queries - keys < window
        return seen.astype(np.uint8)


class PaddingMask(_Index):
    """Token ids (sequences, tokens) -> which keys every query sees, uint8 (sequences, 1, 1, tokens). Options: ``pad``."""

    name = "padding_mask"

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Compare with the padding token."""
        return (inputs[0] != node.options["pad"]).astype(np.uint8)[:, None, None, :]


class Cache(Operator):
    """Keys or values (..., tokens, head size), as they are; a run with a cache puts the earlier tokens' in front."""

    name = "cache"
    roles: ClassVar[tuple[str, ...]] = (SAME,)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the input."""
        del node
        return inputs[0]

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Return the input."""
        del node, values, semantics
        return inputs[0]


class AttentionContext(Matmul):
    """``probabilities @ values``: the probabilities keep the coding that softmax gave them, values are operands."""

    name = "attention_context"
    roles: ClassVar[tuple[str, ...]] = (ANY, OPERAND)


class MaskedSoftmax(Operator):
    """Softmax over the last axis among what a mask keeps (1 keeps, 0 does not; it broadcasts to the scores).

    A row in which nothing is kept gives zeros. In integers the probabilities have 15 bits (int16, steps of 1/32768); a recipe whose
    entry for this node says ``uint8`` gets 8 (steps of 1/256), as fits short sequences.
    """

    name = "masked_softmax"
    roles: ClassVar[tuple[str, ...]] = (STREAM, INDEX)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        del node
        scores, mask = inputs
        kept = mask != 0
        highest = np.where(kept, scores, -np.inf).max(axis=-1, keepdims=True)
        powers = np.exp(np.minimum(scores - np.where(np.isfinite(highest), highest, 0), 0)) * kept
        return powers / np.maximum(powers.sum(axis=-1, keepdims=True), np.finfo(scores.dtype).tiny)

    def fixed_value(self, node: Node, setting: Setting) -> Value | None:
        """Return the coding of probabilities."""
        if setting.entry.activation == "uint8":
            return Value(node.output, np.dtype(np.uint8), 2.0**-8)
        return Value(node.output, np.dtype(np.int16), 2.0**-15)

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        source, output = values[node.inputs[0]], values[node.output]
        scores, mask = inputs
        return softmax(
            scores,
            input_scale=source.scale,
            output_scale=output.scale,
            output_zero_point=output.zero_point,
            dtype=output.dtype,
            mask=mask.astype(np.bool_),
            kind=node.options.get("kind", "table"),
            semantics=semantics,
        )
