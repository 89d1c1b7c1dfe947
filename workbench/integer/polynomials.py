"""I-BERT's polynomials really in integers: exp, erf, GELU, softmax and the square root (Kim et al. 2021, arXiv 2101.01321).

The published code computes them in float32 with rounded values; here every array is an integer array. A tensor is a
pair ``(codes, scale)``; the scale is a real number beside the run from which constants are prepared, and each function
gives ``(codes, scale)`` back. All work is int64; with scales of 2**-14 and above every product also fits int32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import as_array, one_integer, real_numbers, shown
from workbench.integer.roots import integer_sqrt
from workbench.integer.tables import check_scale
from workbench.kernels.nonlinear import ARGUMENT_BITS, erf_codes, exp_codes

#: exp(-p) ~ EXP_A (p - EXP_B)**2 + EXP_C for 0 <= p < ln 2 (I-BERT, section 3.5).
EXP_A, EXP_B, EXP_C = 0.3585, 1.353, 0.344
#: erf(x) ~ 1 + ERF_A (min(x, ERF_B) - ERF_B)**2 for x >= 0 (I-BERT, equation 8).
ERF_A, ERF_B = -0.2888, 1.769

#: Largest absolute errors of the two polynomials over the reals, rounded up (erf's is at 0, where GELU hides it), and
#: the largest relative one of exp; tests measure them.
EXP_BOUND, ERF_BOUND, EXP_RELATIVE_BOUND = 2.13e-3, 9.63e-2, 3.1e-3
#: Largest absolute error of ``x (1 + erf(x / sqrt 2)) / 2`` with the second polynomial, rounded up.
GELU_BOUND = 1.82e-2


def _one(scale: Any) -> float:
    number = real_numbers(scale, "a scale")
    return float(number.reshape(())) if number.size == 1 else math.nan


def exp_constants(scale: float) -> tuple[int, int, int]:
    """Return ln 2 and the polynomial's b in units of ``scale``, and c / a in units of ``scale**2``.

    Raises:
        IntegerError: the scale leaves too few units in ln 2, or squares that int64 cannot hold.
    """
    if not 2.0**-29 <= _one(scale) <= 2.0**-4:
        message = f"the polynomials take scales from 2**-29 to 2**-4, not {shown(scale)}: rescale the codes first"
        raise IntegerError(message)
    return round(math.log(2) / scale), round(EXP_B / scale), round(EXP_C / EXP_A / scale**2)


def _constants() -> np.ndarray:
    scale = 2.0**-ARGUMENT_BITS
    ln2, b, c = exp_constants(scale)
    one = round(1 / EXP_A / scale**2)
    erf_b, erf_one = round(ERF_B / scale), round(-1 / ERF_A / scale**2)
    cubic, outer = round(0.044715 * 2**20), round(2 * math.sqrt(2 / math.pi) * 2**20)
    return np.array([ln2, b, c, one, erf_b, erf_one, cubic, outer], dtype=np.int64)


#: ln 2, b, c, 1, erf's b and 1 at the scale 2**-ARGUMENT_BITS, and GELU's 0.044715 and 2 sqrt(2 / pi) with 20 bits.
CONSTANTS = _constants()


def _codes(q: Any) -> np.ndarray:
    array = as_array(q, "the codes")
    if array.dtype.kind not in "iu":
        message = f"integer codes are needed, not {array.dtype}"
        raise IntegerError(message)
    return array.astype(np.int64)


def i_exp(q: Any, scale: float) -> tuple[np.ndarray, float]:
    """Return exp(q * scale) for q <= 0 as ``(codes, scale)``: I-BERT's i-exp (algorithm 2).

    ``z = -q // ln2``, ``p = -q - z ln2``, ``codes = ((b - p)**2 + c) >> z`` with ln2 = round(ln 2 / s),
    b = round(1.353 / s), c = round(0.344 / 0.3585 / s**2); their scale is ``0.3585 s**2``.
    At scales up to 2**-10 the result is within ``EXP_BOUND + 2 s`` of the real one.

    Args:
        q: integers, 0 or below.
        scale: real scale of q, 2**-29 to 2**-4.

    Returns:
        int64 codes of the input's shape, and their scale.

    Raises:
        IntegerError: a positive code, or a scale out of range.
    """
    codes = _codes(q)
    if np.any(codes > 0):
        message = "i-exp takes codes of 0 and below: subtract the row's maximum first"
        raise IntegerError(message)
    ln2, b, c = exp_constants(scale)
    out = exp_codes(np.ascontiguousarray(-codes).reshape(-1), ln2, b, c)
    return out.reshape(codes.shape), EXP_A * scale**2


def i_erf(q: Any, scale: float) -> tuple[np.ndarray, float]:
    """Return erf(q * scale) as ``(codes, scale)``: I-BERT's i-erf (algorithm 1).

    ``codes = sign(q) (one - (min(|q|, b) - b)**2)`` with b = round(1.769 / s), one = round(1 / 0.2888 / s**2); their
    scale is ``0.2888 s**2``. At scales up to 2**-10 the result is within ``ERF_BOUND + 2 s`` of the real one.

    Args:
        q: integers.
        scale: real scale of q, 2**-29 to 2**-4.

    Returns:
        int64 codes of the input's shape, and their scale.

    Raises:
        IntegerError: a scale out of range.
    """
    codes = _codes(q)
    exp_constants(scale)
    b, one = round(ERF_B / scale), round(-1 / ERF_A / scale**2)
    out = erf_codes(np.ascontiguousarray(codes).reshape(-1), b, one)
    return out.reshape(codes.shape), -ERF_A * scale**2


def i_gelu(q: Any, scale: float) -> tuple[np.ndarray, float]:
    """Return GELU(q * scale) as ``(codes, scale)``: I-BERT's i-GELU (algorithm 1).

    ``codes = q (one + erf codes)`` with i-erf at the scale ``s / sqrt 2``; their scale is ``0.2888 s**3 / 4``. At
    scales up to 2**-10 the result is within ``GELU_BOUND + 4 s (1 + |x|)`` of the real one.

    Args:
        q: integers, below 2**21 in size.
        scale: real scale of q, 2**-18 to 2**-4.

    Returns:
        int64 codes of the input's shape, and their scale.

    Raises:
        IntegerError: codes or a scale out of range.
    """
    codes = _codes(q)
    if not 2.0**-18 <= _one(scale) <= 2.0**-4 or np.any(np.abs(codes) >= 1 << 21):
        message = "i-GELU takes scales from 2**-18 to 2**-4 and codes below 2**21: its product is an int64 number"
        raise IntegerError(message)
    inner = scale / math.sqrt(2)
    value, unit = i_erf(codes, inner)
    one = round(-1 / ERF_A / inner**2)
    return codes * (one + value), scale * unit / 2


def i_softmax(q: Any, scale: float, *, bits: int = 8) -> tuple[np.ndarray, float]:
    """Return the softmax over the last axis as ``(codes, scale)``: I-BERT's i-softmax (section 3.5).

    ``E = i_exp(q - max q)``, ``codes = (E * 2**bits + sum // 2) // sum``, rounded to nearest; their scale is
    ``2**-bits`` (a probability of 1 is the code ``2**bits``). ``workbench.integer.softmax`` is the operator with zero
    points, masks and types; this is the bare algorithm.

    Args:
        q: integers (..., depth), depth 1 to 2**20.
        scale: real scale of q, 2**-15 to 2**-4.
        bits: of the result, 1 to 16.

    Returns:
        int64 codes of the input's shape, and their scale.

    Raises:
        IntegerError: shapes, scales or bits out of range.
    """
    codes = _codes(q)
    if codes.ndim < 1 or not 1 <= codes.shape[-1] <= 1 << 20:
        message = f"a softmax goes over a last axis of 1 to 2**20 numbers, not {codes.shape}"
        raise IntegerError(message)
    bits = one_integer(bits, "bits of the result", 1, 16)
    if not _one(scale) >= 2.0**-15:
        message = "i-softmax takes scales of 2**-15 and above: its sum is an int64 number"
        raise IntegerError(message)
    powers, _ = i_exp(codes - codes.max(axis=-1, keepdims=True, initial=np.iinfo(np.int64).min), scale)
    total = powers.sum(axis=-1, keepdims=True)
    return ((powers << bits) + (total >> 1)) // total, 2.0**-bits


def i_sqrt(q: Any) -> np.ndarray:
    """Return floor(sqrt(q)) by Newton's iteration from above: I-BERT's i-sqrt (algorithm 4). Exact.

    Args:
        q: integers, 0 or above.

    Raises:
        IntegerError: a negative code.
    """
    return integer_sqrt(q)


def fixed_multiplier(real: float, bits: int = 24, *, longest: int = 62) -> np.ndarray:
    """Return int64 ``[multiplier, shift]`` with ``multiplier / 2**shift ~ real`` and ``multiplier < 2**bits``.

    Args:
        real: a factor, 0 or above.
        bits: width of the multiplier: relative error up to ``2**-bits``.
        longest: largest shift; smaller factors lose low bits instead, and vanish at last.

    Raises:
        IntegerError: a factor that needs a left shift.
    """
    fraction, exponent = math.frexp(real)
    shift = bits - exponent
    if shift > longest:
        fraction, shift = math.ldexp(fraction, longest - shift), longest
    if shift < 0:
        message = f"a factor of {real:g} is too large: the scales do not belong together"
        raise IntegerError(message)
    multiplier = math.floor(math.ldexp(fraction, bits) + 0.5)
    if multiplier == 1 << bits and shift > 0:
        multiplier, shift = multiplier >> 1, shift - 1
    return np.array([multiplier, shift], dtype=np.int64)


def argument_multiplier(input_scale: Any, divisor: float = 1.0) -> np.ndarray:
    """Return the multiplier from codes to a polynomial's argument ``x / divisor`` with ARGUMENT_BITS.

    Raises:
        IntegerError: an input scale of 2**24 or more.
    """
    return fixed_multiplier(check_scale(input_scale, "input") / divisor * 2.0**ARGUMENT_BITS, 40)
