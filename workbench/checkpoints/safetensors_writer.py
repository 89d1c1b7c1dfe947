"""Write safetensors files tensor by tensor: headers first, then numbers that are made only when their turn comes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from workbench.checkpoints.dtypes import SAFETENSORS_DTYPES
from workbench.errors import CheckpointError

_TAGS = {dtype: tag for tag, dtype in SAFETENSORS_DTYPES.items()}
#: The data of the format starts at a multiple of this, so that readers may map it.
_ALIGNMENT = 8


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A tensor that will be written: what the header says of it, and how to get its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[np.ndarray]]
    """Yields the numbers in row-major order, in pieces of any size."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def of(name: str, array: np.ndarray) -> Outgoing:
        """Return an array that is in memory."""
        return Outgoing(name, array.shape, array.dtype, lambda: (array,))


def write_safetensors(
    path: str | os.PathLike[str], tensors: Iterable[Outgoing], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file that is there whole or not at all: it is made beside its place and renamed at the end.

    Args:
        path: of the file; a file of this name is replaced.
        tensors: in the order in which their numbers shall lie.
        metadata: texts for the header.

    Raises:
        CheckpointError: a type that the format has no word for, a tensor that gives more or fewer numbers than it
            announced, two tensors of one name, or a place that cannot be written.
    """
    target, listed = Path(path), list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for tensor in listed:
        if tensor.name in header:
            message = f"two tensors are called {tensor.name!r}; a safetensors file names each once"
            raise CheckpointError(message)
        if tensor.dtype not in _TAGS:
            message = f"tensor {tensor.name!r} has the type {tensor.dtype}, which safetensors files cannot hold"
            raise CheckpointError(message)
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _TAGS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for tensor in listed:
                written = 0
                for part in tensor.parts():
                    numbers = np.ascontiguousarray(part, dtype=tensor.dtype).reshape(-1)
                    file.write(numbers.view(np.uint8).data)
                    written += numbers.nbytes
                if written != tensor.nbytes:
                    message = f"tensor {tensor.name!r} announced {tensor.nbytes} bytes and gave {written}"
                    raise CheckpointError(message)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        message = f"{str(target)!r} cannot be written: {error.strerror or error}"
        raise CheckpointError(message) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return target


def write_text(path: Path, text: str) -> None:
    """Write a text file that is there whole or not at all.

    Raises:
        CheckpointError: the place cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        message = f"{str(path)!r} cannot be written: {error.strerror or error}"
        raise CheckpointError(message) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
