"""Which layers of a block read what which part of it gives: where a factor per channel can be moved from one to the other.

A pair has one producer (a norm's gain, or rows of a linear layer) and the linear layers that read its output, and nobody else
does. Dividing the producer's channel by s and multiplying the consumers' column by s changes nothing but the weights.
Pairs are proposed by the names that model families use; whoever folds into one checks the block's output (``verified``),
because a name proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import QuantizationError
from workbench.methods.transforms.layer_axes import (
    input_count,
    is_linear,
    is_turned,
    rows_of,
    scale_inputs,
    scale_outputs,
)

if TYPE_CHECKING:
    import torch

Kind = Literal["norm", "values", "product", "relu"]

_QKV = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("qkv_proj",),
    ("c_attn",),
    ("query_key_value",),
    ("qkv",),
    ("Wqkv",),
)
_BEFORE_ATTENTION = (
    "input_layernorm",
    "self_attn_layer_norm",
    "ln_1",
    "layernorm_before",
    "layer_norm1",
    "norm1",
    "attention_norm",
)
_BEFORE_FEEDFORWARD = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "final_layer_norm",
    "ln_2",
    "layernorm_after",
    "layer_norm2",
    "norm2",
    "ffn_norm",
)
_INTO_FEEDFORWARD = (("gate_proj", "up_proj"), ("gate_up_proj",), ("c_fc",), ("fc1",), ("fc_in",), ("dense_h_to_4h",))
_VALUES = ("v_proj", "value")
_OUTPUTS = ("o_proj", "out_proj", "dense")


@dataclass(frozen=True)
class FoldablePair:
    """A producer and its consumers, by their paths inside the block."""

    kind: Kind
    """``norm``: a norm's gain before linear layers. ``values``: attention's values before its output layer. ``product``: the
    linear half of a gated product before the layer that reads it. ``relu``: a linear layer whose ReLU another reads."""
    producer: str
    consumers: tuple[str, ...]
    rows: tuple[int, int] | None = None
    """First and last + 1 output of the producer that are read (a fused layer has more); None for all."""
    heads: int = 1
    """``values``: attention heads of the consumer."""
    repeats: int = 1
    """``values``: how many heads of the consumer read the same head of the producer (grouped-query attention)."""

    def __str__(self) -> str:
        return f"{self.producer} -> {', '.join(self.consumers)}"


def foldable_pairs(block: torch.nn.Module) -> list[FoldablePair]:
    """Return the pairs that a block's names promise, in the order of the computation.

    Args:
        block: one block of a transformer; others give an empty list.
    """
    found: list[FoldablePair] = []
    for path, part in block.named_modules():
        found += _attention(block, path, part)
    for path, part in block.named_modules():
        found += _feedforward(block, path, part)
    # A norm that several parts read (experts and their router, parallel attention) cannot be folded into one of them.
    norms = [pair.producer for pair in found if pair.kind == "norm"]
    return [pair for pair in found if pair.kind != "norm" or norms.count(pair.producer) == 1]


def fold(block: torch.nn.Module, pair: FoldablePair, factors: torch.Tensor) -> None:
    """Divide the producer's channels by factors and multiply the consumers' columns by them, in place.

    Args:
        block: the block.
        pair: of it.
        factors: (channels of the consumers,), positive; with ``repeats`` above 1 equal over heads that share values.

    Raises:
        QuantizationError: factors that are not positive and finite, or of another length.
    """
    channels = input_count(block.get_submodule(pair.consumers[0]))
    if factors.shape != (channels,) or not bool(((factors > 0) & factors.isfinite()).all()):
        message = f"{pair} takes {channels} positive factors, one for each channel between them"
        raise QuantizationError(message)
    producer = block.get_submodule(pair.producer)
    if pair.kind == "norm":
        scale_norm(producer, 1.0 / factors)
    else:
        size = channels // pair.heads
        own = factors.view(-1, pair.repeats, size)[:, 0].reshape(-1) if pair.repeats > 1 else factors
        scale_outputs(producer, 1.0 / own, pair.rows)
    for path in pair.consumers:
        scale_inputs(block.get_submodule(path), factors)


def scale_norm(norm: Any, factors: torch.Tensor) -> None:
    """Multiply a norm's outputs by factors, in place: its gain (stored as such, or less 1 as Gemma does) and its bias."""
    factors = factors.to(norm.weight)
    if gain_offset(norm):
        norm.weight.data[:] = (1.0 + norm.weight.data) * factors - 1.0
    else:
        norm.weight.data *= factors
    if getattr(norm, "bias", None) is not None:
        norm.bias.data *= factors


def gain_offset(norm: Any) -> float:
    """Return what a norm adds to its stored weight before it multiplies: 1 for Gemma's RMSNorm, 0 for others.

    Found by trying: with a weight (and bias) of zeros a plain norm gives zeros.
    """
    import torch

    with torch.no_grad():
        kept = {name: value.data.clone() for name, value in norm.named_parameters()}
        try:
            for value in norm.parameters():
                value.data.zero_()
            probe = torch.linspace(-1.0, 2.0, norm.weight.numel(), device=norm.weight.device, dtype=norm.weight.dtype)
            return 1.0 if bool(norm(probe[None]).abs().sum() > 0.0) else 0.0
        finally:
            for name, value in norm.named_parameters():
                value.data.copy_(kept[name])


