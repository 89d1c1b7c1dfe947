"""Print measured layers: a tree whose lines are table rows, and one layer's error as a small table."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from workbench.checkpoints import Layer

PIPED_WIDTH = 200
"""Columns where the output goes to a file or another program, which have no width of their own."""

_STATISTICS = (
    ("max/σ", "max_over_sigma", ".1f"),
    ("kurtosis", "kurtosis", ".1f"),
    ("mse", "mse", ".3e"),
    ("SQNR dB", "sqnr_db", ".2f"),
)


def make_console() -> Console:
    """Return a console on standard output that does not cut tables short when piped."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def nest(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Nest records by the dots of their names; where a module has one child only, the two share a line."""
    root: dict[str, Any] = {}
    for record in records:
        node = root
        *path, last = record["name"].split(".")
        for part in path:
            node = node.setdefault(part, {})
        node.setdefault(last, {})[""] = record
    return _joined(root)


def _joined(node: dict[str, Any]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for name, inner in node.items():
        if name == "":
            joined[name] = inner
            continue
        label, child = name, _joined(inner)
        while len(child) == 1 and "" not in child:
            ((part, child),) = child.items()
            label = f"{label}.{part}"
        joined[label] = child
    return joined


def lines(node: dict[str, Any], indent: str = "") -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """Yield (guide characters, label, record or None) for each line of the tree."""
    children = [(label, child) for label, child in node.items() if label]
    for index, (label, child) in enumerate(children):
        last = index == len(children) - 1
        yield indent + ("└─ " if last else "├─ "), label, child.get("")
        yield from lines(child, indent + ("   " if last else "│  "))


def tree_table(
    title: str, records: list[dict[str, Any]], summary: dict[str, Any], grid: str, granularity: str
) -> Table:
    """Return the table of ``workbench inspect``: the model's tree with a layer's numbers on its line."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for header in ("shape", "dtype", "parameters", *(header for header, _, _ in _STATISTICS)):
        table.add_column(header, justify="right", no_wrap=True)
    for guide, label, record in lines(nest(records)):
        name = Text(guide, style="dim") + Text(label, style="bold" if record is None else "")
        table.add_row(name, *_cells(record))
    bits = summary["bits_per_weight"]
    table.caption = f"{summary['layers']} layers, {summary['parameters']:,} parameters; " + (
        f"{summary['quantized_parameters']:,} of them on {grid} per {granularity}: "
        f"{bits:.3f} bits per weight, mse {summary['mse']:.3e}"
        if bits is not None
        else "none of them quantized"
    )
    table.caption_justify = "left"
    return table


def _cells(record: dict[str, Any] | None) -> list[str | Text]:
    if record is None:
        return []
    shape = "×".join(map(str, record["shape"]))
    head: list[str | Text] = [shape, record["dtype"], f"{record['parameters']:,}"]
    if record.get("problem"):
        return [*head, Text(record["problem"], style="red")]
    return [*head, *(number(record[key], form) for _, key, form in _STATISTICS)]


def number(value: float | None, form: str) -> str:
    """Format a number; ``–`` where there is none, ``∞`` where the error is zero."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return format(value, form)


def error_table(record: dict[str, Any]) -> Table:
    """Return the table of ``workbench error``."""
    table = Table(title=record["name"], title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    shape = "×".join(map(str, record["shape"]))
    rows = {
        "weights": f"{shape} {record['dtype']}, {record['parameters']:,} parameters",
        "grid": f"{record['grid']} per {record['granularity']}, scale {record['scale']}, clip {record['clip']:g}",
        "mse": number(record["mse"], ".6e"),
        "SQNR": f"{number(record['sqnr_db'], '.3f')} dB",
        "cosine": number(record["cosine"], ".8f"),
        "largest error": f"{number(record['max_abs'], '.4e')} ({number(record['max_steps'], '.3f')} steps)",
        "bits per weight": number(record["bits_per_weight"], ".4f"),
    }
    for label, value in rows.items():
        table.add_row(label, value)
    return table


@contextmanager
def progress_bar(parameters: int) -> Iterator[Callable[[int, Layer], None]]:
    """Show a progress bar on standard error (in a terminal only) while layers are measured; yield its advance function."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=parameters)

        def advance(done: int, layer: Layer) -> None:
            progress.update(task, advance=done, description=layer.name)

        yield advance
