"""What is evaluated, brought to one form: sources, opened models, torch modules, quantized models, integer models."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from workbench.calibration.forwarding import evaluating
from workbench.checkpoints import Model, open_model
from workbench.errors import WorkbenchError
from workbench.evaluation.windows import encode
from workbench.integer.model import IntegerModel
from workbench.resources import resolve_source

if TYPE_CHECKING:
    import torch

#: ``causal``: a language model that foretells the next token; ``encoder``: gives hidden states of texts; ``classifier``:
#: gives one row of logits for each input.
Kind = Literal["causal", "encoder", "classifier"]
#: Logits that one forward pass may give, in bytes of float32: batches are cut to that.
_LOGIT_BYTES = 256 << 20
#: Most windows of a batch.
_MOST_BATCH = 16
#: Sentences that an encoder reads at once.
_SENTENCES = 32


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that can be measured; make it with ``subject``."""

    name: str
    kind: Kind
    call: Callable[..., Any]
    """The module, the integer model, or any function of arrays."""
    module: torch.nn.Module | None = None
    """None where it is no torch module."""
    tokenizer: Any = None

    def logits(self, ids: Int[np.ndarray, "rows tokens"]) -> Any:
        """Return a causal model's logits (rows, tokens, vocabulary), numpy or torch.

        Raises:
            WorkbenchError: tokens that the module's embedding does not have.
        """
        if self.module is None:
            return self.call(ids)
        import torch

        known = self._vocabulary
        if known is not None and ids.size and (ids.min() < 0 or ids.max() >= known):
            message = f"the model knows tokens 0 to {known - 1}; the text holds {ids.min()} to {ids.max()}"
            raise WorkbenchError(message)

        options = {"use_cache": False} if "use_cache" in self._accepted else {}
        with evaluating(self.module):
            out = self.module(torch.from_numpy(ids).to(self._device), **options)
        return _logits_of(out)

    def classify(self, inputs: Any) -> np.ndarray:
        """Return a classifier's logits (inputs, classes), numpy."""
        if self.module is None:
            return np.asarray(self.call(inputs))
        import torch

        given = torch.as_tensor(inputs).to(self._device)
        if given.is_floating_point():
            given = given.to(next((each.dtype for each in self.module.parameters()), given.dtype))
        with evaluating(self.module):
            out = self.module(given)
        return _logits_of(out).detach().float().cpu().numpy()

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Return an encoder's embeddings (sentences, width): the mean of the last hidden states over each one's tokens.

        This is what sentence encoders of the MiniLM kind do; lengths are left as they come, cosines divide them out.
        """
        if self.module is None:
            return self._embed_integer(sentences)

        found = []
        with evaluating(self.module):
            for start in range(0, len(sentences), _SENTENCES):
                coded = self.tokenizer(
                    sentences[start : start + _SENTENCES], padding=True, truncation=True, return_tensors="pt"
                ).to(self._device)
                hidden = self.module(**coded).last_hidden_state.float()
                mask = coded["attention_mask"][..., None].float()
                found.append(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
        return np.concatenate(found)

    def batch_size(self, window: int) -> int:
        """Return how many windows of tokens one forward pass takes: 1 where it is no torch module."""
        if self.module is None:
            return 1
        config: Any = getattr(self.module, "config", None)
        text = getattr(config, "get_text_config", lambda: config)()
        vocabulary = int(getattr(text, "vocab_size", 0) or 0) or 1 << 16
        return max(1, min(_MOST_BATCH, _LOGIT_BYTES // (4 * window * vocabulary)))

    def with_tokenizer(self, tokenizer: Any) -> Subject:
        """Return it with another tokenizer, or itself where None is given."""
        return self if tokenizer is None else replace(self, tokenizer=tokenizer)

    @cached_property
    def _vocabulary(self) -> int | None:
        """Tokens that the module's embedding has; None where it does not say."""
        try:
            return int(self.module.get_input_embeddings().num_embeddings)  # type: ignore[union-attr, operator]
        except (AttributeError, NotImplementedError, TypeError):
            return None

    @cached_property
    def _accepted(self) -> set[str]:
        try:
            return set(inspect.signature(self.module.forward).parameters) if self.module is not None else set()
        except (TypeError, ValueError):
            return set()

    @property
    def _device(self) -> Any:
        assert self.module is not None
        return next((each.device for each in self.module.parameters()), "cpu")

    def _embed_integer(self, sentences: list[str]) -> np.ndarray:
        """An integer encoder's graph ends in the embedding; rows are filled up with the padding token."""
        ids = [encode(self.tokenizer, each) for each in sentences]
        pad = int(getattr(self.tokenizer, "pad_token_id", 0) or 0)
        found = []
        for start in range(0, len(ids), _SENTENCES):
            part = ids[start : start + _SENTENCES]
            rows = np.full((len(part), max(map(len, part))), pad, dtype=np.int64)
            for row, each in zip(rows, part, strict=True):
                row[: len(each)] = each
            found.append(np.asarray(self.call(rows)))
        return np.concatenate(found)


