"""Named semantics: how a runtime brings an integer accumulator back to 8 or 16 bits, and where its rules come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from workbench.errors import SemanticsError
from workbench.integer.arguments import shown

Rounding = Literal["double", "single", "float64", "float32"]


@dataclass(frozen=True)
class Semantics:
    """One runtime's way to round.

    Attributes:
        name: the text form, e.g. ``"litert-reference"``.
        rounding: ``double`` rounds twice (a doubling high multiply, then a division by a power of two), ``single``
            once (one 64-bit multiply and shift), ``float64`` multiplies by a float64 number and rounds half away from
            zero, ``float32`` multiplies by a float32 number and rounds half to even.
        shift_is_right: whether a shift counts right from the whole product (TOSA, 2 to 62) or is the exponent of a
            31-bit fraction (TensorFlow Lite, -31 to 30; positive shifts left).
        also: other runtimes that round the same way.
        source: where the rule is written down.
    """

    name: str
    rounding: Rounding
    shift_is_right: bool
    also: str
    source: str

    def __str__(self) -> str:
        """Return the text form."""
        return self.name


TFLM = Semantics(
    "tflm",
    "double",
    shift_is_right=False,
    also="CMSIS-NN",
    source="gemmlowp fixedpoint.h: SaturatingRoundingDoublingHighMul, RoundingDivideByPOT",
)
LITERT_REFERENCE = Semantics(
    "litert-reference",
    "float64",
    shift_is_right=False,
    also="",
    source="LiteRT kernels/internal/reference/integer_ops/fully_connected.h",
)
TFLITE_SINGLE = Semantics(
    "tflite-single",
    "single",
    shift_is_right=False,
    also="TensorFlow Lite or LiteRT built with TFLITE_SINGLE_ROUNDING",
    source="tflite kernels/internal/common.cc: MultiplyByQuantizedMultiplier, single rounding",
)
ONNXRUNTIME = Semantics(
    "onnxruntime",
    "float32",
    shift_is_right=False,
    also="XNNPACK, FBGEMM, QNNPACK",
    source="ONNX QLinearMatMul; onnxruntime MLAS MlasRequantizeOutput",
)
TOSA_SINGLE = Semantics("tosa-single", "single", shift_is_right=True, also="", source="TOSA 1.0 RESCALE, SINGLE_ROUND")
TOSA_DOUBLE = Semantics("tosa-double", "double", shift_is_right=True, also="", source="TOSA 1.0 RESCALE, DOUBLE_ROUND")

#: Every semantics by its text form, in the order that tables show them.
SEMANTICS: dict[str, Semantics] = {
    each.name: each for each in (TFLM, LITERT_REFERENCE, TFLITE_SINGLE, ONNXRUNTIME, TOSA_SINGLE, TOSA_DOUBLE)
}
#: LiteRT's reference kernels other than fully-connected are built without TFLITE_SINGLE_ROUNDING: they round twice.
_LITERT_ELSEWHERE = replace(
    LITERT_REFERENCE,
    rounding="double",
    also="TensorFlow Lite as it is built by default",
    source="measured on ai-edge-litert 2.3.0, BUILTIN_REF: convolutions, add, sub, mul, mean, quantize",
)
_ALIASES = {"tosa": "tosa-single", "litert": "litert-reference", "cmsis-nn": "tflm", "xnnpack": "onnxruntime"}


def as_semantics(value: Semantics | str) -> Semantics:
    """Return a semantics itself, or the one that a text names.

    Raises:
        SemanticsError: no semantics has this name.

    >>> as_semantics("tosa").name
    'tosa-single'
    """
    if isinstance(value, Semantics):
        return value
    name = _ALIASES.get(str(value), str(value))
    if name not in SEMANTICS:
        message = f"no semantics is called {shown(value)}; there are {', '.join(SEMANTICS)}"
        raise SemanticsError(message)
    return SEMANTICS[name]


def outside_linear(value: Semantics | str) -> Semantics:
    """Return how a runtime rounds in every operator but fully-connected layers.

    Only LiteRT differs: its reference fully-connected multiplies in float64 and rounds half away from zero, all its
    other reference kernels round twice, as TensorFlow Lite Micro does.

    Raises:
        SemanticsError: no semantics has this name.

    >>> outside_linear("litert-reference").rounding
    'double'
    """
    named = as_semantics(value)
    return _LITERT_ELSEWHERE if named == LITERT_REFERENCE else named
