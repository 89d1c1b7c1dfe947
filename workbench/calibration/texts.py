"""Texts to calibrate on, cut into samples: those that ship with Python and the demo model was trained on, or given ones."""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from workbench.errors import CheckpointError
from workbench.resources import shared_path

#: Not modules that a person wrote by hand (data/corpus.py leaves the same ones out).
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "ensurepip", "pydoc_data", "encodings"}
#: Characters of a text that surely hold one token, on the average of a piece.
CHARACTERS_PER_TOKEN = 8
#: Pieces that a choice by likeness looks at, at most.
MOST_BALANCED = 4096

CHOICES = ("first", "random", "balanced")


def default_texts() -> tuple[list[str], str]:
    """Return the modules of this Python's standard library, without those that evaluation holds out, and what they are.

    They come in a fixed order that mixes the packages.

    Raises:
        CheckpointError: this Python comes without the source text of its library.
    """
    held_out = set(json.loads(shared_path("data/text/stdlib_held_out.json").read_text(encoding="utf-8")))
    root = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[bytes, str]] = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        name = relative.as_posix()
        if _SKIPPED & set(relative.parts) or relative.name.startswith("_sysconfigdata") or name in held_out:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) > 400:
            found.append((hashlib.sha256(name.encode()).digest(), text))
    if not found:
        message = f"the standard library at {root} holds no source text to calibrate on: give texts"
        raise CheckpointError(message)
    texts = [text for _, text in sorted(found)]
    return texts, f"the standard library of Python {platform.python_version()} (training part)"


def pieces_of(text: str, size: int) -> Iterator[str]:
    r"""Cut a text into pieces of at most ``size`` characters, at ends of lines where there are any.

    >>> list(pieces_of("ab\ncd\nef", 7))
    ['ab\ncd\n', 'ef']
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            line = text.rfind("\n", start + size // 2, end)
            end = line + 1 if line >= 0 else end
        if text[start:end].strip():
            yield text[start:end]
        start = end


def ordered_pieces(texts: Sequence[str], length: int, choose: str, wanted: int, seed: int) -> list[str]:
    """Return pieces of texts in the order in which they are to be taken; a piece that is there twice comes once.

    Args:
        texts: whole texts.
        length: tokens of a sample.
        choose: ``first`` (the beginning of each text, then its second piece, ...), ``random``, or ``balanced``
            (hierarchical k-means over embeddings of the pieces; of at most 4096 random ones).
        wanted: samples.
        seed: of the random choices.

    Raises:
        CheckpointError: an unknown choice.
    """
    if choose not in CHOICES:
        message = f"texts are chosen {', '.join(CHOICES)}, not {choose!r}"
        raise CheckpointError(message)
    cut = [list(pieces_of(text, CHARACTERS_PER_TOKEN * length)) for text in texts]
    turns = [parts[turn] for turn in range(max(map(len, cut), default=0)) for parts in cut if turn < len(parts)]
    found = list(dict.fromkeys(turns))
    if choose == "first":
        return found
    order = np.random.default_rng([seed, 7]).permutation(len(found))
    mixed = [found[number] for number in order]
    if choose == "random" or len(mixed) <= wanted:
        return mixed
    from workbench.calibration.choosing import choose_balanced

    # Ends of texts are often too short for a sample; the choice is among pieces that will fill one.
    full = [piece for piece in mixed if len(piece) >= CHARACTERS_PER_TOKEN * length // 2]
    chosen = list(choose_balanced((full or mixed)[:MOST_BALANCED], wanted, seed=seed))
    picked = [(full or mixed)[each] if isinstance(each, int | np.integer) else str(each) for each in chosen]
    rest = set(picked)
    return [*picked, *(piece for piece in mixed if piece not in rest)]