def is_norm(part: Any) -> bool:
    """Say whether a module normalises vectors and has a gain for each channel."""
    weight = getattr(part, "weight", None)
    return (
        weight is not None
        and weight.ndim == 1
        and "norm" in type(part).__name__.lower()
        and not hasattr(part, "running_mean")
    )


def head_shape(attention: Any, producer_rows: int, consumer_columns: int) -> tuple[int, int] | None:
    """Return (heads of the output layer, how many share a value head), or None where the sizes do not say.

    Args:
        attention: the module that holds the layers; its ``head_dim`` or count of heads is asked for.
        producer_rows: outputs of the value layer.
        consumer_columns: inputs of the output layer.
    """
    size = getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None)
    count = getattr(attention, "num_heads", None) or getattr(attention, "num_attention_heads", None)
    if size is None and count:
        size = consumer_columns // int(count)
    if not size or consumer_columns % size or producer_rows % size or consumer_columns % producer_rows:
        return None
    return consumer_columns // int(size), consumer_columns // producer_rows


def _attention(block: Any, path: str, part: Any) -> list[FoldablePair]:
    found: list[FoldablePair] = []
    own = dict(part.named_children())
    readers = next((names for names in _QKV if all(is_linear(own.get(name)) for name in names)), None)
    if readers is not None:
        norm = _norm_before(block, path, _BEFORE_ATTENTION)
        if norm is not None:
            found.append(FoldablePair("norm", norm, tuple(_join(path, name) for name in readers)))
    values = next((name for name in _VALUES if is_linear(own.get(name))), None)
    output = next((name for name in _OUTPUTS if is_linear(own.get(name))), None)
    reader = _join(path, output) if output else None
    if values == "value" and reader is None:
        # BERT keeps the output layer beside the attention, not in it.
        beside = _join(_parent(path), "output.dense")
        reader = beside if is_linear(_find(block, beside)) else None
    if values is not None and reader is not None:
        rows, columns = len(rows_of(own[values])), input_count(block.get_submodule(reader))
        shape = head_shape(part, rows, columns)
        if shape is not None:
            found.append(FoldablePair("values", _join(path, values), (reader,), None, *shape))
    if readers == ("qkv_proj",) and output is not None:
        # the rows are queries, keys, values; as many keys as values
        rows, columns = len(rows_of(own["qkv_proj"])), input_count(own[output])
        first = columns + (rows - columns) // 2
        shape = head_shape(part, rows - first, columns) if rows > columns else None
        if shape is not None:
            found.append(FoldablePair("values", _join(path, "qkv_proj"), (_join(path, output),), (first, rows), *shape))
    if readers == ("c_attn",) and is_turned(own.get("c_proj")):
        width = input_count(own["c_proj"])
        shape = head_shape(part, width, width)
        if shape is not None and len(rows_of(own["c_attn"])) == 3 * width:
            found.append(
                FoldablePair("values", _join(path, "c_attn"), (_join(path, "c_proj"),), (2 * width, 3 * width), *shape)
            )
    return found


def _feedforward(block: Any, path: str, part: Any) -> list[FoldablePair]:
    found: list[FoldablePair] = []
    own = dict(part.named_children())
    readers = next((names for names in _INTO_FEEDFORWARD if all(is_linear(own.get(name)) for name in names)), None)
    if readers is None:
        return found
    norm = _norm_before(block, path, _BEFORE_FEEDFORWARD)
    if norm is not None:
        found.append(FoldablePair("norm", norm, tuple(_join(path, name) for name in readers)))
    down = own.get("down_proj")
    if readers[-1] == "up_proj" and is_linear(down):
        found.append(FoldablePair("product", _join(path, "up_proj"), (_join(path, "down_proj"),)))
    if readers == ("gate_up_proj",) and is_linear(down):
        width = input_count(down)
        found.append(
            FoldablePair("product", _join(path, "gate_up_proj"), (_join(path, "down_proj"),), (width, 2 * width))
        )
    second = own.get("fc2")
    if (
        readers == ("fc1",)
        and is_linear(second)
        and "relu" in type(getattr(part, "activation_fn", None)).__name__.lower()
    ):
        found.append(FoldablePair("relu", _join(path, "fc1"), (_join(path, "fc2"),)))
    return found


def _norm_before(block: Any, path: str, names: Sequence[str]) -> str | None:
    """Return the norm whose output a part reads: the nearest with a known name, in the part or beside or above it."""
    homes = [path]
    while homes[-1]:
        homes.append(_parent(homes[-1]))
    for home in homes:
        for name in names:
            candidate = _join(home, name)
            if is_norm(_find(block, candidate)):
                return candidate
    return None


def _find(block: Any, path: str) -> Any:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
