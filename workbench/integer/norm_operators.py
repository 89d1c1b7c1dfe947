"""Operators that normalize or turn vectors: RMSNorm, LayerNorm, rotary position embedding."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from workbench.integer.graph import Node, Value
from workbench.integer.normalization import NormalizationConstants, layer_norm, normalization_constants, rms_norm
from workbench.integer.operator import INDEX, STREAM, Operator, Setting, clamp_codes, coding
from workbench.integer.rotary import FRACTION_BITS, RotaryTable, rotary, rotary_table
from workbench.integer.semantics import Semantics

#: What a normalization's run needs, arrays first.
_INTEGERS = ("gain", "offset", "shift", "epsilon", "fraction", "places", "depth")


def _kind(setting: Setting) -> str:
    """No runtime has these operators in integers: its kind falls back to Newton's root and exact tables."""
    return "polynomial" if setting.kind == "runtime" else setting.kind


class _Norm(Operator):
    """What both norms share: constants that are made from real weights and scales, one loop over rows."""

    roles: ClassVar[tuple[str, ...]] = (STREAM,)
    centred: ClassVar[bool]

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Fold weight, bias and scales into integers per channel."""
        (source,), output = coding(values, node)
        weight = node.constants["weight"]
        made = normalization_constants(
            len(weight),
            weight,
            node.constants.get("bias"),
            centred=self.centred,
            input_scale=source.scale,
            output_scale=output.scale,
            input_zero_point=source.zero_point,
            epsilon=float(node.options["epsilon"]),
            input_dtype=source.dtype,
        )
        constants = {name: np.asarray(getattr(made, name), dtype=np.int64) for name in _INTEGERS}
        options = {**node.options, **clamp_codes(node, output), "kind": _kind(setting)}
        return replace(node, constants=constants, options=options)

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        del semantics
        (source,), output = coding(values, node)
        numbers = {name: int(node.constants[name]) for name in _INTEGERS[2:]}
        constants = NormalizationConstants(
            gain=node.constants["gain"],
            offset=node.constants["offset"],
            input_dtype=source.dtype,
            input_zero_point=source.zero_point,
            centred=self.centred,
            **numbers,
        )
        return (layer_norm if self.centred else rms_norm)(
            inputs[0],
            output_zero_point=output.zero_point,
            dtype=output.dtype,
            low=node.options["low"],
            high=node.options["high"],
            kind=node.options["kind"],
            constants=constants,
        )


class RmsNorm(_Norm):
    """``weight * x / sqrt(mean(x**2) + epsilon)`` over the last axis.

    Constants: ``weight`` (width,): what is multiplied, Gemma's 1 added already. Options: ``epsilon``.
    """

    name = "rms_norm"
    centred = False

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        (x,) = inputs
        spread = np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(node.options["epsilon"]))
        return x / spread * node.constants["weight"].astype(x.dtype, copy=False)


class LayerNorm(_Norm):
    """``weight * (x - mean) / sqrt(variance + epsilon) + bias`` over the last axis.

    Constants: ``weight`` (width,), ``bias`` (width,). Options: ``epsilon``.
    """

    name = "layer_norm"
    centred = True

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        (x,) = inputs
        x = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(node.options["epsilon"]))
        weight, bias = (node.constants[name].astype(x.dtype, copy=False) for name in ("weight", "bias"))
        return x / spread * weight + bias


class Rotary(Operator):
    """Each pair ``(x[i], x[i + half])`` of the last axis turned by ``position * frequencies[i]``.

    Inputs: vectors (..., tokens, size) and positions (tokens,). Constants: ``frequencies`` (size / 2,), radians per position.
    Options: ``factor`` on cosine and sine; ``context``, how many positions the integer tables hold.
    """

    name = "rotary"
    roles: ClassVar[tuple[str, ...]] = (STREAM, INDEX)

    def floating(self, node: Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run in float."""
        x, positions = inputs
        # The product is float32 in transformers too: angles of late positions differ visibly otherwise.
        angles = positions.astype(np.float32)[:, None] * node.constants["frequencies"].astype(np.float32)
        factor = float(node.options["factor"])
        cosine, sine = ((curve(angles.astype(np.float64)) * factor).astype(x.dtype) for curve in (np.cos, np.sin))
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    def prepare(self, node: Node, values: Mapping[str, Value], setting: Setting) -> Node:
        """Make the tables of cosines and sines; nodes with the same frequencies share them."""
        del values, setting
        frequencies = np.asarray(node.constants["frequencies"], dtype=np.float32)
        table = _shared_table(frequencies.tobytes(), int(node.options["context"]))
        return replace(node, constants={"cosine": table.cosine, "sine": table.sine})

    def integer(
        self, node: Node, inputs: Sequence[np.ndarray], values: Mapping[str, Value], semantics: Semantics
    ) -> np.ndarray:
        """Run in integers."""
        del semantics
        source, output = values[node.inputs[0]], values[node.output]
        codes, positions = inputs
        return rotary(
            codes,
            RotaryTable(node.constants["cosine"], node.constants["sine"], FRACTION_BITS[16]),
            positions=positions,
            input_scale=source.scale * float(node.options["factor"]),
            output_scale=output.scale,
            input_zero_point=source.zero_point,
            output_zero_point=output.zero_point,
            dtype=output.dtype,
        )


@functools.lru_cache(maxsize=8)
def _shared_table(frequencies: bytes, positions: int) -> RotaryTable:
    turns = np.frombuffer(frequencies, dtype=np.float32)
    return rotary_table(positions, 2 * len(turns), frequencies=turns)
