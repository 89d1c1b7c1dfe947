"""One block of a stream: its module, its inputs in both streams, its targets, and the statistics of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from workbench.calibration.forwarding import output_of, with_hidden
from workbench.calibration.moments import FloatPasses, accumulate
from workbench.calibration.statistics import LayerStatistics
from workbench.calibration.store import TensorList, TensorStore
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from workbench.calibration.lazy_module import LazyModule
    from workbench.calibration.stream import BlockStream, RecordedCalls
    from workbench.calibration.whole_module import WholeModule

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
NEEDS = frozenset({"moments", "gram", "gap", "inputs", "fisher"})


class BlockInputs(Sequence[Arguments]):
    """(arguments, options) of a block, one entry for each pass; tensors come to the device when an entry is asked for."""

    def __init__(
        self,
        recorded: RecordedCalls,
        number: int,
        hidden: TensorList | None,
        device: str,
        batches: Sequence[int] | None = None,
    ) -> None:
        self._recorded = recorded
        self._number = number
        self._hidden = hidden
        self._device = device
        self.batches = range(len(recorded.calls)) if batches is None else batches
        """Which batch each entry belongs to."""
        self.passed = False
        """Whether the stream has gone on, and the tensors are gone."""

    def __len__(self) -> int:
        return len(self._recorded.calls)

    def __repr__(self) -> str:
        passes = f"{len(self)} pass{'' if len(self) == 1 else 'es'}"
        return f"BlockInputs({passes}{', gone by' if self.passed else ''})"

    @overload
    def __getitem__(self, index: int) -> Arguments: ...
    @overload
    def __getitem__(self, index: slice) -> list[Arguments]: ...
    def __getitem__(self, index: int | slice) -> Arguments | list[Arguments]:
        """Return one entry, or several."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if self.passed:
            message = "the stream has passed this block: use it before the next one is asked for"
            raise CheckpointError(message)
        kept, place = self._recorded.calls[index][self._number]
        arguments, options = self._recorded.kept.restore(kept, self._device)
        if self._hidden is None:
            return arguments, options
        return with_hidden(arguments, options, place, self._hidden[index].to(self._device))

    def release(self) -> None:
        """Forget the calls (of a block that has them alone)."""
        self._recorded.release()


