"""What real inputs look like, channel by channel, where layers of a block read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import QuantizationError
from workbench.methods.task import Arguments, BlockTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Channels:
    """Magnitudes of one layer's inputs."""

    absmax: torch.Tensor
    """max abs(x) of each channel."""
    mean_magnitude: torch.Tensor
    """E[abs(x)] of each channel."""


def watch_channels(block: BlockTask, paths: Iterable[str]) -> dict[str, Channels]:
    """Run all of a block's inputs and return the magnitudes of what layers at some paths read (last axis: channels).

    Raises:
        QuantizationError: a layer is never called, or reads numbers that are not finite.
    """
    import torch

    wanted = list(dict.fromkeys(paths))
    largest: dict[str, torch.Tensor] = {}
    total: dict[str, torch.Tensor] = {}
    count: dict[str, int] = dict.fromkeys(wanted, 0)

    def watch(path: str) -> Any:
        def hook(_: Any, arguments: tuple[Any, ...]) -> None:
            rows = arguments[0].detach().abs().flatten(0, -2)
            peak = rows.amax(dim=0)
            largest[path] = torch.maximum(largest[path], peak) if path in largest else peak
            part = rows.sum(dim=0, dtype=torch.float64) if rows.device.type != "mps" else rows.sum(dim=0)
            total[path] = total[path] + part if path in total else part
            count[path] += len(rows)

        return hook

    hooks = [block.module.get_submodule(path).register_forward_pre_hook(watch(path)) for path in wanted]
    try:
        with torch.no_grad():
            for arguments, options in block.inputs:
                block.module(*arguments, **options)
    finally:
        for hook in hooks:
            hook.remove()
    for path in wanted:
        if not count[path]:
            message = f"{path} of {block.name} is given nothing while the block runs, so nobody knows its inputs"
            raise QuantizationError(message)
        if not bool(largest[path].isfinite().all()):
            message = f"the inputs of {path} in {block.name} are not finite; the float model must be finite first"
            raise QuantizationError(message)
    return {path: Channels(largest[path], (total[path] / count[path]).to(largest[path].dtype)) for path in wanted}


@dataclass(frozen=True, eq=False)
class PartCalls:
    """What one part of a block was called with, batch by batch."""

    part: torch.nn.Module
    calls: Sequence[Arguments]


def record_calls(block: BlockTask, path: str, most_rows: int) -> PartCalls:
    """Run a block's inputs, batch by batch, until a part of it was given enough rows; return what it was called with.

    Args:
        block: the block.
        path: of the part.
        most_rows: vectors along the channels after which no further batch is run.
    """
    import torch

    part = block.module.get_submodule(path)
    calls: list[Arguments] = []
    rows = 0

    def hook(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal rows
        calls.append((arguments, options))
        value = arguments[0] if arguments else options.get("hidden_states", next(iter(options.values())))
        rows += value.numel() // value.shape[-1]

    handle = part.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            for arguments, options in block.inputs:
                block.module(*arguments, **options)
                if rows >= most_rows:
                    break
    finally:
        handle.remove()
    return PartCalls(part, calls)
