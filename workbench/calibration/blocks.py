"""The blocks of a model in the order of its computation: repeated transformer blocks, residual blocks, single layers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.calibration.forwarding import (
    NotAStackError,
    ReachedError,
    call,
    evaluating,
    hidden_of,
    hidden_place,
    like_output,
    replaced_forward,
    without_weights,
)
from workbench.calibration.runnable import Batch
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.calibration.lazy_module import LazyModule
    from workbench.calibration.whole_module import WholeModule

#: A part of a network that repeats nothing inside and holds at most so many layers is taken as one block.
MOST_LAYERS = 16
#: Outputs of a layer that stands aside for a pass are zeros of their own up to this count; beyond it, one zero for all.
MOST_ZEROS = 1 << 22


@dataclass(frozen=True)
class Plan:
    """Paths of modules in the order of the computation."""

    before: tuple[str, ...] = ()
    """Layers, or blocks, that run before the stack (all of them where there is no stack)."""
    stack: tuple[str, ...] = ()
    """Repeated blocks, each of which hands its hidden state to the next."""
    after: tuple[str, ...] = ()
    """Layers that run after the stack."""
    form: Any = None
    """What the stack's first block gave: the form of every block's output."""
    calls: dict[str, int] = field(default_factory=dict)
    """How often a module outside the stack is called in one pass."""


def is_layer(module: torch.nn.Module) -> bool:
    """Say whether a module multiplies its input by a weight whose matrix view is (outputs, inputs of one output)."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return False  # of torch's own attention, which multiplies by its weight without calling it
    return isinstance(module, kinds) or type(module).__name__ == "Conv1D"


def layers_inside(module: torch.nn.Module) -> list[str]:
    """Return the paths of the layers in a module; ``""`` is the module itself."""
    return [path for path, child in module.named_modules() if is_layer(child)]


