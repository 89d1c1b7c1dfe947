"""A model that runs, and batches of real inputs for it: transformers folders, the demo ResNet, torch modules."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checkpoints import Model
from workbench.errors import CheckpointError
from workbench.resources import held_out_text_path, shared_path

if TYPE_CHECKING:
    import torch

#: Tokens of one text.
LENGTH = 128
#: Forward passes at most: a layer that sees one row a pass gets no more rows than this.
MOST_PASSES = 64
#: The model that was loaded last stays in memory when its weights take no more than this.
KEPT_BYTES = 2 << 30
#: Free memory that a load must leave, as a factor of the weights: reading, casting, activations.
HEADROOM = 1.3


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward pass, and a short text for each of its rows."""

    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Runnable:
    """A module in memory with what to feed it."""

    module: torch.nn.Module
    batches: Iterable[Batch]
    description: str


#: Identity of the files -> (module, tokenizer); at most one.
_last: dict[str, tuple[Any, Any]] = {}
_guard = threading.Lock()


def forget() -> None:
    """Drop the model that was loaded last."""
    with _guard:
        _last.clear()


def runnable(model: Model, inputs: Any, rows: int, progress: Callable[..., Any]) -> Runnable:
    """Load what can be run, and prepare its inputs.

    Args:
        model: an opened model.
        inputs: None, or what the caller brought (see ``layer_inputs``).
        rows: how many rows are wanted.
        progress: told the finished fraction and a label.

    Raises:
        CheckpointError: it cannot be run; one sentence says why.
    """
    if model.module is not None:
        return Runnable(model.module, _given(inputs), "the inputs that were given")
    if model.config.get("model_type") == "tiny_resnet":
        return _resnet(model, inputs, rows)
    folder = _folder(model)
    module, tokenizer = _load(model, folder, progress)
    if inputs is None or isinstance(inputs, str) or _are_texts(inputs):
        if tokenizer is None:
            message = (
                f"{model.name} has no tokenizer beside its weights that transformers can read: give token ids "
                "(or images) as inputs"
            )
            raise CheckpointError(message)
        texts, what = _texts(inputs)
        return Runnable(module, _tokens(module, tokenizer, texts), f"{model.name} on {what}")
    return Runnable(module, _given(inputs), f"{model.name} on the inputs that were given")


def load(model: Model, progress: Callable[..., Any] = lambda *_: None) -> tuple[Any, Any]:
    """Return a model's torch module, in evaluation mode, and its tokenizer (None where there is none).

    The module is shared with other callers: whoever changes it works on a copy.

    Args:
        model: an opened model; one that was opened from a module gives that module.
        progress: told the finished fraction and a label.

    Raises:
        CheckpointError: it cannot be run; one sentence says why.
    """
    if model.module is not None:
        return model.module, None
    if model.config.get("model_type") == "tiny_resnet":
        return resnet_module().load(_folder(model)), None
    return _load(model, _folder(model), progress)


def _are_texts(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(each, str) for each in inputs)


def _texts(inputs: Any) -> tuple[list[str], str]:
    if inputs is None:
        text = held_out_text_path().read_text(encoding="utf-8")
        modules = [part for part in text.split("\f\n") if part.strip()]
        return modules, f"the shipped held-out text ({LENGTH} tokens of each module)"
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    return texts, f"{len(texts)} given text{'s' if len(texts) > 1 else ''}"


def _tokens(module: torch.nn.Module, tokenizer: Any, texts: list[str]) -> Iterable[Batch]:
    batches = _token_batches(module, tokenizer, texts)
    first = next(batches, None)
    if first is None:
        message = "the texts hold no tokens; give at least one that is not empty"
        raise CheckpointError(message)
    return itertools.chain([first], batches)


def _token_batches(module: torch.nn.Module, tokenizer: Any, texts: list[str]) -> Iterator[Batch]:
    import inspect

    config: Any = getattr(module, "config", None)
    most = int(getattr(config, "max_position_embeddings", 0) or LENGTH)
    accepted = set(inspect.signature(module.forward).parameters)
    for text in texts[:MOST_PASSES]:
        # Cut before tokenizing: a long text takes seconds and only its first tokens are used.
        coded = tokenizer(text[: 20 * LENGTH], truncation=True, max_length=min(LENGTH, most), return_tensors="pt")
        ids = coded["input_ids"]
        if ids.numel() == 0:
            continue
        options = {name: value for name, value in coded.items() if name in accepted}
        if getattr(config, "is_encoder_decoder", False):
            options["decoder_input_ids"] = ids
        if "use_cache" in accepted:
            options["use_cache"] = False
        labels = tuple(tokenizer.decode([token]) for token in ids[0].tolist())
        yield Batch((), options, labels)


