"""From stored tensors to layers: views as (out, in), names, kinds, roles, parts of fused projections, tied weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

from workbench.checkpoints import configuration, names
from workbench.checkpoints.dtypes import is_float
from workbench.checkpoints.fused import split_fused
from workbench.checkpoints.layer import Kind, Layer, Weights
from workbench.checkpoints.tensors import StoredTensor, digest
from workbench.checkpoints.views import StoredRows, TransposedRows

_CONV1D_FAMILIES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text"})


@dataclass(frozen=True)
class Entry:
    """A weight on its way to becoming a layer: a plain tensor, or a dequantized view on several."""

    name: str
    """The layer's name."""
    weights: Weights
    shape: tuple[int, ...]
    dtype: str
    content_key: str | Callable[[], str]
    conv1d: bool = False
    """The tensor is stored (in, out), as GPT-2's ``Conv1D``."""
    kind: Kind | None = None
    """The kind where the source knows it; otherwise name and shape tell."""


@dataclass
class Assembled:
    """The layers of a model, and what stands beside them."""

    layers: dict[str, Layer] = field(default_factory=dict)
    fused: dict[str, Layer] = field(default_factory=dict)
    """Whole fused projections whose parts are among the layers."""
    tied: dict[str, str] = field(default_factory=dict)
    """Alias -> the layer that holds the weights."""


def assemble(
    entries: Iterable[Entry], config: Mapping[str, Any], *, sort: bool = True, tied: Mapping[str, str] | None = None
) -> Assembled:
    """Make layers of entries.

    Arguments:
        entries: the weights, in the source's order.
        config: the model's configuration.
        sort: put the layers in the order of the computation (for sources that store them in another order).
        tied: aliases that the source itself knows of (a module's shared parameters).
    """
    listed = list(entries)
    if sort:
        listed.sort(key=lambda entry: names.order_key(entry.name))
    result = Assembled(tied=dict(tied or {}))
    _drop_tied_head(listed, config, result)
    for entry in listed:
        parts = split_fused(entry.name, entry.weights, config, conv1d=entry.conv1d)
        if parts is None:
            result.layers[entry.name] = _layer(entry)
            continue
        result.fused[entry.name] = _layer(entry)
        for part, view in parts.items():
            key = _part_key(entry.content_key, part)
            name = f"{entry.name}.{part}"
            result.layers[name] = _layer(Entry(name, view, view.shape, entry.dtype, key))
    return result


def _part_key(key: str | Callable[[], str], part: str) -> str | Callable[[], str]:
    return partial(_digest_later, key, part) if callable(key) else digest(key, part)


def _digest_later(key: Callable[[], str], part: str) -> str:
    return digest(key(), part)


def _layer(entry: Entry) -> Layer:
    kind = entry.kind or names.kind_of(entry.name, entry.shape)
    role = names.role_of(entry.name, kind, entry.shape)
    return Layer(entry.name, entry.weights, entry.shape, entry.dtype, kind, role, entry.content_key)


def _drop_tied_head(entries: list[Entry], config: Mapping[str, Any], result: Assembled) -> None:
    """Show tied weights once, at the embedding; the head becomes an alias, whether the file repeats it or not."""
    if not configuration.ties_embeddings(config):
        return
    embedding = next((entry for entry in entries if entry.name.rsplit(".", 1)[-1] in names.EMBEDDING_NAMES), None)
    if embedding is None:
        return
    heads = [entry for entry in entries if _is_head(entry.name) and entry.shape == embedding.shape]
    for head in heads:
        if head.dtype == embedding.dtype and _may_be_equal(head.weights, embedding.weights):
            entries.remove(head)
            result.tied[head.name] = embedding.name
    if not any(_is_head(entry.name) for entry in entries) and not heads and _is_language_model(config):
        result.tied.setdefault("output" if embedding.name == "token_embd" else "lm_head", embedding.name)


def _may_be_equal(one: Weights, other: Weights) -> bool:
    """Look at a few rows: one that differs proves that a configuration which ties the two does not fit its weights."""
    rows = one.shape[0]
    for start, stop in ((0, min(4, rows)), (max(0, rows - 4), rows)):
        if one.rows(start, stop).tobytes() != other.rows(start, stop).tobytes():
            return False
    return True


def _is_head(name: str) -> bool:
    return (
        any(name == head or name.endswith("." + head) for head in names.HEAD_NAMES if head != "output")
        or name == "output"
    )


