"""Codes on the CPU moved by one compiled pass instead of twenty or thirty of torch; the same numbers but for rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from workbench.methods.gradient.variables import Free, Offset, Sigmoid, SoftWeight
from workbench.quantization.granularity import PerTensor

if TYPE_CHECKING:
    import torch


class Fused(Protocol):
    """Stands between a layer's soft weight and the loop: ``soft`` and ``step`` share memory with the layer's tensors."""

    def soft(self, progress: float) -> torch.Tensor:
        """Return the weights of this moment; they are overwritten by the next call."""
        ...

    def step(self, gradient: torch.Tensor, unit: float, *, regularizer: float, sharpness: float, rate: float) -> None:
        """Move the codes, and leave the gradients of scales and exponent with the layer.

        Args:
            gradient: d loss / d weights of the last ``soft``.
            unit: factor of it.
            regularizer: factor of the regularizer, for variables that have one.
            sharpness: its beta.
            rate: learning rate of the codes.
        """
        ...


def fused_step(layer: SoftWeight, optimizer: str) -> Fused | None:
    """Return the compiled step of a layer; None where there is none that does what layer and optimizer ask for."""
    for kind in (FusedCodes, FusedOffsets):
        if kind.fits(layer, optimizer):
            return kind(layer, optimizer)
    return None


class FusedCodes:
    """The compiled step of ``Sigmoid`` and ``Free``.

    Args:
        layer: on the CPU in float32; its ``codes`` are moved in place, so that its hard solutions stay right.
        optimizer: ``adam`` or ``signsgd``.
    """

    def __init__(self, layer: SoftWeight, optimizer: str = "adam") -> None:
        from workbench.kernels.rounding_step import SoftCodes

        self.layer = layer
        axis = layer.axis
        self.kernel = SoftCodes(
            codes=layer.codes.numpy(),
            lower=layer.lower.numpy().astype(np.int32),
            inside=layer.inside.numpy().astype(np.float32),
            free=isinstance(layer, Free),
            whole=layer.freedom.whole_range,
            offset=axis.offset.numpy(),
            size=axis.granularity.group_size(axis.columns),
            signed=optimizer == "signsgd",
        )
        self._sharp = 1.0
        self._scale = axis.scale

    @staticmethod
    def fits(layer: SoftWeight, optimizer: str) -> bool:
        """Say whether this does what a layer and an optimizer ask for."""
        return isinstance(layer, Sigmoid | Free) and optimizer in {"adam", "signsgd"} and _plain_memory(layer)

    def soft(self, progress: float) -> torch.Tensor:
        """See ``Fused``."""
        import torch

        layer = self.layer
        axis = layer.axis
        if layer.theta is not None:
            layer.levels, layer.level_slopes = axis.levels_at(layer.theta)
        self._scale = axis.scale if layer.log_scale is None else axis.scale * layer.log_scale.exp()
        if isinstance(layer, Free):
            self._sharp = layer.temperature(progress)
        return torch.from_numpy(self.kernel.soft(self._sharp, layer.levels.numpy(), self._scale.numpy()))

    def step(self, gradient: torch.Tensor, unit: float, *, regularizer: float, sharpness: float, rate: float) -> None:
        """See ``Fused``."""
        import torch

        layer = self.layer
        at_scale, at_exponent = self.kernel.step(
            gradient.contiguous().numpy(),
            unit,
            sharp=self._sharp,
            levels=layer.levels.numpy(),
            slopes=layer.level_slopes.numpy(),
            scale=self._scale.numpy(),
            regularizer=regularizer,
            sharpness=sharpness,
            rate=rate,
        )
        _keep_scale(layer, at_scale)
        if layer.theta is not None:
            layer.gradients["exponent"] = torch.tensor(at_exponent, dtype=torch.float32)


class FusedOffsets:
    """The compiled step of ``Offset`` on equal steps, by signed gradients: AutoRound's.

    Args:
        layer: as of ``FusedCodes``.
        optimizer: ``signsgd``.
    """

    def __init__(self, layer: SoftWeight, optimizer: str = "signsgd") -> None:
        from workbench.kernels.offset_step import Offsets

        self.layer = layer
        axis = layer.axis
        self.kernel = Offsets(
            codes=layer.codes.numpy(),
            weight=layer.weight.numpy(),
            lower=layer.lower.numpy().astype(np.int32),
            whole=layer.freedom.whole_range,
            levels=axis.levels.numpy(),
            offset=axis.offset.numpy(),
            size=axis.granularity.group_size(axis.columns),
        )
        self._scale = axis.scale

    @staticmethod
    def fits(layer: SoftWeight, optimizer: str) -> bool:
        """Say whether this does what a layer and an optimizer ask for."""
        equal = layer.axis.gap is not None and layer.theta is None
        return isinstance(layer, Offset) and optimizer == "signsgd" and equal and _plain_memory(layer)

    def soft(self, progress: float) -> torch.Tensor:
        """See ``Fused``."""
        import torch

        layer = self.layer
        self._scale = layer.axis.scale if layer.log_scale is None else layer.axis.scale * layer.log_scale.exp()
        return torch.from_numpy(self.kernel.soft(self._scale.numpy()))

    def step(self, gradient: torch.Tensor, unit: float, *, regularizer: float, sharpness: float, rate: float) -> None:
        """See ``Fused``; offsets have no regularizer."""
        at_scale = self.kernel.step(gradient.contiguous().numpy(), unit, self._scale.numpy(), rate)
        _keep_scale(self.layer, at_scale)


def _plain_memory(layer: SoftWeight) -> bool:
    import torch

    return layer.weight.device.type == "cpu" and layer.codes.dtype == torch.float32


def _keep_scale(layer: SoftWeight, at_scale: np.ndarray) -> None:
    """Leave the gradient of the scales' logarithms, summed over what shares a scale, with the layer."""
    import torch

    if layer.log_scale is not None:
        found = torch.from_numpy(at_scale)
        shared = isinstance(layer.axis.granularity, PerTensor)
        layer.gradients["scale"] = found.sum().reshape(1, 1) if shared else found
