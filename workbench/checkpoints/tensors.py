"""Stored tensors: what a file's header says of a tensor, and reads of ranges of it in the stored dtype."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from workbench.checkpoints.files import CheckpointFile

_BAND_BYTES = 16 << 20
"""How much of a tensor is in memory at once while a range of columns is gathered from it."""


class StoredTensor(ABC):
    """A named tensor of a checkpoint; nothing is read until asked."""

    name: str
    """The name in the file, e.g. ``model.layers.0.mlp.down_proj.weight``."""
    shape: tuple[int, ...]
    dtype: np.dtype
    volatile: ClassVar[bool] = False
    """The numbers are in memory and may change: their content key is taken when it is asked for."""

    @property
    def size(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in memory."""
        return self.size * self.dtype.itemsize

    @property
    def word(self) -> str:
        """The stored type in words, e.g. ``bfloat16``."""
        return self.dtype.name

    @property
    def content_key(self) -> str:
        """A text that changes when the stored numbers change."""
        raise NotImplementedError

    @abstractmethod
    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return numbers ``start`` to ``stop`` of the flattened tensor (row-major) as an array of their own."""

    def read(self) -> np.ndarray:
        """Return the whole tensor in its shape and stored dtype."""
        return self.elements(0, self.size).reshape(self.shape)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Return columns ``start`` to ``stop`` of a 2-D tensor, C-contiguous, reading it in bands of rows."""
        rows, width = self.shape
        if start == 0 and stop == width:
            return self.elements(0, self.size).reshape(self.shape)
        out = np.empty((rows, stop - start), dtype=self.dtype)
        if (stop - start) * self.dtype.itemsize >= 1 << 16:  # long runs: read them alone
            for row in range(rows):
                out[row] = self.elements(row * width + start, row * width + stop)
            return out
        band = max(1, _BAND_BYTES // max(1, width * self.dtype.itemsize))
        for first in range(0, rows, band):
            last = min(first + band, rows)
            out[first:last] = self.elements(first * width, last * width).reshape(-1, width)[:, start:stop]
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Read the whole tensor (numpy calls this)."""
        whole = self.read()
        return whole if dtype is None else whole.astype(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {'x'.join(map(str, self.shape)) or 'scalar'} {self.word})"


@dataclass(frozen=True, repr=False, eq=False)
class FileTensor(StoredTensor):
    """A tensor whose numbers lie side by side in a file, at ``offset`` bytes from its start."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: CheckpointFile
    offset: int
    header_digest: str
    """Digest of the header that described the tensor."""

    @property
    def content_key(self) -> str:
        """Digest of the file's place and time stamps, its header, and the tensor's name."""
        return digest(self.file.identity, self.header_digest, self.name)

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Read numbers ``start`` to ``stop`` by position."""
        stop = min(stop, self.size)  # as numpy slices do: never a neighbour's bytes
        out = np.empty(max(0, stop - start), dtype=self.dtype)
        if out.size:
            self.file.read_into(out.view(np.uint8), self.offset + start * self.dtype.itemsize)
        return out


@dataclass(frozen=True, repr=False, eq=False)
class ArrayTensor(StoredTensor):
    """A tensor that is in memory already, as a numpy array."""

    volatile: ClassVar[bool] = True
    name: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The array's dtype."""
        return self.array.dtype

    @property
    def content_key(self) -> str:
        """Digest of the numbers themselves, taken anew each time: an array in memory may change."""
        return bytes_digest([np.ascontiguousarray(self.array)], self.name, self.shape, self.dtype.name)

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Copy numbers ``start`` to ``stop``."""
        if self.array.flags.c_contiguous:
            return self.array.reshape(-1)[start:stop].copy()
        return self.array.flat[start:stop]


def digest(*parts: object) -> str:
    """Return a short BLAKE2 digest of the parts' texts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        state.update(len(text).to_bytes(8, "little"))
        state.update(text)
    return state.hexdigest()


def bytes_digest(arrays: list[np.ndarray], *parts: object) -> str:
    """Return a BLAKE2 digest of the arrays' bytes and of the parts' texts."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest(state.hexdigest(), *parts)