def _is_language_model(config: Mapping[str, Any]) -> bool:
    architectures = config.get("architectures") or []
    return any(
        isinstance(word, str) and ("ForCausalLM" in word or "LMHead" in word or "ForConditionalGeneration" in word)
        for word in architectures
    ) or ("general.architecture" in config)


def tensor_entries(
    tensors: Iterable[StoredTensor],
    config: Mapping[str, Any],
    *,
    conv1d: frozenset[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> list[Entry]:
    """Turn plain floating tensors into entries; biases, buffers, integers and single numbers are left out.

    Arguments:
        tensors: stored tensors.
        config: the model's configuration.
        conv1d: names of the tensors that are stored (in, out), where the source knows; otherwise the family's and the
            shapes' word is taken.
        kinds: kinds by tensor name, where the source knows them.
    """
    listed = list(tensors)
    family = configuration.model_type(config)
    gpt2 = conv1d is None and (family in _CONV1D_FAMILIES or (not family and _looks_like_gpt2(listed)))
    entries = []
    for tensor in listed:
        if not is_layer(tensor):
            continue
        name = names.layer_name(tensor.name)
        swapped = tensor.name in conv1d if conv1d is not None else gpt2 and _is_conv1d(tensor)
        weights = matrix_view(name, tensor, config, conv1d=swapped)
        key = partial(getattr, tensor, "content_key") if tensor.volatile else tensor.content_key
        shape = tensor.shape
        if isinstance(weights, TransposedRows):
            shape = (*shape[:-2], shape[-1], shape[-2])
        kind = (kinds or {}).get(tensor.name)
        if kind is None and len(shape) == 1 and tensor.name.endswith(".weight"):
            kind = "norm"  # what else is one-dimensional and called weight
        entries.append(Entry(name, weights, shape, tensor.word, key, conv1d=swapped, kind=kind))
    return entries


def is_layer(tensor: StoredTensor) -> bool:
    """Whether a tensor is a weight: floating, more than one number, neither bias nor buffer."""
    name = tensor.name
    if not is_float(tensor.dtype) or names.is_buffer(name) or names.is_bias(name) or names.is_scale(name):
        return False
    return len(tensor.shape) > 1 or (len(tensor.shape) == 1 and tensor.shape[0] != 1)


def matrix_view(name: str, tensor: StoredTensor, config: Mapping[str, Any], *, conv1d: bool = False) -> Weights:
    """View a tensor as rows of outputs.

    (n) -> (1, n); (out, in) as it is, or transposed where it is stored (in, out); (out, in, kernel...) ->
    (out, in * kernel); (experts, out, in) -> (experts * out, in); leading sides of 1 are dropped.
    """
    shape = tensor.shape
    if conv1d and len(shape) == 2:
        return TransposedRows(tensor)
    if names.is_expert_stack(name, len(shape)):
        if _experts_are_transposed(name, shape, config):
            return TransposedRows(tensor)
        return StoredRows(tensor, (shape[0] * shape[1], shape[2]))
    if len(shape) <= 1:
        return StoredRows(tensor, (1, prod(shape)))
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return StoredRows(tensor, (shape[0], prod(shape[1:])))


def _experts_are_transposed(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a stack of experts is stored (experts, in, out): by the hidden size where it decides, else by family."""
    width = configuration.hidden_size(configuration.section_for(config, name))
    if width and (shape[1] == width) != (shape[2] == width):
        down = "down" in name.rsplit(".", 1)[-1]
        return (shape[2] if down else shape[1]) == width
    return (
        configuration.model_type(config, name) in _TRANSPOSED_EXPERTS or config.get("model_type") in _TRANSPOSED_EXPERTS
    )


def _is_conv1d(tensor: StoredTensor) -> bool:
    last = names.layer_name(tensor.name).rsplit(".", 1)[-1]
    return len(tensor.shape) == 2 and last in {"c_attn", "c_proj", "c_fc", "q_attn"}


def _looks_like_gpt2(tensors: list[StoredTensor]) -> bool:
    """Whether ``c_attn`` is stored (n, 3n): only GPT-2's ``Conv1D`` does that."""
    return any(
        tensor.name.endswith("attn.c_attn.weight") and len(tensor.shape) == 2 and tensor.shape[1] == 3 * tensor.shape[0]
        for tensor in tensors
    )
