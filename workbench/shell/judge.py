"""Print what judges found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from workbench.integer.judges import JudgeTable


def judge_table(table: JudgeTable) -> Table:
    """Return the table of ``workbench judge``: green where a promise holds, red where it does not."""
    shown = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    shown.title = f"{table.models} random models per row, seed {table.seed}"
    shown.add_column("judge", no_wrap=True)
    shown.add_column("version", no_wrap=True)
    shown.add_column("semantics", no_wrap=True)
    shown.add_column("operator", no_wrap=True)
    for header in ("outputs", "mismatches", "largest"):
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("note")
    for row in table:
        style = "" if not row.promised else "green" if row.kept else "bold red"
        compared = row.outputs > 0
        shown.add_row(
            row.judge,
            row.version,
            row.semantics or "–",
            row.operator,
            f"{row.outputs:,}" if compared else "–",
            Text(f"{row.mismatches:,}" if compared else "–", style=style),
            f"{row.largest:g}" if compared else "–",
            Text(row.note),
        )
    return shown


def remarks(table: JudgeTable) -> Iterator[Text]:
    """Yield the lines below the table: judges that are not installed, and the verdict."""
    for name, command in table.missing:
        yield Text(f"{name} is not installed: {command}", style="yellow")
    yield Text(table.verdict, style="bold green" if table.kept else "bold red")


@contextmanager
def progress_bar() -> Iterator[Callable[[float], None]]:
    """Show a progress bar on standard error (in a terminal only) while judges run; yield what takes the fraction."""
    console = Console(stderr=True)
    columns = (TextColumn("judging"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=1.0)

        def advance(fraction: float) -> None:
            progress.update(task, completed=fraction)

        yield advance
