"""What is learned for each weight, and the gradient that reaches it: five ways to make codes continuous.

Each variable gives soft (or straight-through) weights, and turns the gradient of a loss with respect to those weights
into gradients of its codes, scales, exponent and bias. All of it is analytic: no graph is built over the elements, so a
step is a few passes over memory.

- ``sigmoid``: AdaRound's rectified sigmoid (Nagel et al., ICML 2020; settings of BRECQ, Li et al., ICLR 2021). The lower
  neighbour is fixed, ``h(alpha) = clip(1.2 * sigmoid(alpha) - 0.1, 0, 1)`` moves between it and the upper one.
- ``free``: a latent code y for each weight; ``floor(y) + clip(1.2 * sigmoid(T * (y - floor(y) - 0.5)) - 0.1, 0, 1)`` with
  a temperature T that rises, so that a code may walk over the whole grid (after NUPES, arXiv 2308.05600; derived: the
  paper's own formulas were not at hand).
- ``latent``: a straight-through latent weight.
- ``offset``: an additive offset V on the code axis before rounding, straight-through (AutoRound, Cheng et al., 2023).
- ``divide``: the weight divided by exp(element) * exp(row) before rounding, straight-through (FlexRound, Lee et al.,
  ICML 2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from workbench.methods.gradient.axis import CodeAxis
from workbench.quantization.quantize import QuantizedTensor

if TYPE_CHECKING:
    import torch

#: Stretch of the rectified sigmoid, ``zeta - gamma`` and ``gamma`` (Louizos et al. 2018; AdaRound).
STRETCH, SHIFT = 1.2, -0.1
#: Temperatures between which the free codes' sigmoid sharpens. At the first, 2 ln 11, the soft code is continuous.
TEMPERATURES = (2.0 * math.log(11.0), 20.0)
#: A learned scale stays within these factors of its start.
SCALE_FACTORS = (0.25, 4.0)


@dataclass(frozen=True)
class Freedom:
    """What beside the codes is learned."""

    whole_range: bool = False
    scale: bool = False
    exponent: bool = False
    bias: bool = False


@dataclass(eq=False)
class Snapshot:
    """A hard solution, as tensors on the device."""

    index: torch.Tensor
    scale: torch.Tensor | None = None
    theta: torch.Tensor | None = None
    bias: torch.Tensor | None = None


class SoftWeight(ABC):
    """One layer's weight while it is learned.

    Args:
        weight: the true weight (rows, columns), float32, on the device.
        start: what learning starts from.
        freedom: what is learned beside the codes.
        temperatures: first and last temperature of ``free``.

    Attributes:
        codes: the variable itself, one number for each weight.
        log_scale: logarithm of the factor on each start scale, or None.
        theta: parameter of the exponent, or None.
        bias: addition to the layer's bias (rows,), or None.
        gradients: of each of these by name, as ``pull`` left them.
    """

    #: Whether the weights are hard already, and gradients pass straight through.
    straight_through: ClassVar[bool] = True

    def __init__(
        self,
        weight: torch.Tensor,
        start: QuantizedTensor,
        freedom: Freedom,
        temperatures: tuple[float, float] = TEMPERATURES,
    ) -> None:
        import torch

        self.weight = weight
        self.axis = axis = CodeAxis(start, str(weight.device))
        self.temperatures = temperatures
        self.freedom = freedom
        self.lower, self.fraction, self.u = axis.place(weight)
        self.inside = (self.u >= axis.levels[0]) & (self.u <= axis.levels[-1])
        self.log_scale = torch.zeros_like(axis.scale) if freedom.scale else None
        self.theta = axis.theta() if freedom.exponent else None
        self.bias = weight.new_zeros(len(weight)) if freedom.bias else None
        self.gradients: dict[str, torch.Tensor] = {}
        self.scale = axis.spread(axis.scale)
        self.offset = axis.spread(axis.offset)
        self.levels, self.level_slopes = axis.levels, torch.zeros_like(axis.levels)
        self.codes = self._first()

    @abstractmethod
    def _first(self) -> torch.Tensor:
        """Return the variable at the start."""

    @abstractmethod
    def soft(self, progress: float) -> torch.Tensor:
        """Return the weights of this moment, a finished share ``progress`` of the steps in [0, 1]."""

    @abstractmethod
    def pull(self, gradient: torch.Tensor, regularizer: float = 0.0, sharpness: float = 2.0) -> None:
        """Turn d loss / d weights of the last ``soft`` into the gradients of the parameters.

        Args:
            gradient: of the loss, the weights' shape.
            regularizer: factor of sum(1 - abs(2 h - 1)^sharpness), for variables that have an h.
            sharpness: beta of that term.
        """

    @abstractmethod
    def hard_index(self) -> torch.Tensor:
        """Return the level index that each weight rounds to now, int64."""

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return what is learned, by name: ``codes``, ``scale``, ``exponent``, ``bias`` (and ``row`` for ``divide``)."""
        named = {"codes": self.codes, "scale": self.log_scale, "exponent": self.theta, "bias": self.bias}
        return {name: value for name, value in named.items() if value is not None}

    def keep_in_bounds(self, *, codes: bool = True) -> None:
        """Clamp the parameters after a step; ``codes`` says whether the codes are among them."""
        if self.log_scale is not None:
            self.log_scale.clamp_(math.log(SCALE_FACTORS[0]), math.log(SCALE_FACTORS[1]))

    def snapshot(self) -> Snapshot:
        """Return the hard solution of this moment."""
        return Snapshot(
            index=self.hard_index(),
            scale=None if self.log_scale is None else self.axis.scale * self.log_scale.exp(),
            theta=None if self.theta is None else self.theta.clone(),
            bias=None if self.bias is None else self.bias.clone(),
        )

    def decode(self, found: Snapshot) -> torch.Tensor:
        """Return the weights of a hard solution."""
        levels = None if found.theta is None else self.axis.levels_at(found.theta)[0]
        return self.axis.decode(found.index, levels, found.scale)

    def quantized(self, found: Snapshot) -> QuantizedTensor:
        """Return a hard solution as codes and scales."""
        exponent = None if found.theta is None else self.axis.exponent_at(found.theta)
        return self.axis.quantized(found.index, found.scale, exponent)

    def _refresh(self) -> None:
        """Bring scales and levels up to date with their parameters."""
        if self.log_scale is not None:
            self.scale = self.axis.spread(self.axis.scale * self.log_scale.exp())
        if self.theta is not None:
            self.levels, self.level_slopes = self.axis.levels_at(self.theta)

    def _pull_scale(self, products: torch.Tensor) -> None:
        """Keep the gradient of the logarithm of the scales: sums of gradient * d weight / d log scale."""
        if self.log_scale is not None:
            self.gradients["scale"] = self.axis.gather(products)


