"""Walk a model block by block: each block with its inputs in the float model and in the model changed so far.

    for block in BlockStream("demo:tiny-gemma3", Calibration.from_texts("demo:tiny-gemma3")):
        statistics = block.statistics(needs={"moments", "gram"})
        ...                                     # change the weights of block.module in place
                                                # the next block sees what this one gives now

Only one block is materialised at a time where the model lies in files; hidden states are kept in memory up to a budget and in
files beyond it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.calibration.block import BlockInputs, StreamBlock
from workbench.calibration.blocks import (
    Handover,
    Plan,
    capture_calls,
    is_layer,
    layers_inside,
    plan_stack,
    plan_units,
)
from workbench.calibration.data import Calibration
from workbench.calibration.forwarding import (
    NotAStackError,
    ReachedError,
    call,
    evaluating,
    hidden_of,
    like_output,
    output_of,
    replaced_forward,
    with_hidden,
    without_weights,
)
from workbench.calibration.hosts import lazy_host, opened, runs_lazily, whole_host
from workbench.calibration.runnable import Batch, available_memory
from workbench.calibration.store import CallStore, TensorList, TensorStore, map_tensors
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.calibration.gradients import Gradients
    from workbench.calibration.lazy_module import LazyModule
    from workbench.calibration.whole_module import WholeModule

Progress = Callable[[float, str], None]
#: Without a budget, hidden states may take this share of the free memory.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class BlockPlace:
    """One block, as a list shows it."""

    name: str
    """Path in the running model, e.g. ``model.layers.0``."""
    layers: tuple[str, ...]
    """Names of its layers, as ``model.layers`` or ``model.fused`` have them."""
    tied: bool = False
    """Its weight is the embedding's too: a head that cannot be changed alone."""


