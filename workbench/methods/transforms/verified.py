"""Change a block only if it computes the same afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench.errors import QuantizationError
from workbench.methods.task import Arguments, BlockTask

if TYPE_CHECKING:
    import torch

#: How far a block's float output may move, as the norm of the difference over the norm of the output.
TOLERANCE = 1e-4


def output_of(module: torch.nn.Module, arguments: Arguments) -> torch.Tensor:
    """Return what a block gives for one batch: its output, or the first tensor of a tuple."""
    import torch

    with torch.no_grad():
        found = module(*arguments[0], **arguments[1])
    while not isinstance(found, torch.Tensor):
        found = next(iter(found.values() if hasattr(found, "values") else found))
    return found


def relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the first, float64; infinite where it is not finite."""
    true, found = before.cpu().double(), after.cpu().double()
    gap, size = float((found - true).norm()), float(true.norm())
    if not math.isfinite(gap):
        return math.inf
    return gap / size if size > 0.0 else (0.0 if gap == 0.0 else math.inf)


def change_if_equal(block: BlockTask, what: str, change: Callable[[], Any]) -> str | None:
    """Make a change in place and keep it if the output on the first batch stays the same; else undo it.

    Args:
        block: the block; the weights and buffers of its module are what ``change`` may touch.
        what: the change in words.
        change: does it.

    Returns:
        None, or the note that it was undone.

    Raises:
        QuantizationError: the block has no inputs to check on.
    """
    import torch

    if not len(block.inputs):
        message = f"{block.name} has no inputs: {what} can only be checked, and so done, with at least one batch"
        raise QuantizationError(message)
    first = block.inputs[0]
    before = output_of(block.module, first)
    kept = {name: value.detach().clone() for name, value in block.module.state_dict(keep_vars=True).items()}

    def undo() -> None:
        for name, value in block.module.state_dict(keep_vars=True).items():
            value.data.copy_(kept[name])

    try:
        with torch.no_grad():
            change()
        moved = relative_change(before, output_of(block.module, first))
    except BaseException:
        undo()
        raise
    if moved <= TOLERANCE:
        return None
    undo()
    return f"{what} was undone: the output of {block.name} would have moved by {moved:.2g} of its size"
