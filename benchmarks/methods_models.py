"""The three demo models of the benchmarks on methods: float module, calibration, and how good a changed module is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

# Threads that wait by spinning starve those of other programs on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

from workbench import demo_path, open_model
from workbench.calibration import Calibration
from workbench.evaluation import accuracy, perplexity, sentence_pairs, similarity
from workbench.resources import held_out_text_path


@dataclass(eq=False)
class Subject:
    """A model under test; subclasses say how it is calibrated and judged."""

    name: str = ""
    source: str = ""
    figure: str = ""
    """What is measured, for a table's head."""
    better: str = "lower"
    finer: tuple[str, str] = ("ratio", "ratio to the float model's perplexity on the same windows")
    """A second figure, lower is better, that does not saturate: its key in ``judge``'s answer, and a table's head."""
    samples: int = 64
    """Calibration samples."""
    length: int = 128
    """Tokens of each."""

    @cached_property
    def model(self) -> Any:
        """The opened checkpoint."""
        return open_model(demo_path(self.source.removeprefix("demo:")))

    def calibration(self, seed: int, choose: str = "random") -> Calibration:
        """Return the calibration of a seed."""
        return Calibration.from_texts(self.source, samples=self.samples, length=self.length, choose=choose, seed=seed)

    def judge(self, module: Any) -> dict[str, Any]:
        """Return the figures of a module; ``value`` is the one that tables show."""
        raise NotImplementedError

    def float_module(self) -> Any:
        """Return a new float32 module with the checkpoint's weights."""
        raise NotImplementedError


@dataclass(eq=False)
class Gemma(Subject):
    """tiny-gemma3 on a part of the held-out modules: perplexity, and its ratio to the float model on the same windows."""

    name: str = "tiny-gemma3"
    source: str = "demo:tiny-gemma3"
    figure: str = "perplexity"
    part: int = 8
    """Every so many held-out modules are read."""
    window: int = 256
    limit: int | None = None
    """Stop after so many scored tokens; None reads all of the part."""
    _float: Any = field(default=None, init=False)

    @cached_property
    def texts(self) -> list[np.ndarray]:
        """Token ids of the held-out modules that are read."""
        modules = held_out_text_path().read_text(encoding="utf-8").split("\f\n")[:: self.part]
        tokenizer = _tokenizer(self.source)
        return [np.asarray(tokenizer(text)["input_ids"]) for text in modules]

    def float_module(self) -> Any:
        """Return the float32 module."""
        import torch
        from transformers import AutoModelForCausalLM

        path = str(demo_path("tiny-gemma3"))
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()

    def measure(self, module: Any) -> Any:
        """Return the ``Perplexity`` of a module."""
        import torch

        def logits(ids: np.ndarray) -> Any:
            with torch.inference_mode():
                return module(input_ids=torch.from_numpy(ids), use_cache=False).logits

        return perplexity(logits, self.texts, window=self.window, limit=self.limit)

    @property
    def reference(self) -> Any:
        """The float model's ``Perplexity``."""
        if self._float is None:
            self._float = self.measure(self.float_module())
        return self._float

    def judge(self, module: Any) -> dict[str, Any]:
        """Return perplexity, its standard error, and the paired ratio to float."""
        found = self.measure(module)
        ratio, error = found.ratio(self.reference)
        return {
            "value": found.value,
            "standard_error": found.standard_error,
            "ratio": ratio,
            "ratio_error": error,
            "tokens": found.tokens,
        }


@dataclass(eq=False)
class MiniLM(Subject):
    """all-MiniLM-L6-v2 on pairs of sentences: rank correlation of similarities, and cosine to the float embeddings."""

    name: str = "all-MiniLM-L6-v2"
    source: str = "demo:all-MiniLM-L6-v2"
    figure: str = "Spearman"
    better: str = "higher"
    finer: tuple[str, str] = ("distance", "1 - mean cosine between its embeddings and the float encoder's")
    pairs: int = 200
    _float: Any = field(default=None, init=False)

    def float_module(self) -> Any:
        """Return the float32 encoder."""
        import torch
        from transformers import AutoModel

        path = str(demo_path("all-MiniLM-L6-v2"))
        return AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()

    def embed(self, module: Any, sentences: list[str]) -> np.ndarray:
        """Return mean-pooled embeddings (sentences, width), as the model's card has it."""
        import torch

        tokenizer = _tokenizer(self.source)
        found = []
        with torch.inference_mode():
            for start in range(0, len(sentences), 32):
                coded = tokenizer(sentences[start : start + 32], padding=True, truncation=True, return_tensors="pt")
                hidden = module(**coded).last_hidden_state
                mask = coded["attention_mask"][..., None].float()
                found.append(((hidden * mask).sum(dim=1) / mask.sum(dim=1)).numpy())
        return np.concatenate(found)

    def judge(self, module: Any) -> dict[str, Any]:
        """Return rank correlation and cosines against the float encoder."""
        if self._float is None:
            reference = self.float_module()
            self._float = lambda sentences: self.embed(reference, sentences)
        found = similarity(self._float, lambda sentences: self.embed(module, sentences), sentence_pairs(self.pairs))
        return {"value": found.spearman, "distance": 1.0 - found.cosine, "worst_cosine": found.worst_cosine}


