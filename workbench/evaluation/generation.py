"""What two language models write on the same prompts, side by side, with the tokens that differ marked.

    for each in generate_side_by_side("demo:tiny-gemma3", quantized, ["def read_lines(path):"]):
        each.first_difference, each.text, each.reference_text

Both write greedily: the token with the largest logit, always. From the first difference on, the texts follow each other no
more, so tokens are aligned (longest matching blocks) and those without a partner count as different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.calibration.decoding import continue_tokens, greedy, most_positions
from workbench.errors import WorkbenchError
from workbench.evaluation.log_probabilities import checked_logits
from workbench.evaluation.subject import Subject, subject
from workbench.evaluation.windows import encode


@dataclass(frozen=True, repr=False)
class Generated:
    """One prompt continued by two models.

    Attributes:
        prompt: the prompt's text.
        reference_tokens: token ids that the reference wrote.
        tokens: token ids that the model wrote.
        reference_pieces: text of each of the reference's tokens; put together they are the text.
        pieces: text of each of the model's tokens.
        first_difference: place of the first token that differs; None where all are the same.
        reference_differs: whether each of the reference's tokens has no partner in the model's text.
        differs: whether each of the model's tokens has none in the reference's.
    """

    prompt: str
    reference_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    reference_pieces: tuple[str, ...]
    pieces: tuple[str, ...]
    first_difference: int | None
    reference_differs: tuple[bool, ...]
    differs: tuple[bool, ...]

    @property
    def reference_text(self) -> str:
        """What the reference wrote."""
        return "".join(self.reference_pieces)

    @property
    def text(self) -> str:
        """What the model wrote."""
        return "".join(self.pieces)

    def __repr__(self) -> str:
        where = "all the same" if self.first_difference is None else f"first difference at {self.first_difference}"
        return f"Generated({self.prompt[:40]!r}, {len(self.tokens)} tokens, {where})"

    def _repr_html_(self) -> str:
        rows = (
            ("reference", self.reference_pieces, self.reference_differs),
            ("model", self.pieces, self.differs),
        )
        cells = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{name}</th><td style='text-align:left;"
            f"white-space:pre-wrap;font-family:monospace'>{_marked(pieces, flags)}</td></tr>"
            for name, pieces, flags in rows
        )
        where = (
            "the same tokens"
            if self.first_difference is None
            else f"the first difference is token {self.first_difference + 1}; tokens that differ are underlined and bold"
        )
        return (
            f"<table class='workbench-generated'><caption style='text-align:left'>{where}</caption>"
            f"<tr><th style='text-align:left'>prompt</th><td style='text-align:left;white-space:pre-wrap;"
            f"font-family:monospace'>{escape(self.prompt)}</td></tr>{cells}</table>"
        )


def generate_side_by_side(
    reference: Any,
    model: Any,
    prompts: Sequence[str] | str,
    *,
    tokens: int = 48,
    tokenizer: Any = None,
    progress: Callable[[float], None] | None = None,
) -> list[Generated]:
    """Let two causal language models continue the same prompts greedily.

    Args:
        reference: the float model; all that ``perplexity`` takes.
        model: what is compared with it, of the same tokenizer.
        prompts: texts.
        tokens: how many each writes at most, 1 or more; it ends early at the token that ends texts.
        tokenizer: by default the reference's own.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        WorkbenchError: no prompts, no tokenizer, or a prompt that leaves no room for the tokens.
        CheckpointError: a source that cannot be run.
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked or not all(isinstance(prompt, str) for prompt in asked) or tokens < 1:
        message = f"side by side, models continue one prompt or more by one token or more, not {len(asked)} by {tokens}"
        raise WorkbenchError(message)
    first = subject(reference, tokenizer=tokenizer, kind="causal")
    second = subject(model, tokenizer=tokenizer, kind="causal", like=first)
    reader = first.tokenizer if first.tokenizer is not None else second.tokenizer
    if reader is None:
        message = "prompts need a tokenizer: give one"
        raise WorkbenchError(message)
    found, turns = [], 2 * len(asked)
    for number, prompt in enumerate(asked):
        ids = np.asarray(encode(reader, prompt), dtype=np.int64)
        if len(ids) == 0:
            message = f"the prompt {prompt[:40]!r} has no tokens, and nothing begins texts with this tokenizer"
            raise WorkbenchError(message)
        written = []
        for turn, each in enumerate((first, second)):

            def tell(fraction: float, _: str = "", done: int = 2 * number + turn) -> None:
                if progress is not None:
                    progress((done + fraction) / turns)

            written.append(write_greedily(each, ids, tokens, reader, progress=tell))
        found.append(_side_by_side(prompt, ids, written[0], written[1], reader))
    return found


