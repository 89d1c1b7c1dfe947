"""Traits that keep a session sound: nonsense becomes a message instead of an exception, and changes take the lock."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import traitlets

from workbench.errors import QuantizationError, WorkbenchError
from workbench.quantization.granularity import parse_granularity

#: Smallest clip that a person may ask for: 5 % of a group's largest weight.
SMALLEST_CLIP = 0.05


def one_sentence(error: Exception | str) -> str:
    """Return what a person should read of an error: our own errors say it all, others get their kind named."""
    if isinstance(error, str | WorkbenchError):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"


class Checked(traitlets.TraitType):
    """A trait whose values go through ``read(session, value)``; where that fails the state stays and a message appears.

    Widget callbacks have nowhere to raise to, so a session never raises on assignment: the ``message`` trait carries
    the sentence, and the value is as it was.
    """

    def __init__(self, default: Any, read: Callable[[Any, Any], Any]) -> None:
        super().__init__(default)
        self._read = read

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value as read, or the present one."""
        try:
            return self._read(obj, value)
        except (WorkbenchError, TypeError, ValueError, KeyError) as error:
            obj.complain(error)
            return getattr(obj, self.name or "")

    def set(self, obj: Any, value: Any) -> None:
        """Assign, and tell the observers, under the session's lock."""
        with obj.lock:
            super().set(obj, value)


def read_grid(_session: Any, value: Any) -> Any:
    """Return a grid from itself or from its text form."""
    from workbench.errors import GridError
    from workbench.grids import Grid, parse_grid

    if isinstance(value, Grid):
        return _with_levels(value)
    if not isinstance(value, str):
        message = f"a grid is written as text, e.g. power:bits=4,exponent=0.55, not {_short(value)}"
        raise GridError(message)
    return _with_levels(parse_grid(value))


def _with_levels(grid: Any) -> Any:
    """Refuse a grid that has no levels before there are weights: nothing could be drawn or asked of a sketch."""
    if grid.fitted:
        _ = grid.levels  # raises the sentence that says so
    return grid


def read_granularity(_session: Any, value: Any) -> str:
    """Return the text form of a granularity."""
    return str(parse_granularity(value))


def read_scale_rule(_session: Any, value: Any) -> str:
    """Return the text form of a scale rule: ``absmax``, ``mse`` or ``percentile:99.9``."""
    from workbench.quantization.scales import AbsMax, BestClip, Percentile, parse_scale_rule

    rule = parse_scale_rule(value)
    if isinstance(rule, AbsMax | BestClip | Percentile):
        return str(rule)
    message = f"a session's scale rule is absmax, mse, or percentile:99.9, not {_short(value)}"
    raise QuantizationError(message)


def read_clip(_session: Any, value: Any) -> float:
    """Return the clip as a float from 0.05 to 1."""
    try:
        clip = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        clip = math.nan
    if not SMALLEST_CLIP <= clip <= 1.0:
        message = f"clip is the kept fraction of the largest weight, {SMALLEST_CLIP} to 1, not {_short(value)}"
        raise QuantizationError(message)
    return clip


def read_layer_name(session: Any, value: Any) -> str:
    """Return the name of a layer of the open model (empty: none)."""
    if value in {"", None}:
        return ""
    return _known_layer(session, value)


def read_compared(session: Any, value: Any) -> tuple[str, ...]:
    """Return a tuple of layer names, each once, in the order given."""
    if isinstance(value, str) or not isinstance(value, list | tuple):
        message = f"compared layers are a list of layer names, not {_short(value)}"
        raise QuantizationError(message)
    return tuple(dict.fromkeys(_known_layer(session, name) for name in value))


def read_channel(session: Any, value: Any) -> int:
    """Return the number of an output channel of the layer, or -1 for none."""
    rows = session.layer.weight.shape[0] if session.layer is not None else 0
    try:
        channel = int(value)
    except (TypeError, ValueError, OverflowError):
        channel = -2
    if isinstance(value, bool) or channel != value or not -1 <= channel < max(rows, 0):
        message = f"channel {_short(value)} is not one of the layer's {rows} output channels, 0 to {rows - 1}"
        raise QuantizationError(message)
    return channel


def read_theme(_session: Any, value: Any) -> str:
    """Return ``light`` or ``dark``."""
    if value not in {"light", "dark"}:
        message = f"the theme is light or dark, not {_short(value)}"
        raise QuantizationError(message)
    return value


def _known_layer(session: Any, name: Any) -> str:
    if session.model is None:
        message = f"no model is open, so there is no layer {_short(name)}; open one first"
        raise QuantizationError(message)
    return session.model[name].name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class SketchShelf:
    """The most recently used sketches, at most ``max_bytes`` of them; older ones are read back from the disk cache."""

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self._max_bytes = max_bytes
        self._sketches: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self.nbytes = 0

    @staticmethod
    def key(layer: Any, granularity: str, grid: Any) -> tuple[str, ...]:
        """Return what a sketch for this grid depends on: the grid itself only if it rounds scales or zero points."""
        special = grid.integer_zero_point or grid.scale_format not in {None, "float32"}
        return (layer.name, layer.content_key, granularity, str(grid) if special else grid.normalization)

    def get(self, key: tuple[str, ...]) -> Any:
        """Return the sketch, now the most recently used, or None."""
        found = self._sketches.get(key)
        if found is not None:
            self._sketches.move_to_end(key)
        return found

    def put(self, key: tuple[str, ...], sketch: Any) -> None:
        """Add a sketch and let the least recently used ones go."""
        if key in self._sketches:
            self.nbytes -= self._sketches.pop(key).nbytes
        self._sketches[key] = sketch
        self.nbytes += sketch.nbytes
        while self.nbytes > self._max_bytes and len(self._sketches) > 1:
            self.nbytes -= self._sketches.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Let all go."""
        self._sketches.clear()
        self.nbytes = 0


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a bound method as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(*arguments)

    return call
