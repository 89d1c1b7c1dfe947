"""Recipes as YAML files that people read and edit: a head with comments, one entry per item, errors with their line."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workbench.checkpoints.safetensors_writer import write_text
from workbench.errors import CheckpointError, RecipeError
from workbench.quantization.recipe import Entry, Recipe

#: A recipe longer than this is no recipe.
MAX_BYTES = 1_000_000

_HEAD = """\
# A recipe of the Quantization Workbench: which layers get which weight grid, method and activation coding.
# Entries go from the general to the special: a later one overrides earlier ones, setting by setting, for the layers that
# its shell pattern matches. A pattern that starts with * stands in quotes.
#   weight:      uniform:bits=4 | power:bits=4,exponent=search | nf4 | mxfp4 | ...
#   granularity: tensor | channel | group:128         scale: absmax | percentile:99.9 | mse
#   activation:  float | int8 | uniform:bits=4@token | power:bits=8,exponent=0.5 | ...
#   method:      rtn | rtn-clip | gptq | nupes:steps=500 | ...
"""

_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "stream": (str,),
    "headroom": (int, float),
    "transforms": (list,),
    "entries": (list,),
}
_WORDS: dict[str, tuple[type, ...]] = {
    "layers": (str,),
    "weight": (str,),
    "granularity": (str,),
    "scale": (str,),
    "activation": (str,),
    "ranges": (str,),
    "table_bits": (int,),
    "method": (str,),
}
_KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list"}


def recipe_text(recipe: Recipe) -> str:
    """Return the YAML text of a recipe.

    >>> print(recipe_text(Recipe.of("w4-rtn-clip")).split("#")[-1].split(maxsplit=8)[-1])
    name: w4-rtn-clip
    stream: int16
    headroom: 1.5
    entries:
    - layers: '*'
      weight: uniform:bits=4
      activation: float
      method: rtn-clip
    <BLANKLINE>
    """
    import yaml

    values = recipe.to_dict()
    if not values["name"]:
        del values["name"]
    # Letters of any script stand as they are; a control character or a foreign line break in a name is escaped.
    printable = json.dumps(values, ensure_ascii=False).isprintable()
    return _HEAD + yaml.safe_dump(
        values, sort_keys=False, default_flow_style=False, allow_unicode=printable, width=1 << 16
    )


def save_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> Path:
    """Write a recipe (see ``Recipe.save``)."""
    target = Path(path)
    try:
        write_text(target, recipe_text(recipe))
    except CheckpointError as error:
        raise RecipeError(str(error)) from None
    return target


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe (see ``Recipe.load``)."""
    source = Path(path)
    try:
        if source.stat().st_size > MAX_BYTES:
            message = f"{source.name!r} is {source.stat().st_size:,} bytes long, too long for a recipe"
            raise RecipeError(message)
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        message = f"{source.name!r} is no text, so it is no recipe"
        raise RecipeError(message) from None
    except OSError as error:
        message = f"the recipe {str(source)!r} cannot be read: {error.strerror or error}"
        raise RecipeError(message) from None
    return parse_recipe(text, source.name)


def parse_recipe(text: str, name: str = "the recipe") -> Recipe:
    """Read a recipe's YAML text.

    Args:
        text: the YAML.
        name: of the file, for errors.

    Raises:
        RecipeError: one sentence, with the line where it is known.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                message = f"{name} is empty; a recipe lists entries"
                raise RecipeError(message)
            return _recipe(node, loader, name)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise RecipeError(_syntax(error, text, name)) from None
    except RecursionError:
        message = f"{name} is nested too deeply to be a recipe"
        raise RecipeError(message) from None


def _syntax(error: Any, text: str, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or "it cannot be read").replace("\n", " ")
    if mark is None:
        return f"{name} is not valid YAML: {problem}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = "; a pattern that starts with * stands in quotes" if ": *" in line or "- *" in line else ""
    return f"{name}, line {mark.line + 1}: not valid YAML ({problem}){hint}"


def _recipe(node: Any, loader: Any, name: str) -> Recipe:
    values = _mapping(node, loader, name, "a recipe", _KEYS)
    entries = []
    listed, line = values.pop("entries", ([], 0))
    for item in listed:
        given = _mapping(item, loader, name, "an entry of a recipe", _WORDS)
        place = item.start_mark.line + 1
        if "layers" not in given:
            message = f"{name}, line {place}: each entry of a recipe names its layers, e.g. layers: '*.mlp.*'"
            raise RecipeError(message)
        settings: dict[str, Any] = {_FIELD.get(word, word): value for word, (value, _) in given.items()}
        entries.append(_made(partial(Entry, **settings), name, given, place))
    if line and not entries:  # a file that leaves the word out gets the recipe's own default
        message = f"{name}, line {line}: entries is empty; list at least one, e.g. - layers: '*'"
        raise RecipeError(message)
    if "transforms" in values:
        nodes, place = values["transforms"]
        values["transforms"] = (tuple(_value(each, loader, name, "a transform", (str,)) for each in nodes), place)
    plain: dict[str, Any] = {word: value for word, (value, _) in values.items()}
    return _made(partial(Recipe, tuple(entries) or (Entry(),), **plain), name, values, line or 1)


_FIELD = {"layers": "pattern"}


def _made(make: Callable[[], Any], name: str, given: Mapping[str, tuple[Any, int]], line: int) -> Any:
    """Make an entry or a recipe; a refusal gets the line of the setting that it speaks of, where one can be told."""
    try:
        return make()
    except RecipeError as error:
        sentence = str(error)
        named = [place for value, place in given.values() if isinstance(value, str) and repr(value) in sentence]
        message = f"{name}, line {named[-1] if named else line}: {sentence}"
        raise RecipeError(message) from None


def _mapping(
    node: Any, loader: Any, name: str, what: str, words: Mapping[str, tuple[type, ...]]
) -> dict[str, tuple[Any, int]]:
    """Return the values of a mapping with their lines; lists stay nodes."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        message = f"{name}, line {node.start_mark.line + 1}: {what} is a mapping of settings, not {_kind(node)}"
        raise RecipeError(message)
    found: dict[str, tuple[Any, int]] = {}
    for key, value in node.value:
        word, line = str(key.value), key.start_mark.line + 1
        if word not in words:
            near = difflib.get_close_matches(word, list(words), n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            message = f"{name}, line {line}: {what} has no setting {word[:60]!r}{meant} (it has {', '.join(words)})"
            raise RecipeError(message)
        if word in found:
            message = f"{name}, line {line}: {word} is given twice"
            raise RecipeError(message)
        read = _value(value, loader, name, word, words[word])
        if read is not None:
            found[word] = (read, line)
    return found


def _value(node: Any, loader: Any, name: str, word: str, kinds: tuple[type, ...]) -> Any:
    import yaml

    wanted = " or ".join(_KINDS[kind] for kind in kinds if kind is not int or float not in kinds)
    if kinds == (list,):
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        value: Any = None if not isinstance(node, yaml.ScalarNode) else loader.construct_object(node)
        if isinstance(node, yaml.ScalarNode) and value is None:
            return []
    elif isinstance(node, yaml.ScalarNode):
        value = loader.construct_object(node)
        if value is None or (isinstance(value, kinds) and not isinstance(value, bool)):
            return value
    message = f"{name}, line {node.start_mark.line + 1}: {word} is {wanted}, not {_kind(node)}"
    raise RecipeError(message)


def _kind(node: Any) -> str:
    import yaml

    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else repr(str(node.value)[:60])
