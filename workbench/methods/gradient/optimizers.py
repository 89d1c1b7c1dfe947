"""The optimizers of the family: torch's Adam, AdaMax and RAdam, and signed gradient descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("adam", "adamax", "radam", "signsgd")
#: RAdam divides by nothing in its first five steps: the size of a gradient is settled over these.
SETTLING = 5


class Optimizer:
    """Moves parameters along gradients that somebody else computed.

    Args:
        word: one of ``OPTIMIZERS``.
        groups: learning rate and parameters by name, e.g. ``{"codes": (0.01, [tensor, ...])}``.
    """

    def __init__(self, word: str, groups: Mapping[str, tuple[float, Sequence[torch.Tensor]]]) -> None:
        self.groups = {name: (rate, list(members)) for name, (rate, members) in groups.items() if members}
        self._torch: Any = None
        self._largest: dict[str, float] | None = {} if word == "radam" else None
        self._steps = 0
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

    def step(self, gradients: Mapping[str, Sequence[torch.Tensor]], factor: float = 1.0) -> None:
        """Move every parameter once.

        Args:
            gradients: by the groups' names, in the order of their members.
            factor: of the learning rates at this step.
        """
        self._steps += 1
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
        """Return what brings the largest of a group's first gradients to a root mean square of 1, for RAdam.

        RAdam's first steps follow the gradient itself, undivided; all others here do not care about its size.
        """
        if self._largest is None:
            return 1.0
        if self._steps <= SETTLING:
            squares = sum(float(each.double().square().sum()) for each in gradients)
            count = sum(each.numel() for each in gradients)
            self._largest[name] = max(self._largest.get(name, 0.0), (squares / max(count, 1)) ** 0.5)
        return 1.0 / self._largest[name] if self._largest[name] > 0.0 else 1.0
