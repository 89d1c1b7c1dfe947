"""What a model is calibrated on: batches of real inputs, the same ones for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, cast

import numpy as np

from workbench.calibration.docstrings import english
from workbench.calibration.hosts import opened, program_of, whole_host
from workbench.calibration.runnable import Batch, _quietly, digits
from workbench.calibration.store import map_tensors
from workbench.calibration.texts import default_texts, ordered_pieces
from workbench.checkpoints import Model
from workbench.errors import CheckpointError

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "spm.model", "vocab.bpe", "tokenizer.tiktoken"),
)
#: Texts of fewer tokens are taken when there are no others: they are mostly what was left at the end of a file.
SCRAP = 8
#: The split of data/train_tiny_resnet.py: calibration uses training images only.
_DIGITS_SEED = 20261120
_DIGITS_HELD_OUT = 0.25


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Batches of inputs; make it with ``from_texts``, ``from_images``, ``from_loader`` or ``synthetic``."""

    batches: tuple[Batch, ...]
    """Arguments of one forward pass each; tensors are on the CPU."""
    description: str
    """What they are, in words."""
    samples: int
    """Texts, or images."""
    tokens: int
    """Tokens of text; 0 for other inputs."""

    @cached_property
    def content_key(self) -> str:
        """Digest of all tensors and of their places in the call."""
        import torch

        state = blake2b(digest_size=16)

        def add(tensor: torch.Tensor) -> None:
            state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

        for batch in self.batches:
            call = (tuple(batch.arguments), dict(batch.options))
            state.update(repr(map_tensors(call, lambda _: "tensor")).encode())
            map_tensors(call, add)
        return state.hexdigest()

    def __repr__(self) -> str:
        size = f", {self.tokens:,} tokens" if self.tokens else ""
        samples = f"{self.samples:,} sample{'' if self.samples == 1 else 's'}"
        batches = f"{len(self.batches)} batch{'' if len(self.batches) == 1 else 'es'}"
        return f"Calibration({samples} in {batches}{size}: {self.description})"

    @staticmethod
    def from_texts(
        model: Any,
        texts: Sequence[str] | str | None = None,
        *,
        samples: int = 128,
        length: int = 128,
        batch: int = 8,
        choose: str = "random",
        seed: int = 0,
        tokenizer: Any = None,
    ) -> Calibration:
        """Cut texts into samples of one length.

        Nothing is padded: pieces shorter than ``length`` tokens are taken only where there are not enough full ones, and a
        batch holds samples of equal length.

        Args:
            model: a ``Model``, what ``open_model`` takes, or a torch module (then a tokenizer is needed).
            texts: by default this Python's standard library without the modules that evaluation holds out; for an encoder
                the English of its docstrings.
            samples: how many at most.
            length: tokens of a sample, with the special ones that the tokenizer adds.
            batch: samples of a forward pass, at most.
            choose: ``first``, ``random`` or ``balanced`` (see ``texts.ordered_pieces``).
            seed: of the choice.
            tokenizer: by default the one beside the model's weights.

        Raises:
            CheckpointError: no texts or tokens, a negative seed, a choice that does not exist, or a model without a tokenizer.
        """
        _check(samples=samples, length=length, batch=batch)
        _check_seed(seed)
        found = opened(model)
        accepted, config, reader = _reader(found, tokenizer)
        given, what = default_texts() if texts is None else (_texts(texts), "")
        if texts is None and reads_prose(config):
            given, what = english(given), f"the docstrings of {what}"
        most = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or length)
        length = min(length, most)
        pieces = ordered_pieces(given, length, choose, samples, seed)
        rows = _token_rows(reader, pieces, samples, length)
        batches = tuple(_text_batches(rows, batch, accepted, config))
        tokens = sum(len(row["input_ids"]) for row in rows)
        what = what or f"{len(given)} given text{'s' if len(given) > 1 else ''}"
        return Calibration(batches, f"{choose} samples of {what}", len(rows), tokens)

    @staticmethod
    def from_images(
        model: Any, images: Any = None, *, samples: int = 256, batch: int = 32, seed: int = 0
    ) -> Calibration:
        """Take images at random.

        Args:
            model: the model; tiny-resnet brings its training digits along (never the held-out ones).
            images: real numbers (n, channels, height, width).
            samples: how many at most.
            batch: images of a forward pass.
            seed: of the choice.

        Raises:
            CheckpointError: no images, or of another kind.
        """
        import torch

        _check(samples=samples, batch=batch)
        _check_seed(seed)
        what = "given images"
        if images is None:
            found = opened(model)
            if found.config.get("model_type") != "tiny_resnet":
                message = f"{found.name} brings no images to calibrate on: give some (n, channels, height, width)"
                raise CheckpointError(message)
            images, what = training_digits(), "training images of scikit-learn's handwritten digits"
        try:
            values = torch.as_tensor(images)
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"images are an array or a tensor (n, channels, height, width), not {type(images).__name__}"
            raise CheckpointError(message) from error
        if values.ndim != 4 or not len(values) or not values.is_floating_point():
            message = f"images are real numbers (n, channels, height, width), not {values.dtype} {tuple(values.shape)}"
            raise CheckpointError(message)
        order = np.random.default_rng([seed, 11]).permutation(len(values))[:samples]
        chosen = values[torch.from_numpy(order)].float().cpu()
        batches = tuple(Batch((part,)) for part in chosen.split(int(batch)))
        return Calibration(batches, what, len(chosen), 0)

    @staticmethod
    def from_loader(loader: Iterable[Any], *, samples: int | None = None) -> Calibration:
        """Take batches from a data loader.

        Args:
            loader: gives tensors or arrays, tuples of a module's arguments, or dicts of its named arguments. (A loader of
                (inputs, labels) must be stripped of its labels.)
            samples: stop after so many (counted by the first axis); None takes all.

        Raises:
            CheckpointError: it gives nothing, an empty batch, or something else.
        """
        if not isinstance(loader, Iterable):
            message = f"a loader gives batches one after another; {type(loader).__name__} does not"
            raise CheckpointError(message)
        batches: list[Batch] = []
        count = tokens = 0
        for item in loader:
            if samples is not None and count >= samples:
                break
            found = _as_batch(item)
            first = _first_tensor(found)
            size = int(first.shape[0]) if first.ndim else 1
            if not size:
                message = f"batch {len(batches)} of the loader is empty: {tuple(first.shape)}"
                raise CheckpointError(message)
            if samples is not None and count + size > samples:
                keep, size = samples - count, samples - count
                found = _sliced(found, int(first.shape[0]), keep)
                first = first[:keep]
            batches.append(found)
            count += size
            tokens += 0 if first.is_floating_point() else first.numel()
        if not batches:
            message = "the loader gives no batches to calibrate on"
            raise CheckpointError(message)
        return Calibration(tuple(batches), "batches of a given loader", count, tokens)

    @staticmethod
    def synthetic(
        model: Any,
        *,
        samples: int = 64,
        length: int = 128,
        batch: int = 8,
        temperature: float = 1.0,
        seed: int = 0,
        progress: Callable[..., Any] | None = None,
    ) -> Calibration:
        """Let the model write its own calibration text: no data is needed.

        Args:
            model: a causal language model.
            samples: texts.
            length: tokens of each.
            batch: samples of a forward pass.
            temperature: of the sampling; 1 draws from the model's own distribution.
            seed: of the sampling.
            progress: told the finished fraction and a label; may raise ``Cancelled``.

        Raises:
            CheckpointError: the model cannot be loaded (it is needed whole).
            WorkbenchError: it writes no text (see ``generate_texts``).
        """
        import inspect

        from workbench.calibration.synthetic import generate_texts

        _check(samples=samples, length=length, batch=batch)
        _check_seed(seed)
        found = opened(model)
        module = whole_host(found).module
        ids = generate_texts(
            module, samples=samples, length=length, temperature=temperature, seed=seed, progress=progress
        )
        rows = [{"input_ids": row.tolist()} for row in ids]
        accepted = set(inspect.signature(module.forward).parameters)
        batches = tuple(_text_batches(rows, batch, accepted, getattr(module, "config", None)))
        what = f"text that {found.name} wrote itself at temperature {temperature:g}"
        return Calibration(batches, what, len(rows), int(ids.size))


