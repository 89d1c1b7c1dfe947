"""Activation functions on integer codes, as a runtime computes them, by a correctly rounded table, or by polynomials.

Three kinds, the same for every function here:

* ``runtime``: bit for bit what the named semantics' own kernel gives (``workbench.integer.runtime_recipes``).
* ``table``: 8-bit inputs: the code nearest to the real result, from 256 entries; int16 inputs: 513 anchors with
  linear interpolation (``workbench.integer.tables``).
* ``polynomial``: int64 arithmetic only: I-BERT's i-exp and i-erf on an argument with 14 binary places, one division,
  one multiplication back to output steps (``docs/integer_operators.md`` has the formulas). 8-bit codes have 256
  results: for more than 4,096 of them each is computed once and copied.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from workbench.errors import IntegerError, SemanticsError
from workbench.integer.arguments import TENSOR_TYPES, as_array, check_word, check_zero_point, code_type, real_numbers
from workbench.integer.polynomials import CONSTANTS, argument_multiplier, fixed_multiplier
from workbench.integer.requantize import requantize
from workbench.integer.runtime_recipes import Mapping, recipe
from workbench.integer.semantics import Semantics, as_semantics, outside_linear
from workbench.integer.tables import LookupTable, check_scale, lookup_table
from workbench.integer.watch import Observation, is_watched, merged, note
from workbench.kernels import nonlinear

#: The words for ``kind=``.
KINDS = ("runtime", "table", "polynomial")

#: From so many 8-bit codes on, a polynomial is evaluated once per distinct code.
_MANY = 4096
_POLYNOMIALS = {
    "logistic": (nonlinear.LOGISTIC, 1.0),
    "tanh": (nonlinear.TANH, 1.0),
    "gelu": (nonlinear.GELU, math.sqrt(2.0)),
    "gelu-tanh": (nonlinear.GELU_TANH, 1.0),
    "silu": (nonlinear.SILU, 1.0),
    "hard-swish": (nonlinear.HARD_SWISH, 1.0),
}


def logistic(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any = None,
    output_zero_point: int | None = None,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return 1 / (1 + exp(-x)).

    Polynomial: with ``e = i_exp(-|x|)`` in units where ``one`` stands for 1, ``one / (one + e)`` for x >= 0 and
    ``e / (one + e)`` below.

    Args:
        x: int8, uint8 or int16, any shape.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output; by default the runtimes' fixed one: 1/256, for int16 1/32768.
        output_zero_point: the output's code of 0; by default -128 (int8) or 0.
        dtype: type of the output; the input's by default.
        kind: ``runtime``, ``table`` or ``polynomial``.
        semantics: whose recipe ``runtime`` is.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: the runtime has no such operator, or not with these types.

    >>> logistic(np.array([-40, 0, 40], dtype=np.int8), input_scale=0.1)
    array([-123,    0,  123], dtype=int8)
    """
    _, wanted = _types(x, dtype)
    fixed = (2.0**-15, 0) if wanted == np.int16 else (2.0**-8, int(np.iinfo(wanted).min))
    scale, zero = _fixed_output(output_scale, output_zero_point, fixed)
    return _activate("logistic", x, input_scale, input_zero_point, scale, zero, dtype, kind, semantics)