def subject(
    model: Any,
    *,
    tokenizer: Any = None,
    kind: Kind | None = None,
    like: Subject | None = None,
    progress: Callable[..., Any] | None = None,
) -> Subject:
    """Bring a model to the form in which it is measured.

    Args:
        model: a source (path, ``demo:NAME``, Hub id), an opened ``Model``, a torch module, a quantized model (anything with
            ``module()``), an ``IntegerModel``, or a function of arrays (token ids to logits, inputs to logits).
        tokenizer: by default the one beside the weights, else that of ``like``.
        kind: what it is, where that cannot be seen (functions, own modules).
        like: the reference: kind and tokenizer are taken from it where the model tells neither.
        progress: told the finished fraction and a label while weights are loaded.

    Raises:
        CheckpointError: it cannot be opened or run.
        WorkbenchError: it is nothing that can be measured, or its kind is not known.
    """
    if isinstance(model, Subject):
        return model.with_tokenizer(tokenizer)
    name, module, call, own = _taken(model, progress or (lambda *_: None))
    found = _kind_of(module) if module is not None else None
    kinds = ", ".join(map(repr, get_args(Kind)))
    if kind is not None and kind not in get_args(Kind):
        message = f"a model's kind is one of {kinds}, not {str(kind)[:40]!r}"
        raise WorkbenchError(message)
    if kind is not None and found is not None and kind != found and "causal" in {kind, found}:
        message = f"{name} is of kind {found} and cannot be asked as one of kind {kind}"
        raise WorkbenchError(message)
    chosen = kind or found or (like.kind if like is not None else None)
    if chosen is None:
        message = f"nothing tells what {name} is: say kind= one of {kinds}"
        raise WorkbenchError(message)
    reader = tokenizer if tokenizer is not None else own
    if reader is None and like is not None:
        reader = like.tokenizer
    if reader is None and module is not None and chosen != "classifier":
        reader = _tokenizer_beside(module)
    return Subject(name, chosen, call, module, reader)


def _taken(model: Any, tell: Callable[..., Any]) -> tuple[str, Any, Callable[..., Any], Any]:
    """Return (name, module or None, what to call, tokenizer or None)."""
    if isinstance(model, IntegerModel):
        return model.name, None, model, None
    if isinstance(model, str | os.PathLike):
        model = open_model(resolve_source(model) if isinstance(model, str) else model)
    if isinstance(model, Model) and model.quantization == "workbench":
        from workbench.methods.model_result import QuantizedModel

        return _taken(QuantizedModel.load(model.source), tell)
    if isinstance(model, Model):
        from workbench.calibration.runnable import load

        module, tokenizer = load(model, tell)
        return model.name, module, module, tokenizer
    if _is_module(model):
        return type(model).__name__, model, model, None
    inner = getattr(model, "module", None)
    if callable(inner):
        module: Any = inner()
        if _is_module(module):
            name, source = getattr(model, "name", None), getattr(model, "source", None)
            reader = getattr(model, "tokenizer", None)
            if isinstance(source, Model):
                # A quantized model is called by what it was made from, and reads with that one's tokenizer.
                name = name if isinstance(name, str) else f"{source.name} (quantized)"
                reader = reader if reader is not None else _tokenizer_in(source.source)
            return name if isinstance(name, str) else type(model).__name__, module, module, reader
    if callable(model):
        return getattr(model, "__name__", "the model"), None, model, None
    message = (
        "what is measured is a source, an opened model, a torch module, a quantized or an integer model, or a function "
        f"from token ids or inputs to logits, not {type(model).__name__}"
    )
    raise WorkbenchError(message)


def _is_module(model: Any) -> bool:
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _kind_of(module: Any) -> Kind | None:
    """Return what a module is, by transformers' own names of heads; None for modules of other packages."""
    config = getattr(module, "config", None)
    if type(module).__name__ == "TinyResNet":
        return "classifier"
    if not hasattr(config, "model_type"):
        return None
    if getattr(config, "is_encoder_decoder", False):
        message = f"{type(module).__name__} reads one text and writes another: only causal models, encoders and classifiers are measured"
        raise WorkbenchError(message)
    name = type(module).__name__
    if name.endswith("Classification"):
        return "classifier"
    can_generate = getattr(module, "can_generate", None)
    if name.endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration")) or (
        callable(can_generate) and can_generate()
    ):
        return "causal"
    return "encoder" if name.endswith("Model") else None


def _tokenizer_beside(module: Any) -> Any:
    """Return the tokenizer in the folder that a module was loaded from, or None; nothing is downloaded."""
    folder = getattr(getattr(module, "config", None), "_name_or_path", "") or getattr(module, "name_or_path", "")
    return _tokenizer_in(folder)


def _tokenizer_in(folder: Any) -> Any:
    """Return the tokenizer of a folder (or of the folder of a file), or None; nothing is downloaded."""
    place = Path(str(folder or ""))
    place = place.parent if place.is_file() else place
    if not folder or not (place / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever it is, a caller with token ids does not need it
        return None


def _logits_of(out: Any) -> Any:
    import torch

    found = out if isinstance(out, torch.Tensor) else getattr(out, "logits", None)
    if not isinstance(found, torch.Tensor):
        message = f"the model gives {type(out).__name__} where logits are needed"
        raise WorkbenchError(message)
    return found
