"""Recipes as methods read them: texts of methods and transforms checked, and what each layer of a model gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from workbench.checkpoints import Model
from workbench.errors import QuantizationError, RecipeError
from workbench.methods.method import Method, parse_method
from workbench.methods.transforms.transform import Transform, parse_transform
from workbench.quantization.activations import parse_activation
from workbench.quantization.recipe import FLOAT, Entry, Recipe

#: Stands among a recipe's transforms and is done last: the mean error of each output is taken off its layer's bias.
BIAS_CORRECTION = "bias-correction"

#: The method of layers whose recipe names none.
PLAIN = "rtn"


@dataclass(frozen=True)
class Choice:
    """What one layer gets."""

    method: Method
    weight: str
    granularity: str
    scale: str
    activation: str | None
    """Text of the coding of the layer's inputs; None leaves them float."""
    ranges: str

    @property
    def static(self) -> bool:
        """Whether the coding of the inputs needs ranges from calibration."""
        coding = parse_activation(self.activation)
        return coding is not None and not coding.dynamic


def check_methods(recipe: Recipe) -> tuple[Transform, ...]:
    """Check all methods and transforms of a recipe; return the transforms.

    ``bias-correction`` among the transforms is no change before rounding but a step after it (``corrects_bias``).

    Raises:
        RecipeError: a method, transform or setting that does not exist; one sentence.
    """
    for entry in recipe.entries:
        if entry.method is None:
            continue
        try:
            parse_method(entry.method)
        except QuantizationError as error:
            message = f"the recipe's entry for {entry.pattern!r} cannot be used: {error}"
            raise RecipeError(message) from None
    try:
        return tuple(parse_transform(text) for text in recipe.transforms if text != BIAS_CORRECTION)
    except QuantizationError as error:
        message = f"the recipe's transforms cannot be used: {error}"
        raise RecipeError(message) from None


def corrects_bias(recipe: Recipe) -> bool:
    """Say whether biases are corrected after rounding."""
    return BIAS_CORRECTION in recipe.transforms


def choice_for(recipe: Recipe, name: str, *, special: bool = False) -> Choice | None:
    """Return what a layer gets; None leaves it float.

    Args:
        recipe: checked by ``check_methods``.
        name: the layer's.
        special: whether it is an embedding or a tied head, which only an entry that names it quantizes.
    """
    stated = recipe.stated(name)
    if (not stated and not _covered(recipe, name)) or stated.get("weight") == FLOAT:
        return None
    if special and not recipe.names(name):
        return None
    full: Entry = recipe.for_layer(name)
    activation = stated.get("activation")
    return Choice(
        method=parse_method(stated.get("method") or PLAIN),
        weight=str(full.weight),
        granularity=str(full.granularity),
        scale=str(full.scale),
        activation=None if parse_activation(activation) is None else activation,
        ranges=str(full.ranges),
    )


def _covered(recipe: Recipe, name: str) -> bool:
    """Say whether any entry's pattern matches, settings or not."""
    import fnmatch

    return any(fnmatch.fnmatchcase(name, entry.pattern) for entry in recipe.entries)


def with_model_exponents(choices: dict[str, Choice], model: Model, progress: Any = None) -> dict[str, Choice]:
    """Fill in the exponent of PowerQuant where one is shared by the model (``powerquant:share=model``).

    The exponent is found over the float weights of all layers that share method, bits and granularity.
    """
    from workbench.grids import PowerGrid
    from workbench.methods.powerquant import PowerQuant
    from workbench.quantization.recipe import weight_grid

    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, choice in choices.items():
        grid, _ = weight_grid(choice.weight)
        method = choice.method
        if isinstance(method, PowerQuant) and method.share == "model" and isinstance(grid, PowerGrid):
            groups.setdefault((method, grid.bits, grid.rounding, choice.granularity), []).append(name)
    found = dict(choices)
    for (method, bits, rounding, granularity), names in groups.items():
        whole = method.for_model(
            [model[name] for name in names], bits, granularity, rounding=rounding, progress=progress
        )
        found |= {name: replace(choices[name], method=whole) for name in names}
    return found


def whole_layers(model: Model) -> dict[str, Any]:
    """Return a model's weight layers by name with fused projections whole, as a stream and a file have them."""
    parts = {f"{whole}." for whole in model.fused}
    found: dict[str, Any] = {}
    for name, layer in model.layers.items():
        whole = next((each for each in _stems(name) if f"{each}." in parts and each in model.fused), None)
        found[whole or name] = model.fused[whole] if whole else layer
    return found


def _stems(name: str) -> Iterable[str]:
    stem = name
    while "." in stem:
        stem = stem.rpartition(".")[0]
        yield stem