def training_digits() -> np.ndarray:
    """Return the digits that tiny-resnet was trained on: float32 (1347, 1, 8, 8).

    Raises:
        CheckpointError: scikit-learn is not installed.
    """
    images = digits()
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    answers: Any = load_digits()
    train, _ = train_test_split(images, test_size=_DIGITS_HELD_OUT, stratify=answers.target, random_state=_DIGITS_SEED)
    return np.ascontiguousarray(train)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            message = f"{name} of a calibration is a whole number of at least 1, not {value!r}"
            raise CheckpointError(message)


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        message = f"a seed is a whole number of at least 0, not {seed!r}"
        raise CheckpointError(message)


def _texts(texts: Any) -> list[str]:
    """Return given texts as a list; a mapping is refused, since only its keys would be read."""
    given = [texts] if isinstance(texts, str) else []
    if isinstance(texts, Iterable) and not isinstance(texts, str | Mapping):
        given = list(texts)
    if not given or not all(isinstance(text, str) for text in given):
        message = "calibration texts are one text or a sequence of texts, and at least one of them"
        raise CheckpointError(message)
    return given


def reads_prose(config: Any) -> bool:
    """Say whether a model is an encoder of prose: a masked language model's kind, without a head that writes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    heads = [str(each) for each in getattr(config, "architectures", None) or ()]
    writes = any("LMHead" in head or "CausalLM" in head or "ConditionalGeneration" in head for head in heads)
    return getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not writes


def _reader(model: Model, tokenizer: Any) -> tuple[set[str], Any, Any]:
    """Return the names of a model's arguments, its configuration, and its tokenizer."""
    import inspect

    if model.module is not None:
        accepted = set(inspect.signature(model.module.forward).parameters)
        if tokenizer is None:
            message = f"{model.name} is a module, which brings no tokenizer: give one, or give token ids to from_loader"
            raise CheckpointError(message)
        return accepted, getattr(model.module, "config", None), tokenizer
    maker, config, folder = program_of(model)
    import transformers

    if maker is None:
        maker = cast("Any", transformers.AutoModel)._model_mapping[type(config)]
    if tokenizer is None:
        # Without any of these transformers makes an empty tokenizer, which reads every text as unknown.
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            message = f"{model.name} has no tokenizer beside its weights that transformers can read: give one"
            raise CheckpointError(message)
        with _quietly():
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:
                message = f"{model.name} has no tokenizer beside its weights that transformers can read: give one"
                raise CheckpointError(message) from error
    return set(inspect.signature(maker.forward).parameters), config, tokenizer


