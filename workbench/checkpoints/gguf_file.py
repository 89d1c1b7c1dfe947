"""Read GGUF files: tensors in every type that the ``gguf`` package dequantizes, by ranges of whole blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints.assemble import tensor_entries
from workbench.checkpoints.dtypes import BFLOAT16, FLOAT32
from workbench.checkpoints.files import CheckpointFile
from workbench.checkpoints.gguf_header import GGUFEntry, GGUFHeader, parse_gguf_header
from workbench.checkpoints.safetensors_file import MAX_DIMENSION
from workbench.checkpoints.tensors import FileTensor, StoredTensor, digest
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry

_PLAIN = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NO_HEAD = ("bert", "clip", "t5encoder", "mmproj")


@dataclass(frozen=True, repr=False, eq=False)
class BlockTensor(StoredTensor):
    """A tensor in one of ggml's block formats, read as float32."""

    name: str
    shape: tuple[int, ...]
    file: CheckpointFile
    offset: int
    type_number: int
    block_size: int
    """Weights in a block."""
    block_bytes: int
    header_digest: str
    scales: StoredTensor | None = None
    """A second scale, for the whole tensor or for each expert, that some formats keep in a tensor of its own."""
    dtype: np.dtype = FLOAT32

    @property
    def word(self) -> str:
        """The block format in lower case: ``q4_k``."""
        from gguf.constants import GGMLQuantizationType

        return GGMLQuantizationType(self.type_number).name.lower()

    @property
    def content_key(self) -> str:
        """Digest of the file's place and time stamps, its header, and the tensor's name."""
        return digest(self.file.identity, self.header_digest, self.name)

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Dequantize the blocks that hold numbers ``start`` to ``stop``."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        if stop <= start:
            return np.empty(0, dtype=np.float32)
        first, last = start // self.block_size, -(-stop // self.block_size)
        data = np.empty((last - first) * self.block_bytes, dtype=np.uint8)
        self.file.read_into(data, self.offset + first * self.block_bytes)
        with np.errstate(all="ignore"):  # damaged scales may overflow; the numbers are shown as they are
            values = dequantize(data.reshape(last - first, self.block_bytes), GGMLQuantizationType(self.type_number))
        values = values.reshape(-1)[start - first * self.block_size : stop - first * self.block_size]
        values = np.ascontiguousarray(values, dtype=np.float32)
        return values if self.scales is None else self._rescale(values, start, stop)

    def _rescale(self, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        assert self.scales is not None
        scales = self.scales.read().reshape(-1).astype(np.float32)
        of = np.arange(start, stop) // (self.size // scales.size) if scales.size > 1 else np.zeros(1, dtype=np.int64)
        return values * scales[of]


def read_gguf(paths: list[Path]) -> tuple[list[CheckpointFile], dict[str, StoredTensor], dict[str, Any]]:
    """Open a GGUF model, all parts of a split one.

    Returns:
        The open files, the tensors by name, and the metadata (of the first part; long arrays are only described).

    Raises:
        CheckpointError: a file is missing, damaged, or in a type that cannot be dequantized.
    """
    files: list[CheckpointFile] = []
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, Any] = {}
    try:
        for path in _parts(paths):
            file = CheckpointFile(path)
            files.append(file)
            try:
                header = parse_gguf_header(file)
                found = _tensors(file, header)
            except CheckpointError as error:
                message = f"{path.name!r} cannot be opened as GGUF: {error}"
                raise CheckpointError(message) from None
            metadata = metadata or header.metadata
            for tensor in found:
                if tensor.name in tensors:
                    message = f"tensor {tensor.name!r} lies in two parts of the split GGUF model"
                    raise CheckpointError(message)
                tensors[tensor.name] = tensor
        _check_split(metadata, tensors, len(files))
    except CheckpointError:
        for file in files:
            file.close()
        raise
    return files, _with_scales(tensors), metadata


