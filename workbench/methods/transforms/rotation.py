"""Rotations folded into weights: outliers of a few channels are spread over all of them.

Two places take a rotation without any work at run time. Attention's values may be rotated inside each head, because the
attention only adds them up: ``v -> R^T v`` in the value layer, ``o -> o R`` in the output layer. And in a pre-norm model whose
norms are RMS norms without a gain (the gain is folded into the layers that read it), the whole residual stream may be rotated,
because such a norm only divides by a length: the embedding, every block and the head turn together.

The residual rotation does *not* keep the function of post-norm models (BERT: the norm's gain stands on the stream itself) or of
sandwich-norm ones (Gemma 2 and 3: a gain stands between a block's output layer and the stream, and a rotation does not commute
with a gain), nor as it stands of those with LayerNorm (its mean is no length). Rotations that need work at run time (QuaRot's
Hadamard before the down projection, and of queries and keys) are not offered: codes and scales alone could not say them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import QuantizationError
from workbench.methods.run import Run
from workbench.methods.task import BlockTask
from workbench.methods.transforms.hadamard import orthogonal
from workbench.methods.transforms.layer_axes import input_count, rows_of
from workbench.methods.transforms.pairs import FoldablePair, foldable_pairs, gain_offset, is_norm
from workbench.methods.transforms.transform import Transform, register
from workbench.methods.transforms.verified import change_if_equal

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class Rotation(Transform):
    """Rotate attention's values inside each head; with ``residual`` the residual stream of a whole pre-norm model too.

    Source: Ashkboos et al. 2024, QuaRot (arXiv 2404.00456), sections 3 and 4 (stages 1a and 1b); folding the gains: Ashkboos
    et al. 2024, SliceGPT (arXiv 2401.15024), section 3.

    Args:
        residual: whether ``prepare`` rotates the residual stream of the model that it is given.
        seed: of the signs, added to the run's seed.
    """

    word: ClassVar[str] = "rotation"
    title: ClassVar[str] = "Rotation"
    summary: ClassVar[str] = "spreads outliers by Hadamard matrices folded into the weights"

    residual: bool = False
    seed: int = 0

    def apply(self, block: BlockTask, run: Run | None = None) -> tuple[str, ...]:
        """Rotate the values of the block's attention; see ``Transform.apply``."""
        run = run or Run()
        pairs = [pair for pair in foldable_pairs(block.module) if pair.kind == "values"]
        if not pairs:
            return (f"{block.name} has no attention whose values could be rotated",)
        notes = []
        for pair in pairs:
            size = input_count(block.module.get_submodule(pair.consumers[0])) // pair.heads
            matrix = _tensor(orthogonal(size, run.seed + self.seed), block.module)
            change = partial(rotate_values, block.module, pair, matrix)
            note = change_if_equal(block, f"rotating {pair}", change)
            notes += [note] if note else []
        return tuple(notes)

    def prepare(self, module: torch.nn.Module, run: Run | None = None) -> tuple[str, ...]:
        """Rotate the residual stream of a whole model, where asked for.

        Raises:
            QuantizationError: the model's family does not allow it.
        """
        return rotate(module, (run or Run()).seed + self.seed) if self.residual else ()


def rotate_values(block: torch.nn.Module, pair: FoldablePair, matrix: torch.Tensor) -> None:
    """Rotate a pair of kind ``values`` in place: every head by the same matrix (head size, head size)."""
    import torch

    producer: Any = block.get_submodule(pair.producer)
    consumer = block.get_submodule(pair.consumers[0])
    first, last = pair.rows or (0, len(rows_of(producer)))
    size = len(matrix)
    with torch.no_grad():
        values = rows_of(producer)[first:last]
        turned = matrix.T @ values.reshape(-1, size, values.shape[1]).to(matrix)
        values[:] = turned.reshape(values.shape).to(values)
        if producer.bias is not None:
            bias = producer.bias.data[first:last]
            bias[:] = (bias.view(-1, size).to(matrix) @ matrix).reshape(-1).to(bias)
        columns = rows_of(consumer)
        columns[:] = (columns.reshape(len(columns), -1, size).to(matrix) @ matrix).reshape(columns.shape).to(columns)


