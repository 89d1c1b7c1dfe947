"""The code axis of a layer on a torch device: sorted levels, where weights lie between them, and what scales share.

Every scalar grid looks alike from here: levels L_0 < ... < L_(N-1) on the axis where the scale is 1, indices 0 ... N - 1
on the code axis, and a weight read back as ``s * (L_k - o)``. Between two neighbouring indices a soft weight interpolates
linearly: ``s * (L_k + h * (L_(k+1) - L_k) - o)`` with h in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.grids import PowerGrid
from workbench.quantization.granularity import PerGroup, PerTensor
from workbench.quantization.quantize import QuantizedTensor

if TYPE_CHECKING:
    import torch

#: Bounds that a learned exponent keeps (derived; the paper's own are not known).
EXPONENTS = (0.2, 1.5)


class CodeAxis:
    """Levels, scales and offsets of one layer's start, as float32 tensors.

    Args:
        start: the quantized weight that learning starts from.
        device: torch device.
    """

    def __init__(self, start: QuantizedTensor, device: str) -> None:
        import torch

        self.start = start
        self.device = device
        self.count = len(start.grid.levels)
        self.rows, self.columns = start.codes.shape
        self.granularity = start.granularity
        self.levels = self._tensor(start.grid.levels)
        #: Equal gaps need no search.
        self.gap = _equal_gap(start.grid.levels)
        self.scale = self._tensor(start.scale)
        self.offset = self._tensor(start.offset)
        index = start._index(start.codes)
        self.index = torch.from_numpy(np.ascontiguousarray(index.astype(np.int64))).to(device)
        grid = start.grid
        if isinstance(grid, PowerGrid):
            shares = np.abs(grid.codes) / grid.n
            logs = np.log(shares, out=np.zeros(len(shares)), where=shares > 0.0)
            self._signs = self._tensor(np.sign(grid.codes).astype(np.float64))
            self._logs = self._tensor(logs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)

    def theta(self) -> torch.Tensor:
        """Return the parameter of the start's exponent: ``a = low + (high - low) * sigmoid(theta)``."""
        import torch

        grid = self.start.grid
        assert isinstance(grid, PowerGrid)
        low, high = EXPONENTS
        share = min(max((grid.exponent - low) / (high - low), 1e-3), 1.0 - 1e-3)
        return torch.tensor(math.log(share / (1.0 - share)), dtype=torch.float32, device=self.device)

    def levels_at(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the levels of an exponent, and their derivative with respect to ``theta``.

        The decoder's gradient, codes held fixed: d level / d a = -sign * v^(1/a) * ln v / a^2 with v = abs(q) / n, which
        is bounded by 1 / (e * a) and 0 at v = 0 (derived).
        """
        import torch

        low, high = EXPONENTS
        share = torch.sigmoid(theta)
        exponent = low + (high - low) * share
        levels = self._signs * torch.exp(self._logs / exponent)
        slope = -levels * self._logs / exponent**2
        return levels, slope * (high - low) * share * (1.0 - share)

    def exponent_at(self, theta: torch.Tensor) -> float:
        """Return the exponent that ``theta`` stands for."""
        low, high = EXPONENTS
        return low + (high - low) / (1.0 + math.exp(-float(theta)))

    def spread(self, each: torch.Tensor) -> torch.Tensor:
        """Return one value for each scale, in a shape that broadcasts against the weight (rows, columns)."""
        if not isinstance(self.granularity, PerGroup):
            return each
        return each.repeat_interleave(self.granularity.size, dim=1)[:, : self.columns]

    def gather(self, each: torch.Tensor) -> torch.Tensor:
        """Return the sums over what shares a scale: (rows, columns) to the scale's shape."""
        import torch

        if isinstance(self.granularity, PerTensor):
            return each.sum().reshape(1, 1)
        if not isinstance(self.granularity, PerGroup):
            return each.sum(dim=1, keepdim=True)
        size = self.granularity.size
        short = -self.columns % size
        padded = torch.nn.functional.pad(each, (0, short)) if short else each
        return padded.reshape(self.rows, -1, size).sum(dim=2)

    def place(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return where a weight lies at the start's scale: lower index (int64), fraction of the gap in [0, 1], u itself."""
        scale, offset = self.spread(self.scale), self.spread(self.offset)
        u = weight / scale.where(scale != 0.0, 1.0) + offset
        return *self.between(u), u

    def between(self, u: torch.Tensor, levels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lower of the two levels around each ``u`` (its index), and the fraction of the gap, in [0, 1].

        Args:
            u: normalised weights.
            levels: ascending; None for the start's.
        """
        import torch

        if levels is None and self.gap is not None:
            place = (u - self.levels[0]) / self.gap
            below = place.floor().clamp_(0, self.count - 2)
            return below.long(), (place - below).clamp_(0.0, 1.0)
        levels = self.levels if levels is None else levels
        lower = (torch.searchsorted(levels, u.contiguous(), right=True) - 1).clamp_(0, self.count - 2)
        left = levels[lower]
        return lower, ((u - left) / (levels[lower + 1] - left)).clamp_(0.0, 1.0)

    def decode(
        self, index: torch.Tensor, levels: torch.Tensor | None = None, scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the weights that indices stand for."""
        levels = self.levels if levels is None else levels
        scale = self.scale if scale is None else scale
        return self.spread(scale) * (levels[index] - self.spread(self.offset))

    def quantized(self, index: Any, scale: Any = None, exponent: float | None = None) -> QuantizedTensor:
        """Return the quantized weight of indices, with other scales and another exponent where they were learned.

        Args:
            index: level indices (rows, columns), tensor or array.
            scale: the new scales, the start's shape; None keeps them.
            exponent: of the new power grid; None keeps the start's grid.
        """
        start = self.start
        codes = start.grid.codes[_array(index)].astype(start.codes.dtype)
        found = replace(start, codes=codes)
        if scale is not None:
            new = _array(scale).astype(np.float32)
            ratio = np.divide(new, start.scale, out=np.ones_like(new), where=start.scale != 0.0)
            found = replace(found, scale=new, clip=start.clip * ratio.astype(np.float64))
        if exponent is not None:
            found = replace(found, grid=replace(start.grid, exponent=exponent))  # type: ignore[type-var]
        return found


def _equal_gap(levels: np.ndarray) -> float | None:
    """Return the gap between neighbouring levels where all are alike, else None."""
    gaps = np.diff(levels)
    return float(gaps.mean()) if np.ptp(gaps) <= 1e-12 else None


def _array(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
