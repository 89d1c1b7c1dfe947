"""Texts as windows of tokens, as in Hugging Face's guide to fixed-length models.

Each text is cut into windows that start ``stride`` tokens apart; each token is scored once, in the first window that holds it,
so it has at least ``window - stride`` tokens before it (or all there are); the first token of a text is given, not scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.errors import WorkbenchError


@dataclass(frozen=True, eq=False)
class Window:
    """Tokens that the model sees at once, and which of them are scored."""

    document: int
    ids: Int[np.ndarray, " tokens"]
    first: int
    """Place in the window of the first token that is scored; those from here to the end are."""

    @property
    def targets(self) -> Int[np.ndarray, " scored"]:
        """The tokens that are scored; the logits one place before each foretell it."""
        return self.ids[self.first :]


@dataclass(frozen=True, eq=False)
class Plan:
    """All windows of some texts."""

    windows: list[Window]
    size: int
    """Bytes of all texts; 0 where tokens were given."""
    complete: bool
    """Whether every text is covered: no limit cut the plan short."""

    @property
    def documents(self) -> Int[np.ndarray, " windows"]:
        """Number of the document of each window."""
        return np.asarray([window.document for window in self.windows], dtype=np.int64)

    @property
    def counts(self) -> Int[np.ndarray, " windows"]:
        """Scored tokens of each window."""
        return np.asarray([len(window.targets) for window in self.windows], dtype=np.int64)

    def batches(self, most: int) -> Iterator[tuple[int, list[Window]]]:
        """Yield (place of the first, windows): neighbours of one length, at most so many, so that nothing is padded."""
        start = 0
        while start < len(self.windows):
            end, length = start + 1, len(self.windows[start].ids)
            while end < min(start + most, len(self.windows)) and len(self.windows[end].ids) == length:
                end += 1
            yield start, self.windows[start:end]
            start = end


def plan_windows(texts: Any, tokenizer: Any, window: int, stride: int | None, limit: int | None) -> Plan:
    """Cut texts, or sequences of token ids, into windows.

    Args:
        texts: texts, or sequences of token ids; one of either counts as a list of one.
        tokenizer: called with a text it gives a mapping with ``input_ids``; None where token ids are given.
        window: most tokens that the model sees at once.
        stride: how far one window starts behind the one before; half of ``window`` by default.
        limit: stop after the window in which so many tokens are scored.

    Raises:
        WorkbenchError: texts without tokenizer, nothing to score, or windows that leave tokens out.
    """
    step = window // 2 if stride is None else stride
    if window < 2 or not 1 <= step < window:
        message = f"windows of {window} tokens start 1 to {max(window - 1, 1)} tokens apart, not {step}"
        raise WorkbenchError(message)
    sequences, size = token_sequences(texts, tokenizer)
    windows: list[Window] = []
    scored, complete = 0, True
    for document, ids in enumerate(sequences):
        for begin, first, end in _places(len(ids), window, step):
            if limit is not None and scored >= limit:
                complete = False
                break
            windows.append(Window(document, ids[begin:end], first - begin))
            scored += end - first
    if not windows:
        message = "perplexity needs a text of two tokens or more: the first is given, the others are scored"
        raise WorkbenchError(message)
    return Plan(windows, size, complete)


def token_sequences(texts: Any, tokenizer: Any) -> tuple[list[Int[np.ndarray, " tokens"]], int]:
    """Return token ids of every text, and the bytes of all texts (0 where tokens were given).

    Raises:
        WorkbenchError: texts without tokenizer, or neither texts nor token ids.
    """
    if isinstance(texts, str) or getattr(texts, "ndim", 0) == 1:
        texts = [texts]
    if not isinstance(texts, Iterable):
        message = f"perplexity takes texts, or sequences of token ids, not {type(texts).__name__}"
        raise WorkbenchError(message)
    found: Sequence[Any] = list(texts)
    if any(isinstance(text, str) for text in found):
        if tokenizer is None:
            message = "texts need a tokenizer: give one, or give token ids"
            raise WorkbenchError(message)
        if not all(isinstance(text, str) for text in found):
            message = "give texts, or token ids, not both"
            raise WorkbenchError(message)
        return [token_ids(encode(tokenizer, text)) for text in found], sum(len(text.encode()) for text in found)
    return [token_ids(ids) for ids in found], 0


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return a text's token ids with the special ones that the tokenizer adds, whatever their number."""
    try:
        # The tokenizer would warn of texts longer than the model's window; they are cut here.
        return tokenizer(text, verbose=False)["input_ids"]
    except TypeError:  # a plain function from a text to its tokens
        return tokenizer(text)["input_ids"]


def token_ids(ids: Any) -> Int[np.ndarray, " tokens"]:
    """Return one sequence of token ids, int64.

    Raises:
        WorkbenchError: no integers, or several sequences.
    """
    found = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
    if found.size == 0:
        return np.zeros(0, dtype=np.int64)
    if found.dtype.kind not in "iu" or found.ndim == 0 or found.size != found.shape[-1]:
        message = f"a sequence of token ids is integers (tokens,), not {found.dtype} {found.shape}"
        raise WorkbenchError(message)
    return found.reshape(-1).astype(np.int64)


def _places(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (begin, first scored token, end) of each window."""
    places, scored = [], 1
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        if end <= scored:
            break
        places.append((begin, scored, end))
        scored = end
    return places
