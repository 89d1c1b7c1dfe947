"""What a recipe does to a model before anything runs: which layer gets what, and how many bits that takes."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.checkpoints import Model
    from workbench.quantization.recipe import Recipe

#: Kinds of layers that a recipe can quantize.
KINDS = frozenset({"linear", "conv", "embedding"})


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gets."""

    name: str
    weights: int
    stored_bits: int
    """Bits that the layer takes in the checkpoint now."""
    quantized: bool
    """False where the recipe leaves it as it is."""
    reason: str = ""
    """Why it stays as it is, or why it cannot be quantized so."""
    weight: str = ""
    granularity: str = ""
    scale: str = ""
    activation: str = ""
    method: str = ""
    bits: float = float("nan")
    """Bits that it will take: codes, scales, zero points, codebook."""
    special: bool = False
    """Whether it is an embedding, or a head that shares its weights."""
    extra: bool = False
    """Whether it shares another layer's weights now and gets its own: a head that is quantized apart from the embedding."""

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, as it will be stored."""
        return (self.bits if self.quantized else self.stored_bits) / max(self.weights, 1)


@dataclass(frozen=True)
class RecipePlan:
    """What a whole model gets."""

    layers: tuple[LayerPlan, ...]

    @property
    def quantized(self) -> list[LayerPlan]:
        """The layers that are quantized."""
        return [each for each in self.layers if each.quantized]

    @property
    def bits_per_weight(self) -> float:
        """Of the whole model: quantized layers as they will be stored, all others as they are."""
        bits = sum(each.bits if each.quantized else each.stored_bits for each in self.layers)
        return bits / max(self.weights, 1)

    @property
    def weights(self) -> int:
        """Weights of the model, shared ones counted once."""
        return sum(each.weights for each in self.layers if not each.extra)

    @property
    def quantized_bits_per_weight(self) -> float:
        """Of the quantized layers alone."""
        chosen = self.quantized
        return sum(each.bits for each in chosen) / max(sum(each.weights for each in chosen), 1)

    @property
    def quantized_share(self) -> float:
        """Share of the model's weights that are quantized, 0 to 1."""
        return sum(each.weights for each in self.quantized if not each.extra) / max(self.weights, 1)


def plan_recipe(model: Model | None, recipe: Recipe) -> RecipePlan:
    """Return what a recipe gives each layer of a model.

    Linear and convolutional layers are quantized where an entry matches them and none leaves them ``float``; embeddings
    (and heads that share the embedding's weight) only where an entry names them by more than a star.

    Args:
        model: None gives an empty plan.
        recipe: the recipe.
    """
    if model is None:
        return RecipePlan(())
    plans = [_layer_plan(name, layer, recipe) for name, layer in _layers(model).items()]
    heads = [_layer_plan(alias, model.layers[name], recipe, alias=True) for alias, name in model.tied.items()]
    return RecipePlan((*plans, *(each for each in heads if each.quantized)))


def needs_inputs(model: Model, recipe: Recipe) -> bool:
    """Return whether the model must run: for methods, transforms or static activation codings."""
    from workbench.methods.recipes import choice_for

    if recipe.transforms:
        return True
    choices = [choice_for(recipe, each.name, special=each.special) for each in plan_recipe(model, recipe).quantized]
    return any(
        choice is not None and (choice.method.needs or choice.method.scope == "block" or choice.static)
        for choice in choices
    )


def reads_images(model: Model) -> bool:
    """Return whether a model is shown images, not texts."""
    return model.config.get("model_type") == "tiny_resnet"


def _layers(model: Model) -> dict[str, Any]:
    """Return the layers that are quantized as one: fused projections whole, as the runner takes them."""
    from workbench.methods.recipes import whole_layers

    return whole_layers(model)


def matching(model: Model | None, pattern: str) -> int:
    """Return how many of a model's linear, convolutional and embedding layers a pattern matches."""
    if model is None:
        return 0
    return sum(layer.kind in KINDS and fnmatch.fnmatchcase(name, pattern) for name, layer in _layers(model).items())


def _layer_plan(name: str, layer: Any, recipe: Recipe, *, alias: bool = False) -> LayerPlan:
    from workbench.methods.recipes import choice_for

    weights, stored = layer.parameters, layer.weight.nbytes * 8
    special = layer.kind == "embedding" or alias
    choice = choice_for(recipe, name, special=special) if layer.kind in KINDS else None
    if choice is None:
        return LayerPlan(name, weights, stored, quantized=False, reason=_reason(name, layer, recipe, special=special))
    try:
        bits = float(_bits(choice.weight, choice.granularity, layer.shape))
    except WorkbenchError as error:
        return LayerPlan(name, weights, stored, quantized=False, reason=str(error))
    return LayerPlan(
        name,
        weights,
        stored,
        quantized=True,
        weight=choice.weight,
        granularity=choice.granularity,
        scale=choice.scale,
        activation=choice.activation or "float",
        method=str(choice.method),
        bits=bits,
        extra=alias,
        special=special,
    )


def _reason(name: str, layer: Any, recipe: Recipe, *, special: bool) -> str:
    """Say why a recipe leaves a layer as it is."""
    if layer.kind not in KINDS:
        return "no matrix product"
    if recipe.stated(name).get("weight") == "float":
        return "a row says float"
    if special and any(fnmatch.fnmatchcase(name, entry.pattern) for entry in recipe.entries):
        return "only a row that names it quantizes an embedding"
    return "no row matches it"


def _bits(weight: str, granularity: str, shape: tuple[int, ...]) -> int:
    from workbench.quantization.bits import storage
    from workbench.quantization.recipe import weight_grid

    return storage(weight_grid(weight)[0], granularity, shape).total
