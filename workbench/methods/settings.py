"""Settings of methods and transforms as text: ``word:name=value,...``, read back to an equal object."""

from __future__ import annotations

import difflib
from dataclasses import MISSING, Field, fields, replace
from typing import Any, TypeVar

from workbench.errors import QuantizationError

Kind = TypeVar("Kind")


def written(thing: Any, word: str) -> str:
    """Return the text form of a frozen dataclass of plain settings; settings at their defaults are left out."""
    given = [
        f"{each.name}={_write(value)}"
        for each in fields(thing)
        if (value := getattr(thing, each.name)) != _default(each)
    ]
    return f"{word}:{','.join(given)}" if given else word


def read_settings(thing: Kind, word: str, text: str) -> Kind:
    """Return a dataclass with the settings that a text gives, e.g. ``damp=0.05,act_order=true``.

    Raises:
        QuantizationError: no such setting, or a value that does not fit; near names are suggested.
    """
    settings: dict[str, Any] = {}
    for part in text.split(",") if text.strip() else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            message = f"{part.strip()!r} is no setting of {word}; write name=value, e.g. {word}:{_example(thing)}"
            raise QuantizationError(message)
        refuse_unknown(thing, word, {name: value})
        settings[name] = _read(value, getattr(thing, name), f"{name} of {word}")
    return replace(thing, **settings) if settings else thing  # pyright: ignore[reportArgumentType]


def refuse_unknown(thing: Any, word: str, settings: dict[str, Any]) -> None:
    """Refuse settings that a dataclass does not have.

    Raises:
        QuantizationError: see above; near names are suggested.
    """
    known = [each.name for each in fields(thing)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            has = f"it has {', '.join(known)}" if known else "it has none"
            message = f"{word} has no setting {name!r}{meant} ({has})"
            raise QuantizationError(message)


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    return each.default_factory() if each.default_factory is not MISSING else MISSING


def _example(thing: Any) -> str:
    known = fields(thing)
    return f"{known[0].name}={_write(getattr(thing, known[0].name))}" if known else ""


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else f"{value!r}" if isinstance(value, float) else str(value)


def _read(text: str, like: Any, what: str) -> Any:
    """Read a value of the kind that the setting has now; None may stand where a number may (``none``)."""
    word = text.lower()
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False, "1": True, "0": False}[word]
        if word == "none":
            return None
        if isinstance(like, int):
            return int(text)
        if isinstance(like, float):
            return float(text)
        if like is None:
            return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(like, bool) else "a whole number" if isinstance(like, int) else "a number"
        message = f"{what} is {kind}, not {text!r}"
        raise QuantizationError(message) from None
    return word
