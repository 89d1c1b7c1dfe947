"""Catch what one module is given while a model runs, and stop when it is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.calibration.runnable import Runnable


class _EnoughError(Exception):
    """The layer has seen enough: the rest of the forward pass is not needed."""


@dataclass(frozen=True, eq=False)
class Caught:
    """Inputs of one module."""

    values: Float[np.ndarray, "..."]
    labels: tuple[str, ...]
    module: torch.nn.Module


def capture(ready: Runnable, path: str, rows: int, progress: Callable[..., Any]) -> Caught:
    """Run a model batch by batch until one of its modules has been given enough.

    Args:
        ready: the model and its batches.
        path: the module.
        rows: wanted rows: of a linear layer's input, or positions of a convolution's input.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        CheckpointError: the module is never called, is given no numbers, or the model cannot take these inputs.
    """
    import torch

    target = ready.module.get_submodule(path)
    convolution = getattr(target, "weight", torch.empty(0)).ndim > 2
    parts: list[np.ndarray] = []
    labels: list[str] = []
    current: tuple[str, ...] = ()
    seen = 0

    def caught(_module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal seen
        value = arguments[0] if arguments else next(iter(options.values()), None)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            message = f"{path} is not given a tensor of numbers, so it has no inputs to catch"
            raise CheckpointError(message)
        part = value.detach().to(device="cpu", dtype=torch.float32, copy=True).numpy()
        if convolution:
            parts.append(part)
            labels.extend([""] * len(part))
            seen += part.shape[0] * int(np.prod(part.shape[2:]))
        else:
            part = part.reshape(-1, part.shape[-1])
            parts.append(part)
            labels.extend(current if len(current) == len(part) else [""] * len(part))
            seen += len(part)
        if seen >= rows:
            raise _EnoughError

    handle = target.register_forward_pre_hook(caught, with_kwargs=True)
    ticks = [
        child.register_forward_pre_hook(lambda *_: progress(min(seen / rows, 0.99)))
        for child in ready.module.modules()
        if next(child.children(), None) is None
    ]
    training = [(child, child.training) for child in ready.module.modules()]
    ready.module.eval()
    try:
        with torch.inference_mode():
            for batch in ready.batches:
                current = batch.labels
                ready.module(*batch.arguments, **batch.options)
    except _EnoughError:
        pass
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        message = f"{type(ready.module).__name__} cannot run on these inputs: {reason}"
        raise CheckpointError(message) from error
    finally:
        for child, was in training:
            child.training = was
        for each in (handle, *ticks):
            each.remove()
    if not parts:
        message = f"{path} was not reached by {ready.description}: give inputs that use it"
        raise CheckpointError(message)
    values = np.concatenate(parts)
    if not convolution:
        values, labels = values[:rows], labels[:rows]
    if not np.isfinite(values).all():
        message = f"the inputs of {path} are not finite ({int((~np.isfinite(values)).sum()):,} of {values.size:,})"
        raise CheckpointError(message)
    return Caught(np.ascontiguousarray(values), tuple(labels) if any(labels) else (), target)