class BlockStream:
    """The blocks of a model in the order of computation, each with what flows through it.

    Transformers models are streamed: the masks and position tables of all blocks are recorded by one pass in which blocks
    hand their input through, then hidden states go from block to block. Layers around the repeated blocks are blocks of
    their own. Any other module (a CNN) runs anew up to each block, so it must be small and in memory.

    Layers that the calibration does not call (the image tower of a model that reads text) are not listed, nor are
    embeddings, norms, transposed convolutions, and experts that are stacked in one parameter.

    Args:
        model: a ``Model``, what ``open_model`` takes, or ``demo:NAME``.
        calibration: the inputs.
        device: where blocks run.
        folder: where hidden states go that do not fit into ``memory``; a temporary folder by default.
        memory: bytes of hidden states that may stay in memory; a quarter of what is free by default.
        progress: told the finished fraction and the block's name; may raise ``Cancelled``.

    Raises:
        CheckpointError: the model cannot be run on these inputs; one sentence.
    """

    def __init__(
        self,
        model: Any,
        calibration: Calibration,
        *,
        device: str = "cpu",
        folder: str | Path | None = None,
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = opened(model)
        self.calibration = calibration
        self.device = str(device)
        self._listener: Progress = progress or (lambda _fraction, _label: None)
        self._fraction = 0.0
        self._folder = folder
        self._memory = int(MEMORY_SHARE * (available_memory() or 4 << 30)) if memory is None else memory
        self.progress(0.0, f"looking for the blocks of {self.model.name}")
        self.batches = tuple(calibration.batches)
        self._host, self._plan = self._find()
        self.masks = [_mask(batch) for batch in self.batches]

    def __repr__(self) -> str:
        return f"BlockStream({self.model.name!r}, {len(self.blocks)} blocks, {self.calibration!r})"

    def progress(self, fraction: float, label: str) -> None:
        """Tell the listener how far the walk is; it may raise ``Cancelled``."""
        self._fraction = fraction
        self._listener(fraction, label)

    def _find(self) -> tuple[WholeModule | LazyModule, Plan]:
        if runs_lazily(self.model):
            with contextlib.suppress(NotAStackError, CheckpointError):
                host = lazy_host(self.model, self.batches)
                self.batches = _without_caches(host.module, self.calibration.batches)
                plan = plan_stack(host, _one_sample(self.batches[0]))
                for path in (*plan.before, *plan.stack, *plan.after):
                    host.check(path)
                return host, plan
        host = whole_host(self.model)
        self.batches = _without_caches(host.module, self.calibration.batches)
        probe = _one_sample(self.batches[0])
        try:
            plan = plan_stack(host, probe)
            self._check_handover(host, plan, probe)
        except NotAStackError:
            plan = plan_units(host, probe)
        return host, plan

    def _check_handover(self, host: WholeModule, plan: Plan, probe: Batch) -> None:
        """Compare one sample streamed block by block with the model itself.

        Raises:
            NotAStackError: they differ: what a block is told beside the hidden state depends on the blocks before.
        """
        import torch

        seen: list[torch.Tensor] = []
        last = host.module.get_submodule(plan.stack[-1])
        handle = last.register_forward_hook(lambda _module, _given, output: seen.append(output_of(output)))
        try:
            with evaluating(host.module):
                call(host.module, probe, host.device)
        finally:
            handle.remove()
        calls: list[Any] = []
        self._record(host, plan, probe, {}, calls)
        hidden = hidden_of(*calls[0])
        for path, (arguments, options, place) in zip(plan.stack, calls, strict=True):
            block = host.module.get_submodule(path)
            with evaluating(block):
                given, named = with_hidden(arguments, options, place, hidden)
                hidden = output_of(block(*given, **named))
        if not torch.allclose(hidden, seen[0], atol=1e-5 * float(seen[0].abs().max()), rtol=1e-4):
            raise NotAStackError

    @property
    def lazy(self) -> bool:
        """Whether blocks are read from files one at a time."""
        return self._host.lazy

    @cached_property
    def blocks(self) -> tuple[BlockPlace, ...]:
        """All blocks in the order of the computation; those without a layer of the checkpoint are left out."""
        return tuple(BlockPlace(path, tuple(names), tied) for path, names, tied in self._places() if names)

    def __len__(self) -> int:
        return len(self.blocks)

    def _places(self) -> Iterator[tuple[str, dict[str, str], bool]]:
        """Yield (path, layer names -> paths inside, tied) of every block."""
        for path in (*self._plan.before, *self._plan.stack, *self._plan.after):
            module = self._host.module.get_submodule(path)
            names: dict[str, str] = {}
            for inner in layers_inside(module):
                name = self._host.layer(".".join(part for part in (path, inner) if part))
                if name is not None and name not in names:
                    names[name] = inner
            yield path, names, is_layer(module) and self._host.tied(path)

    def __iter__(self) -> Generator[StreamBlock, None, None]:
        """Walk from the start; a block may be used until the next one is asked for."""
        store = TensorStore(self._folder, self._memory)
        try:
            yield from _Walk(self, self._host, self._plan, store).blocks(list(self._places()))
        finally:
            store.close()
        self.progress(1.0, "")

    def _record(
        self,
        host: WholeModule | LazyModule,
        plan: Plan,
        batch: Batch,
        replacements: Mapping[Any, Callable[..., Any]],
        calls: list[Any],
    ) -> None:
        """Append each block's (arguments, options, place of the hidden state) of one batch."""
        blocks = [host.module.get_submodule(path) for path in plan.stack]
        first = None
        if _holds_tensors(plan.form):
            first = host.copy(plan.stack[0], host.device)

        def told(number: int, arguments: tuple[Any, ...], options: dict[str, Any], place: int | str) -> None:
            calls.append((arguments, options, place))
            if number == len(blocks) - 1:
                raise ReachedError

        handover = Handover(len(blocks), first, told, plan.form)
        changed = {**replacements, **dict(zip(blocks, handover.forwards, strict=True))}
        with evaluating(host.module), host.running(), replaced_forward(changed), contextlib.suppress(ReachedError):
            call(host.module, batch, host.device)

    @cached_property
    def gradients(self) -> Gradients:
        """Gradients of the loss at all blocks and layers of the float model (see ``gradients.loss_gradients``)."""
        from workbench.calibration.gradients import loss_gradients

        store = TensorStore(self._folder, self._memory)
        blocks = {path: names for path, names, _ in self._places()}

        def tell(fraction: float, label: str) -> None:
            self._listener(self._fraction, f"{label}, {fraction:.0%}")  # a side step: the walk itself does not move

        return loss_gradients(self._host, self.batches, self.masks, blocks, store=store, progress=tell)


class _Walk:
    """One walk: the float stream and the stream of the model changed so far."""

    def __init__(self, stream: BlockStream, host: WholeModule | LazyModule, plan: Plan, store: TensorStore) -> None:
        self._stream = stream
        self._host = host
        self._plan = plan
        self._store = store
        self._batches = stream.batches
        self._replaced: dict[torch.nn.Module, Callable[..., Any]] = {}
        self._done = 0
        self._total = 1

    def blocks(self, places: list[tuple[str, dict[str, str], bool]]) -> Iterator[StreamBlock]:
        """Yield every block that has layers; the others are passed through."""
        self._total = len(places)
        known = {path: (names, tied) for path, names, tied in places}
        for path in self._plan.before:
            yield from self._single(path, *known[path], None, None)
        hidden, changed = None, None
        if self._plan.stack:
            float_calls, float_hidden = self._recorded({})
            calls, start = (float_calls, float_hidden) if not self._replaced else self._recorded(self._replaced)
            hidden, changed = float_hidden, start
            for number, path in enumerate(self._plan.stack):
                block = StreamBlock(
                    self._stream,
                    self._host,
                    self._store,
                    path=path,
                    places=known[path][0],
                    inputs=BlockInputs(calls, number, changed, self._stream.device),
                    float_inputs=None
                    if calls is float_calls and changed is hidden
                    else BlockInputs(float_calls, number, hidden, self._stream.device),
                    masks=self._stream.masks,
                    tell=self._tell(path),
                    hands_on=number < len(self._plan.stack) - 1 or bool(self._plan.after),
                )
                if known[path][0]:
                    yield block
                if number == len(self._plan.stack) - 1 and not self._plan.after:
                    block.retire()
                    break
                float_after, after = block.advance()
                block.retire()
                for old in {id(hidden): hidden, id(changed): changed}.values():
                    old.release()
                hidden, changed = float_after, after
                self._done += 1
        for path in self._plan.after:
            yield from self._single(path, *known[path], hidden, changed)

    def _tell(self, path: str) -> Callable[[float], None]:
        done = self._done

        def tell(fraction: float) -> None:
            self._stream.progress(min(1.0, (done + fraction) / self._total), path)

        return tell

    def _recorded(self, replacements: Mapping[Any, Callable[..., Any]]) -> tuple[RecordedCalls, TensorList]:
        kept = CallStore(self._store)
        calls: list[list[Any]] = []
        hidden = self._store.new_list()
        for number, batch in enumerate(self._batches):
            self._stream.progress(self._done / self._total, f"inputs of the blocks, batch {number + 1}")
            found: list[Any] = []
            self._stream._record(self._host, self._plan, batch, replacements, found)
            if len(found) != len(self._plan.stack):
                message = f"batch {number + 1} does not run through all blocks of {self._stream.model.name}"
                raise CheckpointError(message)
            hidden.append(hidden_of(*found[0]))
            row = []
            for arguments, options, place in found:
                bare, named = with_hidden(arguments, options, place, None)
                row.append((kept.keep((bare, named)), place))
            calls.append(row)
        return RecordedCalls(kept, calls), hidden

    def _single(
        self,
        path: str,
        names: dict[str, str],
        tied: bool,
        hidden: TensorList | None,
        changed: TensorList | None,
    ) -> Iterator[StreamBlock]:
        """Yield a block outside the stack: the model runs up to it."""
        if names:
            float_inputs = self._captured(path, {}, hidden)
            same = not self._replaced and changed is hidden
            inputs = float_inputs if same else self._captured(path, self._replaced, changed)
            block = StreamBlock(
                self._stream,
                self._host,
                self._store,
                path=path,
                places=names,
                inputs=inputs,
                float_inputs=None if same else float_inputs,
                masks=[self._stream.masks[number] for number in inputs.batches],
                tell=self._tell(path),
                tied=tied,
            )
            yield block
            if block.changed:
                module, device = block.module, self._host.device

                def replacement(*arguments: Any, **options: Any) -> Any:
                    given, named = map_tensors((arguments, options), lambda each: each.to(self._stream.device))
                    return map_tensors(module(*given, **named), lambda each: each.to(device))

                self._replaced[self._host.module.get_submodule(path)] = without_weights(replacement)
            block.retire()
            for each in {id(inputs): inputs, id(float_inputs): float_inputs}.values():
                each.release()
        self._done += 1

    def _captured(
        self, path: str, replacements: Mapping[Any, Callable[..., Any]], hidden: TensorList | None
    ) -> BlockInputs:
        """Return what a module outside the stack is given, with other modules and hidden states in force."""
        kept = CallStore(self._store)
        calls: list[list[Any]] = []
        batches: list[int] = []
        times = self._plan.calls.get(path, 1)
        for number, batch in enumerate(self._batches):
            self._stream.progress(self._done / self._total, path)
            forwards: dict[Any, Callable[..., Any]] = dict(replacements)
            if hidden is not None:
                forwards |= self._jump(hidden[number])
            for found in capture_calls(self._host, path, batch, forwards, times):
                calls.append([(kept.keep(found), None)])
                batches.append(number)
        return BlockInputs(RecordedCalls(kept, calls), 0, None, self._stream.device, batches)

    def _jump(self, hidden: torch.Tensor) -> dict[Any, Callable[..., Any]]:
        """Return forward functions with which the last block gives a hidden state and the others cost nothing."""
        blocks = [self._host.module.get_submodule(path) for path in self._plan.stack]
        form = self._plan.form
        given = hidden.to(self._host.device)

        def forward(*_arguments: Any, **_options: Any) -> Any:
            return like_output(form, given)

        return dict.fromkeys(blocks, without_weights(forward))


class RecordedCalls:
    """Calls of blocks: ``calls[batch][block]`` is (kept call, place of the hidden state)."""

    def __init__(self, kept: CallStore, calls: list[list[Any]]) -> None:
        self.kept = kept
        self.calls = calls

    def release(self) -> None:
        """Forget them."""
        self.kept.release()


def _without_caches(module: torch.nn.Module, batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """Switch off the cache of keys and values: it grows with every call, so a block could not be called twice."""
    if "use_cache" not in inspect.signature(module.forward).parameters:
        return tuple(batches)
    return tuple(replace(batch, options={**batch.options, "use_cache": False}) for batch in batches)


def _mask(batch: Batch) -> torch.Tensor | None:
    """Return which positions of a batch are no padding; None where all count."""
    import torch

    mask = batch.options.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.is_floating_point() or bool(mask.bool().all()):
        return None
    return mask.bool()


def _one_sample(batch: Batch) -> Batch:
    """Return a batch's first sample, where all its tensors count samples by their first axis."""
    sizes: set[int] = set()
    call_ = (tuple(batch.arguments), dict(batch.options))
    map_tensors(call_, lambda each: sizes.add(int(each.shape[0]) if each.ndim else 0))
    if len(sizes) != 1 or 0 in sizes:
        return batch
    arguments, options = map_tensors(call_, lambda each: each[:1])
    return Batch(arguments, options)


def _holds_tensors(form: Any) -> bool:
    """Say whether a block gives tensors beside its hidden state."""
    if not isinstance(form, tuple | list):
        return False
    found: list[Any] = []
    map_tensors(tuple(form[1:]), found.append)
    return bool(found)
