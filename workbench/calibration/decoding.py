"""A causal language model continues token sequences, many rows at once, each step reading only the new token where it can.

``continue_tokens`` leaves the choice of the next token to its caller: the largest logit (generation side by side) or a
draw (synthetic calibration text).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import torch

#: From the last position's logits, float64 (rows, vocabulary), and the step's number to the next tokens, (rows,).
Choose = Callable[[Float[np.ndarray, "rows vocabulary"], int], Int[np.ndarray, " rows"]]


def continue_tokens(
    module: torch.nn.Module,
    ids: Int[np.ndarray, "rows start"],
    steps: int,
    choose: Choose,
    *,
    finished: Callable[[Int[np.ndarray, "rows tokens"]], bool] | None = None,
    progress: Callable[[float, str], Any] | None = None,
) -> Int[np.ndarray, "rows tokens"]:
    """Append tokens to every row, one after another.

    Models of transformers keep their keys and values between steps; any other module reads its whole sequence again.

    Args:
        module: a causal language model; it runs on the device it lies on, in evaluation mode, without gradients.
        ids: token ids, (rows, start), at least one of each.
        steps: how many tokens to append at most, 0 or more.
        choose: the next tokens from the logits of the last position and the step's number, 0 for the first.
        finished: told all rows after each step; True ends the run early.
        progress: told the finished fraction and a label before each step; may raise ``Cancelled``.

    Raises:
        WorkbenchError: nothing to start from, or logits that are no numbers or of another shape.
    """
    import torch

    found = np.asarray(ids)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "iu":
        message = (
            f"a continuation starts from token ids (rows, tokens), at least one each, not {found.dtype} {found.shape}"
        )
        raise WorkbenchError(message)
    found = found.astype(np.int64)
    accepted = _accepted(module)
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    if "use_cache" in accepted:
        options["use_cache"] = True
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    was_training = module.training
    module.eval()
    cache, unread = None, found
    try:
        with torch.no_grad():
            for step in range(steps):
                if progress is not None:
                    progress(step / steps, f"token {step + 1} of {steps}")
                given = torch.from_numpy(unread).to(device)
                if cache is not None:
                    options["past_key_values"] = cache
                out = module(given, **options)
                logits = out if isinstance(out, torch.Tensor) else getattr(out, "logits", None)
                last = _last_row(logits, len(found))
                cache = getattr(out, "past_key_values", None)
                chosen = np.asarray(choose(last, step), dtype=np.int64)
                found = np.concatenate([found, chosen[:, None]], axis=1)
                unread = found if cache is None else chosen[:, None]
                if finished is not None and finished(found):
                    break
    finally:
        module.train(was_training)
    return found


def greedy(logits: Float[np.ndarray, "rows vocabulary"], step: int = 0) -> Int[np.ndarray, " rows"]:
    """Choose the token of the largest logit, the first of equals, whatever the step."""
    return logits.argmax(axis=1)


def most_positions(module: torch.nn.Module) -> int | None:
    """Return how many tokens a model of transformers can read at once; None where its config does not say."""
    config: Any = getattr(module, "config", None)
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 0) or None


def _accepted(module: torch.nn.Module) -> set[str]:
    try:
        return set(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return set()


def _last_row(logits: Any, rows: int) -> Float[np.ndarray, "rows vocabulary"]:
    import torch

    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or len(logits) != rows:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        message = f"a causal language model gives logits ({rows}, tokens, vocabulary) for {rows} rows, not {what}"
        raise WorkbenchError(message)
    # Through the CPU first: not every device knows float64.
    last = logits[:, -1].float().cpu().numpy().astype(np.float64)
    if np.isnan(last).any():
        message = "the model's logits hold NaN: no next token can be chosen"
        raise WorkbenchError(message)
    return last
