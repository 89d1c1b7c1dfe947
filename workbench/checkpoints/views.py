"""Matrix views on stored tensors: (out, in) rows, whatever the layout in the file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.checkpoints.layer import Weights
from workbench.checkpoints.tensors import StoredTensor


@dataclass(frozen=True, eq=False)
class StoredRows(Weights):
    """The stored numbers in their order, cut into rows: (out, in), (out, in * kernel) or (experts * out, in)."""

    tensor: StoredTensor
    shape: tuple[int, int]

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The stored dtype."""
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``start`` to ``stop``."""
        columns = self.shape[1]
        return self.tensor.elements(start * columns, stop * columns).reshape(stop - start, columns)


@dataclass(frozen=True, eq=False)
class TransposedRows(Weights):
    """A tensor stored (in, out), as GPT-2's Conv1D, or (experts, in, out), seen as rows of outputs."""

    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """(out, in), or (experts * out, in)."""
        *experts, inputs, outputs = self.tensor.shape
        return (int(np.prod(experts, dtype=np.int64)) * outputs, inputs)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The stored dtype."""
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Gather columns of the stored tensor as rows."""
        inputs, outputs = self.tensor.shape[-2:]
        out = np.empty((stop - start, inputs), dtype=self.dtype)
        for first in range(start - start % max(1, outputs), stop, max(1, outputs)):  # expert by expert
            low, high = max(start, first), min(stop, first + outputs)
            expert = _Slab(self.tensor, first // outputs)
            out[low - start : high - start] = expert.columns(low - first, high - first).T
        return out


@dataclass(frozen=True, repr=False, eq=False)
class _Slab(StoredTensor):
    """One expert of a (experts, in, out) tensor."""

    whole: StoredTensor
    index: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.whole.shape[-2:]

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.whole.dtype

    def elements(self, start: int, stop: int) -> np.ndarray:
        first = self.index * self.size
        return self.whole.elements(first + start, first + stop)


@dataclass(frozen=True, eq=False)
class RowPieces(Weights):
    """Pieces of equal length at equal distances out of another view's rows: one part of a fused projection.

    Piece ``i`` holds the rows ``first + i * period`` to ``first + i * period + length`` of ``whole``.
    """

    whole: Weights
    first: int
    length: int
    period: int
    pieces: int

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Rows of all pieces, columns of the whole."""
        return (self.length * self.pieces, self.whole.shape[1])

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The dtype of the whole."""
        return self.whole.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``start`` to ``stop``, piece by piece."""
        parts = []
        while start < stop:
            piece, inside = divmod(start, self.length)
            count = min(stop - start, self.length - inside)
            position = self.first + piece * self.period + inside
            parts.append(self.whole.rows(position, position + count))
            start += count
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.shape[1]), dtype=self.dtype)
