"""The workbench's errors: each carries one sentence that says what is wrong and what would be right."""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of every error that the workbench raises for bad input."""


class CheckpointError(WorkbenchError):
    """A model source is missing, damaged, or of a kind that cannot be opened safely."""


class LayerNotFoundError(CheckpointError, KeyError):
    """No layer of the model has this name."""

    def __str__(self) -> str:
        """Show the sentence itself: ``KeyError`` would show its ``repr``."""
        return str(self.args[0]) if self.args else ""


class GridError(WorkbenchError, ValueError):
    """A grid's parameters are out of range, or its text form cannot be read."""


class QuantizationError(WorkbenchError, ValueError):
    """A tensor cannot be quantized as asked (granularity, scale rule, shape or values)."""


class RecipeError(QuantizationError):
    """A recipe has a word or a setting that does not exist."""


class IntegerError(WorkbenchError, ValueError):
    """An integer operator cannot run on what it was given (dtype, shape, zero point, range)."""


class SemanticsError(IntegerError):
    """No runtime of this name, or a factor, multiplier or operator that the named runtime does not have."""


class AccumulatorOverflowError(IntegerError, ArithmeticError):
    """A sum left its accumulator, and nobody asked for it to wrap or saturate."""


class Cancelled(WorkbenchError):  # noqa: N818 - no error: the person asked for it
    """The person stopped a long run; what had been finished is kept."""
