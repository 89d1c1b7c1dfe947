"""A checkpoint file on disk: positioned reads into fresh memory, an identity for caches, and a close that is final."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np

from workbench.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class CheckpointFile:
    """An open file that is read by position.

    Bytes are read into arrays of their own (``preadv``), never through a memory map: a 50 GB checkpoint read in blocks
    then adds one block to the process, while touched pages of a map would all be counted as resident.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            message = f"there is no file {str(self.path)!r}; check the path"
            raise CheckpointError(message) from None
        except OSError as error:
            message = f"{str(self.path)!r} cannot be opened: {error.strerror or error}"
            raise CheckpointError(message) from None
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._lock = threading.Lock()
        status = os.fstat(descriptor)
        self.size: int = status.st_size
        self.identity = f"{self.path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"
        """Where the file lies and when it last changed: the cheap part of a cache key."""
        start = self.read(0, min(self.size, len(_LFS_POINTER)))
        if start == _LFS_POINTER:
            self.close()
            message = (
                f"{self.path.name!r} is a git-lfs pointer, not the weights themselves; "
                "run `git lfs pull` in its repository, or download the file again"
            )
            raise CheckpointError(message)

    @property
    def closed(self) -> bool:
        """Whether reads are over."""
        return not self._finalizer.alive

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        """Fill ``buffer`` (uint8, contiguous) with the bytes at ``offset``.

        Raises:
            CheckpointError: the file was closed, or ends before the buffer is full.
        """
        if self.closed:
            message = f"{self.path.name!r} was closed with its model; open the model again to read its weights"
            raise CheckpointError(message)
        view = memoryview(buffer)  # pyright: ignore[reportArgumentType] - numpy arrays are buffers
        done = 0
        while done < len(view):
            try:
                count = self._pread(view[done:], offset + done)
            except OSError as error:
                message = f"{self.path.name!r} cannot be read: {error.strerror or error}"
                raise CheckpointError(message) from None
            if count == 0:
                message = (
                    f"{self.path.name!r} ends at byte {offset + done}, where {len(view) - done} more are due; "
                    "it was cut short after it was opened"
                )
                raise CheckpointError(message)
            done += count

    def _pread(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:  # Windows has no positioned read
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``."""
        buffer = np.empty(count, dtype=np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def close(self) -> None:
        """Close the file; later reads raise."""
        self._finalizer()

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return (_reopen, (self.path, self.identity))

    def __repr__(self) -> str:
        return f"CheckpointFile({str(self.path)!r}, {self.size} bytes{', closed' if self.closed else ''})"


def _reopen(path: Path, identity: str) -> CheckpointFile:
    """Open a file again after unpickling, if it is still the same."""
    file = CheckpointFile(path)
    if file.identity != identity:
        file.close()
        message = f"{path.name!r} changed since its model was pickled; open the model again"
        raise CheckpointError(message)
    return file
