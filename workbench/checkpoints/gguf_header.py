"""A strict parser of GGUF headers (versions 2 and 3, little-endian); reads by position, keeps no vocabulary in memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package's own reader maps the whole file and
builds an array object for every token of the vocabulary; it judges this one in the tests, and dequantizes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from workbench.checkpoints.files import CheckpointFile
from workbench.errors import CheckpointError

_WINDOW = 1 << 20
_MAX_STRING = 64 << 20
_MAX_COUNT = 1 << 24
"""More keys, tensors or array elements of varying length than any model has; stops a hostile header early."""
_MAX_KEPT = 1024
"""Longer arrays (vocabularies, merges) are skipped and only described."""
_MAX_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4


@dataclass(frozen=True)
class GGUFEntry:
    """What the header says of one tensor; the offset is counted from the start of the data."""

    name: str
    dimensions: tuple[int, ...]
    """Sides in ggml's order: the side that lies together in memory first."""
    type_number: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """A parsed header."""

    metadata: dict[str, Any]
    entries: list[GGUFEntry]
    data_start: int
    alignment: int


class _Cursor:
    """Reads forward through a file in windows, checking every step against the file's end."""

    def __init__(self, file: CheckpointFile) -> None:
        self.file = file
        self.position = 0
        self._window = b""
        self._window_start = 0

    def take(self, count: int) -> bytes:
        if count > self.file.size - self.position:
            message = f"its header runs over the end of the file at byte {self.position}: the file was cut short"
            raise CheckpointError(message)
        first = self.position - self._window_start
        if first < 0 or first + count > len(self._window):
            self._window_start = self.position
            self._window = self.file.read(self.position, min(max(count, _WINDOW), self.file.size - self.position))
            first = 0
        self.position += count
        return self._window[first : first + count]

    def skip(self, count: int) -> None:
        if count > self.file.size - self.position:
            self.take(count)
        self.position += count

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, what: str) -> str:
        length = self.number("Q")
        if length > _MAX_STRING:
            message = f"{what} would be {length} bytes long"
            raise CheckpointError(message)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            message = f"{what} is not UTF-8 text"
            raise CheckpointError(message) from None


def parse_gguf_header(file: CheckpointFile) -> GGUFHeader:
    """Read and check a header.

    Raises:
        CheckpointError: the first thing that is wrong, in one sentence (without the file's name).
    """
    cursor = _Cursor(file)
    if file.size < 24 or cursor.take(4) != b"GGUF":
        message = "it does not start with the letters GGUF, or is too short for a header"
        raise CheckpointError(message)
    version = cursor.number("I")
    if version not in {2, 3}:
        what = "big-endian" if version and version & 0xFFFF == 0 else f"version {version}"
        message = f"it is a {what} file; versions 2 and 3, little-endian, can be read"
        raise CheckpointError(message)
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    if max(tensor_count, key_count) > _MAX_COUNT:
        message = f"its header counts {tensor_count} tensors and {key_count} keys, more than any model has"
        raise CheckpointError(message)
    metadata = _metadata(cursor, key_count)
    entries = _entries(cursor, tensor_count)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 24:
        message = f"its alignment {alignment!r} is no power of two"
        raise CheckpointError(message)
    start = -(-cursor.position // alignment) * alignment
    return GGUFHeader(metadata, entries, start, alignment)


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a metadata key")
        if key in metadata:
            message = f"its metadata names {key[:60]!r} twice"
            raise CheckpointError(message)
        metadata[key] = _value(cursor, cursor.number("I"), key, 0)
    return metadata


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text(f"the metadata value {key[:60]!r}")
    if kind == _ARRAY and depth < _MAX_NESTING:
        return _array(cursor, key, depth)
    message = f"the metadata value {key[:60]!r} has the unknown type {kind}"
    raise CheckpointError(message)


def _array(cursor: _Cursor, key: str, depth: int) -> Any:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind in _SCALARS:
        width = struct.calcsize("<" + _SCALARS[kind])
        if count <= _MAX_KEPT:
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", cursor.take(count * width)))
        cursor.skip(count * width)
        return f"{count} numbers"
    if count > _MAX_COUNT:
        message = f"the metadata array {key[:60]!r} would have {count} elements"
        raise CheckpointError(message)
    if kind == _STRING and count > _MAX_KEPT:
        for _ in range(count):
            cursor.skip(cursor.number("Q"))
        return f"{count} texts"
    return [_value(cursor, kind, key, depth + 1) for _ in range(count)]


def _entries(cursor: _Cursor, count: int) -> list[GGUFEntry]:
    entries: list[GGUFEntry] = []
    known: set[str] = set()
    for _ in range(count):
        name = cursor.text("a tensor name")
        if name in known:
            message = f"its header names the tensor {name[:60]!r} twice"
            raise CheckpointError(message)
        known.add(name)
        dimensions = cursor.number("I")
        if dimensions > _MAX_DIMENSIONS:
            message = f"tensor {name[:60]!r} has {dimensions} dimensions; GGUF allows {_MAX_DIMENSIONS}"
            raise CheckpointError(message)
        sides = tuple(cursor.number("Q") for _ in range(dimensions))
        entries.append(GGUFEntry(name, sides, cursor.number("I"), cursor.number("Q")))
    return entries
