"""What every method is: a frozen description with a text form, and one call that quantizes a layer or a block."""

from __future__ import annotations

import difflib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from workbench.errors import QuantizationError
from workbench.methods.result import LayerResult
from workbench.methods.run import Run, Trace
from workbench.methods.settings import read_settings, refuse_unknown, written
from workbench.methods.task import BlockTask, LayerTask

#: What a method needs to know of a layer's inputs. ``moments``: means and maxima; ``gram``: E[x x^T]; ``gap``: moments of
#: what the float model's inputs have more than those of the model quantized so far; ``inputs``: rows; ``fisher``: squared
#: output gradients (layers), or the gradients at a block's outputs (blocks).
Need = Literal["moments", "gram", "gap", "inputs", "fisher"]
Scope = Literal["layer", "block"]


@dataclass(frozen=True)
class Method(ABC):
    """A way to choose codes, scales and exponents.

    Subclasses are frozen dataclasses of plain settings, registered under their ``word`` by ``@register``. ``str(method)``
    is the text that ``parse_method`` reads back to an equal method: ``gptq:damp=0.05,act_order=true``.
    """

    word: ClassVar[str]
    """First word of the text form."""
    title: ClassVar[str]
    """Name for people, as the field writes it, e.g. ``GPTQ``."""
    summary: ClassVar[str]
    """What it does in one line."""

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs to know of the inputs; empty for data-free methods."""
        return frozenset()

    @property
    def scope(self) -> Scope:
        """``layer`` for methods that look at one layer at a time, ``block`` for those that learn a whole block together."""
        return "layer"

    @property
    def steps_planned(self) -> int:
        """Optimiser steps that it will make for each layer or block; 0 for methods that do not iterate over steps."""
        return 0

    def quantize_layer(self, task: LayerTask, run: Run | None = None) -> LayerResult:
        """Quantize one layer.

        Args:
            task: the layer, its grid and its inputs.
            run: seed, device and listeners.

        Raises:
            QuantizationError: the task lacks what the method needs, or has a grid that it cannot use; one sentence.
            Cancelled: a listener stopped it.
        """
        self.check(task)
        started = time.monotonic()
        outcome = self._quantize(task, run or Run())
        seconds = time.monotonic() - started
        return task.result(
            self, outcome.quantized, seconds=seconds, trace=outcome.trace, bias=outcome.bias, notes=outcome.notes
        )

    def quantize_block(self, task: BlockTask, run: Run | None = None) -> dict[str, LayerResult]:
        """Quantize all layers of a block; here one after another, each for itself.

        Raises:
            QuantizationError: see ``quantize_layer``.
            Cancelled: a listener stopped it.
        """
        return {name: self.quantize_layer(layer, run) for name, layer in task.layers.items()}

    @abstractmethod
    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        """Do the work; errors and seconds are measured by the caller."""

    def check(self, task: LayerTask) -> None:
        """Refuse a task that lacks what the method needs.

        Raises:
            QuantizationError: see above.
        """
        known = task.statistics
        have: dict[str, Any] = {
            "moments": known,
            "gram": known and known.gram,
            "inputs": known and known.inputs,
            "fisher": known and known.fisher,
        }
        words = {
            "moments": "moments of its inputs",
            "gram": "the Gram matrix of its inputs",
            "inputs": "sampled inputs",
            "fisher": "gradients at its outputs",
        }
        for need in sorted(self.needs):
            if have[need] is None:
                message = f"{self.title} needs {words[need]}, and {task.name} was not calibrated for that"
                raise QuantizationError(message)

    def but(self, **settings: Any) -> Method:
        """Return the method with other settings.

        Raises:
            QuantizationError: it has no such setting.
        """
        refuse_unknown(self, self.word, settings)
        return replace(self, **settings)

    def __str__(self) -> str:
        """Return the text form: settings at their defaults are left out."""
        return written(self, self.word)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method's own code returns for a layer."""

    quantized: Any
    """The ``QuantizedTensor``."""
    trace: Trace = field(default_factory=Trace)
    bias: Any = None
    """The new bias, float32 (outputs,), or None."""
    notes: tuple[str, ...] = ()


#: Methods by the first word of their text form, in the order in which lists show them.
METHODS: dict[str, Method] = {}

Kind = TypeVar("Kind", bound=Method)


def register(kind: type[Kind]) -> type[Kind]:
    """Make a method known to ``parse_method`` under its word, with its default settings.

    A preset is a subclass that gives other defaults (and a word and title of its own).
    """
    METHODS[kind.word] = kind()
    return kind


def parse_method(text: str | Method) -> Method:
    """Read a method from its text form; a method itself passes through.

    ``gptq``, ``gptq:damp=0.05,act_order=true``, ``nupes:steps=500``: a known word, then settings.

    Raises:
        QuantizationError: no such method or setting, or a value that does not fit; near names are suggested.
    """
    if isinstance(text, Method):
        return text
    _load_all()
    word, colon, rest = str(text).strip().partition(":")
    word = word.strip().lower()
    if word not in METHODS:
        near = difflib.get_close_matches(word, list(METHODS), n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        message = f"no method is called {str(text)[:60]!r}{meant} (there are {', '.join(METHODS)})"
        raise QuantizationError(message)
    method = METHODS[word]
    return read_settings(method, word, rest if colon else "")


def all_methods() -> dict[str, Method]:
    """Return every method by its word."""
    _load_all()
    return dict(METHODS)


def _load_all() -> None:
    """Import the modules that register methods: they load only when somebody asks for one."""
    import importlib

    importlib.import_module("workbench.methods.presets")
