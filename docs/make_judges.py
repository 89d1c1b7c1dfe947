"""Measure the tables of docs/judges.md and write them between its markers.

    WORKBENCH_TOSA_PYTHON=/path/to/tosa/bin/python python docs/make_judges.py

takes about three minutes on two cores.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from workbench.integer.judges import JudgeRow, JudgeTable, run_judges

PAGE = Path(__file__).with_name("judges.md")
MODELS, SEED = 40, 0


def grouped(rows: list[JudgeRow]) -> list[str]:
    """Return one line per judge and semantics, its operators with the types that were compared."""
    found: dict[tuple[str, str, str], list[JudgeRow]] = defaultdict(list)
    for row in rows:
        found[row.judge, row.version, row.semantics].append(row)
    lines = ["| judge | version | semantics | operators | outputs | mismatches |", "|" + " --- |" * 6]
    for (judge, version, semantics), mine in found.items():
        types: dict[str, list[str]] = defaultdict(list)
        for row in mine:
            name, _, kind = row.operator.rpartition(" ")
            known = kind in {"int8", "uint8", "int16"}
            types[name if known else row.operator] += [kind] if known else []
        words = ", ".join(f"{name} ({', '.join(kinds)})" if kinds else name for name, kinds in types.items())
        outputs, wrong = sum(row.outputs for row in mine), sum(row.mismatches for row in mine)
        lines.append(f"| {judge} | {version} | {semantics or '–'} | {words} | {outputs:,} | {wrong:,} |")
    return lines


def differing(rows: list[JudgeRow]) -> list[str]:
    """Return one line per row that is not 0."""
    lines = ["| judge | semantics | operator | outputs | mismatches | largest |", "|" + " --- |" * 6]
    for row in rows:
        if row.mismatches:
            counts = f"{row.outputs:,} | {row.mismatches:,} | {row.largest:g}"
            lines.append(f"| {row.judge} | {row.semantics or '–'} | {row.operator} | {counts} |")
    return lines


def between(text: str, name: str, lines: list[str]) -> str:
    """Return the page with new lines between the two markers of a name."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
    return "\n".join([head, *lines, tail])


def write(table: JudgeTable) -> None:
    """Write both tables into the page."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    text = PAGE.read_text(encoding="utf-8")
    head = (
        f"Measured on {day}, {platform.system()} {platform.machine()}, Python {platform.python_version()}, seed "
        f"{table.seed}, {table.models} random models per row: {len(table)} rows, "
        f"{sum(row.outputs for row in table):,} outputs; {table.verdict}."
    )
    promised = [row for row in table if row.promised]
    text = between(text, "promised", [head, "", *grouped(promised)])
    text = between(text, "differing", differing(list(table)))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    measured = run_judges(seed=SEED, models=MODELS)
    if measured.missing:
        raise SystemExit(f"not installed: {measured.missing}")
    write(measured)
    print(measured)
