"""The optimizers of the family: torch's Adam, AdaMax and RAdam, and signed gradient descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("adam", "adamax", "radam", "signsgd")


class Optimizer:
    """Moves parameters along gradients that somebody else computed.

    Args:
        word: one of ``OPTIMIZERS``.
        groups: learning rate and parameters by name, e.g. ``{"codes": (0.01, [tensor, ...])}``.
        decay: whether the learning rates fall linearly to 0 over the run.
    """

    def __init__(self, word: str, groups: Mapping[str, tuple[float, Sequence[torch.Tensor]]], *, decay: bool) -> None:
        self.decay = decay
        self.groups = {name: (rate, list(members)) for name, (rate, members) in groups.items() if members}
        self._torch: Any = None
        if word == "signsgd":
            return
        import torch

        kinds: dict[str, Any] = {
            "adam": torch.optim.Adam,
            "adamax": torch.optim.Adamax,
            "radam": torch.optim.RAdam,
        }
        listed = [{"params": members, "lr": rate, "rate": rate} for rate, members in self.groups.values()]
        self._torch = kinds[word](listed)

    def step(self, gradients: Mapping[str, Sequence[torch.Tensor]], progress: float) -> None:
        """Move every parameter once.

        Args:
            gradients: by the groups' names, in the order of their members.
            progress: finished share of the steps in [0, 1), for the decay.
        """
        factor = 1.0 - progress if self.decay else 1.0
        if self._torch is None:
            for name, (rate, members) in self.groups.items():
                for parameter, gradient in zip(members, gradients[name], strict=True):
                    parameter.sub_(gradient.sign(), alpha=rate * factor)
            return
        for name, (_, members) in self.groups.items():
            for parameter, gradient in zip(members, gradients[name], strict=True):
                parameter.grad = gradient
        for group in self._torch.param_groups:
            group["lr"] = group["rate"] * factor
        self._torch.step()
