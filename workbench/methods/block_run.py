"""One block of a model on its way through a recipe: transforms, methods, weights and codings put into place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.calibration.block import StreamBlock
from workbench.checkpoints import Model
from workbench.errors import CheckpointError
from workbench.methods.activations import activation_range, attach, observe
from workbench.methods.bias_correction import correct_bias
from workbench.methods.method import Method, parse_method
from workbench.methods.model_view import tensor_names
from workbench.methods.recipes import PLAIN, Choice
from workbench.methods.result import LayerResult
from workbench.methods.stored_result import range_of, range_to_list
from workbench.methods.task import BlockTask, LayerTask

if TYPE_CHECKING:
    from workbench.calibration.statistics import LayerStatistics
    from workbench.methods.runner import _Run

#: Inputs of a layer up to which its Gram matrix is made only to measure errors by (beyond, only where a method needs it).
MEASURED_DEPTH = 4096


class BlockRun:
    """What happens to one block.

    Args:
        run: the whole run.
        model: the model that streams.
        block: the block.
        start: fraction of the run that is finished before it.
        width: fraction of the run that it is.
    """

    def __init__(self, run: _Run, model: Model, block: StreamBlock, start: float, width: float) -> None:
        self.run = run
        self.block = block
        self.start = start
        self.width = width
        self.choices: dict[str, Choice] = {name: run.choices[name] for name in block.places if name in run.choices}
        self._homes = tensor_names(model)
        self._known = model.tensors
        self._finished = 0

    def go(self, *, sequential: bool, rows: int) -> None:
        """Do everything that the recipe asks for in this block; the stream then goes on with the changed block."""
        if not self.choices:
            return
        stored = None if self.run.store is None else self.run.store.load_block(self.block.name)
        if stored is not None:
            self._restore(*stored)
            return
        before = self._others()
        notes = self._transform()
        together: dict[str, tuple[Method, list[str]]] = {}
        for name, choice in self.choices.items():
            if choice.method.scope == "block":
                together.setdefault(str(choice.method), (choice.method, []))[1].append(name)
        if self.run.correct and together:
            notes.append(f"biases are left as {', '.join(together)} made them: the correction is for layers alone")
        results = [result for method, names in together.values() for result in self._block(method, names, rows)]
        alone = [name for name, choice in self.choices.items() if choice.method.scope != "block"]
        self._layers(alone, sequential=sequential, rows=rows)
        changed = self._changed(before)
        for result in results:
            self.run.keep(result)
        ranges = self._code_activations()
        if self.run.store is not None:
            about = {"ranges": {name: range_to_list(reach) for name, reach in ranges.items()}, "notes": notes}
            self.run.store.save_block(self.block.name, changed, about)
        self._take(changed, ranges, notes)

    def _take(self, changed: dict[str, np.ndarray], ranges: dict[str, Any], notes: Iterable[str]) -> None:
        self.run.changed |= changed
        self.run.ranges |= ranges
        self.run.notes += [f"{self.block.name}: {note}" for note in notes]

    def _restore(self, changed: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        """Put what an earlier call finished into the block."""
        import torch

        prefix = self._prefix()
        parameters = dict(self.block.module.named_parameters())
        with torch.no_grad():
            for stored, values in changed.items():
                path, new = stored.removeprefix(prefix), torch.from_numpy(values).to(self.block.device)
                if path in parameters:
                    parameters[path].copy_(new)
                else:
                    owner, _, last = path.rpartition(".")
                    setattr(self.block.module.get_submodule(owner), last, torch.nn.Parameter(new, requires_grad=False))
        for name in self.choices:
            result = self.run.known(name)
            if result is None:
                message = (
                    f"the unfinished run lacks the layer {name} of a finished block; delete its folder and run again"
                )
                raise CheckpointError(message)
            self.block.replace_weight(name, result.quantized.dequantize())
            self.run.keep(result)
        ranges = {name: reach for name, values in about["ranges"].items() if (reach := range_of(values)) is not None}
        self._attach(ranges)
        self._take(changed, ranges, about["notes"])

    def _task(self, name: str, statistics: LayerStatistics | None = None) -> LayerTask:
        choice = self.choices[name]
        return LayerTask.of(
            self.block.weight(name),
            choice.weight,
            granularity=choice.granularity,
            scale=choice.scale,
            statistics=statistics,
            bias=self.block.bias(name),
            name=name,
            activation=choice.activation,
        )

    def _block_task(self, tasks: dict[str, LayerTask], method: Method | None = None) -> BlockTask:
        gradients = self.block.output_gradients() if method is not None and "fisher" in method.needs else None
        return BlockTask(
            name=self.block.name,
            module=self.block.module,
            layers=tasks,
            places=dict(self.block.places),
            inputs=self.block.inputs,
            float_inputs=self.block.float_inputs,
            targets=() if method is None else self.block.targets,
            target_gradients=gradients,
        )

    def _transform(self) -> list[str]:
        """Apply the recipe's transforms; layers that the recipe leaves float are changed with the others."""
        notes: list[str] = []
        for each in self.run.transforms:
            tasks = {name: self._task(name) for name in self.choices}
            self.run.tell(self.start, f"{each} on {self.block.name}")
            notes += each.apply(self._block_task(tasks), self.run.run_for(self.start, 0.0))
        return notes

    def _statistics(self, names: list[str], rows: int) -> dict[str, LayerStatistics]:
        """Collect what the methods of some layers need, and what their errors are measured by."""
        needs: set[Any] = {"moments"}
        for name in names:
            needs |= self.choices[name].method.needs
            if self.choices[name].static:
                needs.add("inputs")
        deep = [name for name in names if self.block.weight(name)[0].size > MEASURED_DEPTH]
        shallow = [name for name in names if name not in deep]
        found: dict[str, LayerStatistics] = {}
        for part, more in ((shallow, {"gram"}), (deep, set())):
            if part:
                found |= self.block.statistics(needs=needs | more, rows=rows, seed=self.run.seed, names=part)
        return found

    def _block(self, method: Method, names: list[str], rows: int) -> list[LayerResult]:
        """Let a method learn its layers of the block together, and put the results in."""
        statistics = self._statistics(names, rows)
        tasks = {name: self._task(name, statistics.get(name)) for name in names}
        share = self.width * len(names) / len(self.choices)
        start = self.start + self.width * self._finished / len(self.choices)
        found = method.quantize_block(self._block_task(tasks, method), self.run.run_for(start, share))
        self._finished += len(names)
        for name in names:
            self._put(found[name])
        return [found[name] for name in names]

    def _layers(self, names: list[str], *, sequential: bool, rows: int) -> None:
        """Quantize layers one by one; those that an earlier call finished are taken from disk."""
        waiting = [name for name in names if self.run.store is None or name not in self.run.store]
        statistics = self._statistics(waiting, rows) if waiting and not sequential else {}
        for name in names:
            result = self.run.known(name)
            if result is None:
                start = self.start + self.width * self._finished / len(self.choices)
                self.run.tell(start, name)
                if sequential:
                    statistics = self._statistics([name], rows)
                task = self._task(name, statistics.get(name))
                method = self._method(name, task)
                result = method.quantize_layer(task, self.run.run_for(start, self.width / len(self.choices)))
                if self.run.correct and task.statistics is not None and result.bias is None:
                    bias = correct_bias(task.weight, result.quantized, task.statistics, task.bias)
                    result = replace(result, bias=bias)
            self._finished += 1
            self._put(result)
            self.run.keep(result)

    def _method(self, name: str, task: LayerTask) -> Method:
        """Return a layer's method; one without inputs (an expert that no token reached) is rounded to nearest."""
        method = self.choices[name].method
        if task.statistics is None and method.needs:
            self.run.notes.append(f"{name} was reached by no input and is rounded to nearest")
            return parse_method(PLAIN)
        return method

    def _put(self, result: LayerResult) -> None:
        """Write a result's weight and bias into the block."""
        import torch

        self.block.replace_weight(result.name, result.quantized.dequantize())
        if result.bias is None:
            return
        layer: Any = self.block.module.get_submodule(self.block.places[result.name])
        values = torch.from_numpy(np.array(result.bias, dtype=np.float32)).to(self.block.device)
        if getattr(layer, "bias", None) is None:
            layer.bias = torch.nn.Parameter(values, requires_grad=False)
        else:
            with torch.no_grad():
                layer.bias.copy_(values)

    def _quantized_weights(self) -> set[str]:
        return {".".join(part for part in (self.block.places[name], "weight") if part) for name in self.choices}

    def _others(self) -> dict[str, Any]:
        """Return copies of everything in the block but the weights that will be quantized."""
        own = self._quantized_weights()
        parameters = self.block.module.named_parameters()
        return {path: value.detach().clone() for path, value in parameters if path not in own}

    def _changed(self, before: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the float tensors that differ from before, by their names in the checkpoint."""
        own, prefix = self._quantized_weights(), self._prefix()
        found: dict[str, np.ndarray] = {}
        for path, value in self.block.module.named_parameters():
            if path in own or (path in before and bool((before[path] == value).all())):
                continue
            stored = f"{prefix}{path}"
            if stored not in self._known and not path.endswith("bias"):
                message = (
                    f"a transform or method changed {path} of {self.block.name}, which has no tensor in the checkpoint"
                )
                raise CheckpointError(message)
            found[stored] = value.detach().float().cpu().numpy().copy()
        return found

    def _prefix(self) -> str:
        """Return what stands before the block's own parameter names in the checkpoint."""
        name = next(iter(self.choices))
        inner = ".".join(part for part in (self.block.places[name], "weight") if part)
        home = self._homes.get(name, f"{name}.weight")
        if not home.endswith(inner):
            message = f"the checkpoint's tensor {home!r} is named in another way than {inner!r} of {self.block.name}"
            raise CheckpointError(message)
        return home.removesuffix(inner)

    def _code_activations(self) -> dict[str, Any]:
        """Find static ranges on the block as it is now, then let its layers see coded inputs."""
        static = {name: choice for name, choice in self.choices.items() if choice.static}
        ranges: dict[str, Any] = {}
        if static:
            paths = {name: self.block.places[name] for name in static}
            seen = observe(self.block.module, set(paths.values()), self.block.inputs)
            for name, choice in static.items():
                if seen[paths[name]].count:
                    ranges[name] = activation_range(str(choice.activation), seen[paths[name]], choice.ranges)
        self._attach(ranges)
        return ranges

    def _attach(self, ranges: dict[str, Any]) -> None:
        codings = {
            self.block.places[name]: choice.activation
            for name, choice in self.choices.items()
            if choice.activation is not None and (not choice.static or name in ranges)
        }
        attach(self.block.module, codings, {self.block.places[name]: reach for name, reach in ranges.items()})
