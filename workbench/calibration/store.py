"""Tensors that a stream holds between two blocks: in memory up to a budget, beyond it in files that are mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _OnDisk:
    """A tensor in a file of its own."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


class TensorStore:
    """Keeps CPU tensors; those that do not fit into ``memory`` bytes go to files.

    Args:
        folder: where the files go; a temporary folder by default, made when the first file is.
        memory: bytes that may stay in memory, all lists together; 0 sends everything to files.

    Raises:
        OSError: a file cannot be written (a full disk).
    """

    def __init__(self, folder: str | Path | None = None, memory: int = 1 << 30) -> None:
        self.memory = memory
        self.used = 0
        """Bytes in memory now."""
        self.spilled = 0
        """Bytes in files now."""
        self._parent = None if folder is None else Path(folder)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = 0

    def new_list(self) -> TensorList:
        """Return an empty list whose tensors this store keeps."""
        return TensorList(self)

    def put(self, tensor: torch.Tensor) -> torch.Tensor | _OnDisk:
        """Keep a copy of a tensor; floating numbers become float32."""
        import torch

        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        kept = tensor.detach().to(device="cpu", dtype=kind, copy=True, memory_format=torch.contiguous_format)
        size = kept.numel() * kept.element_size()
        if size == 0 or self.used + size <= self.memory:
            self.used += size
            return kept
        if self._folder is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="activations-", dir=self._parent)
        self._written += 1
        path = Path(self._folder.name) / f"{self._written}.bin"
        kept.reshape(-1).view(torch.uint8).numpy().tofile(path)
        self.spilled += size
        return _OnDisk(path, kept.dtype, tuple(kept.shape), size)

    def get(self, item: torch.Tensor | _OnDisk) -> torch.Tensor:
        """Return a kept tensor; one in a file is mapped, privately: writing to it changes nothing in the file."""
        if not isinstance(item, _OnDisk):
            return item
        import torch

        count = item.nbytes // item.dtype.itemsize
        return torch.from_file(str(item.path), shared=False, size=count, dtype=item.dtype).reshape(item.shape)

    def drop(self, item: torch.Tensor | _OnDisk) -> None:
        """Forget a kept tensor, and delete its file."""
        if isinstance(item, _OnDisk):
            item.path.unlink(missing_ok=True)
            self.spilled -= item.nbytes
        else:
            self.used -= item.numel() * item.element_size()

    def close(self) -> None:
        """Delete all files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class TensorList(Sequence["torch.Tensor"]):
    """Tensors of a store, one for each batch."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._items: list[torch.Tensor | _OnDisk] = []

    def append(self, tensor: torch.Tensor) -> None:
        """Keep a copy of a tensor at the end."""
        self._items.append(self._store.put(tensor))

    def release(self) -> None:
        """Forget all tensors."""
        for item in self._items:
            self._store.drop(item)
        self._items.clear()

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | list[torch.Tensor]:
        """Return one tensor, or several."""
        if isinstance(index, slice):
            return [self._store.get(item) for item in self._items[index]]
        return self._store.get(self._items[index])


@dataclass(frozen=True)
class _Reference:
    """Stands for a tensor in a call that is kept."""

    key: Any


class CallStore:
    """Arguments of forward passes: equal tensors (masks and position tables of all blocks and batches) are kept once."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._tensors: dict[Any, torch.Tensor | _OnDisk] = {}

    def keep(self, call: Any) -> Any:
        """Return a call in which references stand for its tensors."""
        return map_tensors(call, self._reference)

    def _reference(self, tensor: torch.Tensor) -> _Reference:
        import torch

        plain = tensor.detach().to("cpu").contiguous()
        state = blake2b(f"{plain.dtype}{tuple(plain.shape)}".encode(), digest_size=16)
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        key = state.digest()
        if key not in self._tensors:
            self._tensors[key] = self._store.put(tensor)
        return _Reference(key)

    def restore(self, call: Any, device: str) -> Any:
        """Return a kept call with its tensors, on a device."""
        return map_references(call, lambda found: self._store.get(self._tensors[found.key]).to(device))

    def release(self) -> None:
        """Forget everything."""
        for item in self._tensors.values():
            self._store.drop(item)
        self._tensors.clear()


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return tuples, lists and dicts with every tensor in them changed."""
    import torch

    return _mapped(value, torch.Tensor, change)


def map_references(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return tuples, lists and dicts with every reference in them changed."""
    return _mapped(value, _Reference, change)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(each, kind, change) for each in value)
    if type(value) is dict:
        return {name: _mapped(each, kind, change) for name, each in value.items()}
    return value
