"""Cells of a table that survive a kill: each is written as it finishes, and a second run takes those that are there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

#: Where results go unless the user names a file.
RESULTS = Path(__file__).resolve().parent / "results"


class Cells:
    """Finished cells in one JSON file, under the settings that they were measured with.

    Args:
        path: the file; made when the first cell is kept.
        settings: what all cells share (steps, parts, samples). Cells of other settings in the file are not taken.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(dict(settings)))
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored.get("settings") == self.settings:
                self.found = stored["cells"]
            else:
                kept = path.with_suffix(f".{time.strftime('%Y%m%d-%H%M%S')}.json")
                path.rename(kept)
                print(f"{path.name} was made with other settings; it is kept as {kept.name}")

    def keep(self, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Store a cell and write the file anew, whole or not at all, with what another run has put there meanwhile."""
        self.found[key] = dict(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            if self.path.exists():
                stored = json.loads(self.path.read_text(encoding="utf-8"))
                if stored.get("settings") == self.settings:  # the file is the truth: another run may have changed it
                    self.found = {**stored["cells"], key: dict(values)}
            whole = {"settings": self.settings, "machine": machine(), "cells": self.found}
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
            beside.replace(self.path)
        return self.found[key]

    def get(self, key: str, make: Callable[[], Mapping[str, Any]], retry: bool = False) -> dict[str, Any]:
        """Return a finished cell, or make it; an error becomes the cell's ``error``, in one line, and is not hidden.

        Args:
            key: of the cell.
            make: measures it.
            retry: whether a cell that holds an error is measured again.
        """
        if key in self.found and not (retry and self.found[key].get("error")):
            return self.found[key]
        started = time.perf_counter()
        try:
            values: dict[str, Any] = dict(make())
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            values = {"error": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"}
        values.setdefault("seconds", round(time.perf_counter() - started, 3))
        return self.keep(key, values)


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine and the packages."""
    import torch

    known = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy", "numba")}
    known |= {"python": platform.python_version(), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return {**known, "processor": platform.machine(), "date": time.strftime("%Y-%m-%d")}


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a markdown table; the first column is text, the others are numbers."""
    lines = [" | ".join(["", *header, ""]).strip(), "| --- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, or a dash where there is none."""
    return "—" if value is None or value != value else f"{value:.{digits}g}"  # noqa: PLR0124 - NaN


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Return the mean and, of two or more values, how far they lie apart (standard deviation)."""
    if not values:
        return "—"
    mean = statistics.fmean(values)
    return f"{mean:#.{digits}g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")
