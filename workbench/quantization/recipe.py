"""Recipes: which layers get which weight grid, granularity, scale rule, method and activation coding.

    recipe = Recipe.of("w4a8-power").but("head", weight="uniform:bits=8")
    recipe.for_layer("blocks.0.conv1").weight          # 'power:bits=4,exponent=search'
    recipe.save("recipe.yaml")
    Recipe.load("recipe.yaml") == recipe                # True

A recipe is an ordered list of entries. Each names layers by a shell pattern and gives some settings; later entries
override earlier ones setting by setting, so the general comes first and the exceptions after it.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import GridError, QuantizationError, RecipeError
from workbench.grids import PowerGrid, parse_grid
from workbench.grids.grid import Grid
from workbench.quantization.activations import parse_activation
from workbench.quantization.granularity import parse_granularity
from workbench.quantization.scales import parse_scale_rule

if TYPE_CHECKING:
    import pandas as pd

#: The word that asks for the exponent with the smallest error instead of naming one.
SEARCH = "exponent=search"

#: The weight that stays as it is.
FLOAT = "float"

#: Activation codings of integer runs that are words: integer codes in equal steps.
ACTIVATIONS = ("int8", "int8:symmetric", "uint8", "int16")

_DEFAULTS: dict[str, Any] = {
    "weight": "uniform:bits=8",
    "granularity": "channel",
    "scale": "absmax",
    "activation": "int8",
    "ranges": "mse",
    "table_bits": None,
    "method": None,
}


@dataclass(frozen=True)
class Entry:
    """What some layers get. Settings left None are those of earlier entries, or the defaults.

    Attributes:
        pattern: shell pattern of layer names, e.g. ``*.mlp.*``.
        weight: weight grid as text, e.g. ``uniform:bits=8``, ``power:bits=4,exponent=0.5``,
            ``power:bits=4,exponent=search``, ``nf4``; ``float`` leaves the layer as it is.
        granularity: what shares a weight scale: ``tensor``, ``channel`` or ``group:128`` (integer runs take no groups).
        scale: scale rule of the weight: ``absmax``, ``percentile:99.9``, ``mse``.
        activation: how the layer's inputs are coded (``parse_activation``): ``float``, ``int8``, ``int8:symmetric``,
            ``uint8``, ``int16`` or a grid, and after ``@`` what shares a scale: ``static``, ``token`` or ``group:128``, e.g.
            ``uniform:bits=4,range=asymmetric@token``. Integer runs take the words and power grids of at most 8 bits,
            static (``power:bits=8``, exponent given or ``exponent=search``), which are used where the values are
            non-negative, or nearly so (shifted), and ``int8`` elsewhere. Where no entry says anything, integer runs take
            ``int8`` and methods leave the inputs float.
        ranges: how far 8-bit codes reach: ``mse`` (the default: least squared error), ``minmax``, ``percentile:99.99``.
            int16 codes reach as far as calibration saw, times the headroom; power codes as well (without headroom), unless
            a percentile is given: their levels get rarer towards the end by themselves.
        table_bits: 8 or 16, width of the level table of non-uniform weights; by default 8 up to 4-bit codes, else 16.
        method: how codes are chosen, as ``parse_method`` reads it, e.g. ``gptq:damp=0.05``; None rounds to nearest. (The
            text is checked in the methods room: ``methods.recipes.check_methods``.)

    Raises:
        RecipeError: a setting that does not exist, in one sentence.
    """

    pattern: str = "*"
    weight: str | None = None
    granularity: str | None = None
    scale: str | None = None
    activation: str | None = None
    ranges: str | None = None
    table_bits: int | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            message = f"an entry of a recipe names layers by a pattern such as '*.mlp.*', not {self.pattern!r}"
            raise RecipeError(message)
        if isinstance(self.weight, Grid):
            object.__setattr__(self, "weight", str(self.weight))
        try:
            if self.weight is not None and self.weight != FLOAT:
                weight_grid(self.weight)
            if self.granularity is not None:
                object.__setattr__(self, "granularity", str(parse_granularity(self.granularity)))
            if self.scale is not None:
                parse_scale_rule(self.scale)
        except (GridError, QuantizationError) as error:
            message = f"the recipe's entry for {self.pattern!r} cannot be used: {error}"
            raise RecipeError(message) from None
        if self.activation is not None:
            parse_activation(self.activation)
            object.__setattr__(self, "activation", "".join(str(self.activation).split()).lower())
        if self.ranges is not None and not _is_range_rule(str(self.ranges)):
            message = (
                f"a range is found by minmax, percentile:99.99 (above 50, at most 100) or mse, not {self.ranges!r}"
            )
            raise RecipeError(message)
        if self.table_bits not in {None, 8, 16}:
            message = f"a level table holds 8 or 16 bits, not {self.table_bits!r}"
            raise RecipeError(message)
        if self.method is not None and not isinstance(self.method, str):
            message = f"a method is named by a text, not {self.method!r}"
            raise RecipeError(message)

    def __str__(self) -> str:
        """Return the text form, e.g. ``head weight=uniform:bits=8``."""
        given = [f"{name}={value}" for name, value in self.settings().items()]
        return " ".join([self.pattern, *given])

    def settings(self) -> dict[str, Any]:
        """Return the settings that the entry gives."""
        return {
            field.name: value
            for field in fields(self)
            if field.name != "pattern" and (value := getattr(self, field.name)) is not None
        }


@dataclass(frozen=True)
class Recipe:
    """What every layer of a model gets.

    Attributes:
        entries: in order; later ones override earlier ones.
        stream: coding of values that flow past layers (residual streams, inputs of norms, results): ``int16`` or ``int8``.
        headroom: how much further than calibration saw an ``int16`` value can reach before it saturates.
        transforms: function-preserving changes of the float model before any rounding, in order, e.g.
            ``smoothquant:alpha=0.5`` (checked in the methods room).
        name: for people.

    Raises:
        RecipeError: a setting that does not exist.

    >>> Recipe.of("w4a8-power").for_layer("conv1").weight
    'power:bits=4,exponent=search'
    """

    entries: tuple[Entry, ...] = (Entry(),)
    stream: str = "int16"
    headroom: float = 1.5
    name: str = ""
    transforms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        entries = tuple(self.entries)
        object.__setattr__(self, "entries", entries)
        if isinstance(self.transforms, str) or not all(isinstance(each, str) and each for each in self.transforms):
            message = (
                f"a recipe's transforms are a list of texts such as smoothquant:alpha=0.5, not {self.transforms!r}"
            )
            raise RecipeError(message)
        object.__setattr__(self, "transforms", tuple(each.strip() for each in self.transforms))
        if not isinstance(self.name, str):
            message = f"a recipe's name is a text, not {self.name!r}"
            raise RecipeError(message)
        if not all(isinstance(entry, Entry) for entry in entries):
            message = "a recipe is a list of entries: Recipe((Entry('*', weight='uniform:bits=8'),))"
            raise RecipeError(message)
        if self.stream not in {"int8", "int16"}:
            message = f"a recipe's stream is int8 or int16, not {self.stream!r}"
            raise RecipeError(message)
        if not isinstance(self.headroom, int | float) or not 1.0 <= self.headroom <= 64.0:
            message = f"a recipe's headroom lies between 1 and 64, not at {self.headroom!r}"
            raise RecipeError(message)

    @staticmethod
    def of(value: Recipe | str | Mapping[str, Any]) -> Recipe:
        """Return a recipe itself, the preset that a text names, or what a mapping describes.

        Raises:
            RecipeError: no preset has this name.
        """
        if isinstance(value, Recipe):
            return value
        if isinstance(value, Mapping):
            return Recipe.from_dict(value)
        word = str(value).strip().lower()
        if word in PRESETS:
            return PRESETS[word]
        near = difflib.get_close_matches(word, list(PRESETS), n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        message = f"no recipe is called {value!r}{meant} (there are {', '.join(PRESETS)})"
        raise RecipeError(message)

    def but(self, pattern: str, **settings: Any) -> Recipe:
        """Return the recipe with one more entry, which overrides the ones before it."""
        unknown = set(settings) - {field.name for field in fields(Entry)}
        if unknown:
            message = f"an entry of a recipe has no setting {sorted(unknown)[0]!r}; it has {', '.join(_DEFAULTS)}"
            raise RecipeError(message)
        return replace(self, entries=(*self.entries, Entry(pattern, **settings)), name="")

    def for_layer(self, name: str) -> Entry:
        """Return all settings of one layer, none of them None but ``table_bits`` and ``method``."""
        return Entry(name, **{**_DEFAULTS, **self.stated(name)})

    def stated(self, name: str) -> dict[str, Any]:
        """Return the settings that entries give a layer, without defaults; empty where no entry names it."""
        found: dict[str, Any] = {}
        for entry in self.entries:
            if fnmatch.fnmatchcase(name, entry.pattern):
                found.update(entry.settings())
        return found

    def names(self, layer: str) -> bool:
        """Say whether an entry names a layer itself: the last part of its pattern is more than ``*``.

        Embeddings and tied heads are quantized only where this is so: ``*`` and ``model.*`` mean linear and convolutional
        layers, ``*.embed_tokens`` and ``lm_head`` name what is meant.
        """
        named = [entry.pattern for entry in self.entries if entry.pattern.rpartition(".")[2].strip("*?")]
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in named)

    def replaced(self, index: int, entry: Entry) -> Recipe:
        """Return the recipe with another entry in a place (0 is the first).

        Raises:
            RecipeError: there is no such place.
        """
        self._check_place(index)
        return replace(self, entries=(*self.entries[:index], entry, *self.entries[index + 1 :]), name="")

    def removed(self, index: int) -> Recipe:
        """Return the recipe without the entry in a place.

        Raises:
            RecipeError: there is no such place, or nothing would be left.
        """
        self._check_place(index)
        if len(self.entries) == 1:
            message = "a recipe keeps at least one entry; replace it instead"
            raise RecipeError(message)
        return replace(self, entries=(*self.entries[:index], *self.entries[index + 1 :]), name="")

    def moved(self, index: int, place: int) -> Recipe:
        """Return the recipe with an entry taken out of its place and put into another (later entries override earlier).

        Raises:
            RecipeError: there is no such place.
        """
        self._check_place(index)
        self._check_place(place)
        rest = [*self.entries[:index], *self.entries[index + 1 :]]
        rest.insert(place, self.entries[index])
        return replace(self, entries=tuple(rest), name="")

    def _check_place(self, index: int) -> None:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.entries):
            message = f"the recipe has the entries 0 to {len(self.entries) - 1}, not {index!r}"
            raise RecipeError(message)

    def check_patterns(self, names: Iterable[str]) -> None:
        """Refuse a pattern that matches none of the names: most often a misspelt layer.

        Raises:
            RecipeError: see above; the message suggests a near name.
        """
        known = list(names)
        for entry in self.entries:
            if not any(fnmatch.fnmatchcase(name, entry.pattern) for name in known):
                near = difflib.get_close_matches(entry.pattern, known, n=1)
                meant = f", did you mean {near[0]!r}?" if near else ""
                message = f"the recipe's pattern {entry.pattern!r} matches no layer of this model{meant}"
                raise RecipeError(message)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, as a file would hold them."""
        entries = [{"layers": entry.pattern, **entry.settings()} for entry in self.entries]
        head: dict[str, Any] = {"name": self.name, "stream": self.stream, "headroom": self.headroom}
        if self.transforms:
            head["transforms"] = list(self.transforms)
        return {**head, "entries": entries}

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per entry, in order; settings that an entry does not give are None."""
        import pandas as pd

        rows = [
            {"layers": entry.pattern, **{word: getattr(entry, word) for word in _DEFAULTS}} for entry in self.entries
        ]
        return pd.DataFrame(rows, columns=["layers", *_DEFAULTS], dtype=object)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            RecipeError: no such file, text that is no YAML, or a recipe that cannot be; one sentence with its line.
        """
        from workbench.quantization.recipe_file import load_recipe

        return load_recipe(path)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe as a YAML file for people, which ``load`` reads back to an equal recipe.

        Raises:
            RecipeError: the place cannot be written.
        """
        from workbench.quantization.recipe_file import save_recipe

        return save_recipe(self, path)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that ``to_dict`` described.

        Raises:
            RecipeError: an unknown word, or a value that does not fit.
        """
        known = {"name", "stream", "headroom", "transforms", "entries"}
        _refuse_unknown(set(values) - known, "a recipe", known)
        entries = []
        listed = values.get("entries", [])
        if not isinstance(listed, list | tuple):
            message = f"a recipe's entries are a list, not {type(listed).__name__}"
            raise RecipeError(message)
        words = {"layers", *_DEFAULTS}
        for each in listed:
            if not isinstance(each, Mapping) or "layers" not in each:
                message = f"each entry of a recipe is a mapping that names its layers, not {each!r}"
                raise RecipeError(message)
            _refuse_unknown(set(each) - words, f"the recipe's entry for {each['layers']!r}", words)
            entries.append(Entry(each["layers"], **{word: value for word, value in each.items() if word != "layers"}))
        rest = {word: values[word] for word in known - {"entries"} if word in values}
        if not isinstance(rest.get("transforms", []), list | tuple):
            message = f"a recipe's transforms are a list, not {rest['transforms']!r}"
            raise RecipeError(message)
        return Recipe(tuple(entries) or (Entry(),), **rest)

    def __str__(self) -> str:
        """Return the name, or the entries as text."""
        return self.name or "; ".join(str(entry) for entry in self.entries)

    def __repr__(self) -> str:
        return f"Recipe({self.name!r})" if self.name else f"Recipe({asdict(self)['entries']!r})"


