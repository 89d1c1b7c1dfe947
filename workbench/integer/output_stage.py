"""What follows a layer's sums: requantization to output codes, a clamp, an activation function in integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import IntegerError
from workbench.grids import UniformGrid, parse_grid
from workbench.integer.arguments import check_word, shown
from workbench.integer.grid_linear import GridLinear
from workbench.integer.requantize import requantize
from workbench.integer.semantics import Semantics

_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.asarray(_erf(x / math.sqrt(2.0)), dtype=np.float64))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0)))


def _softmax(x: np.ndarray) -> np.ndarray:
    spread = np.exp(x - x.max(axis=-1, keepdims=True))
    return spread / spread.sum(axis=-1, keepdims=True)


#: Float64 references of what may follow a layer.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _logistic(x),
    "tanh": np.tanh,
    "logistic": _logistic,
    "softmax": _softmax,
}


@dataclass(frozen=True, eq=False)
class Coding:
    """How codes of an output stand for reals: ``scale * (code - zero_point)``, codes between low and high."""

    scale: float
    zero_point: int
    dtype: np.dtype
    low: int
    high: int

    @staticmethod
    def of(values: np.ndarray, grid: UniformGrid, clip_low: float | None = None) -> Coding:
        """Return the coding that just holds some values and zero.

        Args:
            values: reals.
            grid: 2 to 16 bits; ``asymmetric`` gets a zero point, the others are symmetric.
            clip_low: real lower clamp (0 for ReLU), or None.
        """
        dtype = np.dtype(np.int8 if grid.bits <= 8 else np.int16)
        least = min(float(values.min(initial=0.0)), 0.0)
        most = max(float(values.max(initial=0.0)), 0.0)
        half = 1 << (grid.bits - 1)
        if grid.range == "asymmetric":
            low, high = -half, half - 1
            scale = float(np.float32((most - least) / (high - low))) or 1.0
            zero = int(np.clip(round(low - least / scale), low, high))
        else:
            high = half - 1
            low = -high if grid.range == "narrow" else -half
            scale = float(np.float32(max(most, -least) / high)) or 1.0
            zero = 0
        return Coding(scale, zero, dtype, max(low, zero) if clip_low is not None else low, high)

    def real(self, codes: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return what codes stand for, float64."""
        return self.scale * (codes.astype(np.float64) - self.zero_point)

    def encode(self, values: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the nearest codes (half to even): what fake quantization rounds to."""
        return np.clip(np.rint(values / self.scale) + self.zero_point, self.low, self.high).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class OutputStage:
    """Requantization, then possibly an activation function."""

    linear: Coding
    """Codes of the layer itself; a following ReLU is its lower clamp."""
    then: str | None
    """``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``tanh``, ``logistic``, ``softmax`` or None."""
    kind: str
    """``runtime``, ``table`` or ``polynomial``: how the function is computed in integers."""
    final: Coding
    """Codes after the function; the same as ``linear`` where none follows, or ReLU."""
    _tables: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def separate(self) -> bool:
        """Whether a function runs on the layer's codes (ReLU is a clamp)."""
        return self.then not in {None, "relu"}

    def requantize(
        self, layer: GridLinear, combined: Int[np.ndarray, "rows outputs"], semantics: Semantics
    ) -> Int[np.ndarray, "rows outputs"]:
        """Return the layer's codes as one runtime rounds them."""
        return requantize(
            combined,
            scale=layer.rescaling(self.linear.scale, semantics),
            zero_point=self.linear.zero_point,
            dtype=self.linear.dtype,
            low=self.linear.low,
            high=self.linear.high,
            semantics=semantics,
            operator="linear",
        )

    def beyond(self, layer: GridLinear, combined: Int[np.ndarray, "rows outputs"], semantics: Semantics) -> int:
        """Return how many outputs left the codes' range and were clamped; below a following ReLU's zero none does."""
        codes = requantize(
            combined,
            scale=layer.rescaling(self.linear.scale, semantics),
            zero_point=self.linear.zero_point,
            dtype=np.int32,
            semantics=semantics,
        )
        beyond = int((codes > self.linear.high).sum())
        return beyond if self.then == "relu" else beyond + int((codes < self.linear.low).sum())

    def activate(self, codes: Int[np.ndarray, "rows outputs"], semantics: Semantics) -> Int[np.ndarray, "rows outputs"]:
        """Return the codes after the function, integers only."""
        if not self.separate:
            return codes
        return self._function()(
            codes,
            input_scale=self.linear.scale,
            input_zero_point=self.linear.zero_point,
            output_scale=self.final.scale,
            output_zero_point=self.final.zero_point,
            dtype=self.final.dtype,
            semantics=semantics,
            kind=self.kind,
        )

    def table(self, semantics: Semantics) -> Int[np.ndarray, " codes"]:
        """Return the function's code for every input code, from the least up (not for softmax, which sees whole rows).

        Raises:
            IntegerError: nothing follows that works on single codes, or the codes have more than 8 bits.
        """
        if not self.separate or self.then == "softmax" or self.linear.dtype.itemsize > 1:
            message = f"{self.then or 'nothing'} on {self.linear.dtype} is no table of single codes"
            raise IntegerError(message)
        if semantics.name not in self._tables:
            every = np.arange(-128, 128).astype(self.linear.dtype).reshape(1, -1)
            self._tables[semantics.name] = self.activate(every, semantics)[0]
        return self._tables[semantics.name]

    def _function(self) -> Callable[..., np.ndarray]:
        if self.then == "softmax":
            from workbench.integer.softmax import softmax

            return softmax
        from workbench.integer import activations

        if self.then in {"gelu", "gelu_tanh"}:
            form = "tanh" if self.then == "gelu_tanh" else "none"
            return lambda codes, **options: activations.gelu(codes, approximate=form, **options)
        return getattr(activations, str(self.then))


def make_stage(real: Float[np.ndarray, "rows outputs"], output: Any, then: str | None, kind: str) -> OutputStage:
    """Choose the output codings from the float outputs of the layer itself (before the function).

    Args:
        real: float outputs, without the function.
        output: a uniform grid of up to 16 bits, or its text form.
        then: the function that follows, or None.
        kind: how it is computed.

    Raises:
        IntegerError: no such function or kind, or an output grid that is not uniform.
    """
    grid = parse_grid(output)
    if not isinstance(grid, UniformGrid) or grid.bits < 2:
        message = f"a layer's output is requantized to a uniform grid of 2 to 16 bits, not to {grid}"
        raise IntegerError(message)
    if then is not None and (not isinstance(then, str) or then not in ACTIVATIONS):
        message = f"after a layer comes {', '.join(ACTIVATIONS)} or nothing, not {shown(then)}"
        raise IntegerError(message)
    check_word(kind, ("runtime", "table", "polynomial"), "a kind")
    if then is None:
        coding = Coding.of(real, grid)
        return OutputStage(coding, None, kind, coding)
    after = ACTIVATIONS[then](real)
    if then == "relu":
        coding = Coding.of(after, grid, clip_low=0.0)
        return OutputStage(coding, then, kind, coding)
    coding = Coding.of(real, grid)
    wide = coding.dtype.itemsize > 1
    limits = np.iinfo(coding.dtype)
    full = (int(limits.min), int(limits.max))
    # The scales that TensorFlow Lite's int8 and int16 kernels require of these functions.
    if then in {"logistic", "softmax"}:
        fixed = (1 / 32768, 0) if wide else (1 / 256, -128)
        final = Coding(*fixed, coding.dtype, *full)
    elif then == "tanh":
        final = Coding(1 / 32768 if wide else 1 / 128, 0, coding.dtype, *full)
    else:
        final = Coding.of(after, grid)
    return OutputStage(coding, then, kind, final)
