"""Real inputs of one layer: what it multiplies when the model reads text or looks at images."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from workbench.calibration.module_names import bias_of, module_of, runs_as_head
from workbench.checkpoints import Layer, Model, open_model
from workbench.errors import CheckpointError
from workbench.resources import resolve_source

if TYPE_CHECKING:
    import torch

#: Results that are kept in memory, newest last.
MOST_KEPT = 8
#: A result larger than this is not kept.
MOST_KEPT_BYTES = 64 << 20

Progress = Callable[..., Any]


@dataclass(frozen=True, repr=False, eq=False)
class LayerInputs:
    """What a layer was given, and where it comes from."""

    values: Float[np.ndarray, "..."]
    """float32 (rows, depth) of a linear layer, or (images, channels, height, width) of a convolution."""
    origin: Literal["real", "gaussian"]
    """``real``: the model itself computed them; ``gaussian``: drawn from a normal distribution, for want of a model."""
    layer: str
    """The layer's name."""
    description: str = ""
    """What the model was given, in words."""
    bias: Float[np.ndarray, " channels"] | None = None
    """The layer's own bias, float32; None where it has none (or nobody knows)."""
    convolution: dict[str, Any] | None = None
    """``stride``, ``padding``, ``dilation`` and ``groups`` of a convolution, as ``Window`` takes them."""
    labels: tuple[str, ...] = field(default=())
    """A short text for each row (the token it belongs to), or empty."""

    @property
    def rows(self) -> int:
        """Input rows, or images."""
        return self.values.shape[0]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.values.shape))
        about = f", {self.description}" if self.description else ""
        return f"LayerInputs({self.layer!r}, {shape}, {self.origin}{about})"