def rotate(module: torch.nn.Module, seed: int = 0) -> tuple[str, ...]:
    """Rotate the residual stream of a pre-norm language model with RMS norms, in place (Llama, Mistral, Qwen 2 and 3, ...).

    The model computes the same afterwards (a float32 model to about 1e-6); a head that shared the embedding's weights gets its
    own. Block by block use ``residual_block``, ``fold_gains`` and ``rotate_block`` with the same matrix.

    Args:
        module: a transformers model for causal language modelling, or any module with the same parts.
        seed: of the rotation.

    Returns:
        What a person should know.

    Raises:
        QuantizationError: a family whose function it would change; one sentence says why.
    """
    import torch

    body: Any = getattr(module, "model", None)
    embedding: Any
    blocks: Any
    last: Any
    embedding, blocks, last = (getattr(body, name, None) for name in ("embed_tokens", "layers", "norm"))
    head: Any = getattr(module, "lm_head", None)
    if not (isinstance(embedding, torch.nn.Embedding) and blocks is not None and is_norm(last) and head is not None):
        message = (
            f"{type(module).__name__} does not have the parts of a pre-norm language model (model.embed_tokens, model.layers, "
            "model.norm, lm_head), so its residual stream cannot be rotated"
        )
        raise QuantizationError(message)
    parts = [residual_block(block) for block in blocks]  # refuses before anything is changed
    _check_norm(last)
    notes = []
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        config: Any = getattr(module, "config", None)
        if config is not None:
            config.tie_word_embeddings = False
        notes.append("the head shared the embedding's weights and has its own now: the gain of the last norm is in it")
    matrix = _tensor(orthogonal(embedding.embedding_dim, seed), module)
    with torch.no_grad():
        weight = embedding.weight.data
        weight[:] = (weight.to(matrix) @ matrix).to(weight)
        for part in parts:
            fold_gains(part)
            rotate_block(part, matrix)
        _fold_gain(last, [head])
        _turn_inputs(head, matrix)
    return tuple(notes)


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """How one pre-norm block stands on the residual stream."""

    readers: tuple[tuple[Any, tuple[Any, ...]], ...]
    """Each norm that reads the stream, and the linear layers that read the norm."""
    writers: tuple[Any, ...]
    """The linear layers whose outputs are added to the stream."""


def residual_block(block: Any) -> ResidualBlock:
    """Return how a block stands on the stream.

    Raises:
        QuantizationError: it is no plain pre-norm block with RMS norms; one sentence says why.
    """
    name = type(block).__name__
    pairs = [pair for pair in foldable_pairs(block) if pair.kind == "norm"]
    readers = [
        (block.get_submodule(pair.producer), tuple(block.get_submodule(path) for path in pair.consumers))
        for pair in pairs
    ]
    writers = [
        part
        for path, part in block.named_modules()
        if path.rpartition(".")[2] in {"o_proj", "down_proj"} and part.weight.ndim == 2
    ]
    width = readers[0][0].weight.numel() if readers else 0
    norms = [part for part in block.modules() if is_norm(part) and part.weight.numel() == width]
    linear = {
        id(part) for part in block.modules() if getattr(part, "weight", None) is not None and part.weight.ndim >= 2
    }
    known = {id(part) for _, parts in readers for part in parts} | {id(part) for part in writers}
    if len(readers) != 2 or len(writers) != 2 or linear != known:
        message = (
            f"{name} is not made of one attention and one feed-forward part, each behind a norm of its own, so its residual "
            "stream cannot be rotated; the values inside each head still can"
        )
        raise QuantizationError(message)
    if len(norms) != len(readers):
        message = (
            f"{name} has norms behind its output layers as well as before its input layers; their gains do not commute with a "
            "rotation of the residual stream, so only the values inside each head can be rotated"
        )
        raise QuantizationError(message)
    for norm, _ in readers:
        _check_norm(norm)
    return ResidualBlock(tuple(readers), tuple(writers))


def fold_gains(part: ResidualBlock) -> None:
    """Move the gains of a block's norms into the layers that read them, in place; the gains are 1 afterwards."""
    for norm, consumers in part.readers:
        _fold_gain(norm, consumers)


def rotate_block(part: ResidualBlock, matrix: torch.Tensor) -> None:
    """Rotate how a block reads and writes the stream, in place: its function f becomes ``x -> f(x R^T) R``.

    Args:
        part: whose gains are folded.
        matrix: R, orthogonal (width, width).
    """
    for _, consumers in part.readers:
        for layer in consumers:
            _turn_inputs(layer, matrix)
    for layer in part.writers:
        rows = rows_of(layer)
        rows[:] = (matrix.T @ rows.to(matrix)).to(rows)
        if layer.bias is not None:
            layer.bias.data[:] = (layer.bias.data.to(matrix) @ matrix).to(layer.bias)


def _turn_inputs(layer: Any, matrix: torch.Tensor) -> None:
    rows = rows_of(layer)
    rows[:] = (rows.to(matrix) @ matrix).to(rows)


def _fold_gain(norm: Any, consumers: Any) -> None:
    offset = gain_offset(norm)
    gain = norm.weight.data + offset
    for layer in consumers:
        rows_of(layer)[:] *= gain
    norm.weight.data.fill_(1.0 - offset)


def _check_norm(norm: Any) -> None:
    """Refuse a norm that is more than a length and a gain: with a bias, or taking the mean away.

    Raises:
        QuantizationError: see above.
    """
    import torch

    with torch.no_grad():
        constant = torch.ones(1, norm.weight.numel(), device=norm.weight.device, dtype=norm.weight.dtype)
        takes_mean = norm.weight.abs().sum() > 0 and bool(norm(constant).abs().sum() == 0.0)
    if takes_mean or isinstance(norm, torch.nn.LayerNorm) or getattr(norm, "bias", None) is not None:
        message = (
            f"{type(norm).__name__} takes the mean away or adds a bias, which does not commute with a rotation of the residual "
            "stream; only RMS norms do"
        )
        raise QuantizationError(message)


def _tensor(matrix: Any, module: torch.nn.Module) -> torch.Tensor:
    """Return a matrix on the module's device, float64 where the device has it."""
    import torch

    device = next(module.parameters()).device
    return torch.tensor(matrix, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