def tanh(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any = None,
    output_zero_point: int | None = None,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return the hyperbolic tangent.

    Polynomial: with ``e = i_exp(-2 |x|)``, ``sign(x) (one - e) / (one + e)``.

    Args:
        x: int8, uint8 or int16, any shape.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output; by default the runtimes' fixed one: 1/128, for int16 1/32768.
        output_zero_point: the output's code of 0; by default 0 (128 for uint8).
        dtype: type of the output; the input's by default.
        kind: ``runtime``, ``table`` or ``polynomial``.
        semantics: whose recipe ``runtime`` is.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: the runtime has no such operator, or not with these types.
    """
    _, wanted = _types(x, dtype)
    fixed = (2.0**-15, 0) if wanted == np.int16 else (2.0**-7, 128 if wanted == np.uint8 else 0)
    scale, zero = _fixed_output(output_scale, output_zero_point, fixed)
    return _activate("tanh", x, input_scale, input_zero_point, scale, zero, dtype, kind, semantics)


def gelu(
    x: Any,
    *,
    approximate: str = "none",
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any,
    output_zero_point: int = 0,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return x (1 + erf(x / sqrt 2)) / 2, or with ``approximate="tanh"`` x (1 + tanh(u)) / 2.

    ``u = sqrt(2 / pi) (x + 0.044715 x**3)``. Polynomial: I-BERT's i-erf; for ``tanh``, ``x * logistic(2u)`` by i-exp.

    Args:
        x: int8, uint8 or int16, any shape.
        approximate: ``none`` or ``tanh``.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.
        kind: ``runtime``, ``table`` or ``polynomial``.
        semantics: whose recipe ``runtime`` is.

    Raises:
        IntegerError: types, scales or zero points do not fit, or another approximation.
        SemanticsError: the runtime has no such operator, or not with these types.
    """
    check_word(approximate, ("none", "tanh"), "GELU's approximation")
    name = "gelu" if approximate == "none" else "gelu-tanh"
    return _activate(name, x, input_scale, input_zero_point, output_scale, output_zero_point, dtype, kind, semantics)


def silu(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any,
    output_zero_point: int = 0,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return x * logistic(x) (no runtime has it as one operator: choose ``table`` or ``polynomial``).

    Args:
        x: int8, uint8 or int16, any shape.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.
        kind: ``table`` or ``polynomial``.
        semantics: whose recipe ``runtime`` would be.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: ``kind="runtime"``.
    """
    return _activate("silu", x, input_scale, input_zero_point, output_scale, output_zero_point, dtype, kind, semantics)


def hard_swish(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any,
    output_zero_point: int = 0,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return x * min(max(x + 3, 0), 6) / 6.

    TensorFlow Lite's own recipe works in 16-bit fixed point and is off by one step in some places; the other kinds
    are not.

    Args:
        x: int8, uint8 or int16, any shape.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.
        kind: ``runtime``, ``table`` or ``polynomial``.
        semantics: whose recipe ``runtime`` is.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: the runtime has no such operator, or not with these types.
    """
    return _activate(
        "hard-swish", x, input_scale, input_zero_point, output_scale, output_zero_point, dtype, kind, semantics
    )


def relu(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any,
    output_zero_point: int = 0,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return max(x, 0): one requantization with the output's zero point as the lower clamp.

    Args:
        x: int8, uint8 or int16, any shape.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.
        kind: ``runtime`` or ``polynomial`` (the semantics' requantization), or ``table``.
        semantics: whose rounding.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: the runtime has no such operator, or not with these types.
    """
    return _activate("relu", x, input_scale, input_zero_point, output_scale, output_zero_point, dtype, kind, semantics)


def relu6(
    x: Any,
    *,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any,
    output_zero_point: int = 0,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return min(max(x, 0), 6): one requantization with the codes of 0 and 6 as clamps.

    TensorFlow Lite Micro's own (``runtime``, ``tflm``) clamps the input's codes and rescales nothing: for one scale only.

    Args:
        x: int8, uint8 or int16, any shape.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.
        kind: ``runtime`` or ``polynomial`` (the semantics' requantization), or ``table``.
        semantics: whose rounding.

    Raises:
        IntegerError: types, scales or zero points do not fit.
        SemanticsError: the runtime has no such operator, or not with these types.
    """
    return _activate("relu6", x, input_scale, input_zero_point, output_scale, output_zero_point, dtype, kind, semantics)


def leaky_relu(
    x: Any,
    *,
    slope: float = 0.01,
    input_scale: Any,
    input_zero_point: int = 0,
    output_scale: Any,
    output_zero_point: int = 0,
    dtype: Any = None,
    kind: str = "runtime",
    semantics: Semantics | str = "litert-reference",
) -> np.ndarray:
    """Return x for x >= 0 and slope * x below: two requantizations, chosen by the sign.

    Args:
        x: int8, uint8 or int16, any shape.
        slope: of the negative side, a float32 number.
        input_scale: real scale of the input.
        input_zero_point: the input's code of 0.
        output_scale: real scale of the output.
        output_zero_point: the output's code of 0.
        dtype: type of the output; the input's by default.
        kind: ``runtime`` or ``polynomial`` (the semantics' requantizations), or ``table``.
        semantics: whose rounding.

    Raises:
        IntegerError: types, scales, zero points or the slope do not fit.
        SemanticsError: the runtime has no such operator, or not with these types.
    """
    number = real_numbers(slope, "a slope")
    with np.errstate(over="ignore"):
        stored = float(number.astype(np.float32).reshape(())) if number.size == 1 else math.nan
    if not math.isfinite(stored):
        message = f"a slope is a finite float32 number, not {slope if number.size == 1 else number.shape}"
        raise IntegerError(message)
    return _activate(
        "leaky-relu",
        x,
        input_scale,
        input_zero_point,
        output_scale,
        output_zero_point,
        dtype,
        kind,
        semantics,
        slope=stored,
    )


def _fixed_output(scale: Any, zero_point: int | None, fixed: tuple[float, int]) -> tuple[Any, int]:
    return (fixed[0] if scale is None else scale), (fixed[1] if zero_point is None else zero_point)


def _types(x: Any, dtype: Any) -> tuple[np.ndarray, np.dtype]:
    codes = as_array(x, "the input")
    given = code_type(codes.dtype, TENSOR_TYPES, "an activation takes")
    return codes, given if dtype is None else code_type(dtype, TENSOR_TYPES, "an activation gives")


def check_kind(kind: str) -> None:
    """Refuse a kind that does not exist.

    Raises:
        IntegerError: see above.
    """
    check_word(kind, KINDS, "a kind")


def _activate(  # noqa: PLR0917
    name: str,
    x: Any,
    input_scale: Any,
    input_zero_point: int,
    output_scale: Any,
    output_zero_point: int,
    dtype: Any,
    kind: str,
    semantics: Semantics | str,
    slope: float = 0.0,
) -> np.ndarray:
    codes, wanted = _types(x, dtype)
    check_kind(kind)
    named = as_semantics(semantics)
    check_zero_point(input_zero_point, codes.dtype)
    check_zero_point(output_zero_point, wanted)
    scale, step = check_scale(input_scale, "input"), check_scale(output_scale, "output")
    zeros = int(input_zero_point), int(output_zero_point)
    if kind == "table":
        return _table(name, codes.dtype.name, scale, zeros[0], step, zeros[1], wanted.name, slope)(codes)
    if name in {"relu", "relu6", "leaky-relu"} and (kind == "polynomial" or named.shift_is_right):
        return _piecewise(name, codes, scale, zeros[0], step, zeros[1], wanted, named, slope)
    if kind == "runtime":
        if codes.dtype != wanted:
            message = f"{named}'s {name} gives the input's type: use kind='table' or kind='polynomial' for {wanted}"
            raise SemanticsError(message)
        entries, clamped = recipe(Mapping(name, wanted.name, scale, zeros[0], step, zeros[1], slope), named.name)
        out = nonlinear.look_up(codes, entries)
        saturated = int(nonlinear.look_up(codes, clamped).sum()) if is_watched() and clamped.any() else 0
    else:
        distinct = codes.dtype.itemsize == 1 and codes.size > _MANY and not is_watched()
        limits = np.iinfo(codes.dtype)
        inputs = np.arange(limits.min, limits.max + 1).astype(codes.dtype) if distinct else codes
        which, divisor = _POLYNOMIALS[name]
        factor = (1.0 if name in {"logistic", "tanh"} else scale) / step * 2.0**-nonlinear.FACTOR_BITS
        multipliers = argument_multiplier(scale, divisor), fixed_multiplier(factor)
        out, saturated = nonlinear.polynomial(
            inputs, zeros[0], which, multipliers[0], CONSTANTS, multipliers[1], zeros[1], wanted
        )
        if distinct:
            out = nonlinear.look_up(codes, out)
    note(Observation(name.replace("-", "_"), outputs=int(out.size), saturated=saturated))
    return out


@functools.lru_cache(maxsize=256)
def _table(  # noqa: PLR0917
    name: str, given: str, scale: float, zero: int, step: float, zero_point: int, wanted: str, slope: float
) -> LookupTable:
    function = functools.partial(_leaky, slope=slope) if name == "leaky-relu" else name
    return lookup_table(
        function, scale, zero, step, zero_point, given, output_dtype=wanted, name=name.replace("-", "_")
    )


def _leaky(real: np.ndarray, slope: float) -> np.ndarray:
    return np.where(real >= 0, real, slope * real)


def _piecewise(  # noqa: PLR0917
    name: str,
    codes: np.ndarray,
    scale: float,
    zero: int,
    step: float,
    zero_point: int,
    wanted: np.dtype,
    named: Semantics,
    slope: float,
) -> np.ndarray:
    """Rescale by the semantics' own requantization, one factor on either side of 0, then clamp."""
    limits = np.iinfo(wanted)
    values = codes.astype(np.int32) - zero
    low = int(limits.min) if name == "leaky-relu" else zero_point
    high = min(int(limits.max), zero_point + round(6.0 / step)) if name == "relu6" else int(limits.max)
    operator = name.replace("-", "_")
    options: dict[str, Any] = {
        "zero_point": zero_point,
        "dtype": wanted,
        "low": low,
        "high": high,
        "semantics": outside_linear(named),
        "operator": operator,
    }
    if name != "leaky-relu":
        # What lies below 0 is clamped by the function, not by the type: it must not count as saturated.
        return requantize(np.maximum(values, 0), scale=scale / step, **options)
    sign = -1 if slope < 0 else 1
    with merged(operator):
        above = requantize(np.maximum(values, 0), scale=scale / step, **options)
        below = requantize(sign * np.minimum(values, 0), scale=abs(slope) * scale / step, **options)
    return np.where(values >= 0, above, below)
