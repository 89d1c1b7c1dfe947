"""What every transform is: a frozen description with a text form that rewrites a block without changing what it computes."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from workbench.errors import QuantizationError
from workbench.methods.run import Run
from workbench.methods.settings import read_settings, written
from workbench.methods.task import BlockTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Transform(ABC):
    """A change of a block's weights before rounding that keeps the block's float outputs (to 1e-4, relative).

    It works in place on ``block.module``. Weights held elsewhere (``block.layers``) and statistics of inputs are those from
    before: make them anew afterwards.
    """

    word: ClassVar[str]
    """First word of the text form."""
    title: ClassVar[str]
    """Name for people."""
    summary: ClassVar[str]
    """What it does in one line."""

    @abstractmethod
    def apply(self, block: BlockTask, run: Run | None = None) -> tuple[str, ...]:
        """Rewrite a block's weights in place; return what a person should know, one sentence each.

        Every change is checked on the block's first batch and undone, with a note, where the outputs moved by more than 1e-4.

        Raises:
            QuantizationError: the block has no inputs to check on.
            Cancelled: a listener stopped it; the block is as it was or has whole changes only.
        """

    def prepare(self, module: torch.nn.Module, run: Run | None = None) -> tuple[str, ...]:
        """Rewrite what crosses blocks, on a whole model in memory, before its blocks are taken one by one.

        Most transforms have nothing to do here.
        """
        return ()

    def __str__(self) -> str:
        """Return the text form: settings at their defaults are left out."""
        return written(self, self.word)


#: Module of each transform, by its word, in the order in which lists show them.
MODULES = {
    "smoothquant": "smoothing",
    "awq": "activation_aware",
    "rotation": "rotation",
    "equalization": "equalization",
}

#: Transforms by the first word of their text form, as far as they have been imported.
TRANSFORMS: dict[str, Transform] = {}

Kind = TypeVar("Kind", bound=Transform)


def register(kind: type[Kind]) -> type[Kind]:
    """Make a transform known to ``parse_transform`` under its word, with its default settings."""
    TRANSFORMS[kind.word] = kind()
    return kind


def parse_transform(text: str | Transform) -> Transform:
    """Read a transform from its text form; a transform itself passes through.

    ``smoothquant:alpha=0.5``, ``awq``, ``rotation``, ``equalization``.

    Raises:
        QuantizationError: no such transform or setting, or a value that does not fit; near names are suggested.
    """
    if isinstance(text, Transform):
        return text
    known = all_transforms()
    word, _, rest = str(text).strip().partition(":")
    word = word.strip().lower()
    if word not in known:
        near = difflib.get_close_matches(word, list(known), n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        message = f"no transform is called {str(text)[:60]!r}{meant} (there are {', '.join(known)})"
        raise QuantizationError(message)
    return read_settings(known[word], word, rest)


def all_transforms() -> dict[str, Transform]:
    """Return every transform by its word."""
    import importlib

    for name in MODULES.values():
        importlib.import_module(f"workbench.methods.transforms.{name}")
    return {word: TRANSFORMS[word] for word in MODULES}
