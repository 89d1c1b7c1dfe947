"""Read safetensors files: a strict header parser; the numbers are read by position, in the stored dtype.

The ``safetensors`` package hands out whole tensors through torch or numpy (which has no bfloat16); the workbench needs
ranges of the raw 16-bit codes, so it reads the format itself. Format: 8 bytes length (little-endian), a JSON object
``{name: {"dtype", "shape", "data_offsets"}}``, then the numbers without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

from workbench.checkpoints.dtypes import SAFETENSORS_DTYPES, SUB_BYTE_TAGS
from workbench.checkpoints.files import CheckpointFile
from workbench.checkpoints.tensors import FileTensor, digest
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import os

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on the header."""
MAX_DIMENSIONS = 32
MAX_DIMENSION = 1 << 48
"""Longer sides than this cannot be stored anywhere; they only overflow arithmetic."""


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor; offsets are counted from the end of the header."""

    name: str
    tag: str
    shape: tuple[int, ...]
    start: int
    stop: int


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """A reason why the header cannot be right."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        message = f"its header names {_short(twice)!r} twice"
        raise _Damaged(message)
    return result


def _no_constant(text: str) -> NoReturn:
    message = f"its header holds {text}, which is no JSON number"
    raise _Damaged(message)


def parse_header(header: bytes, data_bytes: int) -> tuple[list[TensorEntry], dict[str, str]]:
    """Check a header against the size of the data behind it.

    Arguments:
        header: the JSON text.
        data_bytes: how many bytes follow the header in the file.

    Returns:
        The entries in the order of their data, and the ``__metadata__``.

    Raises:
        CheckpointError: the first thing that is wrong, in one sentence (without the file's name).
    """
    try:
        return _parse(header, data_bytes)
    except _Damaged as damage:
        raise CheckpointError(str(damage)) from None


def _parse(header: bytes, data_bytes: int) -> tuple[list[TensorEntry], dict[str, str]]:
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"its header is not UTF-8 text (byte {error.start})"
        raise _Damaged(message) from None
    if not text.startswith("{"):
        message = "its header does not start with '{', so it is no safetensors file"
        raise _Damaged(message)
    try:
        table = json.loads(text, object_pairs_hook=_object_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        message = f"its header is not valid JSON ({error})"
        raise _Damaged(message) from None
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        message = "its __metadata__ must map texts to texts"
        raise _Damaged(message)
    entries = sorted(
        (_entry(name, value) for name, value in table.items()), key=lambda entry: (entry.start, entry.stop)
    )
    _check_layout(entries, data_bytes)
    return entries, metadata


def _whole_number(value: Any) -> bool:
    return type(value) is int and value >= 0  # a JSON true is an int in Python, and no size


def _entry(name: str, value: Any) -> TensorEntry:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        message = f"the tensor name {name!r} is not valid Unicode"
        raise _Damaged(message) from None
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        message = f"tensor {name!r} must have exactly dtype, shape and data_offsets"
        raise _Damaged(message)
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if isinstance(tag, str) and tag in SUB_BYTE_TAGS:
        message = (
            f"tensor {name!r} has the packed type {tag}, which is not supported yet; open a version in 8 or 16 bits"
        )
        raise _Damaged(message)
    if not isinstance(tag, str) or tag not in SAFETENSORS_DTYPES:
        message = f"tensor {name!r} has the unknown dtype {tag!r}; known are {', '.join(SAFETENSORS_DTYPES)}"
        raise _Damaged(message)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        message = f"the shape of tensor {name!r} must be a list of at most {MAX_DIMENSIONS} sizes"
        raise _Damaged(message)
    if not all(_whole_number(side) and side <= MAX_DIMENSION for side in shape):
        message = f"the shape of tensor {name!r} must hold sizes from 0 to 2^48, not {_short(shape)}"
        raise _Damaged(message)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole_number, offsets)):
        message = f"the data_offsets of tensor {name!r} must be two whole numbers from 0 up, not {_short(offsets)}"
        raise _Damaged(message)
    start, stop = offsets
    due = prod(shape) * SAFETENSORS_DTYPES[tag].itemsize
    if stop - start != due:
        message = (
            f"tensor {name!r} of shape {_short(shape)} in {tag} takes {_short(due)} bytes, "
            f"but its data_offsets span {_short(stop - start)}"
        )
        raise _Damaged(message)
    return TensorEntry(name, tag, tuple(shape), start, stop)


def _check_layout(entries: list[TensorEntry], data_bytes: int) -> None:
    end, before = 0, None
    for entry in entries:
        if entry.stop > data_bytes:
            message = (
                f"tensor {entry.name!r} ends at byte {_short(entry.stop)} of the data, which has only {data_bytes}: "
                "the file was cut short, or its header lies"
            )
            raise _Damaged(message)
        if entry.start < end and before is not None:
            message = f"tensors {before!r} and {entry.name!r} overlap"
            raise _Damaged(message)
        if entry.start > end:
            message = f"{entry.start - end} bytes before tensor {entry.name!r} belong to no tensor"
            raise _Damaged(message)
        end, before = entry.stop, entry.name
    if end != data_bytes:
        message = f"{data_bytes - end} bytes at its end belong to no tensor"
        raise _Damaged(message)


def _short(value: object) -> str:
    """Show a value that a hostile header may have made very long."""
    try:
        text = str(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def read_safetensors(path: str | os.PathLike[str]) -> tuple[CheckpointFile, list[FileTensor], dict[str, str]]:
    """Open a safetensors file and read its header only.

    Returns:
        The open file, its tensors in the order of their data, and the header's metadata.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = CheckpointFile(path)
    try:
        header_bytes = _header_length(file)
        header = file.read(8, header_bytes)
        entries, metadata = parse_header(header, file.size - 8 - header_bytes)
    except CheckpointError as error:
        file.close()
        message = f"{file.path.name!r} cannot be opened as safetensors: {error}"
        raise CheckpointError(message) from None
    checksum = digest(header)
    tensors = [
        FileTensor(
            entry.name, entry.shape, SAFETENSORS_DTYPES[entry.tag], file, 8 + header_bytes + entry.start, checksum
        )
        for entry in entries
    ]
    return file, tensors, metadata


def _header_length(file: CheckpointFile) -> int:
    if file.size < 8:
        message = f"it has {file.size} bytes, fewer than the 8 that give the header's length"
        raise CheckpointError(message)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        message = f"its header would be {length} bytes long, over the format's limit of {MAX_HEADER_BYTES}"
        raise CheckpointError(message)
    if length > file.size - 8:
        message = f"its header should have {length} bytes, but only {file.size - 8} follow: the file was cut short"
        raise CheckpointError(message)
    if length < 2:
        message = f"its header of {length} bytes is too short to be JSON"
        raise CheckpointError(message)
    return length