def write_greedily(
    model: Subject,
    ids: Int[np.ndarray, " start"],
    tokens: int,
    tokenizer: Any,
    *,
    progress: Callable[[float, str], Any] | None = None,
    finished: Callable[[list[int]], bool] | None = None,
) -> list[int]:
    """Return the tokens that a model appends, without the one that ends texts.

    Args:
        model: a causal language model.
        ids: what it continues, one token or more.
        tokens: how many at most.
        tokenizer: names the token that ends texts.
        progress: told the finished fraction and a label; may raise ``Cancelled``.
        finished: told the new tokens after each; True ends the text.

    Raises:
        WorkbenchError: more tokens than the model can read at once, or logits that are none.
    """
    most = None if model.module is None else most_positions(model.module)
    if most is not None and len(ids) + tokens > most:
        message = f"{model.name} reads {most} tokens at once: {len(ids)} of the prompt leave no room for {tokens} more"
        raise WorkbenchError(message)
    ends = _ends(model, tokenizer)

    def stop(rows: np.ndarray) -> bool:
        new = rows[0, len(ids) :].tolist()
        return new[-1] in ends or (finished is not None and finished(new))

    if model.module is not None:
        whole = continue_tokens(model.module, ids[None], tokens, greedy, finished=stop, progress=progress)
    else:
        whole = ids[None]
        for step in range(tokens):
            if progress is not None:
                progress(step / tokens, f"token {step + 1} of {tokens}")
            logits = checked_logits(model.logits(whole), whole)
            chosen = int(np.asarray(logits[0, -1]).argmax())
            whole = np.concatenate([whole, [[chosen]]], axis=1)
            if stop(whole):
                break
    new = whole[0, len(ids) :].tolist()
    return new[:-1] if new and new[-1] in ends else new


def _ends(model: Subject, tokenizer: Any) -> set[int]:
    """Return the tokens that end texts: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(model.module, "generation_config", None)
    named = [getattr(tokenizer, "eos_token_id", None), getattr(settings, "eos_token_id", None)]
    flat = [each for value in named for each in (value if isinstance(value, list | tuple) else [value])]
    return {int(each) for each in flat if each is not None}


def _side_by_side(
    prompt: str, ids: Int[np.ndarray, " start"], theirs: list[int], ours: list[int], tokenizer: Any
) -> Generated:
    same = [a == b for a, b in zip(theirs, ours, strict=False)]
    alike = len(theirs) == len(ours) and all(same)
    first = None if alike else (same.index(False) if False in same else len(same))
    differs = [[True] * len(theirs), [True] * len(ours)]
    for block in SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks():
        differs[0][block.a : block.a + block.size] = [False] * block.size
        differs[1][block.b : block.b + block.size] = [False] * block.size
    return Generated(
        prompt,
        tuple(theirs),
        tuple(ours),
        _pieces(ids.tolist(), theirs, tokenizer),
        _pieces(ids.tolist(), ours, tokenizer),
        first,
        tuple(differs[0]),
        tuple(differs[1]),
    )


def _pieces(prompt: list[int], tokens: list[int], tokenizer: Any) -> tuple[str, ...]:
    """Return what each token adds to the text; a character of several tokens belongs to the last of them."""
    found, before = [], tokenizer.decode(prompt)
    for place in range(len(tokens)):
        text = tokenizer.decode([*prompt, *tokens[: place + 1]])
        unfinished = text.endswith("\ufffd") and place + 1 < len(tokens)
        found.append("" if unfinished else text[len(before) :])
        before = before if unfinished else text
    return tuple(found)


def _marked(pieces: Sequence[str], flags: Sequence[bool]) -> str:
    """Return HTML where pieces that differ are underlined, bold and named by ``mark``: not told by colour alone."""
    style = "background:#ffe9a8;color:inherit;font-weight:bold;text-decoration:underline"
    return "".join(
        f"<mark style='{style}'>{escape(piece) or '·'}</mark>" if flag else escape(piece)
        for piece, flag in zip(pieces, flags, strict=True)
    )
