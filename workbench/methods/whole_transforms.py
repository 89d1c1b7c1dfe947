"""Transforms that cross blocks: applied to the whole float model in memory, and seen as changed tensors of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.calibration.parameter_names import ParameterNames
from workbench.checkpoints import Model
from workbench.checkpoints.tensors import ArrayTensor
from workbench.errors import CheckpointError
from workbench.methods.model_view import fresh_module, overlaid
from workbench.methods.run import Run
from workbench.methods.transforms.transform import Transform


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model after its transforms across blocks."""

    model: Model
    """The same layers' names, the changed tensors."""
    tensors: dict[str, np.ndarray]
    """What changed, or was added, by stored name; float32."""


def prepared_tensors(
    model: Model, transforms: tuple[Transform, ...], run: Run
) -> tuple[Prepared | None, tuple[str, ...]]:
    """Apply what crosses blocks; None where no transform has anything to do there.

    Raises:
        QuantizationError: the model's family does not allow a transform.
        CheckpointError: the whole model does not fit into memory, or a changed parameter has no name in the checkpoint.
    """
    crossing = [each for each in transforms if type(each).prepare is not Transform.prepare and _acts(each)]
    if not crossing:
        return None, ()
    module = fresh_module(model, model)
    before = {name: value.detach().clone() for name, value in module.named_parameters(remove_duplicate=False)}
    notes: tuple[str, ...] = ()
    for each in crossing:
        notes += tuple(each.prepare(module, run))
    known = ParameterNames(module, {name: tensor.shape for name, tensor in model.tensors.items()})
    changed: dict[str, np.ndarray] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        was = before.get(path)
        if was is not None and was.shape == parameter.shape and bool((was == parameter).all()):
            continue
        shape = tuple(parameter.shape)
        stored = known._own(path, shape) or (path if path.endswith(("weight", "bias")) else None)
        if stored is None:
            message = f"a transform changed {path}, which has no tensor in {model.name}"
            raise CheckpointError(message)
        changed[stored] = parameter.detach().float().cpu().numpy().copy()
    if not changed:
        return None, notes
    view: Any = overlaid(model, {name: ArrayTensor(name, values) for name, values in changed.items()})
    if model.module is not None or model.config.get("model_type") == "tiny_resnet":
        view.module = module
    return Prepared(view, changed), notes


def _acts(transform: Transform) -> bool:
    """Say whether a transform has something to do across blocks as it is set."""
    return bool(getattr(transform, "residual", True))
