"""What a user would write without the workbench, straight from the formulas: the yardsticks of ``methods_speed.py``.

Plain PyTorch and SciPy, full tensors, autograd: PowerQuant's exponent by Nelder-Mead, one AdaRound and one NUPES loop of
the BRECQ kind, GPTQ column by column. They follow the same formulas and schedules as the workbench's methods, so that both
give the same curve; only the way of computing differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

#: Rectified sigmoid: h = clip(1.2 sigmoid(x) - 0.1, 0, 1).
STRETCH, SHIFT = 1.2, -0.1
#: Bounds of a learned exponent.
LOW, HIGH = 0.2, 1.5


def nelder_mead_exponent(weights: Sequence[Any], bits: int) -> tuple[float, float, int]:
    """Return the exponent, the summed norm of the errors there, and how often it was computed.

    Args:
        weights: float32 tensors (rows, columns), a scale for each row.
        bits: of the power grid.
    """
    import torch
    from scipy.optimize import minimize

    n = 2 ** (bits - 1) - 1
    shares = [(weight, weight.abs().amax(dim=1, keepdim=True)) for weight in weights]

    def error(point: np.ndarray) -> float:
        exponent, total = float(point[0]), 0.0
        if exponent <= 0.0:
            return math.inf
        for weight, most in shares:
            powered = weight.sign() * (weight.abs() / most).pow(exponent)
            codes = torch.round(n * powered)
            back = codes.sign() * most * (codes.abs() / n).pow(1.0 / exponent)
            total += float((weight - back).norm())
        return total

    found: Any = minimize(error, np.array([0.5]), method="Nelder-Mead")
    return float(found.x[0]), float(found.fun), int(found.nfev)


@dataclass(frozen=True)
class Schedule:
    """Settings that a loop shares with the workbench's method."""

    steps: int
    rate: float
    regularizer: float
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    scale_rate: float = 0.0
    exponent_rate: float = 0.0
    temperature: tuple[float, float] = (2.0 * math.log(11.0), 20.0)

    def sharpness(self, step: int) -> float | None:
        """Return beta at a step; None during the warm-up."""
        progress = step / self.steps
        if progress < self.warmup:
            return None
        return self.beta[0] + (self.beta[1] - self.beta[0]) * (progress - self.warmup) / (1.0 - self.warmup)


def _penalty(h: Any, schedule: Schedule, step: int) -> Any:
    sharpness = schedule.sharpness(step)
    if sharpness is None:
        return 0.0
    return schedule.regularizer * (1.0 - (2.0 * h - 1.0).abs().pow(sharpness)).sum()


def _loss(inputs: Any, weight: Any, soft: Any, batch: int | None, generator: Any) -> Any:
    """Return the mean squared error of the outputs, over all rows or over some drawn ones."""
    import torch

    if batch is not None:
        inputs = inputs[torch.randint(len(inputs), (batch,), generator=generator)]
    lost = torch.nn.functional.linear(inputs, soft) - torch.nn.functional.linear(inputs, weight)
    return (lost**2).mean()


def _penalized(  # noqa: PLR0917 - the words of the formula
    alpha: Any, floor: Any, step_size: Any, inputs: Any, weight: Any, unit: Any, regularizer: Any, sharpness: Any
) -> Any:
    import torch

    h = (STRETCH * torch.sigmoid(alpha) + SHIFT).clamp(0.0, 1.0)
    loss = _loss(inputs, weight, step_size * (floor + h), None, None)
    return unit * loss + regularizer * (1.0 - (2.0 * h - 1.0).abs().pow(sharpness)).sum(), loss


@cache
def _compiled() -> Any:
    import torch

    return torch.compile(_penalized, dynamic=False)


