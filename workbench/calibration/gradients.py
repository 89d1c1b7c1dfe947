"""Gradients of the loss at every block's and layer's output in the float model: what Fisher-weighted losses weigh with.

The whole model must be in memory. The loss is a sum over samples and positions, in nats, so that a gradient does not depend on
how samples were put into batches:

- a causal language model: the negative log likelihood of the calibration's own next tokens;
- any other model that gives logits: the negative log likelihood of labels drawn from its own predictions, which makes the
  expected squared gradient the Fisher information (Martens, "New insights and perspectives on the natural gradient method",
  2020, section 5: labels of the data would give the empirical Fisher);
- a model that gives features only (an encoder without a head): the product of its outputs with standard normal numbers, the
  gradient of the log likelihood of a unit normal distribution around the output; derived, by the same argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.calibration.forwarding import call, evaluating, output_of
from workbench.calibration.moments import outputs_last
from workbench.calibration.runnable import Batch
from workbench.calibration.store import TensorList, TensorStore
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.calibration.lazy_module import LazyModule
    from workbench.calibration.whole_module import WholeModule

#: Outputs of transformers' models that are features.
_FEATURES = ("last_hidden_state", "pooler_output", "image_embeds", "text_embeds")


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the loss in the float model."""

    blocks: Mapping[str, TensorList]
    """At each block's output, one tensor for each pass; float32."""
    fisher: Mapping[str, Float[np.ndarray, " outputs"]]
    """E[g^2] of each layer's outputs, the mean over positions, float64."""


def loss_gradients(
    host: WholeModule | LazyModule,
    batches: Sequence[Batch],
    masks: Sequence[torch.Tensor | None],
    blocks: Mapping[str, Mapping[str, str]],
    *,
    store: TensorStore,
    seed: int = 0,
    progress: Callable[[float, str], object] = lambda _fraction, _label: None,
) -> Gradients:
    """Run the float model forward and back over all batches.

    Args:
        host: the model.
        batches: the calibration's.
        masks: for each batch, the positions that are no padding; None where all count.
        blocks: path of each block -> its layers' names -> paths inside it.
        store: keeps the gradients at the blocks.
        seed: of the labels, or normal numbers, that are drawn.
        progress: told the finished fraction and a label; may raise ``Cancelled``.

    Raises:
        CheckpointError: the model does not fit into memory, or gives nothing that a loss can be taken of.
    """
    import torch

    module = host.whole(lambda *_: None)
    kept = {path: store.new_list() for path in blocks}
    layers = {
        name: ".".join(part for part in (path, inner) if part)
        for path, inside in blocks.items()
        for name, inner in inside.items()
    }
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(layers, 0)
    found: dict[str, list[torch.Tensor]] = {}
    number = 0

    def watch_layer(name: str, layer: torch.nn.Module) -> Callable[..., Any]:
        def add(gradient: torch.Tensor) -> None:
            rows = outputs_last(layer, gradient.detach(), masks[number])
            total = (rows.float() ** 2).sum(dim=0, dtype=torch.float64).cpu()
            sums[name] = sums[name] + total if name in sums else total
            counts[name] += len(rows)

        def hook(_layer: Any, _given: Any, output: torch.Tensor) -> torch.Tensor:
            tracked = _tracked(output)
            tracked.register_hook(add)
            return tracked

        return hook

    def watch_block(path: str) -> Callable[..., None]:
        def hook(_block: Any, _given: Any, output: Any) -> None:
            value = output_of(output)
            place = len(found.setdefault(path, []))
            found[path].append(torch.zeros(value.shape))

            def keep(gradient: torch.Tensor) -> None:
                found[path][place] = gradient.detach().cpu()

            if value.requires_grad:
                value.register_hook(keep)

        return hook

    handles = [
        module.get_submodule(path).register_forward_hook(watch_layer(name, module.get_submodule(path)))
        for name, path in layers.items()
    ]
    handles += [module.get_submodule(path).register_forward_hook(watch_block(path)) for path in kept]
    wanted = [(each, each.requires_grad) for each in module.parameters()]
    generator = torch.Generator().manual_seed(seed)
    try:
        for each, _ in wanted:
            each.requires_grad_(False)
        with evaluating(module, gradients=True):
            for number, batch in enumerate(batches):
                progress(number / len(batches), "gradients of the loss")
                found.clear()
                output = call(module, batch, host.device)
                loss = _loss(module, output, batch, masks[number], generator)
                if not loss.requires_grad:
                    message = f"no layer of {type(module).__name__} leads to its output, so there are no gradients"
                    raise CheckpointError(message)
                loss.backward()
                for path, list_ in kept.items():
                    for gradient in found.get(path, ()):
                        list_.append(gradient)
    finally:
        for handle in handles:
            handle.remove()
        for each, was in wanted:
            each.requires_grad_(was)
    fisher = {name: (total / counts[name]).numpy() for name, total in sums.items()}
    return Gradients(kept, fisher)


