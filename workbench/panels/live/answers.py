"""What a live grid without a session asks: sketches of its layer, and the exact error at rest."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from workbench.errors import QuantizationError

if TYPE_CHECKING:
    from workbench.grids import Grid
    from workbench.quantization import ErrorReport, Sketch


class Source:
    """A layer, or only a sketch of one, that answers for a standalone ``LiveGrid``.

    Args:
        layer: a ``Layer``, array or tensor; None when there is only a sketch.
        sketch: a sketch that is already there.
    """

    def __init__(self, layer: Any, sketch: Sketch | None = None) -> None:
        self.layer = layer
        self.lock = threading.RLock()
        self.shown: Sketch | None = None
        self._sketches: dict[tuple[str, str], Sketch] = {}
        if sketch is not None:
            if not browser_sketch(sketch):
                message = "the live grid moves the clip, so it needs a plain sketch: sketch(layer, granularity)"
                raise QuantizationError(message)
            self._sketches[str(sketch.granularity), sketch.normalization] = sketch

    @property
    def about(self) -> str:
        """Shape and dtype in words; empty when there is only a sketch."""
        if self.layer is None:
            return ""
        from workbench.quantization import as_matrix

        matrix = as_matrix(self.layer)
        return about(matrix.shape, getattr(self.layer, "dtype", matrix.weights.dtype))

    def sketch(self, granularity: str, normalization: str) -> Sketch:
        """Return the sketch at a granularity and normalization.

        Raises:
            QuantizationError: there is no layer to make it from.
        """
        key = (granularity, normalization)
        if key not in self._sketches:
            if self.layer is None:
                had = next(iter(self._sketches))
                message = (
                    f"this sketch is for granularity {had[0]} and {had[1]} scales; give LiveGrid the layer to see "
                    f"{granularity} and {normalization}"
                )
                raise QuantizationError(message)
            from workbench.quantization import sketch

            self._sketches[key] = sketch(self.layer, granularity=granularity, normalization=normalization)
        return self._sketches[key]

    def measure(self, grid: Grid, granularity: str, scale_rule: str, clip: float) -> ErrorReport | None:
        """Return the exact error, or the sketch's where there is no layer (None where a sketch cannot tell)."""
        from workbench.quantization import exact_error, sketch_error

        if self.layer is not None:
            return exact_error(self.layer, grid, granularity=granularity, scale=scale_rule, clip=clip)
        if scale_rule != "absmax" or grid.scale_format:
            message = f"scale rule {scale_rule} with {grid.label} is measured on the weights; give LiveGrid the layer"
            raise QuantizationError(message)
        return sketch_error(self.sketch(granularity, grid.normalization), grid, clip=clip)

    def bits_per_weight(self, grid: Grid, granularity: str) -> float:
        """Return what a weight costs, scales and all."""
        from workbench.quantization import as_matrix, bits_per_weight

        if self.layer is not None:
            return bits_per_weight(grid, granularity, as_matrix(self.layer).shape)
        any_sketch = next(iter(self._sketches.values()))
        return bits_per_weight(grid, granularity, (any_sketch.rows, any_sketch.columns))

    def kmeans(self, bits: int, granularity: str) -> Grid:
        """Return the k-means codebook of the layer at a granularity."""
        from workbench.quantization import kmeans

        return kmeans(self.sketch(granularity, "absmax"), bits)


def browser_sketch(sketch: Sketch) -> bool:
    """Return whether the browser can compute with a sketch: plain scales, so that every clip follows from it."""
    return sketch.clips_freely and sketch.scale_format == "float32" and not sketch.zero_steps


def why_not_live(grid: Grid, scale_rule: str) -> str:
    """Return why only Python can measure a grid under a scale rule; empty where the browser's sketch tells as well."""
    if grid.scale_format:
        return (
            f"{grid.label} rounds each block's scale to {grid.scale_format}, so its levels differ from block to block."
        )
    if scale_rule.startswith("percentile"):
        return "A percentile keeps another share of each group, so the levels differ from group to group."
    return ""


def about(shape: tuple[int, ...], dtype: Any) -> str:
    """Return ``4096 × 4096 · bfloat16``."""
    return f"{' × '.join(map(str, shape))} · {dtype}"
