"""A transformers model without its weights: each part reads its own from the checkpoint when it runs.

The program is built with all parameters on the meta device and real buffers (rotary tables and their like are computed,
not stored). While it runs, a module that is called reads its parameters as float32; blocks are copied out, filled, handed to
the consumer and forgotten. A large token embedding holds only the rows that the calibration's tokens use.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from workbench.calibration.parameter_names import ParameterNames, layer_of
from workbench.calibration.runnable import HEADROOM, available_memory
from workbench.checkpoints.tensors import StoredTensor
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.checkpoints import Model

#: An embedding larger than this (as float32) holds only the rows that are looked up.
WHOLE_EMBEDDING_BYTES = 64 << 20
_patching = threading.Lock()


class LazyModule:
    """A model whose parts read their weights when they run.

    Args:
        model: the opened checkpoint.
        make: builds the program; called while new parameters go to the meta device.
        tokens: every token id that will be looked up.

    Raises:
        CheckpointError: the program cannot be built.
    """

    lazy = True
    device = "cpu"

    def __init__(self, model: Model, make: Callable[[], torch.nn.Module], tokens: Int[np.ndarray, " n"]) -> None:
        with _parameters_on_meta():
            module = make()
        self.module: torch.nn.Module = module.eval()
        self._model = model
        self._tokens = tokens
        self._names = ParameterNames(module, {name: each.shape for name, each in model.tensors.items()})
        self._stored: dict[str, StoredTensor] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            stored = self._names.stored(name, tuple(parameter.shape))
            if stored is not None:  # a part that is never called may lack its tensors
                self._stored[name] = model.tensors[stored]
        self._read_buffers()

    def check(self, path: str) -> None:
        """Refuse a submodule whose parameters are not all in the checkpoint.

        Raises:
            CheckpointError: one is missing.
        """
        for name, _ in self.module.get_submodule(path).named_parameters(remove_duplicate=False):
            self._tensor(f"{path}.{name}" if path else name)

    def _tensor(self, parameter: str) -> StoredTensor:
        if parameter not in self._stored:
            message = f"{self._model.name} has no tensor for the parameter {parameter} of {type(self.module).__name__}"
            raise CheckpointError(message)
        return self._stored[parameter]

    def _read_buffers(self) -> None:
        """Fill the buffers that the checkpoint holds (statistics of batch norms, scalars of layers)."""
        import torch

        with torch.no_grad():
            for name, buffer in self.module.named_buffers():
                stored = self._names.stored(name, tuple(buffer.shape))
                if stored is not None:
                    buffer.copy_(_as_torch(self._model.tensors[stored].read()))

    def layer(self, path: str) -> str | None:
        """Return the layer's name of the submodule at a path; None where the checkpoint has no such layer."""
        weight = f"{path}.weight"
        alias = path if self.tied(path) else None
        return layer_of(self._model, self._stored[weight].name, alias=alias) if weight in self._stored else None

    def tied(self, path: str) -> bool:
        """Say whether the submodule's weight is another one's too (a head tied to the embedding)."""
        return f"{path}.weight" in self._names.tied

    def copy(self, path: str, device: str) -> torch.nn.Module:
        """Return a copy of a submodule with its weights read, in evaluation mode, asking for no gradients."""
        made = copy.deepcopy(self.module.get_submodule(path))
        self._fill(made, path)
        return made.to(device).eval().requires_grad_(False)

    def _fill(self, module: torch.nn.Module, path: str) -> None:
        shared: dict[str, torch.nn.Parameter] = {}
        for inner, child in module.named_modules():
            self._fill_own(child, ".".join(part for part in (path, inner) if part), shared, rows_only=False)

    def _fill_own(
        self, module: torch.nn.Module, path: str, shared: dict[str, torch.nn.Parameter], *, rows_only: bool
    ) -> None:
        """Read the parameters that a module itself holds; tied ones once."""
        import torch

        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            stored = self._tensor(f"{path}.{name}" if path else name)
            if stored.name in shared:
                module._parameters[name] = shared[stored.name]
                continue
            large = 4 * stored.size > WHOLE_EMBEDDING_BYTES
            if rows_only and large and isinstance(module, torch.nn.Embedding):
                values = self._rows(stored)
            else:
                values = _as_torch(stored.read())
            module._parameters[name] = shared[stored.name] = torch.nn.Parameter(values, requires_grad=False)

    def _rows(self, stored: StoredTensor) -> torch.Tensor:
        """Return an embedding of which only the rows of the calibration's tokens are real.

        Pages of zeros that nobody writes to take no memory.
        """
        import torch

        rows, width = stored.shape
        table = np.zeros((rows, width), dtype=np.float32)
        for token in self._tokens[(self._tokens >= 0) & (self._tokens < rows)]:
            table[token] = stored.elements(int(token) * width, (int(token) + 1) * width)
        return torch.from_numpy(table)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let every module that is called read its own weights first; they stay."""
        handles = []
        for path, child in self.module.named_modules():
            if not any(each is not None and each.is_meta for each in child._parameters.values()):
                continue

            def fill(module: torch.nn.Module, _arguments: Any, path: str = path) -> None:
                if getattr(module.__dict__.get("forward"), "needs_weights", True):
                    self._fill_own(module, path, {}, rows_only=True)

            handles.append(child.register_forward_pre_hook(fill))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def whole(self, progress: Callable[..., Any]) -> torch.nn.Module:
        """Return the whole float model, read into memory.

        Raises:
            CheckpointError: it does not fit.
        """
        parameters = {id(each): each.numel() for each in self.module.parameters()}
        needed = HEADROOM * 4 * sum(parameters.values())
        free = available_memory()
        if free is not None and needed > free:
            message = (
                f"gradients need the whole of {self._model.name} in memory, about {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free: take a method that needs no gradients of the loss"
            )
            raise CheckpointError(message)
        progress(0.0, f"reading {self._model.name}")
        made = copy.deepcopy(self.module)
        self._fill(made, "")
        return made.eval().requires_grad_(False)


def _as_torch(values: np.ndarray) -> torch.Tensor:
    """Return stored numbers as float32; whole numbers and truths stay what they are."""
    import torch

    if values.dtype.kind in "biu":
        return torch.from_numpy(np.ascontiguousarray(values))
    if values.dtype.name == "bfloat16":  # by its bits: several times faster than through numpy
        return torch.from_numpy(np.ascontiguousarray(values).view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(values, dtype=np.float32))


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Send every parameter that this thread registers to the meta device: its memory is never touched."""
    import torch

    thread = threading.get_ident()
    plain = torch.nn.Module.register_parameter

    def register(self: Any, name: str, param: Any) -> None:
        if threading.get_ident() == thread and param is not None and not param.is_meta:
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=False)
        plain(self, name, param)

    with _patching:
        torch.nn.Module.register_parameter = register
        try:
            yield
        finally:
            torch.nn.Module.register_parameter = plain
