"""Which quantization a checkpoint was stored with: by its configuration, and by the names and types of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from workbench.checkpoints.dtypes import is_float, is_float8
from workbench.checkpoints.prequantized import (
    awq,
    bits_and_bytes,
    compressed,
    float8,
    gptq,
    mxfp4,
    nvfp4,
    workbench_format,
)
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    from workbench.checkpoints.assemble import Entry
    from workbench.checkpoints.tensors import StoredTensor

Decoder = Callable[[Mapping[str, "StoredTensor"], Mapping[str, Any]], Iterable[tuple["Entry", set[str]]]]
"""From tensors and quantization settings to entries, each with the names of the tensors that it is made of."""

_DECODERS: dict[str, tuple[Decoder, ...]] = {
    "compressed-tensors": (compressed.entries,),
    "gptq": (gptq.entries,),
    "awq": (awq.entries,),
    "bitsandbytes": (bits_and_bytes.entries,),
    "mxfp4": (mxfp4.entries,),
    "fp8": (float8.entries,),
    "fbgemm_fp8": (float8.entries,),
    "modelopt": (nvfp4.entries, float8.entries),
    workbench_format.METHOD: (workbench_format.entries,),
}
_SELF_DESCRIBED: tuple[Decoder, ...] = (bits_and_bytes.entries, mxfp4.entries, float8.entries)
"""Formats that tensors show without a configuration."""

_PACKED = re.compile(
    r"(qweight|qzeros|weight_packed|q_weight|q_scale|weight_q|W_q|weight_int4pack|packed_weight|codebooks|_blocks"
    r"|weight\._data|weight_shape|trellis|suh|svh|vptq|quant_state\..*|absmax|weight\.qdata|weight\.scale_and_zero)$"
)
_HARMLESS_SCALES = re.compile(
    r"(^|[._])(input|output|activation|act|k|v|kv|q|attn)_(global_)?scale$|logit_scale|layer_?scale|embed_scale"
)


@dataclass
class Decoded:
    """The layers of a quantized checkpoint that need decoding."""

    scheme: str = ""
    """The quantization's name, ``""`` for a plain checkpoint."""
    entries: list[Entry] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Names of the tensors that the entries are made of."""


def decode(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Decoded:
    """Find the quantized layers of a checkpoint and give them views that read as float32.

    Raises:
        CheckpointError: the quantization is not known, or its tensors do not fit together; the sentence names it.
    """
    settings = _settings(config)
    method = _method(settings, config)
    decoders = _DECODERS.get(method, _SELF_DESCRIBED)
    result = Decoded()
    for decoder in decoders:
        for entry, used in _run(decoder, tensors, settings):
            result.entries.append(entry)
            result.used |= used
    if result.entries:
        result.scheme = method or result.entries[0].dtype
    _refuse_leftovers(tensors, result, method)
    return result


def _run(
    decoder: Decoder, tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any]
) -> list[tuple[Entry, set[str]]]:
    """Run a decoder; settings of the wrong kind and impossible shapes are the checkpoint's fault, told as such."""
    try:
        return list(decoder(tensors, settings))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, re.error) as error:
        message = f"its quantization settings and its tensors do not fit together ({type(error).__name__}: {error})"
        raise CheckpointError(message) from None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantization settings, wherever the configuration keeps them."""
    places: list[Any] = [config.get("quantization_config"), config.get("compression_config")]
    text = config.get("text_config")
    if isinstance(text, Mapping):
        places += [text.get("quantization_config"), text.get("compression_config")]
    for place in places:
        if isinstance(place, Mapping) and place:
            inner = place.get("quantization")  # modelopt nests its settings
            return {**place, **inner} if isinstance(inner, Mapping) else dict(place)
    return {}


def _method(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the quantization's name as the workbench spells it; refuse those that it cannot read."""
    if not settings:
        if isinstance(config.get("quantization"), Mapping) and "bits" in config["quantization"]:
            _refuse("mlx")
        return ""
    named = settings.get("quant_method")
    if named is None:
        if "config_groups" in settings:
            named = "compressed-tensors"
        elif settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            named = "bitsandbytes"
    method = str(named or "").lower().replace("compressed_tensors", "compressed-tensors")
    if method.startswith("modelopt"):
        method = "modelopt"
    if method in {"bitsandbytes_4bit", "bitsandbytes_8bit"}:
        method = "bitsandbytes"
    if method not in _DECODERS:
        _refuse(str(named) if named else "a method that its configuration does not name")
    return method


def _refuse(method: str) -> NoReturn:
    message = (
        f"its weights are quantized with {method}, which the workbench cannot decode; it decodes "
        f"{', '.join(_DECODERS)} and GGUF: open such a version, or the unquantized model"
    )
    raise CheckpointError(message)


def _refuse_leftovers(tensors: Mapping[str, StoredTensor], result: Decoded, method: str) -> None:
    """Refuse what would show codes as if they were weights."""
    for name, tensor in tensors.items():
        if name in result.used:
            continue
        packed = bool(_PACKED.search(name)) and not is_float(tensor.dtype)
        coded = name.endswith(".weight") and len(tensor.shape) >= 2 and not is_float(tensor.dtype)
        scaled = is_float8(tensor.dtype) and len(tensor.shape) >= 2 and _unknown_scale(name, tensors)
        if packed or coded or scaled:
            what = f"as part of {method}" if method else "without a config.json that says how"
            reason = (
                f"has a scale {scaled!r} of unknown meaning"
                if scaled and not packed and not coded
                else f"is stored as {tensor.word} codes"
            )
            message = f"tensor {name!r} {reason}, {what}: the workbench will not show codes as weights; open the whole folder, or another version"
            raise CheckpointError(message)


def _unknown_scale(name: str, tensors: Mapping[str, StoredTensor]) -> str:
    """Return the name of a scale that stands beside an 8-bit floating tensor, or ``""``."""
    stem = name.removesuffix("weight")
    for candidate in (
        f"{stem}weight_scale_inv",
        f"{stem}weight_scale",
        f"{stem}scale_weight",
        f"{stem}scale",
        f"{stem}scales",
        f"{stem}weight_scale_2",
        f"{name}_scale",
        f"{name}_scale_inv",
    ):
        if candidate in tensors and not _HARMLESS_SCALES.search(candidate):
            return candidate
    return ""
