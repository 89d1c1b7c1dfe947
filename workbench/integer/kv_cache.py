"""Decoding token by token in integers: keys and values of earlier tokens are kept as their int8 codes.

    cache = KVCache()
    logits = decode(model, prompt, cache)                   # all tokens of the prompt at once
    logits = decode(model, prompt[:, -1:], cache)           # then one by one
    tokens = generate(model, prompt, 40)

Every operator of a decoder works on each token by itself or looks back through keys and values, and every range is fixed
by calibration. So a run with a cache computes the very integers of one run over all tokens; nothing is rounded twice.

A cache holds ``2 * layers * key-value heads * head size`` bytes per token and sequence (int8 codes). Layers with a window keep all
tokens too: their masks drop what is out of sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.arguments import one_integer
from workbench.integer.gathering import argmax
from workbench.integer.graph import Node
from workbench.integer.graph_builder import token_array
from workbench.integer.model import IntegerModel
from workbench.integer.running import Mode, Runner


@dataclass(eq=False, repr=False)
class KVCache:
    """Keys and values of the tokens that were run, one array for each ``cache`` node.

    Attributes:
        length: how many tokens of each sequence are held.
    """

    length: int = 0
    _rows: dict[str, np.ndarray] = field(default_factory=dict)

    def extended(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return what is held of a node with new tokens behind it; it counts once ``advance`` is called.

        Args:
            name: of the ``cache`` node.
            rows: codes (sequences, ..., new tokens, head size).

        Raises:
            IntegerError: another number of sequences, or codes of another type, than what is held.
        """
        end = self.length + rows.shape[-2]
        held = self._rows.get(name)
        if held is None or held.shape[-2] < end:
            # Doubling the room copies each token a constant number of times in all.
            room = max(end, 2 * self.length, 16)
            fresh = np.zeros((*rows.shape[:-2], room, rows.shape[-1]), dtype=rows.dtype)
            if held is not None and self.length:
                self._check(held, rows)
                fresh[..., : self.length, :] = held[..., : self.length, :]
            self._rows[name] = held = fresh
        self._check(held, rows)
        held[..., self.length : end, :] = rows
        return held[..., :end, :]

    def advance(self, tokens: int) -> None:
        """Count tokens that every node has added."""
        self.length += tokens

    def forget(self, length: int) -> None:
        """Keep only the first tokens: what comes next overwrites the rest.

        Raises:
            IntegerError: more tokens than are held.
        """
        if not 0 <= length <= self.length:
            message = f"a cache of {self.length} tokens keeps 0 to {self.length} of them, not {length}"
            raise IntegerError(message)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of the held codes (the room that is kept free not counted)."""
        return sum(rows[..., : self.length, :].nbytes for rows in self._rows.values())

    @staticmethod
    def _check(held: np.ndarray, rows: np.ndarray) -> None:
        if held.shape[:-2] != rows.shape[:-2] or held.shape[-1] != rows.shape[-1] or held.dtype != rows.dtype:
            message = (
                f"this cache holds {held.dtype} of {held.shape[0]} sequences, and {rows.dtype} of {rows.shape[0]} came: "
                "use one cache for one batch, one model and one mode"
            )
            raise IntegerError(message)

    def __repr__(self) -> str:
        return f"KVCache({self.length} tokens, {self.nbytes:,} bytes)"


@dataclass(frozen=True, eq=False)
class _CachedRunner(Runner):
    """A run in which positions count on from the cache, and keys and values join what it holds."""

    cache: KVCache = field(default_factory=KVCache)

    def _step(self, node: Node, arrays: list[np.ndarray], mode: Mode, float_nodes: frozenset[str]) -> np.ndarray:
        result = super()._step(node, arrays, mode, float_nodes)
        if node.operator == "positions":
            return result + self.cache.length
        return self.cache.extended(node.name, result) if node.operator == "cache" else result


def decode(
    model: IntegerModel, tokens: Any, cache: KVCache, *, mode: Mode = "integer", codes: bool = False
) -> np.ndarray:
    """Run new tokens behind those that a cache holds, and add them to it.

    Args:
        model: an integer decoder.
        tokens: token ids (sequences, new tokens), or (new tokens,).
        cache: of the same sequences; an empty one at first.
        mode: ``integer``; ``fake`` and ``float`` keep real numbers in the cache.
        codes: return the logits' integers instead of real numbers.

    Returns:
        Logits (sequences, new tokens, vocabulary).

    Raises:
        IntegerError: no decoder, no token ids, or a cache of other sequences.
    """
    if not any(node.operator == "cache" for node in model.graph.nodes):
        message = f"{model.name} is no decoder: no node of it keeps keys and values"
        raise IntegerError(message)
    new = token_array(tokens)
    runner = _CachedRunner(model.graph, model.values, model.semantics, model.float_graph, cache)
    run = runner.run(new, mode=mode)
    cache.advance(new.shape[1])
    name = run.output_names[0]
    return run.arrays[name] if codes else run.real(name)


def generate(
    model: IntegerModel,
    tokens: Any,
    new_tokens: int,
    *,
    stop: int | Iterable[int] = (),
    mode: Mode = "integer",
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Return sequences continued with the likeliest token each time (greedy decoding).

    In integers nothing is dequantized: the likeliest token is the one with the largest code, the first of equals.

    Args:
        model: an integer decoder.
        tokens: prompts of one length, token ids (sequences, tokens) or (tokens,).
        new_tokens: how many tokens to add at most.
        stop: tokens that end a sequence; once every sequence has one, nothing is added. A sequence that has ended repeats its last token.
        mode: ``integer``, ``fake`` or ``float``.
        progress: told the finished fraction; may raise ``Cancelled``.

    Returns:
        int64 (sequences, tokens and what was added).

    Raises:
        IntegerError: no decoder, no token ids, or no number of tokens.
    """
    found = token_array(tokens)
    new_tokens = one_integer(new_tokens, "the number of tokens to add", 0, 1 << 31)
    ends = np.asarray(sorted(stop) if isinstance(stop, Iterable) else [stop], dtype=np.int64)
    cache = KVCache()
    ended = np.zeros(len(found), dtype=bool)
    fresh = found
    for step in range(new_tokens):
        if progress is not None:
            progress(step / new_tokens)
        last = decode(model, fresh, cache, mode=mode, codes=True)[:, -1]
        chosen = argmax(last) if last.dtype.kind in "iu" else np.argmax(last, axis=-1)
        fresh = np.where(ended, fresh[:, -1], chosen).astype(np.int64)[:, None]
        found = np.concatenate([found, fresh], axis=1)
        ended |= np.isin(fresh[:, 0], ends)
        if ended.all():
            break
    return found
