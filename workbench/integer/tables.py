"""Look-up tables of real functions: 256 correctly rounded entries, or 513 entries with interpolation for int16."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import TENSOR_TYPES, check_word, check_zero_point, code_type, real_numbers, shown
from workbench.integer.watch import Observation, is_watched, note
from workbench.kernels.nonlinear import interpolate, look_up

Function = Callable[[np.ndarray], np.ndarray]

#: Entries of an interpolated table stay below 2**ENTRY_BITS.
ENTRY_BITS = 30


def _elementwise(function: Callable[[float], float]) -> Function:
    return np.vectorize(function, otypes=[np.float64])


def _logistic(x: np.ndarray) -> np.ndarray:
    # exp never overflows, and small results keep all their digits.
    power = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, power) / (1.0 + power)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * _logistic(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))


#: Real functions by name, float64 to float64.
FUNCTIONS: dict[str, Function] = {
    "logistic": _logistic,
    "tanh": np.tanh,
    "gelu": _elementwise(lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2.0))),
    "gelu-tanh": _gelu_tanh,
    "silu": lambda x: x * _logistic(x),
    "hard-swish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "exp": np.exp,
    "identity": lambda x: x,
}


def as_function(function: Function | str) -> Function:
    """Return a real function itself, or the one that a name stands for.

    Raises:
        IntegerError: no function has this name.
    """
    if callable(function):
        return function
    if not isinstance(function, str) or function not in FUNCTIONS:
        message = f"no function is called {shown(function)}; there are {', '.join(FUNCTIONS)}, or give a callable"
        raise IntegerError(message)
    return FUNCTIONS[function]


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A function of integer codes as a table; call it with an array of codes.

    Attributes:
        entries: one output code per input code from the smallest on (256, or 65,536), or 513 int32 anchors, one per
            128 input codes, in output steps times ``2**guard``, without the zero point.
        input_dtype: type of the codes it takes.
        dtype: type of the codes it gives.
        zero_point: added to an interpolated result.
        guard: fractional bits of interpolated entries.
        clamped: which of the direct entries had to be clamped to the output's type.
        name: what ``watch`` shows.
    """

    entries: np.ndarray
    input_dtype: np.dtype
    dtype: np.dtype
    zero_point: int = 0
    guard: int = 0
    clamped: np.ndarray | None = field(default=None, repr=False)
    name: str = "lookup_table"

    @property
    def is_interpolated(self) -> bool:
        """Return whether results between two anchors are interpolated."""
        return self.entries.size == 513

    def __call__(self, codes: Any) -> np.ndarray:
        """Return the function's codes, in the input's shape.

        Raises:
            IntegerError: codes of another type.
        """
        codes = np.asarray(codes)
        if codes.dtype != self.input_dtype:
            message = f"this table takes {self.input_dtype} codes, not {codes.dtype}"
            raise IntegerError(message)
        if self.is_interpolated:
            out, saturated = interpolate(codes, self.entries, self.guard, self.zero_point, self.dtype)
        else:
            out, saturated = look_up(codes, self.entries), 0
            if self.clamped is not None and is_watched() and self.clamped.any():
                saturated = int(look_up(codes, self.clamped).sum())
        note(Observation(self.name, outputs=int(out.size), saturated=saturated))
        return out


def lookup_table(  # noqa: PLR0917
    function: Function | str,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any = None,
    output_zero_point: int = 0,
    dtype: Any = np.int8,
    *,
    output_dtype: Any = None,
    layout: str = "exact",
    name: str = "lookup_table",
) -> LookupTable:
    """Return the table of a real function between two quantized types.

    * 8-bit input: 256 entries ``clamp(rint(f(s_in (q - z_in)) / s_out) + z_out)``, computed in float64: each is the
      code nearest to the real result.
    * int16 input, ``layout="exact"``: 513 int32 anchors with guard bits and linear interpolation (the formula is in
      ``docs/integer_operators.md``); an anchor gives half of its interval's midpoint error back, as TensorFlow Lite's
      do. Off by the curvature's share: at most ``h**2 / 8 * max |f''|`` in real terms, ``h = 128 * input_scale``.
    * int16 input, ``layout="tflite"``: TensorFlow Lite's own 513 int16 anchors (``LUTPopulate``), int16 output and
      zero points of 0 only.

    Args:
        function: a name of ``FUNCTIONS``, or a callable from float64 arrays to float64 arrays.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: int8, uint8 or int16: type of the input, and of the output where ``output_dtype`` is None.
        output_dtype: int8, uint8 or int16.
        layout: ``exact`` or ``tflite``.
        name: what ``watch`` shows.

    Raises:
        IntegerError: types, scales, zero points or layout that a table cannot have, or a result that is not finite.

    >>> table = lookup_table("tanh", 0.05, 0, 1 / 128)
    >>> table(np.array([-100, 0, 20], dtype=np.int8))
    array([-128,    0,   97], dtype=int8)
    """
    real = as_function(function)
    given = code_type(dtype, TENSOR_TYPES, "a table takes")
    wanted = given if output_dtype is None else code_type(output_dtype, TENSOR_TYPES, "a table gives")
    check_zero_point(input_zero_point, given)
    check_zero_point(output_zero_point, wanted)
    scale, step = check_scale(input_scale, "input"), check_scale(output_scale, "output")
    check_word(layout, ("exact", "tflite"), "a table's layout")
    if layout == "tflite":
        if given != np.int16 or wanted != np.int16 or input_zero_point or output_zero_point:
            message = "TensorFlow Lite's 513-entry layout is int16 to int16 with zero points 0"
            raise IntegerError(message)
        anchors = tflite_anchors(real, -32768 * scale, 32767 * scale, step * 65535)
        return LookupTable(anchors, given, wanted, name=name)
    limits = np.iinfo(given)
    if given.itemsize == 1:
        codes = np.arange(limits.min, limits.max + 1, dtype=np.float64)
        exact = np.rint(_evaluate(real, scale * (codes - input_zero_point)) / step) + output_zero_point
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        entries = np.clip(exact, low, high).astype(wanted)
        return LookupTable(entries, given, wanted, clamped=(exact < low) | (exact > high), name=name)
    return _anchors(real, scale, int(input_zero_point), step, int(output_zero_point), wanted, name)


