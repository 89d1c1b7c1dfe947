"""Losses that learning minimises: of one layer through its Gram matrix or its rows, and of a block's output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.methods.gradient.moments import mixed_moments
from workbench.methods.task import LayerTask

if TYPE_CHECKING:
    import torch

#: Rows that are multiplied at once where a loss is taken over all of them.
CHUNK = 4096


class Objective(ABC):
    """A loss of weights and biases; gradients are handed out with respect to the weights themselves."""

    @abstractmethod
    def step(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """Return the loss of one step (its mini-batch), and its gradients with respect to weights and bias additions."""

    @abstractmethod
    def value(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> float:
        """Return the loss over everything that calibration kept."""

    def least(self, weights: Sequence[torch.Tensor]) -> float:
        """Return the loss at and below which outputs are the float ones, but for the rounding of float32.

        Args:
            weights: any of the right shapes; the loss of zeros in their place is the measure.
        """
        import torch

        loss = self.value([torch.zeros_like(weight) for weight in weights], [None] * len(weights))
        # 1 - cosine is a difference of numbers near 1, and errors there are not squared.
        share = 1e-6 if getattr(self, "loss", "mse") == "cosine" else 1e-12
        return share * loss if math.isfinite(loss) else 0.0


class GramObjective(Objective):
    """Mean squared error of a layer's outputs over all calibration rows at once, through second moments.

    One product of (rows, depth) by (depth, depth) gives loss and gradient, however many rows calibration saw.

    Args:
        task: the layer.
        weight: its true weight on the device.
        share_of_float: probability of float inputs, see ``mixed_moments``.
        row_weights: factor of each output's squared error, mean 1; None for all alike.
    """

    def __init__(
        self, task: LayerTask, weight: torch.Tensor, share_of_float: float, row_weights: np.ndarray | None = None
    ) -> None:
        import torch

        assert task.statistics is not None
        found = mixed_moments(task.statistics, share_of_float)
        groups = task.statistics.groups

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(weight.device)

        self.weight = weight
        self.groups = groups
        self.gram = tensor(found.gram)
        self.rows = len(weight)
        wide = task.weight.astype(np.float64).reshape(groups, -1, task.weight.shape[1])
        scales = np.ones(self.rows) if row_weights is None else np.asarray(row_weights, dtype=np.float64)
        self.row_weights = None if row_weights is None else tensor(scales[:, None])
        self.cross = None
        self.constant = 0.0
        if found.cross is not None and found.gap is not None:
            self.cross = tensor((wide @ found.cross).reshape(task.weight.shape))
            floor = ((wide @ found.gap) * wide).sum(axis=2).reshape(-1)
            self.constant = float((floor * scales).sum()) / self.rows
        self.mean = tensor(found.mean)
        self.shift = tensor(np.einsum("grd,gd->gr", wide, found.mean_gap).reshape(-1))

    def step(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """See ``Objective``."""
        import torch

        gap = self.weight - weights[0]
        product = self._times(gap, self.gram)
        if self.cross is not None:
            product += self.cross
        second = product + self.cross if self.cross is not None else product
        at_bias = None
        bias = biases[0]
        if bias is not None:
            mean = self._means(gap) + self.shift
            product = product - bias[:, None] * self._spread_mean()
            at_bias = 2.0 * (bias - mean)
            per_row = (gap * second).sum(dim=1) + bias * (bias - 2.0 * mean)
            if self.row_weights is not None:
                per_row, at_bias = per_row * self.row_weights[:, 0], at_bias * self.row_weights[:, 0]
            total = per_row.sum()
            at_bias = at_bias / self.rows
        else:
            weighed = gap if self.row_weights is None else gap * self.row_weights
            total = torch.dot(weighed.reshape(-1), second.reshape(-1))
        # In place: a pass over memory less, and nobody needs the product any more.
        gradient = product.mul_(-2.0 / self.rows if self.row_weights is None else self.row_weights * (-2.0 / self.rows))
        return total / self.rows + self.constant, [gradient], [at_bias]

    def value(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> float:
        """See ``Objective``."""
        return float(self.step(weights, biases)[0])

    def _times(self, gap: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
        if self.groups == 1:
            return gap @ gram[0]
        return (gap.reshape(self.groups, -1, gap.shape[1]) @ gram).reshape(gap.shape)

    def _means(self, gap: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.einsum("grd,gd->gr", gap.reshape(self.groups, -1, gap.shape[1]), self.mean).reshape(-1)

    def _spread_mean(self) -> torch.Tensor:
        return self.mean.repeat_interleave(self.rows // self.groups, dim=0)


class RowsObjective(Objective):
    """A layer's loss over mini-batches of kept input rows.

    Args:
        task: the layer; its statistics hold inputs.
        weight: its true weight on the device.
        loss: ``mse``, ``lp``, ``fisher`` or ``cosine``.
        batch: rows of a step; None for all of them.
        share_of_float: probability that an element of the inputs is the float model's.
        generator: draws rows and elements (a CPU generator).
    """

    def __init__(
        self,
        task: LayerTask,
        weight: torch.Tensor,
        *,
        loss: str,
        batch: int | None,
        share_of_float: float,
        generator: torch.Generator,
    ) -> None:
        import torch

        known = task.statistics
        assert known is not None
        assert known.inputs is not None
        self.weight = weight
        self.groups = known.groups
        self.loss = loss
        self.generator = generator
        self.share = share_of_float
        self.inputs = torch.from_numpy(known.inputs).to(weight.device)
        same = known.float_inputs is None or known.float_inputs is known.inputs
        self.floats = self.inputs if same else torch.from_numpy(known.float_inputs).to(weight.device)
        count = self.inputs.shape[1]
        self.batch = count if batch is None else min(batch, count)
        self.fisher = None
        if loss == "fisher":
            self.fisher = torch.from_numpy(fisher_weights(task).astype(np.float32)).to(weight.device)

    def step(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """See ``Objective``."""
        import torch

        count = self.inputs.shape[1]
        if self.batch < count:
            picked = torch.randperm(count, generator=self.generator)[: self.batch].to(self.inputs.device)
            return self._over(weights[0], biases[0], self.inputs[:, picked], self.floats[:, picked], draw=True)
        return self._over(weights[0], biases[0], self.inputs, self.floats, draw=True)

    def value(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> float:
        """See ``Objective``: with the inputs the layer will really have (float ones only where asked for)."""
        count = self.inputs.shape[1]
        total = 0.0
        for first in range(0, count, CHUNK):
            rows, floats = self.inputs[:, first : first + CHUNK], self.floats[:, first : first + CHUNK]
            total += float(self._over(weights[0], biases[0], rows, floats, draw=False)[0]) * rows.shape[1]
        return total / count

    def _over(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor,
        floats: torch.Tensor,
        *,
        draw: bool,
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        import torch

        mixed = rows
        if rows is not floats and self.share > 0.0:
            if self.share >= 1.0:
                mixed = floats
            elif draw:
                coin = torch.rand(rows.shape, generator=self.generator).to(rows.device)
                mixed = floats.where(coin < self.share, rows)
        true = self._split(self.weight)
        target = floats @ true
        output = mixed @ self._split(weight)
        if bias is not None:
            output = output + bias.reshape(self.groups, 1, -1)
        output = output.detach().requires_grad_()
        with torch.enable_grad():
            fisher = None if self.fisher is None else self.fisher.reshape(self.groups, 1, -1)
            loss = output_loss(output, target, self.loss, axis=-1, importance=fisher)
        (pulled,) = torch.autograd.grad(loss, output)
        gradient = (pulled.transpose(1, 2) @ mixed).reshape(weight.shape)
        at_bias = None if bias is None else pulled.sum(dim=1).reshape(-1)
        return loss.detach(), [gradient], [at_bias]

    def _split(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.groups, -1, weight.shape[1]).transpose(1, 2)


def output_loss(
    output: torch.Tensor, target: torch.Tensor, loss: str, *, axis: int, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the loss between outputs and targets, a mean over all their elements (``cosine``: over their rows).

    Args:
        output: of the quantized layer or block.
        target: of the float one, same shape.
        loss: ``mse``; ``lp``, mean abs(error)^2.4; ``fisher``, squared errors times ``importance``; ``cosine``, 1 - the
            cosine along ``axis``.
        axis: the channels.
        importance: squared gradients, broadcastable; mean 1.
    """
    import torch

    if loss == "cosine":
        return (1.0 - torch.nn.functional.cosine_similarity(output, target, dim=axis, eps=1e-12)).mean()
    gap = output - target
    if loss == "lp":
        return gap.abs().pow(2.4).mean()
    squares = gap.square()
    return (squares if importance is None else squares * importance).mean()