def _given(inputs: Any) -> list[Batch]:
    import torch

    if inputs is None:
        message = (
            "a module does not say what it reads: give its inputs (an array or tensor, or a tuple or dict of them)"
        )
        raise CheckpointError(message)

    def tensor(value: Any) -> Any:
        return torch.as_tensor(value) if isinstance(value, np.ndarray) else value

    if isinstance(inputs, Mapping):
        return [Batch((), {name: tensor(value) for name, value in inputs.items()})]
    if isinstance(inputs, tuple):
        return [Batch(tuple(tensor(value) for value in inputs))]
    try:
        value = tensor(np.asarray(inputs) if isinstance(inputs, list) else inputs)
    except (TypeError, ValueError, RuntimeError):  # objects, or rows of different length
        value = None
    if not isinstance(value, torch.Tensor) or value.ndim < 1:
        message = f"inputs are an array or tensor, texts, or a tuple or dict of arguments, not {type(inputs).__name__}"
        raise CheckpointError(message)
    return [Batch((value,))]


def _resnet(model: Model, inputs: Any, rows: int) -> Runnable:
    import torch

    module = resnet_module().load(_folder(model))
    if inputs is None:
        images, what = digits(), f"{model.name} on scikit-learn's handwritten digits"
    else:
        images, what = np.asarray(inputs, dtype=np.float32), f"{model.name} on the images that were given"
    size = module.config.image_size
    if images.ndim != 4 or images.shape[1:] != (1, size, size) or not len(images):
        message = f"{model.name} looks at images (n, 1, {size}, {size}), not {images.shape}"
        raise CheckpointError(message)
    batches = [
        Batch((torch.from_numpy(np.ascontiguousarray(images[first : first + 1])),))
        for first in range(min(len(images), max(rows, 1)))
    ]
    return Runnable(module, batches, what)


def resnet_module() -> Any:
    """Return the module ``tiny_resnet`` that ships beside the demo model."""
    name = "workbench_tiny_resnet"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, shared_path("data/tiny_resnet.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is read
    spec.loader.exec_module(module)
    return module


def digits() -> np.ndarray:
    """Return scikit-learn's handwritten digits: float32 (1797, 1, 8, 8) in 0 to 1.

    Raises:
        CheckpointError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        message = "the digits that tiny-resnet reads come with scikit-learn: pip install scikit-learn, or give images"
        raise CheckpointError(message) from None
    data: Any = load_digits()
    return (data.images / 16.0).astype(np.float32)[:, None]


def _folder(model: Model) -> Path:
    if model.format in {"gguf", "arrays"}:
        what = "a GGUF file" if model.format == "gguf" else "a mapping of arrays"
        message = (
            f"{model.name} is {what}, which holds weights but no program to run them with: its inputs are not known"
        )
        raise CheckpointError(message)
    if model.quantization:
        message = f"{model.name} is stored as {model.quantization}; running it takes the plain checkpoint that it was made from"
        raise CheckpointError(message)
    files = getattr(model, "_files", ())
    folder = Path(files[0].path).parent if files else Path(model.source)
    folder = folder if folder.is_dir() else folder.parent
    if not (folder / "config.json").is_file():
        message = f"{model.name} has no config.json beside its weights, so nobody knows how to run it"
        raise CheckpointError(message)
    return folder


def available_memory() -> int | None:
    """Return how many bytes a process can still take, or None where the system does not say."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _precision(model: Model) -> Any:
    """Return float32 where the weights fit as such, else the stored type where that fits.

    Raises:
        CheckpointError: neither fits.
    """
    import torch

    weights = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in model.tensors.values())
    stored = sum(
        int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize for tensor in model.tensors.values()
    )
    free = available_memory()
    if free is None or HEADROOM * 4 * weights <= free:
        return torch.float32
    if HEADROOM * stored <= free:
        return "auto"
    message = (
        f"running {model.name} takes about {HEADROOM * stored / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are "
        "free: close something, or look at a smaller model"
    )
    raise CheckpointError(message)


def _load(model: Model, folder: Path, progress: Callable[..., Any]) -> tuple[Any, Any]:
    """Return transformers' module and tokenizer of a folder; the last one stays in memory if it is small."""
    files = getattr(model, "_files", ())
    identity = "|".join(getattr(file, "identity", "") for file in files) or str(folder)
    with _guard:
        if identity in _last:
            return _last[identity]
        _last.clear()
    dtype = _precision(model)
    progress(0.02, f"loading {model.name}")
    import transformers

    names = [name for name in model.config.get("architectures") or [] if isinstance(name, str)]
    maker = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    with _quietly():
        try:
            module = (maker or transformers.AutoModel).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=dtype
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            message = f"transformers cannot load {model.name}: {reason}"
            raise CheckpointError(message) from error
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception:  # whatever it is, a caller with token ids does not need it
            tokenizer = None
    module = module.eval()
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    if size <= KEPT_BYTES:
        with _guard:
            _last[identity] = (module, tokenizer)
    return module, tokenizer


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' bars and warnings off the notebook while a model is read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
