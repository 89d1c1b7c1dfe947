"""What judges found: one row per judge, semantics and operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class JudgeRow:
    """One comparison.

    Attributes:
        judge: the package, with its engine where it has several, e.g. ``"ai-edge-litert (reference)"``.
        version: of the package; empty where it is not installed.
        semantics: which of ours was compared; empty where nothing is rounded (casts, block formats).
        operator: e.g. ``"conv2d int8"``.
        outputs: how many numbers were compared.
        mismatches: how many differed.
        largest: the largest difference, in output steps.
        promised: whether this row is promised to have no mismatch.
        note: what a reader must know: why it is not 0, or why nothing was compared.
    """

    judge: str
    version: str
    semantics: str
    operator: str
    outputs: int = 0
    mismatches: int = 0
    largest: float = 0.0
    promised: bool = True
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether the row's promise holds: compared, and no mismatch (a row without promise always does)."""
        return not self.promised or (self.outputs > 0 and self.mismatches == 0)

    def noted(self, note: str) -> JudgeRow:
        """Return the row with a note."""
        return replace(self, note=note)


_COLUMNS = ("judge", "version", "semantics", "operator", "outputs", "mismatches", "largest", "note")


@dataclass(frozen=True)
class JudgeTable:
    """Rows in the order in which they were measured.

    Attributes:
        rows: the comparisons.
        seed: of the random models.
        models: random models per row.
        missing: judges that are not installed, each with the command that installs it.
    """

    rows: tuple[JudgeRow, ...]
    seed: int
    models: int
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def kept(self) -> bool:
        """Whether every promised row has no mismatch."""
        return all(row.kept for row in self.rows)

    @property
    def broken(self) -> tuple[JudgeRow, ...]:
        """Return the rows whose promise does not hold."""
        return tuple(row for row in self.rows if not row.kept)

    def __iter__(self) -> Iterator[JudgeRow]:
        """Iterate over the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    def __repr__(self) -> str:
        """Return the verdict in one line."""
        outputs = sum(row.outputs for row in self.rows)
        return f"<JudgeTable: {len(self.rows)} rows, {outputs:,} outputs, seed {self.seed}: {self.verdict}>"

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        promised = sum(row.promised for row in self.rows)
        if not self.rows:
            return "nothing was compared"
        if self.kept:
            return f"all {promised} rows that promise 0 mismatches have none"
        return f"{len(self.broken)} of {promised} rows that promise 0 mismatches break it"

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table with the attributes of ``JudgeRow`` as columns."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(JudgeRow.__dataclass_fields__))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "seed": self.seed,
            "models": self.models,
            "kept": self.kept,
            "rows": [asdict(row) for row in self.rows],
            "missing": [{"judge": judge, "install": command} for judge, command in self.missing],
        }

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
        lines += ["| " + " | ".join(_cell(row, name) for name in _COLUMNS) + " |" for row in self.rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(
            ("<tr>" if row.kept else "<tr style='font-weight:bold'>")
            + "".join(f"<td>{escape(_cell(row, name))}</td>" for name in _COLUMNS)
            + "</tr>"
            for row in self.rows
        )
        missing = "".join(f"<br>{escape(judge)}: {escape(command)}" for judge, command in self.missing)
        return f"<div>{escape(self.verdict)}<table><tr>{head}</tr>{body}</table>{missing}</div>"


def _cell(row: JudgeRow, name: str) -> str:
    value = getattr(row, name)
    if name == "largest":
        return f"{value:g}" if row.outputs else "–"
    if name in {"outputs", "mismatches"}:
        return f"{value:,}" if row.outputs else "–"
    if name == "semantics":
        return str(value) or "–"
    return str(value)