def _parts(paths: list[Path]) -> list[Path]:
    """Complete the parts of a split model from the name of one."""
    match = _SPLIT_NAME.fullmatch(paths[0].name)
    if match is None:
        return paths
    count = int(match["count"])
    folder = paths[0].parent
    return [folder / f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _check_split(metadata: dict[str, Any], tensors: dict[str, StoredTensor], parts: int) -> None:
    count = metadata.get("split.count")
    if type(count) is int and count > 1 and count != parts:
        message = (
            f"this is one of {count} parts of a split GGUF model; keep all parts together under their original names"
        )
        raise CheckpointError(message)
    due = metadata.get("split.tensors.count")
    if type(due) is int and parts > 1 and due != len(tensors):
        message = f"the parts hold {len(tensors)} tensors where {due} are due"
        raise CheckpointError(message)


def _tensors(file: CheckpointFile, header: GGUFHeader) -> list[StoredTensor]:
    key = digest(file.read(0, min(header.data_start, file.size)))
    tensors: list[StoredTensor] = []
    spans: list[tuple[int, int, str]] = []
    for entry in header.entries:
        tensor, size = _tensor(file, header, entry, key)
        tensors.append(tensor)
        if entry.offset % header.alignment:
            message = (
                f"tensor {entry.name!r} starts at byte {entry.offset}, no multiple of the alignment {header.alignment}"
            )
            raise CheckpointError(message)
        if header.data_start + entry.offset + size > file.size:
            message = f"tensor {entry.name!r} lies beyond the end of the file: it was cut short, or its header lies"
            raise CheckpointError(message)
        spans.append((entry.offset, entry.offset + size, entry.name))
    spans.sort()
    for (_, end, before), (start, stop, name) in pairwise(spans):
        if start < end and stop > start:
            message = f"tensors {before!r} and {name!r} overlap"
            raise CheckpointError(message)
    return tensors


def _tensor(file: CheckpointFile, header: GGUFHeader, entry: GGUFEntry, key: str) -> tuple[StoredTensor, int]:
    """Return a tensor and the bytes it takes."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(entry.type_number)
        block, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        message = f"tensor {entry.name!r} has the unknown ggml type {entry.type_number}"
        raise CheckpointError(message) from None
    if any(side > MAX_DIMENSION for side in entry.dimensions):
        message = f"tensor {entry.name!r} has an impossible size"
        raise CheckpointError(message)
    if entry.dimensions and entry.dimensions[0] % block:
        message = f"rows of tensor {entry.name!r} have {entry.dimensions[0]} weights, no multiple of {kind.name}'s blocks of {block}"
        raise CheckpointError(message)
    shape = tuple(reversed(entry.dimensions))
    count = prod(shape)
    offset = header.data_start + entry.offset
    if kind.name in _PLAIN:
        return FileTensor(entry.name, shape, _PLAIN[kind.name], file, offset, key), count * size
    if not _can_dequantize(kind):
        message = f"tensor {entry.name!r} has the type {kind.name}, which the installed gguf package cannot dequantize"
        raise CheckpointError(message)
    return BlockTensor(entry.name, shape, file, offset, int(kind), block, size, key), count // block * size


def _can_dequantize(kind: Any) -> bool:
    """Whether the gguf package has a decoder: asked by dequantizing nothing."""
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _with_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Attach ``a.scale`` to ``a.weight`` (NVFP4, BitNet): the stored blocks are in units of it."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        scale = tensors.get(name.removesuffix(".weight") + ".scale") if name.endswith(".weight") else None
        if scale is None or not isinstance(tensor, BlockTensor):
            continue
        if scale.size != 1 and (len(tensor.shape) != 3 or scale.size != tensor.shape[0]):
            message = (
                f"tensor {scale.name!r} holds {scale.size} scales, neither one nor one for each expert of {name!r}"
            )
            raise CheckpointError(message)
        result[name] = replace(tensor, scales=scale)
    return result


def gguf_facts(metadata: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Translate GGUF metadata into the words of a Hugging Face configuration."""
    architecture = metadata.get("general.architecture")
    architecture = architecture if isinstance(architecture, str) else ""
    known = set(names)
    words = {
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "hidden_size": "embedding_length",
    }
    facts = {word: metadata.get(f"{architecture}.{key}") for word, key in words.items()}
    has_head = not any(word in architecture for word in _NO_HEAD)
    tied = has_head and "token_embd.weight" in known and "output.weight" not in known
    return {**facts, "model_type": "gguf", "general.architecture": architecture, "tie_word_embeddings": tied}


def gguf_entries(tensors: Iterable[StoredTensor], facts: dict[str, Any]) -> list[Entry]:
    """Turn tensors into entries; ``.scale`` tensors belong to their weights."""
    plain = [tensor for tensor in tensors if not tensor.name.endswith((".scale", ".input_scale"))]
    return tensor_entries(plain, facts, conv1d=frozenset())
