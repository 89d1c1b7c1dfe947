"""Small floating-point formats: OCP's FP4, FP6, FP8, alone or under the block scales of MX and NVFP4."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import GridError
from workbench.grids.checks import choice, whole
from workbench.grids.grid import Grid, ScaleFormat, read_only
from workbench.grids.thresholds import mirrored_levels, mirrored_thresholds, quotient_thresholds

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Special = Literal["none", "nan", "ieee"]
SPECIALS: tuple[Special, ...] = ("none", "nan", "ieee")
SCALE_FORMATS: tuple[ScaleFormat, ...] = ("e8m0", "e4m3")

FLOAT_PRESETS: dict[str, dict[str, Any]] = {
    "e2m1": {"exponent_bits": 2, "mantissa_bits": 1},
    "e2m3": {"exponent_bits": 2, "mantissa_bits": 3},
    "e3m2": {"exponent_bits": 3, "mantissa_bits": 2},
    "e4m3": {"exponent_bits": 4, "mantissa_bits": 3},
    "e5m2": {"exponent_bits": 5, "mantissa_bits": 2},
    "mxfp4": {"exponent_bits": 2, "mantissa_bits": 1, "scale_format": "e8m0", "block": 32},
    "mxfp6-e2m3": {"exponent_bits": 2, "mantissa_bits": 3, "scale_format": "e8m0", "block": 32},
    "mxfp6-e3m2": {"exponent_bits": 3, "mantissa_bits": 2, "scale_format": "e8m0", "block": 32},
    "mxfp8-e4m3": {"exponent_bits": 4, "mantissa_bits": 3, "scale_format": "e8m0", "block": 32},
    "mxfp8-e5m2": {"exponent_bits": 5, "mantissa_bits": 2, "scale_format": "e8m0", "block": 32},
    "nvfp4": {"exponent_bits": 2, "mantissa_bits": 1, "scale_format": "e4m3", "block": 16},
}
"""Formats by name: OCP 8-bit Floating Point (OFP8) 1.0, OCP Microscaling (MX) Formats 1.0, and NVIDIA's NVFP4."""