def fisher_weights(task: LayerTask) -> np.ndarray:
    """Return E[g^2] of each output, scaled to a mean of 1 (all ones where every gradient was zero)."""
    assert task.statistics is not None
    assert task.statistics.fisher is not None
    fisher = np.asarray(task.statistics.fisher, dtype=np.float64)
    mean = fisher.mean()
    return fisher / mean if mean > 0.0 else np.ones_like(fisher)


def mixed_arguments(quantized: Any, floating: Any, share: float, generator: torch.Generator) -> Any:
    """Return arguments whose float tensors are mixed element by element: QDrop (Wei et al., ICLR 2022).

    Args:
        quantized: nested tuples, lists and mappings of what the quantized model gives.
        floating: the same of the float model.
        share: probability of a float element; 0 and 1 pass one of the two through.
        generator: on the CPU.
    """
    import torch

    if quantized is floating or share <= 0.0:
        return quantized
    if share >= 1.0:
        return floating
    if isinstance(quantized, torch.Tensor):
        if not quantized.is_floating_point() or quantized.shape != floating.shape:
            return quantized
        coin = torch.rand(quantized.shape, generator=generator).to(quantized.device)
        return floating.where(coin < share, quantized)
    if isinstance(quantized, dict):
        return {name: mixed_arguments(quantized[name], floating[name], share, generator) for name in quantized}
    if isinstance(quantized, tuple | list):
        pairs = zip(quantized, floating, strict=True)
        return type(quantized)([mixed_arguments(one, other, share, generator) for one, other in pairs])
    return quantized