def adaround_loop(  # noqa: PLR0917 - the words of the formula
    weight: Any,
    scale: Any,
    n: int,
    inputs: Any,
    schedule: Schedule,
    batch: int | None = None,
    *,
    compiled: bool = False,
) -> list[float]:
    """Run AdaRound on a layer and return the loss of each step.

    Args:
        weight: float32 (rows, columns).
        scale: what code n stands for, (rows, 1).
        n: largest code; the smallest is -n.
        inputs: float32 (samples, columns).
        schedule: of the run.
        batch: samples of a step, drawn at random; None for all.
        compiled: whether the loss and its gradient go through ``torch.compile`` (for all samples only).
    """
    import torch

    step_size = scale / n
    position = (weight / step_size).clamp(-n, n)
    floor = position.floor().clamp(-n, n - 1)
    alpha = (-torch.log(STRETCH / ((position - floor) - SHIFT) - 1.0)).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=schedule.rate)
    generator = torch.Generator().manual_seed(0)
    losses: list[float] = []
    # In units of the loss of rounding to nearest, for each weight.
    nearest = step_size * position.round().clamp(-n, n)
    unit = weight.numel() / float(_loss(inputs, weight, nearest, None, None))

    for step in range(schedule.steps):
        optimizer.zero_grad()
        if compiled:  # tensors, so that a new sharpness is no new function
            sharpness = schedule.sharpness(step)
            regularizer = torch.tensor(0.0 if sharpness is None else schedule.regularizer)
            known = (floor, step_size, inputs, weight, torch.tensor(unit))
            total, loss = _compiled()(alpha, *known, regularizer, torch.tensor(sharpness or 2.0))
        else:
            h = (STRETCH * torch.sigmoid(alpha) + SHIFT).clamp(0.0, 1.0)
            loss = _loss(inputs, weight, step_size * (floor + h), batch, generator)
            total = unit * loss + _penalty(h, schedule, step)
        total.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def nupes_loop(  # noqa: PLR0917 - as the loop above, and an exponent
    weight: Any, scale: Any, n: int, exponent: float, inputs: Any, schedule: Schedule, batch: int | None = None
) -> list[float]:
    """Learn codes over the whole power grid, its exponent and the scales; return the loss of each step.

    Args:
        weight: float32 (rows, columns).
        scale: what code n stands for, (rows, 1).
        n: largest code; the smallest is -n.
        exponent: to start from.
        inputs: float32 (samples, columns).
        schedule: of the run.
        batch: samples of a step, drawn at random; None for all.
    """
    import torch

    codes = torch.arange(-n, n + 1, dtype=torch.float32)
    shares = (codes.abs() / n).clamp_min(1e-30)

    def levels(at: Any) -> Any:
        return torch.where(codes == 0, torch.zeros(()), codes.sign() * shares.pow(1.0 / at))

    share = (exponent - LOW) / (HIGH - LOW)
    theta = torch.tensor(math.log(share / (1.0 - share))).requires_grad_()
    log_scale = torch.zeros_like(scale).requires_grad_()
    first = levels(torch.tensor(exponent))
    u = (weight / scale).clamp(-1.0, 1.0)
    lower = (torch.searchsorted(first, u, right=True) - 1).clamp(0, 2 * n - 1)
    fraction = ((u - first[lower]) / (first[lower + 1] - first[lower])).clamp(0.0, 1.0)
    inside = (fraction - SHIFT) / STRETCH
    within = 0.5 + torch.log(inside / (1.0 - inside)) / schedule.temperature[0]
    latent = (lower + within.clamp(0.0, 1.0)).requires_grad_()
    optimizer = torch.optim.Adam(
        [
            {"params": [latent], "lr": schedule.rate},
            {"params": [log_scale], "lr": schedule.rate * schedule.scale_rate},
            {"params": [theta], "lr": schedule.rate * schedule.exponent_rate},
        ]
    )
    unit = weight.numel() / float(_loss(inputs, weight, _nearest_power(weight, scale, n, exponent), None, None))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(schedule.steps):
        sharp = schedule.temperature[0] * (schedule.temperature[1] / schedule.temperature[0]) ** (step / schedule.steps)
        floor = latent.detach().floor().clamp(0, 2 * n - 1)
        h = (STRETCH * torch.sigmoid(sharp * (latent - floor - 0.5)) + SHIFT).clamp(0.0, 1.0)
        now = levels(LOW + (HIGH - LOW) * torch.sigmoid(theta))
        left = now[floor.long()]
        soft = scale * log_scale.exp() * (left + h * (now[floor.long() + 1] - left))
        loss = _loss(inputs, weight, soft, batch, generator)
        optimizer.zero_grad()
        (unit * loss + _penalty(h, schedule, step)).backward()
        optimizer.step()
        with torch.no_grad():
            latent.clamp_(0.0, 2.0 * n)
        losses.append(loss.item())
    return losses


def _nearest_power(weight: Any, scale: Any, n: int, exponent: float) -> Any:
    """Round in the power domain, as PowerQuant does."""
    codes = (n * weight.sign() * (weight.abs() / scale).pow(exponent)).round().clamp(-n, n)
    return codes.sign() * scale * (codes.abs() / n).pow(1.0 / exponent)


def gptq_loop(weight: Any, scale: Any, n: int, gram: Any, *, damp: float = 0.01, block: int = 128) -> Any:
    """Round a layer by GPTQ, a scale for each row, and return the dequantized weight.

    Args:
        weight: float32 (rows, columns).
        scale: what code n stands for, (rows, 1).
        n: largest code; the smallest is -n.
        gram: E[x x^T], float32 (columns, columns).
        damp: share of its mean diagonal that is added to the diagonal.
        block: columns between two updates of all that follow.
    """
    import torch

    weight = weight.clone()
    columns = weight.shape[1]
    damped = gram + damp * gram.diagonal().mean() * torch.eye(columns)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    step = scale[:, 0] / n
    found = torch.zeros_like(weight)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part, errors = weight[:, start:stop].clone(), torch.zeros_like(weight[:, start:stop])
        for j in range(stop - start):
            rounded = step * (part[:, j] / step).round().clamp(-n, n)
            found[:, start + j] = rounded
            errors[:, j] = (part[:, j] - rounded) / factor[start + j, start + j]
            part[:, j:] -= errors[:, j : j + 1] @ factor[start + j : start + j + 1, start + j : stop]
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return found
