"""What calibration keeps of one layer's inputs: second moments, sampled rows, ranges, and output gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from workbench.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class InputGap:
    """Moments of d = f - x: what the float model's inputs f have more than those of the model quantized so far, x.

    All are float64 means over the same rows as the statistics they belong to.
    """

    across: Float[np.ndarray, "groups depth depth"]
    """E[d x^T]."""
    among: Float[np.ndarray, "groups depth depth"]
    """E[d d^T]."""
    mean: Float[np.ndarray, "groups depth"]
    """E[d]."""

    @staticmethod
    def of(inputs: Float[np.ndarray, "groups rows depth"], floats: Float[np.ndarray, "groups rows depth"]) -> InputGap:
        """Return the moments over rows that correspond."""
        rows = inputs.astype(np.float64)
        gaps = floats.astype(np.float64) - rows
        turned = gaps.transpose(0, 2, 1)
        return InputGap(turned @ rows / rows.shape[1], turned @ gaps / rows.shape[1], gaps.mean(axis=1))


@dataclass(frozen=True, eq=False, repr=False)
class LayerStatistics:
    """Inputs of one layer, boiled down to what methods need.

    All arrays are on the layer's matrix view: a linear layer's inputs, or the patches of a convolution that one output
    position multiplies (``depth`` = in / groups * kernel height * kernel width, in the order of ``weight.reshape(out, -1)``).
    A convolution with groups has one slice for each group; everything else has ``groups`` = 1.

    >>> found = LayerStatistics.from_inputs("layer", np.array([[1.0, 2.0], [3.0, 0.0]], dtype=np.float32))
    >>> found.gram[0]
    array([[5., 1.],
           [1., 2.]])
    """

    name: str
    """The layer's name."""
    count: int
    """How many input rows were seen (the moments are means over these)."""
    second: Float[np.ndarray, "groups depth"]
    """E[x^2] of each input, float64: the diagonal of the Gram matrix."""
    mean: Float[np.ndarray, "groups depth"]
    """E[x], float64."""
    mean_magnitude: Float[np.ndarray, "groups depth"]
    """E[abs(x)], float64 (AWQ's measure of an input channel)."""
    absmax: Float[np.ndarray, "groups depth"]
    """max abs(x), float64 (SmoothQuant's)."""
    gram: Float[np.ndarray, "groups depth depth"] | None = None
    """E[x x^T], float64 or float32; None where only the diagonal was asked for."""
    inputs: Float[np.ndarray, "groups rows depth"] | None = None
    """Sampled input rows, float32, as the model quantized so far gives them."""
    float_inputs: Float[np.ndarray, "groups rows depth"] | None = None
    """The same rows in the float model; None where they are the same numbers."""
    gap: InputGap | None = None
    """How all the rows differ from the float model's; None where they do not, or where it was not asked for."""
    fisher: Float[np.ndarray, " outputs"] | None = None
    """E[g^2] of the loss's gradient g with respect to each output channel, float64; None where it was not asked for."""

    @staticmethod
    def from_inputs(
        name: str, inputs: Float[np.ndarray, "... rows depth"], *, gram: bool = True, keep: int | None = None
    ) -> LayerStatistics:
        """Return the statistics of input rows (rows, depth), or (groups, rows, depth).

        Args:
            name: the layer's.
            inputs: real numbers.
            gram: whether to make the Gram matrix.
            keep: how many rows to keep (evenly spread); None for all.

        Raises:
            CheckpointError: no rows, or numbers that are not finite.
        """
        rows = np.ascontiguousarray(inputs, dtype=np.float32)
        if rows.ndim == 2:
            rows = rows[None]
        if rows.ndim != 3 or 0 in rows.shape:
            message = f"statistics of {name} need input rows (rows, depth), not {np.shape(inputs)}"
            raise CheckpointError(message)
        if not np.isfinite(rows).all():
            message = f"the inputs of {name} hold {int((~np.isfinite(rows)).sum()):,} numbers that are not finite"
            raise CheckpointError(message)
        wide = rows.astype(np.float64)
        count = rows.shape[1]
        kept = rows if keep is None or keep >= count else rows[:, np.linspace(0, count - 1, keep).astype(int)]
        return LayerStatistics(
            name=name,
            count=count,
            second=(wide**2).mean(axis=1),
            mean=wide.mean(axis=1),
            mean_magnitude=np.abs(wide).mean(axis=1),
            absmax=np.abs(wide).max(axis=1),
            gram=wide.transpose(0, 2, 1) @ wide / count if gram else None,
            inputs=kept,
        )

    @property
    def groups(self) -> int:
        """Slices of the inputs: 1, or a convolution's groups."""
        return self.second.shape[0]

    @property
    def depth(self) -> int:
        """Inputs that one output multiplies."""
        return self.second.shape[1]

    @cached_property
    def dead(self) -> np.ndarray:
        """Inputs (groups, depth) that were always zero."""
        return self.second == 0.0

    def __repr__(self) -> str:
        parts = [f"{self.count:,} rows of {self.depth}"]
        parts += [f"{self.groups} groups"] if self.groups > 1 else []
        parts += ["gram"] if self.gram is not None else []
        parts += [f"{self.inputs.shape[1]:,} kept"] if self.inputs is not None else []
        parts += ["fisher"] if self.fisher is not None else []
        return f"LayerStatistics({self.name!r}, {', '.join(parts)})"