@dataclass(eq=False)
class ResNet(Subject):
    """tiny-resnet on the 450 digits that it was not trained on."""

    name: str = "tiny-resnet"
    source: str = "demo:tiny-resnet"
    figure: str = "accuracy, %"
    better: str = "higher"
    finer: tuple[str, str] = ("divergence", "mean KL divergence from the float network's answers, thousandths of a nat")
    samples: int = 256

    def calibration(self, seed: int, choose: str = "random") -> Calibration:
        """Return training digits."""
        return Calibration.from_images(self.source, samples=self.samples, seed=seed)

    @cached_property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels."""
        import sys

        from workbench.resources import shared_path

        folder = str(shared_path("data"))
        if folder not in sys.path:
            sys.path.insert(0, folder)
        import train_tiny_resnet  # pyright: ignore[reportMissingImports]

        _, _, images, labels = (part.numpy() for part in train_tiny_resnet.digits())
        return images, labels

    def float_module(self) -> Any:
        """Return the float32 network."""
        from workbench.calibration.hosts import opened, whole_host

        return whole_host(opened(self.source)).module

    def judge(self, module: Any) -> dict[str, Any]:
        """Return accuracy in percent with its standard error, and the mean divergence from the float network."""
        import torch

        def answers(network: Any, images: np.ndarray) -> torch.Tensor:
            with torch.inference_mode():
                return network(torch.from_numpy(np.ascontiguousarray(images)))

        images, labels = self.held_out
        found = accuracy(lambda part: answers(module, part).numpy(), images, labels)
        true = answers(self.float_module(), images).double().log_softmax(dim=1)
        own = answers(module, images).double().log_softmax(dim=1)
        divergence = float((true.exp() * (true - own)).sum(dim=1).mean())
        return {
            "value": 100 * found.value,
            "standard_error": 100 * found.standard_error,
            "divergence": 1000 * divergence,
            "images": found.total,
        }


SUBJECTS = {"gemma": Gemma, "minilm": MiniLM, "resnet": ResNet}

_tokenizers: dict[str, Any] = {}


def _tokenizer(source: str) -> Any:
    if source not in _tokenizers:
        from transformers import AutoTokenizer

        path = str(demo_path(source.removeprefix("demo:")))
        _tokenizers[source] = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return _tokenizers[source]


def linear_layers(module: Any) -> dict[str, Any]:
    """Return the linear layers of a module by path, without a head that shares its weight with the embedding."""
    import torch

    head = getattr(module, "get_output_embeddings", lambda: None)()
    return {
        path: child
        for path, child in module.named_modules()
        if isinstance(child, torch.nn.Linear) and child is not head
    }


def layer_rows(module: Any, names: list[str], batches: Any, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return rows of the inputs of some linear layers, float32, the same positions of all batches.

    Args:
        module: the float model.
        names: paths of layers.
        batches: of a ``Calibration``.
        rows: how many, drawn at random.
        seed: of the draw.
    """
    import torch

    caught: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def catch(name: str) -> Any:
        return lambda _layer, given: caught[name].append(given[0].reshape(-1, given[0].shape[-1]).detach())

    handles = [module.get_submodule(name).register_forward_pre_hook(catch(name)) for name in names]
    try:
        with torch.inference_mode():
            for batch in batches:
                module(*batch.arguments, **batch.options)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, parts in caught.items():
        whole = torch.cat(parts)
        order = np.random.default_rng([seed, 5]).permutation(len(whole))[:rows]
        found[name] = np.ascontiguousarray(whole[torch.from_numpy(np.sort(order))].float().numpy())
    return found


def with_weights(subject: Subject, state: Mapping[str, np.ndarray]) -> Any:
    """Return the float module with other parameters.

    Raises:
        ValueError: a linear layer is missing, or a shape differs.
    """
    import torch

    module = subject.float_module()
    known = dict(module.named_parameters())
    missing = [f"{path}.weight" for path in linear_layers(module) if f"{path}.weight" not in state]
    if missing:
        raise ValueError(f"{len(missing)} linear layers have no weight in the result, e.g. {missing[0]}")
    with torch.no_grad():
        for name, parameter in known.items():
            if name in state:
                if tuple(state[name].shape) != tuple(parameter.shape):
                    raise ValueError(f"{name} is {tuple(parameter.shape)}, not {tuple(state[name].shape)}")
                parameter.copy_(torch.from_numpy(state[name]))
    return module
