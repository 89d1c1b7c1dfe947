"""The gradient family as one method whose axes are settings."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workbench.errors import QuantizationError
from workbench.grids import PowerGrid
from workbench.methods.gradient.blocks import BlockObjective
from workbench.methods.gradient.inputs import attached, coded_task
from workbench.methods.gradient.learning import Schedule, learn
from workbench.methods.gradient.objectives import GramObjective, Objective, RowsObjective, fisher_weights
from workbench.methods.gradient.optimizers import OPTIMIZERS
from workbench.methods.gradient.starts import best_start
from workbench.methods.gradient.variables import TEMPERATURES, VARIABLES, Freedom, Snapshot, SoftWeight
from workbench.methods.method import Method, Need, Outcome, register
from workbench.methods.result import LayerResult
from workbench.methods.run import Recorder, Run
from workbench.methods.task import BlockTask, LayerTask
from workbench.quantization.quantize import QuantizedTensor

if TYPE_CHECKING:
    import torch

CHOICES: dict[str, tuple[str, ...]] = {
    "variable": tuple(VARIABLES),
    "freedom": ("updown", "range"),
    "loss": ("mse", "lp", "fisher", "cosine"),
    "optimizer": OPTIMIZERS,
    "scope": ("layer", "block"),
    "inputs": ("float", "quantized", "qdrop"),
    "start": ("task", "best"),
}

#: Probability that an input is the float model's (QDrop: 0.5, Wei et al. 2022).
SHARES = {"float": 1.0, "quantized": 0.0, "qdrop": 0.5}

#: How far a code may travel in a whole run, in units of its variable: the default learning rate is this over the steps.
#: ``offset`` with signed gradients: AutoRound's rate of 1 / steps. The others are derived, tuned on layers of the demo
#: models.
TRAVEL = {"sigmoid": 60.0, "free": 5.0, "latent": 3.0, "offset": 3.0, "divide": 2.0}
#: The same where steps see mini-batches. BRECQ's own 20 (20,000 steps at 1e-3): what is fitted to the noise of few batches by
#: going further lowers a block's loss and mostly costs the model (100 steps; all-MiniLM-L6-v2 at 4 bits, 1 - cosine: 0.041
#: with 20, 0.067 with 60; tiny-gemma3, perplexity over float: 1.137 and 1.157 at 2 bits, 1.011 and 1.008 at 4).
TRAVEL_BATCHES = {**TRAVEL, "sigmoid": 20.0}
TRAVEL_SIGNED = {"sigmoid": 20.0, "free": 2.0, "latent": 1.0, "offset": 1.0, "divide": 1.0}


@register
@dataclass(frozen=True)
class GradientMethod(Method):
    """Gradient post-training quantization with every axis a setting; the presets are this with other defaults.

    The axes are those that "Gradient-Based Post-Training Quantization: Challenging the Status Quo" (arXiv 2308.07662)
    names: problem formulation (loss, degrees of freedom, grid) and optimisation process (variable, optimizer). Formulas of
    the variables: ``gradient/variables.py``; of the full-batch loss: ``gradient/moments.py``. Whatever is learned, the best
    hard solution seen is returned, and the start where none beats it.

    Args:
        variable: ``sigmoid`` (AdaRound's rectified sigmoid), ``free`` (a latent code over the whole grid), ``latent``
            (straight-through latent weight), ``offset`` (additive, AutoRound), ``divide`` (FlexRound).
        freedom: ``updown``, the two levels around the true weight; ``range``, the whole grid (not for ``sigmoid``).
        learn_scale: whether scales are learned (as factors of the start's; not where a format fixes which scales exist).
        learn_exponent: whether the exponent of a power grid is learned, one for the layer, in [0.2, 1.5].
        learn_bias: whether the layer's bias is learned, where it has one.
        loss: ``mse``; ``lp``, mean abs(error)^2.4; ``fisher``, squared errors times squared gradients; ``cosine``.
        optimizer: ``adam``, ``adamax``, ``radam`` or ``signsgd``.
        decay: whether learning rates fall linearly to 0.
        ramp: first steps over which learning rates rise (derived: at the start the loss is 0 and its gradient rounding
            noise, of which Adam would make full steps; it gains most in runs of less than a hundred steps).
        steps: of the optimizer; 0 returns the start.
        learning_rate: of the codes, above 0; None for a travel over the steps (``TRAVEL``, ``TRAVEL_BATCHES``; derived).
        scale_rate: learning rate of the logarithm of the scales, as a factor of the codes' (derived).
        exponent_rate: the same of the exponent's parameter (derived: a small part of what codes take).
        regularizer: factor of sum(1 - abs(2 h - 1)^beta), in units of the start's loss for each weight, so that it means
            the same for every layer (derived; BRECQ's 0.01 is absolute). ``sigmoid`` and ``free`` only.
        warmup: share of the steps without regularizer, in [0, 1].
        beta_start: beta at the end of the warm-up; it falls linearly.
        beta_end: beta at the end.
        temperature_end: last temperature of ``free``; it rises geometrically from 2 ln 11 (derived).
        scope: ``layer``, or ``block``: all layers of a block together on the block's output.
        inputs: ``float``, the float model's (coded, where the recipe codes inputs); ``quantized``, what the model quantized
            so far gives, so that a layer or block makes good what those before it lost; ``qdrop``, an element-wise mix.
        batch: of one layer's step: ``gram``, all calibration rows at once (for ``mse`` and ``fisher`` through their second
            moments), or a number of kept rows, drawn anew each step.
        block_batches: stored batches of one step of a block.
        start: ``task``, the task's own scale rule; ``best``, the best of that, of each group's best clip and, where the
            exponent is learned, of several exponents (derived).

    Raises:
        QuantizationError: a setting out of range, or settings that do not go together.
    """

    word: ClassVar[str] = "learn"
    title: ClassVar[str] = "Gradient PTQ"
    summary: ClassVar[str] = "codes, scales and exponents learned by gradient descent; every axis a setting"

    variable: str = "sigmoid"
    freedom: str = "updown"
    learn_scale: bool = False
    learn_exponent: bool = False
    learn_bias: bool = False
    loss: str = "mse"
    optimizer: str = "adam"
    decay: bool = False
    ramp: int = 5
    steps: int = 500
    learning_rate: float | None = None
    scale_rate: float = 0.02
    exponent_rate: float = 0.05
    regularizer: float = 100.0
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    temperature_end: float = 20.0
    scope: str = "layer"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - a setting here
    inputs: str = "float"
    batch: str = "gram"
    block_batches: int = 1
    start: str = "best"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                message = f"{name} of {self.word} is one of {', '.join(known)}, not {getattr(self, name)!r}"
                raise QuantizationError(message)
        object.__setattr__(self, "batch", str(self.batch))  # a number may come as one
        if self.batch != "gram" and not (self.batch.isdecimal() and int(self.batch) > 0):
            message = f"batch of {self.word} is gram or a number of rows from 1 up, not {self.batch!r}"
            raise QuantizationError(message)
        if type(self.block_batches) is not int or self.block_batches < 1:
            message = f"block_batches of {self.word} is a whole number from 1 up, not {self.block_batches!r}"
            raise QuantizationError(message)
        for name in ("steps", "ramp"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                message = f"{name} of {self.word} is a whole number from 0 up, not {getattr(self, name)!r}"
                raise QuantizationError(message)
        rules = {
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0.0, "above 0"),
            "scale_rate": (self.scale_rate >= 0.0, "0 or more"),
            "exponent_rate": (self.exponent_rate >= 0.0, "0 or more"),
            "regularizer": (self.regularizer >= 0.0, "0 or more"),
            "warmup": (0.0 <= self.warmup <= 1.0, "from 0 to 1"),
            "beta_start": (self.beta_start >= 1.0, "1 or more"),
            "beta_end": (self.beta_end >= 1.0, "1 or more"),
            "temperature_end": (self.temperature_end >= TEMPERATURES[0], f"at least 2 ln 11 = {TEMPERATURES[0]:.3f}"),
        }
        for name, (fits, range_of) in rules.items():
            value = getattr(self, name)
            if not fits or (value is not None and not math.isfinite(value)):
                message = f"{name} of {self.word} is a number {range_of}, not {value!r}"
                raise QuantizationError(message)
        if self.variable == "sigmoid" and self.freedom == "range":
            message = "variable=sigmoid chooses between two neighbours only; for freedom=range take variable=free"
            raise QuantizationError(message)

    @property
    def needs(self) -> frozenset[Need]:
        """The Gram matrix (to measure by, and to learn from), how the streams differ or input rows, and ``fisher``."""
        found: set[Need] = {"gram"}
        if self.scope == "layer":
            found |= {"inputs", "gap"} if self._full_batch else {"inputs"}
        if self.loss == "fisher":
            found.add("fisher")
        return frozenset(found)

    @property
    def _full_batch(self) -> bool:
        """Whether a single layer is learned through its second moments."""
        return self.batch == "gram" and self.loss in {"mse", "fisher"}

    @property
    def steps_planned(self) -> int:
        """Steps for each layer, or block."""
        return self.steps

    def check(self, task: LayerTask) -> None:
        """Refuse a task that lacks what one layer's loss needs.

        Raises:
            QuantizationError: no inputs, no rows or no gradients where the settings ask for them, or a fitted grid.
        """
        known = task.statistics
        words = ""
        if known is None or (known.gram is None and known.inputs is None):
            words = "the Gram matrix of its inputs, or sampled inputs"
        elif not self._full_batch and known.inputs is None:
            words = f"sampled inputs for loss={self.loss}, batch={self.batch}"
        elif self.loss == "fisher" and known.fisher is None:
            words = "gradients at its outputs"
        if words:
            message = f"{self.title} needs {words}, and {task.name} was not calibrated for that"
            raise QuantizationError(message)

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        import torch

        share = SHARES[self.inputs]
        seen, notes = coded_task(task, of_float=share == 1.0)
        weight = torch.from_numpy(np.array(task.weight)).to(run.device)
        # Coded inputs are never the float ones: with ``inputs=float`` it is the float model's that are coded.
        objective = self._layer_objective(seen, weight, 0.0 if seen is not task and share == 1.0 else share, run)

        def loss(found: QuantizedTensor) -> float:
            return objective.value([_dequantized(found, weight)], [None])

        soft, more = self._soft(task, weight, loss)
        recorder = Recorder(run, task.name, self.steps)
        hard = [soft.axis.decode(soft.axis.index)]
        found = learn([soft], hard, objective, self._schedule(gram=isinstance(objective, GramObjective)), recorder)
        best = None if found.best is None else found.best[0]
        notes = [*notes, *more, *(_kept(self) if best is None else ())]
        quantized, bias = _result(task, soft, best)
        return Outcome(quantized, recorder.trace(), bias, tuple(notes))

    def quantize_block(self, task: BlockTask, run: Run | None = None) -> dict[str, LayerResult]:
        """Quantize all layers of a block: together with ``scope=block``, else one after another, each for itself.

        Raises:
            QuantizationError: a layer lacks what it needs, or is not where the task says.
            Cancelled: a listener stopped it.
        """
        run = run or Run()
        if self.scope != "block":
            return super().quantize_block(task, run)
        import torch

        started = time.monotonic()
        softs: list[SoftWeight] = []
        notes: list[list[str]] = []
        for layer in task.layers.values():
            weight = torch.from_numpy(np.array(layer.weight)).to(run.device)
            # The block's loss of each candidate of each layer would be dear: a layer's start is chosen by its own error.
            soft, more = self._soft(layer, weight, layer.error_of)
            softs.append(soft)
            notes.append(more)
        handles = attached(task)
        try:
            objective = BlockObjective(
                task,
                loss=self.loss,
                batches=self.block_batches,
                share_of_float=SHARES[self.inputs],
                generator=run.torch_generator(task.name),
                handles=handles,
            )
            recorder = Recorder(run, task.name, self.steps)
            hard = [soft.axis.decode(soft.axis.index) for soft in softs]
            found = learn(softs, hard, objective, self._schedule(gram=False), recorder)
        finally:
            if handles is not None:
                handles.remove()
        best: Sequence[Snapshot | None] = found.best or [None] * len(softs)
        seconds = time.monotonic() - started
        weights = sum(soft.weight.numel() for soft in softs)
        results = {}
        for (name, layer), soft, one, more in zip(task.layers.items(), softs, best, notes, strict=True):
            quantized, bias = _result(layer, soft, one)
            results[name] = layer.result(
                self,
                quantized,
                seconds=seconds * soft.weight.numel() / weights,
                trace=recorder.trace(),
                bias=bias,
                notes=[*more, *(_kept(self) if one is None else ())],
            )
        return results

    def _layer_objective(self, task: LayerTask, weight: torch.Tensor, share: float, run: Run) -> Objective:
        if self._full_batch:
            return GramObjective(task, weight, share, fisher_weights(task) if self.loss == "fisher" else None)
        return RowsObjective(
            task,
            weight,
            loss=self.loss,
            batch=None if self.batch == "gram" else int(self.batch),
            share_of_float=share,
            generator=run.torch_generator(task.name),
        )

    def _soft(self, task: LayerTask, weight: torch.Tensor, loss: Any) -> tuple[SoftWeight, list[str]]:
        """Choose the start, settle what can be learned of this layer, and return its soft weight."""
        notes = []
        power = isinstance(task.grid, PowerGrid)
        if self.learn_exponent and not power:
            notes.append(f"{task.grid} has no exponent to learn")
        start = best_start(task, loss, exponents=self.learn_exponent and power, search=self.start == "best")
        # With three levels or fewer (2 bits, signed) every exponent is the same grid.
        exponent = self.learn_exponent and power and len(task.grid.levels) > 3
        scale = self.learn_scale and start.scale_format == "float32"
        if self.learn_scale and not scale:
            notes.append(f"scales stay as they are: they are stored as {start.scale_format}")
        bias = self.learn_bias and task.bias is not None
        if self.learn_bias and not bias:
            notes.append("the layer has no bias to learn")
        freedom = Freedom(self.freedom == "range", scale, exponent, bias)
        kind = VARIABLES[self.variable]
        return kind(weight, start, freedom, (TEMPERATURES[0], self.temperature_end)), notes

    def _schedule(self, *, gram: bool) -> Schedule:
        travels = TRAVEL_SIGNED if self.optimizer == "signsgd" else TRAVEL if gram else TRAVEL_BATCHES
        travel = travels[self.variable]
        rate = travel / max(self.steps, 1) if self.learning_rate is None else self.learning_rate
        rates = {
            "codes": rate,
            "row": rate,
            "scale": self.scale_rate * rate,
            "exponent": self.exponent_rate * rate,
            "bias": self.scale_rate * rate,
        }
        return Schedule(
            steps=self.steps,
            optimizer=self.optimizer,
            rates=rates,
            decay=self.decay,
            ramp=self.ramp,
            regularizer=self.regularizer,
            warmup=self.warmup,
            beta=(self.beta_start, self.beta_end),
            checks=8 if gram else 4,
        )


def _dequantized(found: QuantizedTensor, like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(found.dequantize().reshape(tuple(like.shape))).to(like.device)


def _result(task: LayerTask, soft: SoftWeight, best: Snapshot | None) -> tuple[QuantizedTensor, np.ndarray | None]:
    """Return codes and scales, and the new bias where one was learned."""
    if best is None:
        return soft.axis.start, None
    bias = None
    if best.bias is not None and task.bias is not None:
        bias = (task.bias + best.bias.cpu().numpy()).astype(np.float32)
    return replace(soft.quantized(best), shape=task.shape, name=task.name), bias


def _kept(method: GradientMethod) -> tuple[str, ...]:
    """Say why the start was returned."""
    return ("no steps: this is the start",) if method.steps == 0 else ("nothing learned beat the start, which is kept",)
