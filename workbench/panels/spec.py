"""A session as plain data: what a link, a test or a lab needs to bring the workbench into a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.errors import QuantizationError
from workbench.panels import state

if TYPE_CHECKING:
    from workbench.panels.session import Session

#: Formats of models that have no address: the source names a class only.
_IN_MEMORY = frozenset({"module", "arrays"})


def write_spec(session: Session) -> dict[str, Any]:
    """Return the session's state; ``source`` is None for a model that has no address (a module in memory)."""
    with session.lock:
        model = session.model
        return {
            "version": 1,
            "source": str(model.source) if model is not None and model.format not in _IN_MEMORY else None,
            "layer": session.layer_name,
            "compared": list(session.compared),
            "grid": str(session.grid),
            "granularity": session.granularity,
            "scale_rule": session.scale_rule,
            "clip": session.clip,
            "channel": session.channel,
        }


def read_spec(session: Session, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Check a spec's entries as far as that is possible before its model is open."""
    known = {*write_spec(session)}
    if not isinstance(spec, Mapping) or not known.issuperset(spec):
        message = f"a session's spec has the entries {', '.join(sorted(known))}; this is not one: {str(spec)[:80]}"
        raise QuantizationError(message)
    if spec.get("version", 1) != 1:
        message = f"this workbench reads specs of version 1, not {spec['version']!r}"
        raise QuantizationError(message)
    readers = {
        "grid": state.read_grid,
        "granularity": state.read_granularity,
        "scale_rule": state.read_scale_rule,
        "clip": state.read_clip,
    }
    wanted: dict[str, Any] = {}
    if spec.get("layer"):
        wanted["layer_name"] = spec["layer"]
    wanted |= {name: read(session, spec[name]) for name, read in readers.items() if name in spec}
    wanted |= {name: spec[name] for name in ("compared", "channel") if name in spec}
    return wanted