def _evaluate(function: Function, x: np.ndarray) -> np.ndarray:
    values = np.asarray(function(x), dtype=np.float64)
    if values.shape != x.shape or not np.all(np.isfinite(values)):
        message = "a table's function gives one finite number for every input of its range"
        raise IntegerError(message)
    return values


def _anchors(  # noqa: PLR0917
    function: Function, scale: float, zero: int, step: float, zero_point: int, wanted: np.dtype, name: str
) -> LookupTable:
    places = np.arange(-32768, 32769, 64, dtype=np.float64)
    values = _evaluate(function, scale * (places - zero)) / step
    anchors, middles = values[::2], values[1::2]
    # Half of the midpoint's error is given to the anchor before it: the largest error halves where the curve bends.
    bent = (anchors[:-1] + anchors[1:]) / 2 - middles
    anchors = anchors.copy()
    anchors[:-1] -= bent / 2
    # Anchors far outside the output's type only need to stay outside it.
    limit = 2.0 ** (wanted.itemsize * 8 + 5)
    anchors = np.clip(anchors, -limit, limit)
    guard = ENTRY_BITS - math.ceil(math.log2(max(float(np.abs(anchors).max()), 1.0))) - 1
    return LookupTable(
        np.rint(anchors * 2.0**guard).astype(np.int32), np.dtype(np.int16), wanted, zero_point, guard, name=name
    )


def tflite_anchors(function: Function, low: float, high: float, span: float, dtype: Any = np.float32) -> np.ndarray:
    """Return TensorFlow Lite's 513 int16 anchors of a function (``LUTPopulateInt16`` of kernels/internal/common.h).

    Args:
        function: from arrays to arrays.
        low: real number of the code -32768.
        high: real number of the code 32767.
        span: real distance between the output's smallest and largest code.
        dtype: float32 as LUTPopulate computes, or float64 as TensorFlow Lite's older ``gen_lut`` does.
    """
    kind = np.dtype(dtype).type
    first, last = kind(low), kind(high)
    step = kind((last - first) / kind(512))
    inverse = kind(kind(65536) / kind(span))
    index = np.arange(512).astype(dtype)

    def at(x: np.ndarray) -> np.ndarray:
        # The C library's single-precision functions are all but correctly rounded: so is this.
        return np.asarray(function(x.astype(np.float64)), dtype=np.float64).astype(dtype)

    def rounded(x: np.ndarray) -> np.ndarray:
        # Half away from zero, as C's round.
        return (np.sign(x) * np.floor(np.abs(x.astype(np.float64)) + 0.5)).astype(dtype)

    values = at(first + index * step) * inverse
    following = at(first + (index + kind(1)) * step) * inverse
    middles = rounded(at(first + index * step + step / kind(2)) * inverse)
    between = rounded((following + rounded(values)) / kind(2))
    sampled = rounded(values) - rounded((between - middles) / kind(2))
    end = rounded(at(np.asarray([last])) * inverse)
    return np.clip(np.concatenate([sampled, end]), -32768, 32767).astype(np.int32)


def check_scale(scale: Any, name: str) -> float:
    """Return a scale as the float32 number that it is stored as.

    Raises:
        IntegerError: not one finite number above 0.
    """
    values = real_numbers(np.nan if scale is None else scale, f"the {name} scale")
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32)
    if stored.size != 1 or not np.isfinite(stored).all() or not (stored > 0).all():
        message = f"the {name} scale is one finite float32 number above 0, not {shown(scale)}"
        raise IntegerError(message)
    return float(stored.reshape(()))
