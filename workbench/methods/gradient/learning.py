"""The one loop of the family: soft weights, a loss, an optimizer, and the best hard solution seen on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.methods.gradient.fused import Fused, fused_step
from workbench.methods.gradient.objectives import Objective
from workbench.methods.gradient.optimizers import Optimizer
from workbench.methods.gradient.variables import Snapshot, SoftWeight
from workbench.methods.run import Recorder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and how strongly a run is drawn to hard codes.

    Attributes:
        steps: of the optimizer.
        optimizer: its word.
        rates: learning rate of each kind of parameter.
        decay: whether the rates fall linearly to 0.
        ramp: over how many first steps they rise, linearly. Soft weights begin at the true ones, where the loss is 0 and
            its gradient rounding noise; Adam would make full steps of it in random directions.
        regularizer: factor of sum(1 - abs(2 h - 1)^beta), in units of the start's loss for each weight.
        warmup: share of the steps without regularizer.
        beta: first and last sharpness, linear in between (after the warm-up).
        checks: hard solutions are compared at so many evenly spaced moments, the end among them.
    """

    steps: int
    optimizer: str
    rates: Mapping[str, float]
    decay: bool
    regularizer: float
    warmup: float
    beta: tuple[float, float]
    ramp: int = 0
    checks: int = 8

    def factor(self, step: int) -> float:
        """Return the factor of the learning rates at a step (0 is the first)."""
        rising = min(1.0, (step + 1) / (self.ramp + 1))
        return rising * (1.0 - step / self.steps if self.decay else 1.0)

    def sharpness(self, progress: float) -> float | None:
        """Return beta after a finished share of the steps; None during the warm-up."""
        if progress < self.warmup or self.warmup >= 1.0:
            return None
        first, last = self.beta
        return first + (last - first) * (progress - self.warmup) / (1.0 - self.warmup)


@dataclass(eq=False)
class Learned:
    """What a run found."""

    best: list[Snapshot] | None
    """The best hard solution, one for each layer; None where nothing beat the start."""
    loss: float
    """Its loss, or the start's."""


def learn(
    layers: Sequence[SoftWeight],
    starts: Sequence[torch.Tensor],
    objective: Objective,
    schedule: Schedule,
    recorder: Recorder,
) -> Learned:
    """Learn all layers together and return the best hard solution that was seen.

    The loss is divided by the start's, for each weight, so that learning rates and the regularizer mean the same for
    every layer, whatever the units of its outputs (derived; BRECQ's factor of 0.01 is absolute).

    The curve's ``loss`` is the start's at step 0, that of the soft weights (of the step's mini-batch) in between, and the
    best hard solution's at the end; ``hard`` is the best hard solution's so far, and ``exponent`` the first layer's.

    Args:
        layers: soft weights.
        starts: the start's hard weights, to be compared with.
        objective: their loss.
        schedule: of the run.
        recorder: keeps the curve and tells the listeners.

    Raises:
        Cancelled: a listener stopped it.
    """
    import torch

    with torch.no_grad():
        first = objective.value(starts, [None] * len(layers))
        recorder.record(0, first, hard=first, **_exponent(layers))
        if schedule.steps == 0 or not first > objective.least(starts):
            return Learned(None, first)
        return _learn(layers, objective, schedule, recorder, first)


def _learn(
    layers: Sequence[SoftWeight], objective: Objective, schedule: Schedule, recorder: Recorder, first: float
) -> Learned:
    unit = sum(layer.weight.numel() for layer in layers) / first
    word = schedule.optimizer
    fused = [fused_step(layer, word) for layer in layers]
    optimizer = _optimizer(layers, fused, schedule)
    best, least = None, first
    checks = {math.ceil(schedule.steps * (number + 1) / schedule.checks) for number in range(schedule.checks)}
    for step in range(schedule.steps):
        progress = step / schedule.steps
        weights = [(quick or layer).soft(progress) for quick, layer in zip(fused, layers, strict=True)]
        loss, gradients, at_biases = objective.step(weights, [layer.bias for layer in layers])
        sharpness = schedule.sharpness(progress)
        regularizer = 0.0 if sharpness is None else schedule.regularizer
        factor = schedule.factor(step)
        for layer, quick, gradient, at_bias in zip(layers, fused, gradients, at_biases, strict=True):
            if quick is not None:
                quick.step(
                    gradient,
                    unit,
                    regularizer=regularizer,
                    sharpness=sharpness or 2.0,
                    rate=factor * schedule.rates["codes"],
                )
            else:
                layer.pull(gradient * unit, regularizer, sharpness or 2.0)
            if at_bias is not None:
                layer.gradients["bias"] = at_bias * unit
        pulled: dict[str, list[torch.Tensor]] = {}
        for layer, quick in zip(layers, fused, strict=True):
            for name in layer.parameters():
                if quick is None or name != "codes":
                    pulled.setdefault(name, []).append(layer.gradients[name])
        if optimizer is not None:
            optimizer.step(pulled, factor)
        for layer, quick in zip(layers, fused, strict=True):
            layer.keep_in_bounds(codes=quick is None)
        if step + 1 in checks:
            found = [layer.snapshot() for layer in layers]
            value = _value(layers, found, objective)
            if value < least * (1.0 - 1e-6):
                best, least = found, value
        if step + 1 < schedule.steps and recorder.wants(step + 1):
            recorder.record(step + 1, float(loss), hard=least, **_exponent(layers))
    recorder.record(schedule.steps, least, hard=least, **_exponent(layers, best))
    return Learned(best, least)


def _value(layers: Sequence[SoftWeight], found: Sequence[Snapshot], objective: Objective) -> float:
    weights = [layer.decode(each) for layer, each in zip(layers, found, strict=True)]
    return objective.value(weights, [each.bias for each in found])


def _optimizer(layers: Sequence[SoftWeight], fused: Sequence[Fused | None], schedule: Schedule) -> Optimizer | None:
    """Return the optimizer of all that the compiled steps do not move themselves; None where nothing is left."""
    groups: dict[str, tuple[float, list[torch.Tensor]]] = {}
    for layer, quick in zip(layers, fused, strict=True):
        for name, parameter in layer.parameters().items():
            if quick is not None and name == "codes":
                continue
            groups.setdefault(name, (schedule.rates[name], []))[1].append(parameter)
    return Optimizer(schedule.optimizer, groups) if groups else None


def _exponent(layers: Sequence[SoftWeight], found: Sequence[Snapshot] | None = None) -> dict[str, float]:
    """Return the first layer's exponent where one is learned, for the curve."""
    theta = layers[0].theta if found is None else found[0].theta
    return {} if theta is None else {"exponent": layers[0].axis.exponent_at(theta)}
