"""What a panel shows, kept: a PNG and the numbers in it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Snapshot:
    """A panel at one moment."""

    png: bytes = field(repr=False)
    """The picture, a PNG file's bytes."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """The numbers in the picture by name: plain data that ``json`` can write."""

    def save(self, path: str | Path) -> Path:
        """Write the picture to ``path`` (``.png``) and the numbers beside it (``.json``); return the picture's path."""
        target = Path(path).with_suffix(".png")
        target.write_bytes(self.png)
        target.with_suffix(".json").write_text(json.dumps(self.numbers, indent=1, default=str), encoding="utf-8")
        return target

    def _repr_png_(self) -> bytes:
        return self.png

    @property
    def data_uri(self) -> str:
        """The picture as an address that ``<img src=...>`` takes."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def text_snapshot(lines: Sequence[str], numbers: Mapping[str, Any], *, width: int = 720) -> Snapshot:
    """Return a snapshot whose picture is lines of text."""
    from workbench.figures.picture import draw_text, png

    return Snapshot(png(draw_text(list(lines), width)), numbers)


def stack_snapshots(snapshots: Mapping[str, Snapshot]) -> Snapshot:
    """Put snapshots under one another, left-aligned; their numbers go under the given names."""
    from PIL import Image

    from workbench.figures.picture import draw_text, png, stack

    images = [Image.open(io.BytesIO(snapshot.png)).convert("RGB") for snapshot in snapshots.values()]
    sheet = stack(images) if images else draw_text(["nothing to show yet"])
    return Snapshot(png(sheet), {name: snapshot.numbers for name, snapshot in snapshots.items()})
