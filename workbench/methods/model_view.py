"""Views on a model's tensors: some replaced, quantized ones read as float32, and the torch module that they make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.calibration.hosts import lazy_host, program_of
from workbench.calibration.parameter_names import ParameterNames
from workbench.calibration.runnable import _quietly as quietly
from workbench.calibration.runnable import resnet_module
from workbench.calibration.whole_module import WholeModule
from workbench.checkpoints import Layer, Model
from workbench.checkpoints.assemble import Assembled
from workbench.checkpoints.dtypes import FLOAT32
from workbench.checkpoints.names import layer_name
from workbench.checkpoints.prequantized import workbench_format
from workbench.checkpoints.tensors import StoredTensor
from workbench.checkpoints.views import TransposedRows
from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, repr=False, eq=False)
class DecodedTensor(StoredTensor):
    """A weight tensor whose numbers are decoded from codes when somebody asks for them."""

    name: str
    shape: tuple[int, ...]
    """Of the tensor in the file: (inputs, outputs) where ``turned``."""
    rows: Callable[[int, int], np.ndarray]
    """Rows of the matrix view, float32."""
    matrix: tuple[int, int]
    turned: bool = False
    """The file holds the transpose of the matrix view (GPT-2's ``Conv1D``)."""
    key: str = ""
    dtype: np.dtype = FLOAT32

    @property
    def content_key(self) -> str:
        """What the codes' own key says."""
        return self.key

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Decode the rows that hold numbers ``start`` to ``stop``."""
        stop = min(stop, self.size)
        if self.turned:
            return np.ascontiguousarray(self.rows(0, self.matrix[0]).T).reshape(-1)[start:stop]
        width = self.matrix[1]
        first, last = start // width, -(-stop // width)
        return self.rows(first, last).reshape(-1)[start - first * width : stop - first * width].copy()


def overlaid(
    model: Model,
    tensors: Mapping[str, StoredTensor],
    *,
    without: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Model:
    """Return a model of the same layers' names with some tensors replaced or added, and some left out."""
    left_out = set(without)
    kept = {name: tensor for name, tensor in model.tensors.items() if name not in left_out}
    view = Model(
        name=model.name,
        source=model.source,
        format=model.format,
        assembled=Assembled(dict(model.layers), dict(model.fused), dict(model.tied)),
        tensors={**kept, **tensors},
        config=model.config if config is None else config,
        files=model._files,
    )
    view.module = model.module
    return view


def float_view(model: Model) -> Model:
    """Return a model that the workbench wrote as one whose tensors are all floating point; others pass through."""
    if model.quantization != workbench_format.METHOD:
        return model
    settings = model.config["quantization_config"]["layers"]
    decoded: dict[str, StoredTensor] = {}
    parts: set[str] = set()
    for name, own in settings.items():
        layer = model[name]
        decoded[own["tensor"]] = decoded_tensor(own["tensor"], layer, turned=bool(own.get("turned")))
        parts |= {f"{name}.weight.{part}" for part in workbench_format.PARTS}
    config = {word: value for word, value in model.config.items() if word != "quantization_config"}
    return overlaid(model, decoded, without=parts, config=config)


def decoded_tensor(name: str, layer: Layer, *, turned: bool = False) -> DecodedTensor:
    """Return the tensor that a layer's rows make, in the layout of its file."""
    shape = (*layer.shape[:-2], layer.shape[-1], layer.shape[-2]) if turned else tuple(layer.shape)
    rows = layer.weight
    return DecodedTensor(name, shape, rows.rows, rows.shape, turned, layer.content_key)


def tensor_names(model: Model) -> dict[str, str]:
    """Return the stored tensor of each layer that has one to itself (whole fused projections, not their parts)."""
    named = {layer_name(tensor): tensor for tensor in model.tensors}
    found = {name: named[name] for name in (*model.layers, *model.fused) if name in named}
    # A tied head gets a tensor of its own once it is quantized.
    return found | {alias: f"{alias}.weight" for alias in model.tied if alias not in found}


def is_turned(layer: Layer) -> bool:
    """Say whether the file holds the transpose of a layer's matrix view."""
    return isinstance(layer.weight, TransposedRows)


def fresh_module(model: Model, original: Model | None = None) -> torch.nn.Module:
    """Return the float32 torch module that a model's tensors make; nobody else holds it.

    Args:
        model: a view whose tensors are all floating point.
        original: the model beneath the view, where the view was laid over a module in memory.

    Raises:
        CheckpointError: no program is known for these weights, or it does not fit into memory.
    """
    base = original or model
    if model.module is not None:
        module = copy.deepcopy(WholeModule(base, model.module).module)
    elif model.config.get("model_type") == "tiny_resnet":
        module = _resnet(model)
    else:
        try:
            return lazy_host(model, ()).whole(lambda *_: None)
        except CheckpointError:
            return _rebuilt(model)
    assign(module, model, {name for name, tensor in model.tensors.items() if base.tensors.get(name) is not tensor})
    return module.eval().requires_grad_(False)


def _rebuilt(model: Model) -> Any:
    """Let transformers fill its program itself, from tensors in memory: it joins what checkpoints keep apart (experts).

    Raises:
        CheckpointError: it cannot.
    """
    import torch
    import transformers

    maker, config, _ = program_of(model)
    state = {name: torch.from_numpy(as_float(tensor)) for name, tensor in model.tensors.items()}
    with quietly():
        try:
            kind: Any = maker or transformers.AutoModel
            module = kind.from_pretrained(None, config=config, state_dict=state)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            message = f"transformers cannot build {model.name} from its tensors: {reason}"
            raise CheckpointError(message) from error
    return module.float().eval().requires_grad_(False)


def as_float(tensor: StoredTensor) -> np.ndarray:
    """Read a tensor as float32; whole numbers and truths stay what they are."""
    values = tensor.read()
    return np.array(values) if values.dtype.kind in "biu" else np.array(values, dtype=np.float32)


def _resnet(model: Model) -> Any:
    import torch

    made = resnet_module()
    values = model.config
    config = made.TinyResNetConfig(values["classes"], values["image_size"], tuple(values["widths"]))
    module = made.TinyResNet(config)
    known = set(module.state_dict())
    state = {name: torch.from_numpy(np.array(model.tensors[name].read())) for name in known if name in model.tensors}
    module.load_state_dict(state)
    return module


def assign(module: torch.nn.Module, model: Model, names: set[str]) -> None:
    """Write some of a model's tensors into a module's parameters of the same meaning; shared ones become their own."""
    import torch

    if not names:
        return
    known = ParameterNames(module, {name: tensor.shape for name, tensor in model.tensors.items()})
    for path, parameter in list(module.named_parameters(remove_duplicate=False)):
        stored = known.stored(path, tuple(parameter.shape))
        if stored not in names:
            continue
        owner, _, last = path.rpartition(".")
        values = torch.from_numpy(np.array(model.tensors[stored].read(), dtype=np.float32))
        module.get_submodule(owner)._parameters[last] = torch.nn.Parameter(
            values.to(parameter.device), requires_grad=False
        )


def module_paths(module: torch.nn.Module, model: Model, layers: Iterable[str]) -> dict[str, str]:
    """Return the path inside a module of each layer.

    Args:
        module: made of the model's tensors.
        model: the view that it was made of.
        layers: names of layers of the model.

    Raises:
        CheckpointError: no submodule holds a layer's weight.
    """
    homes = tensor_names(model)
    known = ParameterNames(module, {name: tensor.shape for name, tensor in model.tensors.items()})
    by_tensor: dict[str, list[str]] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        stored = known.stored(path, tuple(parameter.shape))
        if stored is not None and path.endswith("weight"):
            by_tensor.setdefault(stored, []).append(path.removesuffix("weight").rstrip("."))
    found: dict[str, str] = {}
    for name in layers:
        paths = by_tensor.get(homes.get(name, f"{name}.weight"), [])
        if not paths:
            message = f"no part of {type(module).__name__} holds the weight of {name}"
            raise CheckpointError(message)
        found[name] = next((path for path in paths if name in (path, f"{path}.weight")), paths[0])
    return found
