"""SmoothQuant: part of the activations' spread over channels moves into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from workbench.errors import QuantizationError
from workbench.methods.run import Run
from workbench.methods.task import BlockTask
from workbench.methods.transforms.channels import watch_channels
from workbench.methods.transforms.layer_axes import input_absmax
from workbench.methods.transforms.pairs import FoldablePair, fold, foldable_pairs
from workbench.methods.transforms.transform import Transform, register
from workbench.methods.transforms.verified import change_if_equal

if TYPE_CHECKING:
    import torch

#: Factors beyond these would cost float32 its digits.
SMALLEST, LARGEST = 1e-4, 1e4


@register
@dataclass(frozen=True)
class SmoothQuant(Transform):
    """Divide each input channel by ``s = max|x|^alpha / max|w|^(1 - alpha)`` and multiply its weights by it.

    The division is folded into the norm before the layers (query, key, value; gate, up). With ``inner`` also into the linear
    layers that feed the attention's and the feed-forward's output layers, which the paper leaves alone; values that several
    heads share stay as they are.

    Source: Xiao et al. 2023, SmoothQuant (arXiv 2211.10438), eq. 4.

    Args:
        alpha: migration strength: 0 moves all difficulty to the activations, 1 all of it to the weights.
        inner: whether inner pairs (up -> down, values -> output) are smoothed as well.

    Raises:
        QuantizationError: alpha outside 0 to 1.
    """

    word: ClassVar[str] = "smoothquant"
    title: ClassVar[str] = "SmoothQuant"
    summary: ClassVar[str] = "moves the spread of input channels into the weights, folded into the norms before them"

    alpha: float = 0.5
    inner: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            message = f"SmoothQuant's alpha lies between 0 and 1, not at {self.alpha}"
            raise QuantizationError(message)

    def apply(self, block: BlockTask, run: Run | None = None) -> tuple[str, ...]:
        """Smooth every pair of the block; see ``Transform.apply``."""
        run = run or Run()
        pairs = [pair for pair in foldable_pairs(block.module) if self.inner or pair.kind == "norm"]
        pairs = [pair for pair in pairs if pair.repeats == 1]
        if not pairs:
            return (f"{block.name} has no norm that feeds linear layers alone: nothing was smoothed",)
        seen = watch_channels(block, [pair.consumers[0] for pair in pairs])
        notes = []
        for number, pair in enumerate(pairs):
            run.progress(number / len(pairs), f"{block.name}: smoothing")
            # an earlier pair may have divided this one's inputs or multiplied its weights: measure the weights now
            factors = smoothing_factors(block.module, pair, seen[pair.consumers[0]].absmax, self.alpha)
            note = change_if_equal(block, f"smoothing {pair}", partial(fold, block.module, pair, factors))
            notes += [note] if note else []
        return tuple(notes)


def smoothing_factors(block: torch.nn.Module, pair: FoldablePair, absmax: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return SmoothQuant's factor of each channel; 1 for channels whose inputs or weights are always 0.

    Args:
        block: holds the pair.
        pair: of it.
        absmax: largest magnitude of each input channel.
        alpha: migration strength.
    """
    import torch

    weights = torch.stack([input_absmax(block.get_submodule(path)) for path in pair.consumers]).amax(dim=0)
    factors = absmax.to(weights) ** alpha / weights.clamp_min(1e-30) ** (1.0 - alpha)
    factors = factors.clamp(SMALLEST, LARGEST)
    return torch.where((absmax.to(weights) > 0.0) & (weights > 0.0), factors, 1.0)