def layer_inputs(
    model: Any,
    layer: Layer | str,
    inputs: Any = None,
    *,
    rows: int = 256,
    progress: Progress | None = None,
) -> LayerInputs:
    """Run the model on real inputs and return what the layer was given.

    A transformers folder runs through transformers (its own classes only, no downloads, no remote code); the demo ResNet
    through its module and scikit-learn's digits; a ``torch.nn.Module`` as it is. The run stops as soon as the layer has
    seen enough. A part of a fused projection has the inputs of the whole. Results are kept for the next call.

    Args:
        model: a ``Model``, or what ``open_model`` takes (``demo:tiny-gemma3`` too).
        layer: the layer or its name.
        inputs: texts for a language model (by default the shipped held-out text), images (n, channels, height, width)
            for a vision model, token ids (integers (n, length)); for a module also a tuple or dict of its arguments.
        rows: at least so many rows where the inputs give as many: tokens, or output-sized positions of images (of whole
            images); linear layers return exactly so many, or what there is.
        progress: called with the finished fraction and a label; may raise ``Cancelled``.

    Raises:
        CheckpointError: the source cannot be run (GGUF files, arrays, quantized checkpoints, too little memory, a
            missing tokenizer ...), or the layer is none that multiplies inputs; one sentence.
        LayerNotFoundError: there is no such layer.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        message = f"at least one row is captured, not {rows!r}"
        raise CheckpointError(message)
    opened = model if isinstance(model, Model) else open_model(_source(model))
    picked = opened[layer] if isinstance(layer, str) else layer
    _check_kind(opened, picked)
    key = _key(opened, picked, inputs, rows)
    with _lock:
        if key is not None and key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    tell = progress or (lambda *_: None)
    tell(0.0, f"running {opened.name} up to {picked.name}")
    from workbench.calibration.capture import capture
    from workbench.calibration.runnable import runnable

    with _running:
        ready = runnable(opened, inputs, rows, tell)
        place = module_of(ready.module, opened, picked)
        caught = capture(ready, place, rows, tell)
    module = caught.module
    result = LayerInputs(
        values=caught.values,
        origin="real",
        layer=picked.name,
        description=ready.description,
        bias=bias_of(module, opened, picked),
        convolution=_geometry(module, picked),
        labels=caught.labels,
    )
    if key is not None and result.values.nbytes <= MOST_KEPT_BYTES:
        with _lock:
            _kept[key] = result
            while len(_kept) > MOST_KEPT:
                _kept.popitem(last=False)
    return result


def gaussian_inputs(layer: Layer, *, rows: int = 256, seed: int = 0) -> LayerInputs:
    """Return normal random inputs of a layer's shape, labelled as what they are.

    Args:
        layer: a linear layer, or a convolution (taken with stride 1, one group, and padding that keeps the size).
        rows: rows, or positions of 8 x 8 images (kernels larger than 8 get larger ones).
        seed: of the generator.

    Raises:
        CheckpointError: the layer multiplies no inputs.
    """
    shape = tuple(layer.shape)
    generator = np.random.default_rng(seed)
    if len(shape) == 2:
        return LayerInputs(
            generator.standard_normal((rows, shape[1]), dtype=np.float32),
            "gaussian",
            layer.name,
            "standard normal numbers",
        )
    if len(shape) != 4:
        message = f"{layer.name} has shape {shape}: inputs are drawn for linear layers and 2-d convolutions only"
        raise CheckpointError(message)
    size = max(8, *shape[2:])
    images = math.ceil(rows / (size * size))
    padding = tuple((side // 2, (side - 1) // 2) for side in shape[2:])
    return LayerInputs(
        generator.standard_normal((images, shape[1], size, size), dtype=np.float32),
        "gaussian",
        layer.name,
        "standard normal numbers",
        convolution={"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1},
    )


def forget_inputs() -> None:
    """Drop all kept results, and the model that was loaded last."""
    from workbench.calibration.runnable import forget

    with _lock:
        _kept.clear()
    forget()


_kept: OrderedDict[tuple[Any, ...], LayerInputs] = OrderedDict()
_lock = threading.Lock()
#: One model runs at a time: two would double the memory.
_running = threading.Lock()


def _source(model: Any) -> Any:
    return resolve_source(model) if isinstance(model, str) else model


def _check_kind(model: Model, layer: Layer) -> None:
    if layer.kind == "embedding" and not runs_as_head(model, layer):
        message = f"{layer.name} is an embedding: it looks rows up and multiplies no inputs"
        raise CheckpointError(message)
    if layer.kind == "norm" or len(layer.shape) < 2:
        message = f"{layer.name} is no linear layer and no convolution: there is no matrix product to run"
        raise CheckpointError(message)


def _key(model: Model, layer: Layer, inputs: Any, rows: int) -> tuple[Any, ...] | None:
    """Return what a result is kept under; None for modules, whose weights may change at any time."""
    if model.module is not None:
        return None
    return (model.source, layer.name, layer.content_key, rows, _digest(inputs))


def _digest(inputs: Any) -> str:
    found = hashlib.blake2b(digest_size=16)
    if inputs is None:
        return ""
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, Sequence):
        for each in inputs:
            found.update(repr(each).encode() if isinstance(each, str | int) else np.asarray(each).tobytes())
            found.update(b"\0")
    else:
        array = np.asarray(inputs)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _geometry(module: torch.nn.Module, layer: Layer) -> dict[str, Any] | None:
    """Return a convolution's stride, padding, dilation and groups.

    Raises:
        CheckpointError: it pads with something else than zeros, or is no 2-d convolution.
    """
    if len(layer.shape) == 2:
        return None
    import torch

    if not isinstance(module, torch.nn.Conv2d):
        message = f"{layer.name} is a {type(module).__name__}; of convolutions only 2-d ones run in integers"
        raise CheckpointError(message)
    if module.padding_mode != "zeros":
        message = f"{layer.name} pads with mode {module.padding_mode!r}; integer convolutions pad with zeros"
        raise CheckpointError(message)
    reaches = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same":
        padding = tuple((reach // 2, reach - reach // 2) for reach in reaches)
    elif module.padding == "valid":
        padding = ((0, 0), (0, 0))
    else:
        padding = tuple((int(side), int(side)) for side in module.padding)
    return {
        "stride": tuple(module.stride),
        "padding": padding,
        "dilation": tuple(module.dilation),
        "groups": module.groups,
    }
