"""A model that is in memory as a whole, seen as a stream needs it: float32, by paths, with the layers' names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workbench.calibration.parameter_names import ParameterNames, layer_of
from workbench.checkpoints.memory import memory_of
from workbench.checkpoints.names import layer_name

if TYPE_CHECKING:
    import torch

    from workbench.checkpoints import Model


class WholeModule:
    """A module in memory. It is never changed: blocks are handed out as copies.

    Args:
        model: the opened model, for the layers' names.
        module: what runs; a float32 copy is made where it holds other real numbers.
    """

    lazy = False

    def __init__(self, model: Model, module: torch.nn.Module) -> None:
        import torch

        others = [
            each
            for each in (*module.parameters(), *module.buffers())
            if each.is_floating_point() and each.dtype != torch.float32
        ]
        self.module: torch.nn.Module = copy.deepcopy(module).float() if others else module
        first = next(self.module.parameters(), None)
        self.device = str(first.device) if first is not None else "cpu"
        self._model = model
        self._own_names = model.module is not None
        self._names = ParameterNames(self.module, {name: each.shape for name, each in model.tensors.items()})
        self._tied = _shared_later(self.module)

    def layer(self, path: str) -> str | None:
        """Return the layer's name of the submodule at a path; None where the checkpoint has no such layer."""
        weight = f"{path}.weight" if path else "weight"
        if self._own_names:
            name = layer_name(weight)
            return name if name in self._model else None
        held: Any = self.module.get_submodule(path).weight
        shape = tuple(held.shape)
        stored = self._names.stored(weight, shape)
        if stored is None:
            return None
        return layer_of(self._model, stored, alias=path if self._names.is_tied(weight, shape) else None)

    def tied(self, path: str) -> bool:
        """Say whether the submodule's weight is another one's too (a head tied to the embedding)."""
        return (f"{path}.weight" if path else "weight") in self._tied

    def copy(self, path: str, device: str) -> torch.nn.Module:
        """Return a copy of a submodule, in evaluation mode, whose parameters ask for no gradients."""
        made = copy.deepcopy(self.module.get_submodule(path)).to(device).eval()
        return made.requires_grad_(False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make ready to run; here there is nothing to do."""
        yield

    def whole(self, progress: Callable[..., Any]) -> torch.nn.Module:
        """Return the whole float model."""
        return self.module


def _shared_later(module: torch.nn.Module) -> set[str]:
    """Return the names of parameters that share the memory of one named before."""
    seen: set[object] = set()
    found = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        identity = memory_of(parameter)
        if identity in seen:
            found.add(name)
        seen.add(identity)
    return found
