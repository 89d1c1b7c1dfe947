"""A block's loss: its output with soft weights in place of its own, against what the float block gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.calibration.forwarding import output_of
from workbench.errors import QuantizationError
from workbench.methods.gradient.objectives import Objective, mixed_arguments, output_loss
from workbench.methods.task import BlockTask
from workbench.methods.transforms.layer_axes import is_turned

if TYPE_CHECKING:
    import torch

    from workbench.methods.activations import Handles


class BlockObjective(Objective):
    """The loss of a block's output, all its layers' weights together.

    Args:
        task: the block.
        loss: ``mse``, ``lp``, ``fisher`` or ``cosine``.
        batches: stored batches of one step.
        share_of_float: probability that an element of the inputs is the float model's (and, under QDrop, that a coded
            activation is left as it is).
        generator: draws batches and elements (a CPU generator).
        handles: the block's activation quantizers, where inputs are coded; None otherwise.

    Raises:
        QuantizationError: the block has no batches, its gradients are missing for ``fisher``, or a layer's weight is not
            where the task says.
    """

    def __init__(
        self,
        task: BlockTask,
        *,
        loss: str,
        batches: int,
        share_of_float: float,
        generator: torch.Generator,
        handles: Handles | None = None,
    ) -> None:
        self.task = task
        self.loss = loss
        self.batches = batches
        self.share = share_of_float
        self.generator = generator
        self.handles = handles
        self.count = len(task.targets)
        if not self.count:
            message = f"{task.name} has no batches to learn from"
            raise QuantizationError(message)
        if loss == "fisher" and task.target_gradients is None:
            message = f"the fisher loss weighs outputs by their gradients, and {task.name} was calibrated without them"
            raise QuantizationError(message)
        self.names = list(task.layers)
        self.weight_paths = [_path(task.places[name], "weight") for name in self.names]
        self.bias_paths = [_path(task.places[name], "bias") for name in self.names]
        self.own = dict(task.module.named_parameters())
        # GPT-2's Conv1D holds (inputs, outputs), the task (outputs, inputs).
        self.turned = {name for name in self.names if is_turned(_submodule(task, name))}
        for name, path in zip(self.names, self.weight_paths, strict=True):
            shape = task.layers[name].shape
            held = tuple(self.own[path].shape) if path in self.own else None
            if (held[::-1] if held and name in self.turned else held) != shape:
                found = held or "nothing"
                message = f"{name} has shape {shape}, and its block {task.name} holds {found} at {path!r}"
                raise QuantizationError(message)
        self.importance_scale = 1.0
        if loss == "fisher" and task.target_gradients is not None:
            mean = sum(float(each.double().square().mean()) for each in task.target_gradients) / self.count
            self.importance_scale = 1.0 / mean if mean > 0.0 else 1.0

    def step(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """See ``Objective``: over ``batches`` stored batches, drawn at random."""
        import torch

        picked = torch.randperm(self.count, generator=self.generator)[: self.batches].tolist()
        leaves = [weight.detach().requires_grad_() for weight in weights]
        additions = [None if bias is None else bias.detach().requires_grad_() for bias in biases]
        learned = [*leaves, *(each for each in additions if each is not None)]
        if self.handles is not None:
            self.handles.drop(self.share if 0.0 < self.share < 1.0 else 0.0, self.generator)
        total = torch.zeros(())
        gradients: list[torch.Tensor] = [torch.zeros_like(each) for each in learned]
        for number in picked:
            with torch.enable_grad():
                loss = self._loss(leaves, additions, number, self.share)
            # A layer that this batch does not reach (an expert that was not routed to) has no gradient.
            pulled = torch.autograd.grad(loss, learned, allow_unused=True)
            total = total.to(loss.device) + loss.detach() / len(picked)
            for gradient, part in zip(gradients, pulled, strict=True):
                if part is not None:
                    gradient.add_(part, alpha=1.0 / len(picked))
        rest = iter(gradients[len(leaves) :])
        return total, gradients[: len(leaves)], [None if bias is None else next(rest) for bias in biases]

    def value(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> float:
        """See ``Objective``: over all batches, with the inputs that the block will really have."""
        if self.handles is not None:
            self.handles.drop(0.0)
        share = 1.0 if self.share >= 1.0 else 0.0
        values = [float(self._loss(weights, biases, number, share)) for number in range(self.count)]
        return sum(values) / self.count

    def _loss(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        number: int,
        share: float,
    ) -> torch.Tensor:
        import torch

        task = self.task
        replaced: dict[str, Any] = {}
        for name, path, bias_path, weight, bias in zip(
            self.names, self.weight_paths, self.bias_paths, weights, biases, strict=True
        ):
            shaped = weight.reshape(task.layers[name].shape)
            replaced[path] = shaped.T if name in self.turned else shaped
            if bias is not None:
                replaced[bias_path] = self.own[bias_path].detach() + bias
        given, floating = task.inputs[number], task.float_inputs[number]
        arguments = mixed_arguments(tuple(given[0]), tuple(floating[0]), share, self.generator)
        options = mixed_arguments(dict(given[1]), dict(floating[1]), share, self.generator)
        output = output_of(torch.func.functional_call(task.module, replaced, arguments, options))
        target = task.targets[number].to(output.device)
        importance = None
        if self.loss == "fisher" and task.target_gradients is not None:
            importance = task.target_gradients[number].to(output.device).square() * self.importance_scale
        axis = 1 if output.ndim == 4 else -1
        return output_loss(output, target, self.loss, axis=axis, importance=importance)


def _submodule(task: BlockTask, name: str) -> torch.nn.Module | None:
    try:
        return task.module.get_submodule(task.places[name])
    except AttributeError:
        return None  # refused with the weights' shapes


def _path(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