def _tracked(output: torch.Tensor) -> torch.Tensor:
    """Return an output that gradients reach. The first layers' outputs begin the graph: no parameter asks for gradients.

    A copy, because programs may change a layer's output in place, which autograd forbids for a tensor that begins a graph.
    """
    if output.requires_grad:
        return output
    return output.detach().requires_grad_(True).clone()


def _loss(
    module: torch.nn.Module, output: Any, batch: Batch, mask: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    import torch

    logits = _logits(output)
    if logits is None:
        total = torch.zeros((), device=output_of(output).device)
        for features in _features(module, output):
            noise = torch.randn(features.shape, generator=generator).to(features.device)
            if mask is not None and features.shape[:2] == mask.shape:
                noise *= mask.to(noise.device)[..., None]
            total = total + (features * noise).sum()
        return total
    ids = batch.options.get("input_ids", batch.arguments[0] if batch.arguments else None)
    rows = logits.float()
    positions = isinstance(ids, torch.Tensor) and not ids.is_floating_point() and rows.shape[:2] == ids.shape
    if positions and _is_causal(module):
        assert isinstance(ids, torch.Tensor)
        labels = ids[:, 1:].reshape(-1).to(rows.device)
        keep = None if mask is None else mask[:, 1:].reshape(-1).to(rows.device)
        rows = rows[:, :-1].reshape(-1, rows.shape[-1])
    else:
        keep = mask.reshape(-1).to(rows.device) if mask is not None and rows.shape[:2] == mask.shape else None
        rows = rows.reshape(-1, rows.shape[-1])
        chances = rows.detach().softmax(dim=-1).cpu()
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0].to(rows.device)
    losses = torch.nn.functional.cross_entropy(rows, labels, reduction="none")
    return (losses if keep is None else losses[keep]).sum()


def _is_causal(module: torch.nn.Module) -> bool:
    word = type(module).__name__
    config: Any = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return False
    return any(each in word for each in ("CausalLM", "LMHead", "ForConditionalGeneration"))


def _logits(output: Any) -> torch.Tensor | None:
    """Return a model's logits: the entry of that name, or the plain tensor (samples, classes) that a classifier gives."""
    import torch

    found = output.get("logits") if isinstance(output, Mapping) else output
    return found if isinstance(found, torch.Tensor) and found.ndim in {2, 3} else None


def _features(module: torch.nn.Module, output: Any) -> list[torch.Tensor]:
    """Return the outputs of a model that gives features: those known by name, else the first.

    Raises:
        CheckpointError: there are none.
    """
    import torch

    def real(values: Iterable[Any]) -> list[torch.Tensor]:
        return [each for each in values if isinstance(each, torch.Tensor) and each.is_floating_point()]

    if isinstance(output, Mapping):
        found = real(output.get(name) for name in _FEATURES) or real(output.values())[:1]
    else:
        found = real(output if isinstance(output, tuple | list) else [output])[:1]
    if not found:
        message = f"{type(module).__name__} gives neither logits nor features, so no loss can be taken of its output"
        raise CheckpointError(message)
    return found
