"""The live grid as one page: module, style and data inside, alive without a kernel and without a network."""

from __future__ import annotations

import base64
import datetime
import html
import json
import os
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.panels.live import families, transport
from workbench.panels.live.answers import Source
from workbench.panels.live.widget import RANGES, STATE, LiveGrid, describe, markup

_LIVE = Path(__file__).parent / "live"

#: Traits that the page starts with as they are.
TRAITS = (*STATE, "log_counts", "catalogue", "exact", "overhead")
#: What a page carries a sketch for, where the layer is at hand; each takes about 65 kB.
GRANULARITIES = ("tensor", "channel", "group:128", "group:32")


def write_page(
    live: LiveGrid,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    note: str = "",
    source: Source | None = None,
) -> Path:
    """Write a live grid into one HTML file.

    The page has the present state, and, where the widget knows its layer, sketches for other granularities and ranges;
    what it has no numbers for is not offered. k-means codebooks are fitted for every number of bits.

    Args:
        live: the widget; it must show a layer.
        path: file to write (``.html``).
        title: heading; the layer's name when left out.
        note: shown at the foot, before how the page was made.
        source: the layer behind the widget; its own when left out.

    Raises:
        WorkbenchError: the widget shows no layer, or the file cannot be written.
    """
    if len(live.data) <= 4 * transport.PICTURE_BINS:
        message = "this live grid shows no layer yet; give it a sketch or a layer before writing a page"
        raise WorkbenchError(message)
    sketches = {f"{live.info['granularity']} {live.info['normalization']}": _entry(live.data, live.info)}
    overheads = dict.fromkeys(sketches, live.overhead)
    source = source or live.source
    if source is not None and source.layer is not None:
        for granularity in dict.fromkeys([live.granularity, *GRANULARITIES]):
            for normalization in RANGES:
                key = f"{granularity} {normalization}"
                if key not in sketches:
                    sketch = source.sketch(granularity, normalization)
                    sketches[key] = _entry(transport.pack_sketch(sketch), describe(sketch, source.about))
                overheads[key] = _overhead(source, live.bits, granularity, normalization)
    traits = {name: getattr(live, name) for name in TRAITS}
    traits |= {"markup": markup(_alive(live, sketches)), "data": None, "info": None, "message": ""}
    state = {"traits": traits, "levels": _base64(live.levels), "sketches": sketches, "overheads": overheads}
    page = {
        "title": html.escape(title or f"{live.info['name']} on a grid"),
        "note": _note(live, note),
        "css": (_LIVE / "live.css").read_text(encoding="utf-8"),
        "state": json.dumps(state, allow_nan=False).replace("</", "<\\/"),
        "module": _base64((_LIVE / "live.js").read_bytes()),
    }
    target = Path(path)
    try:
        target.write_text(_fill((_LIVE / "page.html").read_text(encoding="utf-8"), page), encoding="utf-8")
    except OSError as error:
        message = f"cannot write the page to {target}: {error.strerror or error}"
        raise WorkbenchError(message) from error
    return target


def _fill(template: str, parts: dict[str, str]) -> str:
    """Put the parts in the places of ``{{name}}``, each place once, whatever the parts hold."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    return "".join(filled)


def _entry(data: bytes, info: dict[str, Any]) -> dict[str, Any]:
    return {"data": _base64(data), "info": info}


def _overhead(source: Source, bits: int, granularity: str, normalization: str) -> float:
    """Return the bits per weight that scales and zero points take beside the codes of a uniform grid of this kind."""
    from workbench.grids import UniformGrid

    grid = UniformGrid(bits=bits, range=RANGES[normalization])  # pyright: ignore[reportArgumentType]
    return source.bits_per_weight(grid, granularity) - grid.bits


def _alive(live: LiveGrid, sketches: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return the choices that the page can answer without a kernel."""
    granularities = {key.split(" ")[0] for key in sketches}
    ranges = {RANGES[key.split(" ")[1]] for key in sketches}
    still = {key.split(":")[0] for key, entry in live.catalogue.items() if entry["still"]}
    fitted = {key.split(":")[0] for key in live.catalogue}

    def offered(name: str, value: str) -> bool:
        if value == getattr(live, name):
            return True
        if name == "granularity":
            return value in granularities
        if name == "range":
            return value in ranges
        if name == "scale_rule":
            return value in {"mse", "absmax"}
        return name != "family" or value in {"uniform", "power"} or (value in fitted and value not in still)

    return {
        name: [choice for choice in listed if offered(name, choice[0])] for name, listed in families.CHOICES.items()
    }


def _note(live: LiveGrid, note: str) -> str:
    """Return the footer: the person's words, then how the page was made."""
    from workbench import __version__

    info = live.info
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    how = (
        f"{info['name']}, {info['about']}. Numbers with ≈ come from a sketch of these weights "
        f"(at most {transport.MAX_BINS} bins, sums of the normalised weights) and lie within the bound beside them; "
        f"numbers with = were measured on all weights. Made by Quantization Workbench {__version__} on {made}; "
        "this page holds its data and asks no server."
    )
    return html.escape(f"{note.strip()} {how}".strip())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