@dataclass(frozen=True)
class FloatGrid(Grid):
    """The finite numbers of a binary floating-point format, divided by the largest (``peak``).

    Value = (-1)^sign * 2^(E - bias) * (1 + M / 2^m), with subnormals at E = 0 and bias 2^(e-1) - 1. Rounding is to
    nearest, ties to the even mantissa, and saturates: no code stands for infinity or NaN, and the two zeros share code
    0. ``encode(x / peak)`` equals the saturating cast of ``x`` for every float32 ``x``; codes are the format's bit
    patterns.

    ``scale_format`` and ``block`` say how the format stores its scales; ``quantize`` applies them:

    - ``e8m0``, block 32 (MX): the stored scale is the power of two 2^(floor(log2(absmax)) - floor(log2(peak))), OCP MX
      1.0, section 6.3. It is rounded *down*, so values between ``peak`` and the next power of two saturate.
    - ``e4m3``, block 16 (NVFP4): the stored scale is absmax / peak rounded to e4m3, under one float32 scale of the
      tensor, absmax(tensor) / (448 * 6), that brings the block scales into e4m3's range.

    >>> grid = FloatGrid(exponent_bits=2, mantissa_bits=1)
    >>> grid.levels[grid.levels >= 0] * grid.peak
    array([0. , 0.5, 1. , 1.5, 2. , 3. , 4. , 6. ])

    Args:
        exponent_bits: 1 to 8.
        mantissa_bits: 0 to 10; at most 16 bits in all, the sign included.
        special: which codes are no finite numbers: ``none`` (OCP FP4, FP6), ``nan`` (only the largest: e4m3), ``ieee``
            (the largest exponent: e5m2). Default: as OCP has it for e4m3, ``ieee`` from 5 exponent bits, else ``none``.
        scale_format: ``e8m0``, ``e4m3``, or None.
        block: weights that share one scale, or None.

    Raises:
        GridError: a parameter is out of range, or no finite number is left.
    """

    family: ClassVar[str] = "float"
    always_written: ClassVar[tuple[str, ...]] = ("exponent_bits", "mantissa_bits")

    exponent_bits: int = 2
    mantissa_bits: int = 1
    special: Special | None = None
    scale_format: ScaleFormat | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        exponent_bits = whole(self.exponent_bits, "exponent_bits", "float", 1, 8)
        mantissa_bits = whole(self.mantissa_bits, "mantissa_bits", "float", 0, 10)
        if exponent_bits + mantissa_bits > 15:
            message = f"a float grid has at most 16 bits with its sign, not {1 + exponent_bits + mantissa_bits}"
            raise GridError(message)
        object.__setattr__(self, "exponent_bits", exponent_bits)
        object.__setattr__(self, "mantissa_bits", mantissa_bits)
        if self.special is None:
            object.__setattr__(self, "special", _usual_special(exponent_bits, mantissa_bits))
        choice(self.special, "special", "float", SPECIALS)
        if self.scale_format is not None:
            choice(self.scale_format, "scale_format", "float", SCALE_FORMATS)
        if self.block is not None:
            object.__setattr__(self, "block", whole(self.block, "block", "float", 1, 2**20))
        if len(self._finite) < 2:
            message = f"{self._format} with special={self.special} has no finite number besides zero; use special=none"
            raise GridError(message)

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def peak(self) -> float:
        """The format's largest finite number."""
        return float(self._finite[-1])

    @property
    def _format(self) -> str:
        return f"e{self.exponent_bits}m{self.mantissa_bits}"

    @property
    def label(self) -> str:
        """A short name for people."""
        preset = self._preset
        if preset is not None:
            return preset.upper().replace("-", " ")
        parts = [f"float {self._format.upper()}"]
        if self.special != _usual_special(self.exponent_bits, self.mantissa_bits):
            parts.append(f"special {self.special}")
        if self.scale_format or self.block:
            parts.append(f"{self.scale_format or 'float32'} scales" + (f" of {self.block}" if self.block else ""))
        return ", ".join(parts)

    @property
    def _preset(self) -> str | None:
        return next((name for name, given in FLOAT_PRESETS.items() if self == FloatGrid(**given)), None)

    def __str__(self) -> str:
        """Return the preset's name, or the parameters."""
        return self._preset or super().__str__()

    def _parameters(self) -> list[tuple[str, Any]]:
        usual = _usual_special(self.exponent_bits, self.mantissa_bits)
        return [(name, value) for name, value in super()._parameters() if (name, value) != ("special", usual)]

    @cached_property
    def _finite(self) -> Float[np.ndarray, " magnitudes"]:
        """The finite magnitudes in the order of their bit patterns, which is ascending; float64, exact."""
        e, m = self.exponent_bits, self.mantissa_bits
        patterns = np.arange(2 ** (e + m))
        if self.special == "ieee":
            patterns = patterns[: (2**e - 1) * 2**m]
        elif self.special == "nan":
            patterns = patterns[:-1]
        exponent, mantissa = patterns >> m, patterns & (2**m - 1)
        normal = exponent > 0
        significand = mantissa + np.where(normal, 2**m, 0)
        bias = 2 ** (e - 1) - 1
        return read_only(np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - m))

    @cached_property
    def levels(self) -> Float[np.ndarray, " levels"]:
        """The finite numbers over the largest, float64."""
        return read_only(mirrored_levels(self._finite[1:] / self.peak))

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " levels-1"]:
        """Midpoints of the finite numbers over the largest, ties to the even mantissa, float64."""
        borders = (self._finite[:-1] + self._finite[1:]) / 2  # exact: one bit more than the mantissa
        tie_up = np.arange(len(borders)) % 2 == 1
        return read_only(mirrored_thresholds(quotient_thresholds(borders, self.peak, tie_up)))

    @cached_property
    def codes(self) -> Int[np.ndarray, " levels"]:
        """The format's bit patterns, int32: the sign is the highest bit."""
        positive = np.arange(1, len(self._finite))
        return read_only(np.concatenate([self._sign | positive[::-1], [0], positive]).astype(np.int32))

    def decode(self, codes: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return the level of each bit pattern, float64; minus zero, which other encoders write, is zero.

        Raises:
            GridError: a number in ``codes`` is no finite number of the format.
        """
        given = np.asarray(codes)
        return super().decode(np.where(given == self._sign, given.dtype.type(0), given))

    @property
    def _sign(self) -> int:
        """The sign bit: the pattern of minus zero."""
        return 1 << (self.bits - 1)


def _usual_special(exponent_bits: int, mantissa_bits: int) -> Special:
    """Return OCP's choice: e4m3 gives up one code for NaN, e5m2 and wider follow IEEE 754, FP4 and FP6 nothing."""
    if (exponent_bits, mantissa_bits) == (4, 3):
        return "nan"
    return "ieee" if exponent_bits >= 5 else "none"
