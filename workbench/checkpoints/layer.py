"""A layer: a named weight that is read only when asked, by row slices when asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

Kind = Literal["linear", "conv", "embedding", "norm", "other"]


class Weights(ABC):
    """A matrix view (rows, columns) on a stored tensor; nothing is read until a slice is taken.

    ``weights[10:20]`` and ``np.asarray(weights)`` give numpy arrays in the stored dtype: 16-bit weights stay 16-bit
    (``ml_dtypes.bfloat16`` for bf16), dequantized formats come as float32.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop`` (0 <= start <= stop <= rows), C-contiguous, in the stored dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes that the whole matrix takes in memory."""
        return prod(self.shape) * self.dtype.itemsize

    def blocks(self, max_bytes: int = 32 << 20) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows) over the whole matrix, each block at most ``max_bytes`` (but at least one row)."""
        step = max(1, max_bytes // max(1, self.shape[1] * self.dtype.itemsize))
        for start in range(0, self.shape[0], step):
            yield start, self.rows(start, min(start + step, self.shape[0]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> np.ndarray:
        """Return one row, or a slice of rows."""
        if isinstance(key, slice):
            start, stop, step = key.indices(self.shape[0])
            if step == 1:
                return self.rows(start, max(start, stop))
            return np.asarray(self)[key]
        index = key + self.shape[0] if key < 0 else key
        if not 0 <= index < self.shape[0]:
            message = f"row {key} is outside a matrix of {self.shape[0]} rows"
            raise IndexError(message)
        return self.rows(index, index + 1)[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Read the whole matrix (numpy calls this)."""
        whole = self.rows(0, self.shape[0])
        return whole if dtype is None else whole.astype(dtype)


class _TextOrRecipe:
    """A field that is given as a text or as a function that makes the text when it is read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = "_" + name

    def __get__(self, instance: object | None, owner: type) -> str:
        if instance is None:  # a dataclass asks for the field's default: there is none
            raise AttributeError(self._slot)
        value: str | Callable[[], str] = instance.__dict__[self._slot]
        return value if isinstance(value, str) else value()

    def __set__(self, instance: object, value: str | Callable[[], str]) -> None:
        instance.__dict__[self._slot] = value


@dataclass(frozen=True, repr=False, eq=False)
class Layer:
    """One weight of a model, with what its name and shape say about it."""

    name: str
    """Dotted path of the module, e.g. ``model.layers.0.mlp.down_proj`` for the tensor ``...down_proj.weight``."""
    weight: Weights
    """The matrix view (out, in) or (out, in * kernel height * kernel width), read lazily."""
    shape: tuple[int, ...]
    """The stored tensor's shape; (out, in) where the file holds it transposed (GPT-2's ``Conv1D``, some stacks of experts)."""
    dtype: str
    """The stored type as the file names it in words: ``bfloat16``, ``float32``, ``q4_k``, ``gptq-int4``, ..."""
    kind: Kind
    role: str
    """``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``, ``gate_proj``, ``up_proj``, ``down_proj``, ``embedding``, ``head``,
    ``router``, ``qkv_proj`` and ``gate_up_proj`` (projections that stay fused), or ``""``."""
    content_key: _TextOrRecipe = _TextOrRecipe()
    """Changes when the stored weights change; keys the sketch cache. For weights in memory it is taken when it is read."""

    @property
    def parameters(self) -> int:
        """How many weights the layer holds."""
        return prod(self.shape)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"Layer({self.name!r}, {shape} {self.dtype}, {self.kind}{', ' + self.role if self.role else ''})"
