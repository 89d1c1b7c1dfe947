"""Run a module with some of its parts doing something else for the time: pass through, record, stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workbench.calibration.runnable import Batch
from workbench.calibration.store import map_tensors
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Forward = Callable[..., Any]


class ReachedError(Exception):
    """The part that was asked for has been called: the rest of the pass is not needed."""


class NotAStackError(Exception):
    """The repeated blocks do not hand one hidden state from each to the next, so they cannot be streamed one by one."""


@contextmanager
def replaced_forward(replacements: Mapping[torch.nn.Module, Forward]) -> Iterator[None]:
    """Give modules another forward function for the time; an instance's attribute goes before its class's method."""
    before = {module: module.__dict__.get("forward") for module in replacements}
    try:
        for module, forward in replacements.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, was in before.items():
            module.__dict__.pop("forward", None)
            if was is not None:
                module.__dict__["forward"] = was


def without_weights(forward: Forward) -> Forward:
    """Mark a replacement that does not use the weights of the module it stands for: they need not be read."""
    forward.__dict__["needs_weights"] = False
    return forward


@contextmanager
def evaluating(module: torch.nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Run in evaluation mode, without gradients unless asked for, and leave the module's modes as they were.

    ``no_grad`` and not ``inference_mode``: whoever learns a block later needs tensors that autograd may save.
    """
    import torch

    modes = [(child, child.training) for child in module.modules()]
    for child, _ in modes:
        child.training = False
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for child, was in modes:
            child.training = was


def call(module: torch.nn.Module, batch: Batch, device: str) -> Any:
    """Run a module on a batch.

    Raises:
        CheckpointError: it cannot run on these inputs; the reason in one sentence.
    """
    arguments, options = map_tensors((tuple(batch.arguments), dict(batch.options)), lambda each: each.to(device))
    try:
        return module(*arguments, **options)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        message = f"{type(module).__name__} cannot run on these inputs: {reason}"
        raise CheckpointError(message) from error


def hidden_place(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> int | str:
    """Return where the hidden state stands in a block's call: a position, or a name.

    Raises:
        NotAStackError: no tensor of real numbers is there.
    """
    import torch

    for number, value in enumerate(arguments[:1]):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return number
    names = ["hidden_states", *options]
    for name in names:
        value = options.get(name)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return name
    raise NotAStackError


def hidden_of(arguments: tuple[Any, ...], options: Mapping[str, Any], place: int | str) -> Any:
    """Return the hidden state of a block's call."""
    return arguments[place] if isinstance(place, int) else options[place]


def with_hidden(arguments: tuple[Any, ...], options: Mapping[str, Any], place: int | str, hidden: Any) -> Any:
    """Return a block's call (arguments, options) with another hidden state."""
    if isinstance(place, int):
        return (*arguments[:place], hidden, *arguments[place + 1 :]), dict(options)
    return arguments, {**options, place: hidden}


def output_of(value: Any) -> torch.Tensor:
    """Return the hidden state that a block gives: its output, or the first of its outputs.

    Raises:
        CheckpointError: it gives no tensor.
    """
    import torch

    found = value
    if isinstance(value, Mapping):
        found = next(iter(value.values()), None)
    elif isinstance(value, tuple | list):
        found = value[0] if value else None
    if not isinstance(found, torch.Tensor):
        message = (
            f"a block gives {type(value).__name__}, and its first output is no tensor, so nothing can be measured on it"
        )
        raise CheckpointError(message)
    return found


def like_output(value: Any, hidden: Any) -> Any:
    """Return a hidden state in the form of a block's own output.

    Raises:
        NotAStackError: the block gives neither a tensor nor a plain tuple.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return hidden
    if type(value) in (tuple, list) and value:
        return type(value)([hidden, *value[1:]])
    raise NotAStackError
