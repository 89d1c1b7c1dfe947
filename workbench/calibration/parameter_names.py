"""Which stored tensor a running model's parameter is: the names in a checkpoint and in a program may differ in their prefix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.checkpoints.names import layer_name

if TYPE_CHECKING:
    import torch

    from workbench.checkpoints import Model


class ParameterNames:
    """Names of a module's parameters in its checkpoint.

    A parameter is looked up by its own name, then with the model's base prefix added or taken away, then among the names
    that transformers itself gives old checkpoints' tensors, then by the longest common ending among stored tensors of the
    same shape (at least two parts, and only one tensor may have it).
    """

    def __init__(self, module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._prefix = str(getattr(module, "base_model_prefix", "") or "")
        self._shapes = shapes
        self._renamed = _renamed(module, shapes)
        self._by_ending: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in shapes:
            self._by_ending[tuple(name.split(".")[-2:])].append(name)
        tied: Any = getattr(module, "all_tied_weights_keys", None)
        self.tied: dict[str, str] = {str(a): str(b) for a, b in tied.items()} if isinstance(tied, Mapping) else {}
        """Parameters that share another one's weights -> that one."""

    def stored(self, parameter: str, shape: tuple[int, ...]) -> str | None:
        """Return the stored tensor's name; None where none, or more than one, could be meant."""
        found = self._own(parameter, shape)
        if found is None and parameter in self.tied:
            found = self._own(self.tied[parameter], shape)
        return found

    def is_tied(self, parameter: str, shape: tuple[int, ...]) -> bool:
        """Say whether a parameter is another one's alias and has no tensor of its own."""
        return parameter in self.tied and self._own(parameter, shape) is None

    def _own(self, parameter: str, shape: tuple[int, ...]) -> str | None:
        candidates = [parameter]
        if self._prefix:
            candidates += [parameter.removeprefix(f"{self._prefix}."), f"{self._prefix}.{parameter}"]
        for name in candidates:
            if self._shapes.get(name) == shape:
                return name
        for name in candidates:
            stored = self._renamed.get(name)
            if stored is not None and self._shapes[stored] == shape:
                return stored
        parts = parameter.split(".")
        near = [name for name in self._by_ending.get(tuple(parts[-2:]), ()) if self._shapes[name] == shape]
        if len(parts) < 2 or not near:
            return None
        scored = sorted(((_common(parts, name.split(".")), name) for name in near), reverse=True)
        if len(scored) > 1 and scored[0][0] == scored[1][0]:
            return None
        return scored[0][1]


def _renamed(module: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the stored names by those that transformers gives them when it loads this model; {} where it renames none.

    Tensors that it also changes (experts that it stacks) are left out: they are no parameter as they stand.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_converters, apply_renamings
    except ImportError:  # before version 5 there were none
        return {}
    if not hasattr(module, "base_model_prefix"):
        return {}
    rules = get_model_conversion_mapping(module)  # type: ignore[arg-type]
    plain = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    others: list[Any] = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    found = {}
    for name in names:
        new, changed = apply_converters(apply_renamings(name, plain), others)
        if changed is None:
            found[new] = name
    return found


def _common(one: list[str], other: list[str]) -> int:
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count


def layer_of(model: Model, tensor: str, *, alias: str | None = None) -> str | None:
    """Return the layer that a stored tensor is, as ``model.layers`` or ``model.fused`` names it.

    Args:
        model: the opened model.
        tensor: the stored tensor's name.
        alias: the module's own path where it shares that tensor with another (a tied head): the name in ``model.tied``.
    """
    if alias is not None:
        near = [name for name in model.tied if name == alias or f".{name}".endswith(f".{alias}")]
        return near[0] if near else alias
    name = layer_name(tensor)
    if name in model.layers or name in model.fused:
        return name
    near = [each for each, home in model.tied.items() if name in {each, home}]
    return near[0] if near else None