class _Interpolated(SoftWeight):
    """Weights between two neighbouring levels: ``s * (L_k + h * gap_k - o)``."""

    straight_through: ClassVar[bool] = False

    def _mix(self, lower: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        self._lower = lower
        self._h = raw.clamp(0.0, 1.0)
        # The rim counts as inside, as in autograd's clamp; the tolerance makes that independent of the last bit.
        self._open = (raw > -1e-6) & (raw < 1.0 + 1e-6)
        left = self.levels[lower]
        self._gap = self.levels[lower + 1] - left
        self._weights = self.scale * (left + self._h * self._gap - self.offset)
        return self._weights

    def _pull(self, gradient: torch.Tensor, slope: torch.Tensor, regularizer: float, sharpness: float) -> None:
        """Pull a gradient through h, given d h / d codes where the clamp is open."""
        at_h = gradient * self.scale * self._gap
        if regularizer:
            centred = 2.0 * self._h - 1.0
            at_h -= (2.0 * regularizer * sharpness) * centred.sign() * centred.abs().pow(sharpness - 1.0)
        self.gradients["codes"] = at_h * slope * self._open
        self._pull_scale(gradient * self._weights)
        if self.theta is not None:
            left = self.level_slopes[self._lower]
            levels = left + self._h * (self.level_slopes[self._lower + 1] - left)
            self.gradients["exponent"] = (gradient * self.scale * levels).sum()


class Sigmoid(_Interpolated):
    """AdaRound's rectified sigmoid: up or down from a floor that is fixed at the start."""

    def _first(self) -> torch.Tensor:
        import torch

        # -ln(1.2 / (h + 0.1) - 1): the soft weight starts at the true one.
        return -torch.log(STRETCH / (self.fraction - SHIFT) - 1.0)

    def soft(self, progress: float) -> torch.Tensor:
        """See ``SoftWeight``."""
        import torch

        self._refresh()
        self._probability = torch.sigmoid(self.codes)
        return self._mix(self.lower, STRETCH * self._probability + SHIFT)

    def pull(self, gradient: torch.Tensor, regularizer: float = 0.0, sharpness: float = 2.0) -> None:
        """See ``SoftWeight``."""
        slope = STRETCH * self._probability * (1.0 - self._probability)
        # Beyond the clip both neighbours saturate at the same level: nothing is to be chosen there.
        self._pull(gradient, slope * self.inside, regularizer, sharpness)

    def hard_index(self) -> torch.Tensor:
        """See ``SoftWeight``."""
        return self.lower + (self.codes >= 0.0)


class Free(_Interpolated):
    """A latent code that may walk over the whole grid; the soft code sharpens as the temperature rises."""

    def temperature(self, progress: float) -> float:
        """Return the temperature after a finished share of the steps."""
        first, last = self.temperatures
        return first * (last / first) ** progress

    def _first(self) -> torch.Tensor:
        import torch

        share = (self.fraction - SHIFT) / STRETCH
        within = 0.5 + torch.log(share / (1.0 - share)) / self.temperature(0.0)
        return self.lower + within.clamp(0.0, 1.0)

    def soft(self, progress: float) -> torch.Tensor:
        """See ``SoftWeight``."""
        import torch

        self._refresh()
        self._sharp = self.temperature(progress)
        lower = self.codes.floor().clamp_(0, self.axis.count - 2)
        self._probability = torch.sigmoid(self._sharp * (self.codes - lower - 0.5))
        return self._mix(lower.long(), STRETCH * self._probability + SHIFT)

    def pull(self, gradient: torch.Tensor, regularizer: float = 0.0, sharpness: float = 2.0) -> None:
        """See ``SoftWeight``."""
        slope = (STRETCH * self._sharp) * self._probability * (1.0 - self._probability)
        self._pull(gradient, slope, regularizer, sharpness)

    def keep_in_bounds(self, *, codes: bool = True) -> None:
        """See ``SoftWeight``."""
        super().keep_in_bounds(codes=codes)
        if not codes:
            return
        if self.freedom.whole_range:
            self.codes.clamp_(0.0, self.axis.count - 1.0)
        else:
            self.codes.clamp_(self.lower, self.lower + 1.0)

    def hard_index(self) -> torch.Tensor:
        """See ``SoftWeight``."""
        lower = self.codes.floor().clamp_(0, self.axis.count - 2)
        return (lower + (self.codes - lower >= 0.5)).long()


class _StraightThrough(SoftWeight):
    """Hard weights whose gradient passes the rounding as if it were not there, inside the grid's range."""

    def _round(self, u: torch.Tensor, shift: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Round ``u``, moved by ``shift`` on the code axis, to an index."""
        lower, fraction = self.axis.between(u, None if self.theta is None else self.levels)
        code = lower + fraction + shift
        code = code.clamp(0.0, self.axis.count - 1.0)
        if not self.freedom.whole_range:
            code = code.maximum(self.lower.to(code.dtype)).minimum((self.lower + 1).to(code.dtype))
        self._cell = code.floor().clamp_(0, self.axis.count - 2).long()
        return (code + 0.5).floor().long()

    def _normalised(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.scale.where(self.scale != 0.0, 1.0) + self.offset

    def _decode(self, index: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        self._index = index
        self._open = (u >= self.levels[0]) & (u <= self.levels[-1])
        self._weights = self.scale * (self.levels[index] - self.offset)
        return self._weights

    def _pull_rest(self, gradient: torch.Tensor, before: torch.Tensor) -> None:
        """Pull scales and exponent: LSQ's gradient (codes minus what was rounded), and the decoder's."""
        self._pull_scale(gradient * (self._weights - self._open * before))
        if self.theta is not None:
            self.gradients["exponent"] = (gradient * self.scale * self.level_slopes[self._index]).sum()


class Offset(_StraightThrough):
    """``round(code axis + V)``: V within half a code where only up and down are free."""

    def _first(self) -> torch.Tensor:
        return self.weight.new_zeros(self.weight.shape)

    def soft(self, progress: float) -> torch.Tensor:
        """See ``SoftWeight``."""
        self._refresh()
        u = self._normalised(self.weight)
        return self._decode(self._round(u, self.codes), u)

    def pull(self, gradient: torch.Tensor, regularizer: float = 0.0, sharpness: float = 2.0) -> None:
        """See ``SoftWeight``."""
        gap = self.levels[self._cell + 1] - self.levels[self._cell]
        self.gradients["codes"] = gradient * self.scale * gap
        self._pull_rest(gradient, self.weight)

    def keep_in_bounds(self, *, codes: bool = True) -> None:
        """See ``SoftWeight``."""
        super().keep_in_bounds(codes=codes)
        half = self.axis.count - 1.0 if self.freedom.whole_range else 0.5
        self.codes.clamp_(-half, half)

    def hard_index(self) -> torch.Tensor:
        """See ``SoftWeight``."""
        self._refresh()
        return self._round(self._normalised(self.weight), self.codes)


class Latent(_StraightThrough):
    """A latent weight, in mean gaps of the grid beyond the true one."""

    def _first(self) -> torch.Tensor:
        self._unit = float(self.axis.levels[-1] - self.axis.levels[0]) / (self.axis.count - 1)
        return self.weight.new_zeros(self.weight.shape)

    def _u(self) -> torch.Tensor:
        return self._normalised(self.weight) + self._unit * self.codes

    def soft(self, progress: float) -> torch.Tensor:
        """See ``SoftWeight``."""
        self._refresh()
        u = self._u()
        return self._decode(self._round(u), u)

    def pull(self, gradient: torch.Tensor, regularizer: float = 0.0, sharpness: float = 2.0) -> None:
        """See ``SoftWeight``."""
        self.gradients["codes"] = gradient * self.scale * self._unit * self._open
        self._pull_rest(gradient, self.weight)

    def hard_index(self) -> torch.Tensor:
        """See ``SoftWeight``."""
        self._refresh()
        return self._round(self._u())


class Divide(_StraightThrough):
    """FlexRound: ``round(W / (s * exp(S2) * exp(s3)))``; S2 for each weight, s3 for each row, both learned as logarithms."""

    def _first(self) -> torch.Tensor:
        self.row = self.weight.new_zeros((len(self.weight), 1))
        return self.weight.new_zeros(self.weight.shape)

    def parameters(self) -> dict[str, torch.Tensor]:
        """See ``SoftWeight``."""
        return {**super().parameters(), "row": self.row}

    def keep_in_bounds(self, *, codes: bool = True) -> None:
        """See ``SoftWeight``: divisors stay within the factors that scales keep."""
        super().keep_in_bounds(codes=codes)
        low, high = math.log(SCALE_FACTORS[0]), math.log(SCALE_FACTORS[1])
        self.codes.clamp_(low, high)
        self.row.clamp_(low, high)

    def _divided(self) -> torch.Tensor:
        import torch

        return self.weight * torch.exp(-(self.codes + self.row))

    def soft(self, progress: float) -> torch.Tensor:
        """See ``SoftWeight``."""
        self._refresh()
        self._before = self._divided()
        u = self._normalised(self._before)
        return self._decode(self._round(u), u)

    def pull(self, gradient: torch.Tensor, regularizer: float = 0.0, sharpness: float = 2.0) -> None:
        """See ``SoftWeight``."""
        pulled = -gradient * self._before * self._open
        self.gradients["codes"] = pulled
        self.gradients["row"] = pulled.sum(dim=1, keepdim=True)
        self._pull_rest(gradient, self._before)

    def hard_index(self) -> torch.Tensor:
        """See ``SoftWeight``."""
        self._refresh()
        return self._round(self._normalised(self._divided()))


VARIABLES: dict[str, type[SoftWeight]] = {
    "sigmoid": Sigmoid,
    "free": Free,
    "latent": Latent,
    "offset": Offset,
    "divide": Divide,
}
