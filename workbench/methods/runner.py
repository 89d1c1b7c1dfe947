"""A whole model by a recipe: block by block, the quantized stream kept true, finished layers kept on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench import __version__
from workbench.calibration.data import Calibration
from workbench.calibration.hosts import model_key, opened
from workbench.calibration.stream import BlockStream
from workbench.checkpoints import Model
from workbench.errors import CheckpointError, QuantizationError
from workbench.methods.block_run import BlockRun
from workbench.methods.model_result import QuantizedModel
from workbench.methods.progress_store import PARTIAL, RUN, ProgressStore, StoredLayers
from workbench.methods.recipes import (
    Choice,
    check_methods,
    choice_for,
    corrects_bias,
    whole_layers,
    with_model_exponents,
)
from workbench.methods.result import LayerResult
from workbench.methods.run import Progress, Run, StepListener
from workbench.methods.task import LayerTask
from workbench.methods.transforms.transform import Transform
from workbench.methods.whole_transforms import prepared_tensors
from workbench.quantization.recipe import Recipe

#: Told each layer's result as it is finished; may raise ``Cancelled``.
LayerListener = Callable[[LayerResult], None]


def quantize_model(
    model: Any,
    recipe: Recipe | str | Mapping[str, Any] = "w4-nupes",
    calibration: Calibration | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    sequential: bool = False,
    rows: int = 1024,
    memory: int | None = None,
    progress: Progress | None = None,
    on_step: StepListener | None = None,
    on_layer: LayerListener | None = None,
) -> QuantizedModel:
    """Quantize a model's layers as a recipe says.

    Blocks are taken in the order of the computation. In each, transforms change the float weights first; methods of scope
    ``block`` then learn their layers together, others layer by layer, on the inputs that the model quantized so far gives;
    weights, biases and activation codings go into the block before the next one is looked at. A recipe whose methods need
    no inputs, without transforms and static activations, goes layer by layer without running the model, unless a
    calibration is given to measure the errors of outputs by. Memory holds one block (one layer), and the results where
    ``output`` is None.

    A ``*`` means linear and convolutional layers. Norms stay float; embeddings and a head that shares the embedding's
    weights do unless an entry names them (``Recipe.names``). An embedding is quantized by itself and the blocks are
    calibrated on its float rows; a tied head that is quantized gets weights of its own. Layers that the calibration does
    not reach stay float, and a note says so.

    Args:
        model: a ``Model``, what ``open_model`` takes, ``demo:NAME``, or a torch module.
        recipe: a ``Recipe``, a preset's name, or a mapping.
        calibration: the inputs; None takes the shipped ones (texts, or training digits) where some are needed.
        output: folder for the finished model, new or empty. Layers are kept there as they are finished: after a kill or ``Cancelled``
            the same call goes on where it was, with the same result bit for bit.
        device: where blocks and methods run.
        seed: of every random choice.
        sequential: collect the statistics of each layer anew after the layers before it in its block were quantized.
        rows: sampled input rows of each layer, for methods that take some.
        memory: bytes of hidden states that may stay in memory (see ``BlockStream``).
        progress: told the finished fraction and a label; may raise ``Cancelled``.
        on_step: told (name, step, steps, loss) while a method learns; may raise ``Cancelled``.
        on_layer: told each result; may raise ``Cancelled``.

    Raises:
        RecipeError: an unknown word, or a pattern that matches no layer.
        QuantizationError: nothing to quantize, a method that cannot use what the recipe gives it, a negative seed, or a
            folder that holds another run or other files; one sentence.
        CheckpointError: the model cannot be opened, or cannot be run where inputs are needed.
        Cancelled: a listener stopped it; finished layers are kept in ``output``.
    """
    chosen = Recipe.of(recipe)
    transforms = check_methods(chosen)
    _check_device(device)
    found = opened(model)
    if found.quantization:
        message = (
            f"{found.name} is stored as {found.quantization}: quantize the plain checkpoint that it was made from, "
            "its rounding errors would be rounded again"
        )
        raise QuantizationError(message)
    run = _Run(found, chosen, transforms, device, seed, progress, on_step, on_layer)
    if calibration is not None and not isinstance(calibration, Calibration):
        message = (
            f"calibration is made by Calibration.from_texts, from_images, from_loader or synthetic; "
            f"{type(calibration).__name__} is none"
        )
        raise QuantizationError(message)
    if calibration is None and run.needs_inputs():
        calibration = default_calibration(found, seed)
    key = {
        "workbench": __version__,
        "model": model_key(found),
        "recipe": chosen.to_dict(),
        "calibration": None if calibration is None else calibration.content_key,
        "seed": seed,
        "settings": {"sequential": sequential, "rows": rows},
    }
    if output is not None:
        finished = _finished(Path(output), key)
        if finished is not None:
            shutil.rmtree(Path(output) / PARTIAL, ignore_errors=True)
            run.tell(1.0, "finished before")
            return finished
        run.store = ProgressStore(Path(output), key)
    if calibration is None:
        run.without_inputs()
    else:
        run.with_inputs(calibration, sequential=sequential, rows=rows, memory=memory)
    results = {name: run.results[name] for name in run.choices if name in run.results}
    result = QuantizedModel(
        layers=results if run.store is None else StoredLayers(run.store, list(results)),
        recipe=chosen,
        source=found,
        changed=run.changed,
        ranges=run.ranges,
        seed=seed,
        calibration="" if calibration is None else calibration.description,
        notes=tuple(run.notes),
        key=key,
    )
    if run.store is None or output is None:
        return result
    for draft in Path(output).glob("model*.safetensors"):
        draft.unlink()  # of a run that was killed while it wrote: the folder held no weights when the run began
    result.save(output)
    run.store.remove()
    run.tell(1.0, "")
    return QuantizedModel.load(output)


def needs_inputs(model: Any, recipe: Recipe | str | Mapping[str, Any]) -> bool:
    """Say whether a recipe needs calibration inputs on a model: for methods, transforms, or static activations.

    Raises:
        RecipeError: see ``quantize_model``.
        QuantizationError: it quantizes nothing.
    """
    chosen = Recipe.of(recipe)
    return _Run(opened(model), chosen, check_methods(chosen), "cpu", 0, None, None, None).needs_inputs()


def _check_device(device: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        QuantizationError: see above.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        # For an unknown word torch lists every accelerator that was ever built for it.
        why = "there is no such device" if reason.startswith("Expected one of") else reason
        message = f"torch cannot use the device {device!r} here ({why}); take cpu, or cuda where there is one"
        raise QuantizationError(message) from None


def default_calibration(model: Model, seed: int = 0) -> Calibration:
    """Return the shipped inputs for a model: training digits for tiny-resnet, else texts.

    Raises:
        CheckpointError: the model needs inputs of another kind.
    """
    if model.config.get("model_type") == "tiny_resnet":
        return Calibration.from_images(model, seed=seed)
    return Calibration.from_texts(model, seed=seed)


def _finished(folder: Path, key: Mapping[str, Any]) -> QuantizedModel | None:
    """Return the model that a folder holds if it is this run's; None for a new folder, an empty one, or a run begun.

    Raises:
        QuantizationError: it holds another model, or files of somebody's.
    """
    begun = (folder / PARTIAL / RUN).is_file()
    if not (folder / "config.json").exists() and (begun or not any(folder.glob("*.safetensors"))):
        others = sorted(path.name for path in folder.glob("[!.]*") if path.name != PARTIAL)
        if others and not begun:  # a recipe.yaml or tokenizer.json of somebody's would be written over
            message = f"{str(folder)!r} holds other files already ({others[0]}): choose a new or empty folder"
            raise QuantizationError(message)
        return None
    try:
        found = QuantizedModel.load(folder)
    except CheckpointError:
        found = None
    if found is not None and dict(found.key) == dict(key):
        return found
    other = [word for word in key if found is not None and found.key.get(word) != key[word]]
    what = f"a model of another {' and '.join(other)}" if found is not None else "another model"
    message = f"{str(folder)!r} already holds {what}; nothing was overwritten: choose another folder"
    raise QuantizationError(message)


class _Run:
    """One run's state: what is chosen, what is finished, who is told."""

    def __init__(  # noqa: PLR0917 - the run's own words, in the order of the call
        self,
        model: Model,
        recipe: Recipe,
        transforms: tuple[Transform, ...],
        device: str,
        seed: int,
        progress: Progress | None,
        on_step: StepListener | None,
        on_layer: LayerListener | None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.transforms = transforms
        self.correct = corrects_bias(recipe)
        self.device = device
        self.seed = Run(seed).seed  # refuses a negative one before anything is read
        self.store: ProgressStore | None = None
        self.results: dict[str, Any] = {}
        self.changed: dict[str, np.ndarray] = {}
        self.ranges: dict[str, Any] = {}
        self.notes: list[str] = []
        self._progress = progress or (lambda _fraction, _label: None)
        self._on_step = on_step or (lambda _name, _step, _steps, _loss: None)
        self._on_layer = on_layer or (lambda _result: None)
        self._told = 0.0
        layers = whole_layers(model)
        recipe.check_patterns({*layers, *model.layers, *model.tied})
        self.choices: dict[str, Choice] = {}
        for name, layer in layers.items():
            if layer.kind not in {"linear", "conv", "embedding"}:
                continue
            choice = choice_for(recipe, name, special=layer.kind == "embedding")
            if choice is not None:
                self.choices[name] = choice
        for alias in model.tied:
            choice = choice_for(recipe, alias, special=True)
            if choice is not None:
                self.choices[alias] = choice
        if not self.choices:
            message = f"the recipe leaves every layer of {model.name} float; it quantizes none"
            raise QuantizationError(message)
        self.embeddings = {name for name in self.choices if name in layers and layers[name].kind == "embedding"}

    def tell(self, fraction: float, label: str) -> None:
        """Tell the listener how far the run is; it never goes backwards."""
        self._told = max(self._told, min(fraction, 1.0))
        self._progress(self._told, label)

    def needs_inputs(self) -> bool:
        """Say whether the model must run: for methods, transforms or static activations."""
        return (
            bool(self.transforms)
            or self.correct
            or any(
                choice.method.needs or choice.method.scope == "block" or choice.static
                for choice in self.choices.values()
            )
        )

    def run_for(self, start: float, width: float) -> Run:
        """Return a method's circumstances whose progress fills a part of the whole."""
        return Run(
            self.seed, self.device, lambda fraction, label: self.tell(start + width * fraction, label), self._on_step
        )

    def keep(self, result: LayerResult) -> None:
        """Take in a finished layer: to disk where the run has a folder, and to the listener."""
        if self.store is None:
            self.results[result.name] = result
        else:
            if result.name not in self.store:
                self.store.save_layer(result)
            self.results[result.name] = None
        self._on_layer(result)

    def known(self, name: str) -> LayerResult | None:
        """Return a layer that an earlier call finished."""
        return self.store.load_layer(name) if self.store is not None and name in self.store else None

    def _alone(self, name: str, choice: Choice, start: float, width: float) -> None:
        """Quantize one layer from the checkpoint, without inputs."""
        known = self.known(name)
        if known is None:
            if choice.method.needs or choice.method.scope == "block":
                message = f"{choice.method.title} learns from a layer's inputs, and {name} is an embedding: give it rtn or another data-free method"
                raise QuantizationError(message)
            task = LayerTask.of(
                self.model[name],
                choice.weight,
                granularity=choice.granularity,
                scale=choice.scale,
                name=name,
                activation=choice.activation,
            )
            self.tell(start, name)
            known = choice.method.quantize_layer(task, self.run_for(start, width))
        self.keep(known)

    def without_inputs(self) -> None:
        """Go layer by layer; nothing is run."""
        self.choices = with_model_exponents(self.choices, self.model)
        sizes = {name: self.model[name].parameters for name in self.choices}
        total, done = sum(sizes.values()), 0
        for name, choice in self.choices.items():
            self._alone(name, choice, done / total, sizes[name] / total)
            done += sizes[name]

    def with_inputs(self, calibration: Calibration, *, sequential: bool, rows: int, memory: int | None) -> None:
        """Go block by block through the stream."""
        model = self.model
        prepared, notes = prepared_tensors(model, self.transforms, Run(self.seed, self.device))
        self.notes += notes
        if prepared is not None:
            model = prepared.model
            self.changed |= prepared.tensors
        self.choices = with_model_exponents(self.choices, model)
        for name in sorted(self.embeddings):
            self._alone(name, self.choices[name], 0.0, 0.0)
        stream = BlockStream(
            model,
            calibration,
            device=self.device,
            memory=memory,
            folder=None if self.store is None else self.store.folder,
            progress=lambda fraction, label: self.tell(0.98 * fraction, label),
        )
        places = stream.blocks
        reached = {name for place in places for name in place.layers}
        missed = [name for name in self.choices if name not in reached and name not in self.embeddings]
        if missed:
            self.notes.append(
                f"{len(missed)} layers that the calibration does not reach stay float ({', '.join(missed[:3])}"
                f"{', ...' if len(missed) > 3 else ''})"
            )
        if len(missed) + len(self.embeddings) == len(self.choices):
            message = f"the calibration reaches none of the layers that the recipe quantizes ({', '.join(missed[:3])})"
            raise QuantizationError(message)
        for number, block in enumerate(stream):
            BlockRun(self, stream.model, block, number / len(places), 1.0 / len(places)).go(
                sequential=sequential, rows=rows
            )
        self._leave_quantized_out()

    def _leave_quantized_out(self) -> None:
        """Weights that were prepared and then quantized are no float tensors any more."""
        from workbench.methods.model_view import tensor_names

        homes = tensor_names(self.model)
        for name in self.results:
            self.changed.pop(homes.get(name, f"{name}.weight"), None)
