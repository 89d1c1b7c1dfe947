"""Weights that are in memory: a mapping of arrays, a torch state dict, a ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workbench.checkpoints.dtypes import BFLOAT16, SAFETENSORS_DTYPES
from workbench.checkpoints.layer import Kind
from workbench.checkpoints.tensors import ArrayTensor, StoredTensor, bytes_digest, digest
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_FLOAT8_BY_TORCH_NAME = {
    "float8_e4m3fn": SAFETENSORS_DTYPES["F8_E4M3"],
    "float8_e5m2": SAFETENSORS_DTYPES["F8_E5M2"],
    "float8_e4m3fnuz": SAFETENSORS_DTYPES["F8_E4M3FNUZ"],
    "float8_e5m2fnuz": SAFETENSORS_DTYPES["F8_E5M2FNUZ"],
    "float8_e8m0fnu": SAFETENSORS_DTYPES["F8_E8M0"],
}
_DIGEST_BYTES = 64 << 20


def torch_dtype(dtype: torch.dtype, name: str) -> np.dtype:
    """Return the numpy dtype for a torch dtype.

    Raises:
        CheckpointError: numpy and ml_dtypes have no such type.
    """
    word = str(dtype).removeprefix("torch.")
    if word == "bfloat16":
        return BFLOAT16
    if word in _FLOAT8_BY_TORCH_NAME:
        return _FLOAT8_BY_TORCH_NAME[word]
    try:
        return np.dtype({"bool": "bool_"}.get(word, word))
    except TypeError:
        message = f"tensor {name!r} has torch's type {word}, which has no meaning outside torch; dequantize it first"
        raise CheckpointError(message) from None


@dataclass(frozen=True, repr=False, eq=False)
class TorchTensor(StoredTensor):
    """A torch tensor; ranges of it are copied out when asked."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    tensor: torch.Tensor
    key: str = ""
    """The content key where a file stands behind the tensor; otherwise the numbers are hashed when asked."""

    @property
    def volatile(self) -> bool:  # type: ignore[override]
        """Parameters in memory may change; those of a mapped file do not."""
        return not self.key

    @property
    def content_key(self) -> str:
        """Digest of the file's place and stamps, or of the numbers."""
        if self.key:
            return digest(self.key, self.name)
        step = max(1, _DIGEST_BYTES // self.dtype.itemsize)
        parts = (self.elements(first, min(first + step, self.size)) for first in range(0, self.size, step))
        return digest(*[bytes_digest([part]) for part in parts], self.name, self.shape, self.dtype.name)

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Copy numbers ``start`` to ``stop`` of the flattened tensor to the host."""
        import torch

        tensor = self.tensor.detach()
        if tensor.is_contiguous() or not self.shape:
            part = tensor.reshape(-1)[start:stop]
        else:  # gather only the rows that the range touches
            width = max(1, self.size // max(1, self.shape[0]))
            first, last = start // width, -(-stop // width)
            part = tensor[first:last].reshape(-1)[start - first * width : stop - first * width]
        part = part.to(device="cpu", copy=True, memory_format=torch.contiguous_format)
        if part.dtype == torch.bool or (self.dtype.kind in "iufc" and self.dtype.isbuiltin == 1):
            return part.numpy()
        return part.view({1: torch.uint8, 2: torch.int16}[self.dtype.itemsize]).numpy().view(self.dtype)


def wrap(name: str, value: Any, key: str = "") -> StoredTensor | None:
    """Wrap an array or a torch tensor; None for a value that is neither.

    Raises:
        CheckpointError: the tensor is of a kind that has no plain numbers.
    """
    if isinstance(value, StoredTensor):
        return value
    if isinstance(value, np.ndarray):
        return ArrayTensor(name, value)
    if not _is_torch_tensor(value):
        return None
    import torch

    plain = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}
    if type(value) not in plain and not type(value).__module__.startswith("torch.nn"):
        message = (
            f"tensor {name!r} is a {type(value).__name__}, whose numbers are encoded; open the checkpoint it was loaded from, "
            "or dequantize it first"
        )
        raise CheckpointError(message)
    if value.layout != torch.strided or value.is_quantized:
        what = "quantized by torch" if value.is_quantized else f"stored as {str(value.layout).removeprefix('torch.')}"
        message = f"tensor {name!r} is {what}; make it dense (.to_dense(), .dequantize()) first"
        raise CheckpointError(message)
    if value.is_meta:
        message = f"tensor {name!r} is on the meta device and holds no numbers; load its weights first"
        raise CheckpointError(message)
    return TorchTensor(name, tuple(value.shape), torch_dtype(value.dtype, name), value, key)


def _is_torch_tensor(value: object) -> bool:
    """Whether a value is a torch tensor, without importing torch for values that are not."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def wrap_mapping(arrays: Mapping[str, Any], key: str = "") -> dict[str, StoredTensor]:
    """Wrap the arrays of a mapping (a state dict); tensors that share memory are not merged here.

    Raises:
        CheckpointError: a value is no array.
    """
    tensors: dict[str, StoredTensor] = {}
    for name, value in arrays.items():
        tensor = wrap(name, value, key) if isinstance(name, str) else None
        if tensor is None:
            message = f"entry {name!r} is a {type(value).__name__}; a model as a mapping has names and arrays only"
            raise CheckpointError(message)
        tensors[name] = tensor
    return tensors


@dataclass(frozen=True)
class ModuleContents:
    """What a module holds, apart: parameters, buffers, and what its classes say about them."""

    tensors: dict[str, StoredTensor]
    buffers: frozenset[str]
    conv1d: frozenset[str]
    """Weights of transformers' ``Conv1D``, stored (in, out)."""
    tied: dict[str, str]
    """Parameter name -> the first name of the same parameter."""
    kinds: dict[str, Kind]
    """Kinds by parameter name, as the modules' classes tell them."""
    KNOWN_ENCODED: ClassVar[tuple[str, ...]] = (
        "bitsandbytes",
        "auto_gptq",
        "gptqmodel",
        "awq",
        "hqq",
        "aqlm",
        "eetq",
        "quanto",
    )


def read_module(module: torch.nn.Module) -> ModuleContents:
    """List a module's parameters and buffers in the order of registration; shared parameters once.

    Raises:
        CheckpointError: a layer keeps its weights encoded by another package, or holds no numbers.
    """
    for path, child in module.named_modules():
        package = type(child).__module__.partition(".")[0]
        if package in ModuleContents.KNOWN_ENCODED and any(True for _ in child.parameters(recurse=False)):
            message = (
                f"module {path!r} is a {package} {type(child).__name__}, whose weights are encoded; "
                "open the checkpoint folder that it was loaded from"
            )
            raise CheckpointError(message)
    conv1d = frozenset(
        f"{path}.weight" if path else "weight"
        for path, child in module.named_modules()
        if type(child).__name__ == "Conv1D"
    )
    tensors: dict[str, StoredTensor] = {}
    tied: dict[str, str] = {}
    first_name: dict[object, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tensor = wrap(name, parameter)
        if tensor is None:
            continue
        identity = memory_of(parameter)
        if identity in first_name:
            tied[name] = first_name[identity]
            continue
        first_name[identity] = name
        tensors[name] = tensor
    buffers = {name: wrap(name, buffer) for name, buffer in module.named_buffers()}
    tensors.update({name: tensor for name, tensor in buffers.items() if tensor is not None})
    return ModuleContents(tensors, frozenset(buffers), conv1d, tied, _kinds(module))


def _kinds(module: torch.nn.Module) -> dict[str, Kind]:
    """Take the kinds of weights from the classes of the modules that hold them."""
    kinds: dict[str, Kind] = {}
    for path, child in module.named_modules():
        word = type(child).__name__
        kind: Kind | None = None
        if "Norm" in word:
            kind = "norm"
        elif "Embedding" in word:
            kind = "embedding"
        elif word in {"Linear", "Conv1D", "NonDynamicallyQuantizableLinear"}:
            kind = "linear"
        elif word in {f"{stem}{size}d" for stem in ("Conv", "ConvTranspose") for size in (1, 2, 3)}:
            kind = "conv"
        if kind is not None and "weight" in child._parameters:
            kinds[f"{path}.weight" if path else "weight"] = kind
    return kinds


def memory_of(tensor: torch.Tensor) -> object:
    """Identify the memory a tensor shows: shared storage at the same place in the same shape is the same weight."""
    if tensor.numel() == 0:
        return id(tensor)
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