def weight_grid(text: str) -> tuple[Grid, bool]:
    """Return the grid that a recipe's text names, and whether its exponent is still to be searched.

    Raises:
        GridError: the text names no grid.

    >>> weight_grid("power:bits=4,exponent=search")[1]
    True
    """
    words = str(text).replace(" ", "").lower()
    if SEARCH not in words:
        return parse_grid(words), False
    family, _, rest = words.partition(":")
    kept = ",".join(part for part in rest.split(",") if part != SEARCH)
    grid = parse_grid(f"{family}:{kept}" if kept else family)
    if not isinstance(grid, PowerGrid):
        message = f"only a power grid has an exponent to search, not {text!r}"
        raise GridError(message)
    return grid, True


def check_integer_activation(text: str) -> None:
    """Refuse an activation coding that integer runs do not have.

    Raises:
        RecipeError: see above.
    """
    if text in ACTIVATIONS:
        return
    try:
        grid, _ = weight_grid(str(text))
    except GridError:
        grid = None
    if isinstance(grid, PowerGrid) and grid.bits <= 8:
        return
    message = (
        f"an activation is coded as {', '.join(ACTIVATIONS)}, or on a power grid of at most 8 bits "
        f"('power:bits=8', 'power:bits=8,{SEARCH}'), not as {text!r}"
    )
    raise RecipeError(message)