def _token_rows(tokenizer: Any, pieces: Sequence[str], samples: int, length: int) -> list[dict[str, list[int]]]:
    """Tokenize pieces until there are enough that fill a sample; fill up with shorter ones in their order, scraps last."""
    full: list[dict[str, list[int]]] = []
    short: list[dict[str, list[int]]] = []
    for start in range(0, len(pieces), samples):
        if len(full) >= samples:
            break
        coded = tokenizer(list(pieces[start : start + samples]), truncation=True, max_length=length)
        for number, ids in enumerate(coded["input_ids"]):
            row = {name: list(values[number]) for name, values in coded.items()}
            if len(ids) >= length:
                full.append(row)
            elif len(ids) >= 2:
                short.append(row)
    rows = full[:samples]
    if len(rows) < samples:
        rows += sorted(short, key=lambda row: len(row["input_ids"]) < SCRAP)[: samples - len(rows)]
    if not rows:
        message = "the texts hold no sample of two tokens or more"
        raise CheckpointError(message)
    return rows


def _text_batches(rows: list[dict[str, list[int]]], size: int, accepted: set[str], config: Any) -> Iterator[Batch]:
    import torch

    by_length: dict[int, list[dict[str, list[int]]]] = {}
    for row in rows:
        by_length.setdefault(len(row["input_ids"]), []).append(row)
    for group in by_length.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            options: dict[str, Any] = {
                name: torch.tensor([row[name] for row in part], dtype=torch.int64)
                for name in part[0]
                if name in accepted
            }
            if getattr(config, "is_encoder_decoder", False):
                options["decoder_input_ids"] = options["input_ids"]
            if "use_cache" in accepted:
                options["use_cache"] = False
            yield Batch((), options)


def _as_batch(item: Any) -> Batch:
    import torch

    def tensor(value: Any) -> Any:
        return torch.as_tensor(value) if isinstance(value, np.ndarray) else value

    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        found = Batch((), {name: tensor(value) for name, value in item.items()})
    elif isinstance(item, tuple | list):
        found = Batch(tuple(tensor(value) for value in item))
    else:
        found = Batch((tensor(item),))
    _first_tensor(found)
    return found


def _first_tensor(batch: Batch) -> Any:
    import torch

    for value in (*batch.arguments, *batch.options.values()):
        if isinstance(value, torch.Tensor):
            return value
    kinds = ", ".join(type(value).__name__ for value in (*batch.arguments, *batch.options.values())) or "nothing"
    message = f"a batch is a tensor or array, a tuple of arguments or a dict of them, not {kinds}"
    raise CheckpointError(message)


def _sliced(batch: Batch, size: int, keep: int) -> Batch:
    """Return the first samples of a batch: every tensor that counts samples by its first axis is cut."""

    def cut(tensor: Any) -> Any:
        return tensor[:keep] if tensor.ndim and tensor.shape[0] == size else tensor

    arguments, options = map_tensors((tuple(batch.arguments), dict(batch.options)), cut)
    return Batch(arguments, options)
