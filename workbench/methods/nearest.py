"""Round to nearest: the start of every method, with the scale that the recipe names or the best clip of each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workbench.methods.method import Method, Outcome, register
from workbench.methods.run import Run
from workbench.methods.task import LayerTask
from workbench.quantization.scales import BestClip


@register
@dataclass(frozen=True)
class RoundToNearest(Method):
    """Every weight takes the nearest level; the scale follows the recipe's rule."""

    word: ClassVar[str] = "rtn"
    title: ClassVar[str] = "RTN"
    summary: ClassVar[str] = "round to nearest"

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        return Outcome(task.start)


@register
@dataclass(frozen=True)
class RoundWithBestClip(Method):
    """Round to nearest after each group has taken the clip with the smallest squared error of its weights."""

    word: ClassVar[str] = "rtn-clip"
    title: ClassVar[str] = "RTN + clip"
    summary: ClassVar[str] = "round to nearest, each group clipped where its squared error is smallest"

    def _quantize(self, task: LayerTask, run: Run) -> Outcome:
        return Outcome(task.round_to_nearest(scale=BestClip()))