class StreamBlock:
    """One block on its way through the stream; usable until the next block is asked for.

    Attributes:
        name: path in the running model.
        places: names of its layers -> paths inside ``module`` (``""``: the module itself).
        inputs: (arguments, options) for each pass, as the model changed so far gives them.
        float_inputs: the same in the float model; the very same object where nothing before was changed.
        tied: its weight is the embedding's too.
    """

    def __init__(
        self,
        stream: BlockStream,
        host: WholeModule | LazyModule,
        store: TensorStore,
        *,
        path: str,
        places: dict[str, str],
        inputs: BlockInputs,
        float_inputs: BlockInputs | None,
        masks: Sequence[torch.Tensor | None],
        tell: Callable[[float], None],
        tied: bool = False,
        hands_on: bool = False,
    ) -> None:
        self.name = path
        self.places: Mapping[str, str] = places
        self.inputs = inputs
        self.float_inputs = inputs if float_inputs is None else float_inputs
        self.tied = tied
        self.device = stream.device
        self._stream = stream
        self._host = host
        self._store = store
        self._masks = masks
        self._tell = tell
        self._mark = ""
        self._targets: TensorList | None = None
        self._hands_on = hands_on

    @cached_property
    def module(self) -> torch.nn.Module:
        """The block with its float weights, float32, on the device, in evaluation mode; read when first asked for."""
        made = self._host.copy(self.name, self.device)
        self._mark = _mark(made)
        if self._hands_on and self.inputs is not self.float_inputs and self._targets is None:
            # The float stream needs them, and after a change the block would have to be read again.
            self._targets = self._outputs(made, self.float_inputs)
        return made

    @property
    def changed(self) -> bool:
        """Whether somebody changed the module's numbers, or attached hooks to it."""
        return "module" in self.__dict__ and _mark(self.module) != self._mark

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The float block's outputs on ``float_inputs``, one tensor for each pass; computed when first asked for."""
        if self._targets is None:
            module = self._float_module()
            self._targets = self._outputs(module, self.float_inputs)
        return self._targets

    def _float_module(self) -> torch.nn.Module:
        return self._host.copy(self.name, self.device) if self.changed else self.module

    def _outputs(self, module: torch.nn.Module, inputs: BlockInputs) -> TensorList:
        import torch

        found = self._store.new_list()
        with torch.no_grad():
            for number, (arguments, options) in enumerate(inputs):
                self._tell(number / len(inputs))
                found.append(output_of(module(*arguments, **options)))
        return found

    def advance(self) -> tuple[TensorList, TensorList]:
        """Return the hidden states behind this block: the float model's, and those of the model changed so far."""
        changed = self.changed
        if changed or self.inputs is not self.float_inputs:
            after = self._outputs(self.module, self.inputs)
            targets = self.targets
        else:
            targets = self.targets
            after = targets
        assert isinstance(targets, TensorList)
        assert isinstance(after, TensorList)
        self._targets = None  # they go on as the next block's inputs
        return targets, after

    def retire(self) -> None:
        """Let go of the module and of everything that was computed; the stream calls it when it goes on."""
        self.inputs.passed = self.float_inputs.passed = True
        self.__dict__.pop("module", None)
        if self._targets is not None:
            self._targets.release()
            self._targets = None

    def statistics(
        self, *, needs: Iterable[str], rows: int = 1024, seed: int = 0, names: Iterable[str] | None = None
    ) -> dict[str, LayerStatistics]:
        """Run the block over its inputs once and return what its layers were given.

        Where the streams differ and ``gap`` or ``inputs`` are wanted, the float block runs beside it, pass by pass.

        Args:
            needs: of ``moments``, ``gram``, ``gap`` (moments of what the float model's inputs have more, where the
                streams differ), ``inputs`` (sampled rows, of both streams), ``fisher`` (E[g^2] of the output gradients;
                needs the whole model in memory).
            rows: sampled rows at most.
            seed: of the sample.
            names: layers; all by default.

        Returns:
            Statistics by layer name; a layer that no input reached (an expert without tokens) is missing.

        Raises:
            CheckpointError: inputs that are not finite, an unknown need or layer, no loss to take gradients of.
        """
        wanted = self._wanted(needs, names)
        unknown = set(needs := frozenset(needs)) - NEEDS
        if unknown:
            message = f"statistics are {', '.join(sorted(NEEDS))}, not {', '.join(sorted(map(str, unknown)))}"
            raise CheckpointError(message)
        changed = self.changed
        own = self.inputs is self.float_inputs and not changed
        outputs = self._store.new_list() if own and self._targets is None else None

        def told(number: int, output: Any) -> None:
            self._tell(number / len(self.inputs))
            if outputs is not None and len(outputs) == number:  # a pass may be run again
                outputs.append(output_of(output))

        beside = not own and not needs.isdisjoint({"gap", "inputs"})
        passes, targets = self._float_passes(wanted) if beside else (None, None)
        found = accumulate(
            self.module,
            self.inputs,
            wanted,
            self._masks,
            gram="gram" in needs,
            gap="gap" in needs,
            rows=rows if "inputs" in needs else 0,
            seed=seed,
            told=told,
            floats=passes,
        )
        for new in (targets, outputs):
            self._targets = self._targets if new is None else new
        fisher = self._stream.gradients.fisher if "fisher" in needs else {}
        statistics = {name: each.statistics(name, fisher.get(name)) for name, each in found.items()}
        return {name: statistics[name] for name in wanted if statistics.get(name) is not None}  # type: ignore[misc]

    def _float_passes(self, places: Mapping[str, str]) -> tuple[FloatPasses, TensorList | None]:
        """Return what runs the float block pass by pass, and the list that its outputs go to, where nobody has them."""
        outputs = self._store.new_list() if self._targets is None else None

        def told(number: int, output: Any) -> None:
            if outputs is not None and len(outputs) == number:  # a pass may be run again
                outputs.append(output_of(output))

        return FloatPasses(self._float_module(), self.float_inputs, places, told), outputs

    def _wanted(self, needs: Iterable[str], names: Iterable[str] | None) -> dict[str, str]:
        if isinstance(needs, str):
            message = f"needs are a set of words, e.g. {{'gram'}}, not the text {needs!r}"
            raise CheckpointError(message)
        if names is None:
            return dict(self.places)
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in self.places:
                message = f"{self.name} has no layer {name!r} (it has {', '.join(self.places)})"
                raise CheckpointError(message)
        return {name: self.places[name] for name in self.places if name in set(chosen)}

    def output_gradients(self) -> Sequence[torch.Tensor]:
        """Return the loss's gradient at each target, one tensor for each pass (see ``gradients.loss_gradients``).

        Raises:
            CheckpointError: the whole model does not fit into memory, or it has no output to take a loss of.
        """
        return self._stream.gradients.blocks[self.name]

    def weight(self, name: str) -> np.ndarray:
        """Return a layer's weight as ``module`` holds it now, float32 (outputs, inputs, ...), axis 0 the outputs."""
        layer: Any = self.module.get_submodule(self.places[name])
        value = layer.weight.detach()
        return (value.T if type(layer).__name__ == "Conv1D" else value).cpu().numpy().copy()

    def replace_weight(self, name: str, values: np.ndarray) -> None:
        """Write a layer's weight, given as (outputs, inputs, ...) or on its matrix view, into ``module``."""
        import torch

        layer: Any = self.module.get_submodule(self.places[name])
        turned = type(layer).__name__ == "Conv1D"
        with torch.no_grad():
            new = torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32))
            layer.weight.copy_(new.T if turned else new.reshape(layer.weight.shape))

    def bias(self, name: str) -> np.ndarray | None:
        """Return a layer's bias as ``module`` holds it now, float32 (outputs,); None where it has none."""
        value: Any = getattr(self.module.get_submodule(self.places[name]), "bias", None)
        return None if value is None else value.detach().cpu().numpy().copy()

    def __repr__(self) -> str:
        return f"StreamBlock({self.name!r}, {len(self.places)} layers, {self.inputs!r})"


def _mark(module: torch.nn.Module) -> str:
    """Return a digest of a module's numbers and of how many hooks it has."""
    import torch

    state = blake2b(digest_size=16)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        state.update(f"{name}{tuple(tensor.shape)}".encode())
        state.update(plain.data)
    for child in module.modules():
        state.update(f"{len(child._forward_hooks)},{len(child._forward_pre_hooks)},".encode())
        state.update(str("forward" in child.__dict__).encode())
    return state.hexdigest()
