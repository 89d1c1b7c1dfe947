"""Calibration text without data: the model writes it itself.

As in LLM-QAT (Liu et al. 2023, arXiv 2305.17888; its published script): each text starts from one token of the
vocabulary, the next two to four are the likeliest ones (so a text has three to five fixed tokens, row by row in turn),
and all others are drawn from the model's own distribution. Two things are derived, not LLM-QAT's: the first token is
drawn evenly from the vocabulary without its special tokens (the script takes tokens in the order of their numbers), and
special tokens are never drawn, so that no text ends early and all have one length (the script keeps short ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from workbench.calibration.decoding import continue_tokens, greedy, most_positions
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import torch

#: Fixed tokens of a text, in turn: the first one and the likeliest that follow.
FIXED_TOKENS = (3, 4, 5)


def generate_texts(
    module: torch.nn.Module,
    tokenizer: Any = None,
    *,
    samples: int = 64,
    length: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    start: Literal["token", "bos"] = "token",
    batch: int = 16,
    progress: Callable[[float, str], Any] | None = None,
) -> Int[np.ndarray, "samples length"]:
    """Return token ids of texts that a causal language model wrote.

    Each text draws from a random generator of its own, so the first texts of many are the texts of few.

    Args:
        module: a causal language model.
        tokenizer: says which tokens are special and whether texts start with one; without it the model's config does.
        samples: how many texts.
        length: tokens of each, with the first one; at most what the model can read at once.
        temperature: the logits are divided by it; 0 takes the likeliest token always.
        seed: of all draws.
        start: ``token``: a random first token, then likeliest ones, then draws (see above); ``bos``: the token that
            begins texts, and draws from there on.
        batch: texts that are written at once. Their sums may round otherwise than one text's alone.
        progress: told the finished fraction and a label; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no samples, a length that the model cannot read, a temperature below 0, or no such start.
    """
    most = most_positions(module)
    if samples < 1 or batch < 1 or length < 2 or (most is not None and length > most):
        limit = f"2 to {most}" if most is not None else "at least 2"
        message = f"synthetic texts are at least one, of {limit} tokens, not {samples} of {length}"
        raise WorkbenchError(message)
    if not temperature >= 0.0 or math.isinf(temperature):
        message = f"a temperature is 0 (the likeliest token always) or more, not {temperature}"
        raise WorkbenchError(message)
    if start not in {"token", "bos"}:
        message = f"a synthetic text starts from a random 'token' or from 'bos', not {start!r}"
        raise WorkbenchError(message)
    special, beginning = _special(module, tokenizer)
    if start == "bos" and beginning is None:
        message = "this model has no token that begins texts: start from a random 'token' instead"
        raise WorkbenchError(message)
    vocabulary = _vocabulary(module, tokenizer)
    allowed = np.setdiff1d(np.arange(vocabulary), np.asarray(sorted(special), dtype=np.int64))
    if len(allowed) == 0:
        message = "every token of the vocabulary is special: no text can be written"
        raise WorkbenchError(message)
    parts = []
    for first in range(0, samples, batch):
        rows = np.arange(first, min(first + batch, samples))
        draws = np.stack([np.random.default_rng([seed, int(row)]).random(length) for row in rows])
        head = [] if beginning is None else [np.full(len(rows), beginning, dtype=np.int64)]
        if start == "token":
            head.append(allowed[(draws[:, 0] * len(allowed)).astype(np.int64)])
        begin = np.stack(head, axis=1)[:, :length]
        fixed = (
            np.zeros(len(rows), dtype=np.int64)
            if start == "bos"
            else np.asarray([FIXED_TOKENS[row % len(FIXED_TOKENS)] - 1 for row in rows])
        )

        def choose(
            logits: np.ndarray, step: int, draws: np.ndarray = draws, fixed: np.ndarray = fixed
        ) -> Int[np.ndarray, " rows"]:
            banned = np.full(logits.shape[1], -np.inf)
            banned[allowed[allowed < len(banned)]] = 0.0
            masked = logits + banned
            drawn = draw_tokens(masked, draws[:, step + 1], temperature)
            return np.where(step < fixed, greedy(masked), drawn)

        def tell(fraction: float, label: str, first: int = first, count: int = len(rows)) -> None:
            if progress is not None:
                progress((first + fraction * count) / samples, f"writing texts: {label}")

        parts.append(continue_tokens(module, begin, length - begin.shape[1], choose, progress=tell))
    return np.concatenate(parts)


def draw_tokens(
    logits: Float[np.ndarray, "rows vocabulary"], uniform: Float[np.ndarray, " rows"], temperature: float
) -> Int[np.ndarray, " rows"]:
    """Draw one token a row from softmax(logits / temperature) by inverting its distribution function.

    Args:
        logits: float64; minus infinity for tokens that must not be drawn.
        uniform: one number in [0, 1) for each row.
        temperature: 0 takes the largest logit.

    Raises:
        WorkbenchError: a row allows no token.
    """
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        message = "no token can be drawn: a row of logits holds no finite number, or an infinite one"
        raise WorkbenchError(message)
    if temperature == 0.0:
        return greedy(logits)
    rising = np.cumsum(np.exp((logits - top) / temperature), axis=1)
    places = [int(np.searchsorted(row, u * row[-1], side="right")) for row, u in zip(rising, uniform, strict=True)]
    # u * total may round up to the total itself: the last token that can be drawn is meant.
    last = logits.shape[1] - 1 - np.argmax(np.isfinite(logits)[:, ::-1], axis=1)
    return np.minimum(places, last)


def _special(module: torch.nn.Module, tokenizer: Any) -> tuple[set[int], int | None]:
    """Return the special tokens, and the one that begins texts (None where texts begin without one)."""
    config: Any = getattr(module, "config", None)
    named = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")]
    special = {each for value in named for each in (value if isinstance(value, list) else [value]) if each is not None}
    if tokenizer is None:
        beginning = named[0]
    else:
        special |= set(getattr(tokenizer, "all_special_ids", ()))
        begin_id = getattr(tokenizer, "bos_token_id", None)
        ids = list(tokenizer("a")["input_ids"]) if begin_id is not None else []
        beginning = begin_id if ids and ids[0] == begin_id else None
    return {int(each) for each in special}, None if beginning is None else int(beginning)


def _vocabulary(module: torch.nn.Module, tokenizer: Any) -> int:
    """Return how many tokens have a meaning: the model's table may be padded beyond the tokenizer's."""
    config: Any = getattr(module, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    known = [int(getattr(text, "vocab_size", 0) or 0), len(tokenizer) if hasattr(tokenizer, "__len__") else 0]
    sizes = [size for size in known if size > 0]
    if not sizes:
        message = "how many tokens the model knows is not in its config: give its tokenizer"
        raise WorkbenchError(message)
    return min(sizes)