def _is_range_rule(text: str) -> bool:
    found = re.fullmatch(r"minmax|mse|percentile:(\d+\.?\d*)", text)
    return found is not None and (found[1] is None or 50.0 < float(found[1]) <= 100.0)


def _refuse_unknown(words: set[str], what: str, known: set[str]) -> None:
    if words:
        message = f"{what} has no setting {sorted(words)[0]!r}; it has {', '.join(sorted(known))}"
        raise RecipeError(message)


def _preset(name: str, weight: str, activation: str, transforms: tuple[str, ...] = (), **more: Any) -> Recipe:
    return Recipe((Entry("*", weight=weight, activation=activation, **more),), name=name, transforms=transforms)


#: Recipes by name: first those of integer runs, then those of methods.
PRESETS: dict[str, Recipe] = {
    each.name: each
    for each in (
        _preset("w8a8", "uniform:bits=8", "int8"),
        _preset("w8a16", "uniform:bits=8", "int16"),
        _preset("w4a8", "uniform:bits=4", "int8"),
        _preset("w8a8-power", f"power:bits=8,{SEARCH}", f"power:bits=8,{SEARCH}"),
        _preset("w4a8-power", f"power:bits=4,{SEARCH}", f"power:bits=8,{SEARCH}"),
        _preset("w4-rtn-clip", "uniform:bits=4", "float", method="rtn-clip"),
        _preset("w4-powerquant", f"power:bits=4,{SEARCH}", "float", method="powerquant"),
        _preset("w4-hqq-g64", "uniform:bits=4,range=asymmetric", "float", granularity="group:64", method="hqq"),
        _preset("w4-gptq-g128", "uniform:bits=4,range=asymmetric", "float", granularity="group:128", method="gptq"),
        _preset("w4-awq-g128", "uniform:bits=4,range=asymmetric", "float", granularity="group:128", method="awq"),
        _preset("w4-adaround", "uniform:bits=4", "float", scale="mse", method="adaround"),
        _preset("w4-nupes", f"power:bits=4,{SEARCH}", "float", method="nupes"),
        _preset("w3-gptq-g128", "uniform:bits=3,range=asymmetric", "float", granularity="group:128", method="gptq"),
        _preset("w3-nupes", f"power:bits=3,{SEARCH}", "float", method="nupes"),
        _preset("w3-nupes-g128", f"power:bits=3,{SEARCH}", "float", granularity="group:128", method="nupes"),
        _preset("w8a8-smoothquant", "uniform:bits=8", "int8@token", ("smoothquant:alpha=0.5",), method="rtn"),
        _preset("w4a8-nupes", f"power:bits=4,{SEARCH}", "int8@token", method="nupes"),
    )
}