def find_stack(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the paths of the repeated blocks: the list of like modules, two or more, that holds the most weights."""
    import torch

    best: tuple[int, tuple[str, ...]] = (0, ())
    for path, child in module.named_modules():
        if not isinstance(child, torch.nn.ModuleList) or len(child) < 2 or len({type(each) for each in child}) != 1:
            continue
        if not all(layers_inside(each) and not is_layer(each) for each in child):
            continue
        size = sum(parameter.numel() for parameter in child.parameters())
        if size > best[0]:
            best = (size, tuple(f"{path}.{name}" if path else name for name, _ in child.named_children()))
    return best[1]


def plan_stack(host: WholeModule | LazyModule, batch: Batch) -> Plan:
    """Find the repeated blocks and the layers around them by one pass in which the blocks hand their input through.

    Raises:
        NotAStackError: there are none, or they do not hand one hidden state from each to the next.
        CheckpointError: the model cannot run on these inputs.
    """
    module = host.module
    stack = find_stack(module)
    if not stack:
        raise NotAStackError
    blocks = [module.get_submodule(path) for path in stack]
    inside = {child for block in blocks for child in block.modules()}
    outside = {child: path for path, child in module.named_modules() if is_layer(child) and child not in inside}
    order: list[str] = []
    form: list[Any] = []
    first = host.copy(stack[0], "cpu" if host.lazy else host.device)

    def whole_first(*arguments: Any, **options: Any) -> Any:
        form.append(first(*arguments, **options))
        return form[0]

    handover = Handover(
        len(blocks), whole_first, lambda number, _arguments, _options, _place: order.append(f"#{number}")
    )
    replacements: dict[torch.nn.Module, Callable[..., Any]] = dict(zip(blocks, handover.forwards, strict=True))
    handles = []
    for child, path in outside.items():
        handles.append(child.register_forward_pre_hook(lambda _child, _arguments, path=path: order.append(path)))
        if (outputs := _outputs(child)) is not None:
            replacements[child] = _zeros(outputs)
    try:
        with evaluating(module), host.running(), replaced_forward(replacements):
            call(module, batch, host.device)
    finally:
        for handle in handles:
            handle.remove()
    if [word for word in order if word.startswith("#")] != [f"#{number}" for number in range(len(blocks))]:
        raise NotAStackError
    calls = Counter(word for word in order if not word.startswith("#"))
    start, end = order.index("#0"), order.index(f"#{len(blocks) - 1}")
    between = [word for word in order[start:end] if not word.startswith("#")]
    before, after = list(dict.fromkeys(order[:start])), list(dict.fromkeys(order[end + 1 :]))
    if between or set(before) & set(after):
        raise NotAStackError
    return Plan(tuple(before), stack, tuple(after), form[0], dict(calls))


class Handover:
    """Forward functions of blocks that give their hidden state on as they got it, and tell how they were called.

    Args:
        count: how many blocks there are.
        first: the first block's own forward pass: what it gives beside the hidden state is handed on as it is.
        told: called with (block's number, arguments, options, place of the hidden state) in each block.
        form: where the first block's output is known and has no tensors beside the hidden state.
    """

    def __init__(
        self,
        count: int,
        first: Callable[..., Any] | None,
        told: Callable[[int, tuple[Any, ...], dict[str, Any], int | str], object],
        form: Any = None,
    ) -> None:
        self._first = first
        self._told = told
        self._form = form
        self._given: Any = None
        self.forwards = [self._forward(number) for number in range(count)]

    def _forward(self, number: int) -> Callable[..., Any]:
        def forward(*arguments: Any, **options: Any) -> Any:
            place = hidden_place(arguments, options)
            hidden = hidden_of(arguments, options, place)
            if number and hidden is not self._given:
                raise NotAStackError  # something is computed between the blocks
            self._told(number, arguments, options, place)
            if number == 0 and self._first is not None:
                self._form = self._first(*arguments, **options)
                given = self._form[0] if isinstance(self._form, tuple | list) else self._form
                if getattr(given, "shape", None) != hidden.shape:
                    raise NotAStackError
            # A tensor of its own, so that a block that is handed anything else is noticed.
            self._given = hidden.view_as(hidden)
            return like_output(self._form, self._given)

        return without_weights(forward)


def _outputs(layer: torch.nn.Module) -> int | None:
    """Return how many outputs a linear layer has; None for other layers."""
    import torch

    if isinstance(layer, torch.nn.Linear):
        return layer.out_features
    weight: Any = layer.weight
    return int(weight.shape[1]) if type(layer).__name__ == "Conv1D" else None


def _zeros(outputs: int) -> Callable[..., Any]:
    """Return a forward function that gives zeros of a linear layer's output shape: no weight is read, no memory taken."""

    def forward(value: Any, *_arguments: Any, **_options: Any) -> Any:
        shape = (*value.shape[:-1], outputs)
        if value.numel() // value.shape[-1] * outputs <= MOST_ZEROS:
            return value.new_zeros(shape)
        return value.new_zeros(1).expand(shape)  # logits of a large vocabulary: nobody writes into them

    return without_weights(forward)


def plan_units(host: WholeModule, batch: Batch) -> Plan:
    """Find the blocks of any module by one pass: parts that are called and repeat nothing inside, and single layers.

    Raises:
        CheckpointError: the module cannot run on these inputs, or none of its layers is called.
    """
    module = host.module
    entered: list[torch.nn.Module] = []
    handles = [
        child.register_forward_pre_hook(lambda child, _arguments: entered.append(child)) for child in module.modules()
    ]
    try:
        with evaluating(module), host.running():
            call(module, batch, host.device)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(entered)
    paths: dict[torch.nn.Module, str] = {}
    for path, child in module.named_modules():
        paths.setdefault(child, path)
    units: set[torch.nn.Module] = set()

    def visit(child: torch.nn.Module) -> None:
        layers = [each for each in child.modules() if is_layer(each) and calls[each]]
        if not layers:
            return
        whole = child is not module and calls[child] == 1 and _repeats_nothing(child) and len(layers) <= MOST_LAYERS
        if is_layer(child) or whole:
            units.add(child)
            return
        for each in child.children():
            visit(each)

    visit(module)
    ordered = [paths[child] for child in dict.fromkeys(entered) if child in units]
    if not ordered:
        message = f"no linear layer or convolution of {type(module).__name__} is called with these inputs"
        raise CheckpointError(message)
    return Plan(before=tuple(ordered), calls={paths[child]: count for child, count in calls.items()})


def _repeats_nothing(module: torch.nn.Module) -> bool:
    """Say whether a module is no container, and holds no two like parts with layers of their own."""
    import torch

    containers = (torch.nn.Sequential, torch.nn.ModuleList)
    if isinstance(module, containers):
        return False
    for child in module.modules():
        if isinstance(child, containers):
            kinds = Counter(type(each) for each in child if layers_inside(each) and not is_layer(each))
            if any(count > 1 for count in kinds.values()):
                return False
    return True


def capture_calls(
    host: WholeModule | LazyModule,
    path: str,
    batch: Batch,
    replacements: dict[torch.nn.Module, Callable[..., Any]],
    times: int,
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Run a model on a batch until one of its modules has been called so many times; return what it was given.

    Raises:
        CheckpointError: it cannot run on these inputs, or never calls the module.
    """
    target = host.module.get_submodule(path)
    own = replacements.get(target)
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def caught(*arguments: Any, **options: Any) -> Any:
        seen.append((arguments, options))
        if len(seen) >= times:
            raise ReachedError
        return (own or type(target).forward.__get__(target))(*arguments, **options)

    if times == 1 or own is not None:
        without_weights(caught)
    forwards = {**replacements, target: caught}
    with evaluating(host.module), host.running(), replaced_forward(forwards), contextlib.suppress(ReachedError):
        call(host.module, batch, host.device)
    if not seen:
        message = f"{path} is not called with these inputs, so it cannot be calibrated on them"
        raise CheckpointError(message)
    return seen
