"""Soft codes on the CPU moved by one compiled pass instead of some thirty of torch; the same numbers but for rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.methods.gradient.variables import Free, Sigmoid, SoftWeight
from workbench.quantization.granularity import PerTensor

if TYPE_CHECKING:
    import torch


class FusedStep:
    """Stands between a layer's soft weight and the loop: ``soft`` and ``step`` share memory with the layer's tensors.

    Args:
        layer: ``Sigmoid`` or ``Free``, on the CPU in float32; its ``codes`` are moved in place, so that its hard
            solutions stay right.
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
        """Say whether the compiled step does what this layer and optimizer ask for."""
        import torch

        return (
            isinstance(layer, Sigmoid | Free)
            and optimizer in {"adam", "signsgd"}
            and layer.weight.device.type == "cpu"
            and layer.codes.dtype == torch.float32
        )

    def soft(self, progress: float) -> torch.Tensor:
        """Return the weights of this moment; they are overwritten by the next call."""
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
        """Move the codes, and leave the gradients of scales and exponent with the layer.

        Args:
            gradient: d loss / d weights of the last ``soft``.
            unit: factor of it.
            regularizer: factor of the regularizer.
            sharpness: its beta.
            rate: learning rate of the codes.
        """
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
        if layer.log_scale is not None:
            found = torch.from_numpy(at_scale)
            shared = isinstance(layer.axis.granularity, PerTensor)
            layer.gradients["scale"] = found.sum().reshape(1, 1) if shared else found
        if layer.theta is not None:
            layer.gradients["exponent"] = torch.tensor(at_exponent, dtype=torch.float32)
