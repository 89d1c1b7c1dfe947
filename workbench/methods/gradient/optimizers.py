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
        self._units: dict[str, float] | None = {} if word == "radam" else None
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
            factor_of = self._unit(name, gradients[name])
            for parameter, gradient in zip(members, gradients[name], strict=True):
                parameter.grad = gradient if factor_of == 1.0 else gradient * factor_of
        for group in self._torch.param_groups:
            group["lr"] = group["rate"] * factor
        self._torch.step()

    def _unit(self, name: str, gradients: Sequence[torch.Tensor]) -> float:
        """Return what brings a group's first gradient to a root mean square of 1, for RAdam.

        RAdam's first steps follow the gradient itself, undivided; all others here do not care about its size.
        """
        if self._units is None:
            return 1.0
        if name not in self._units:
            squares = sum(float(each.double().square().sum()) for each in gradients)
            count = sum(each.numel() for each in gradients)
            self._units[name] = (count / squares) ** 0.5 if squares > 0.0 else 1.0
        return self._units[name]
