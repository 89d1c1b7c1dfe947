"""The integer panel's tables: what the run says in facts, and what each way to run the layer costs."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.integer.layer_run import LayerRun

_STYLE = """<style>
.qwb-facts { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 2px 0 4px; }
.qwb-facts :is(th, td) { padding: 2px 8px; text-align: right; white-space: nowrap; vertical-align: top; }
.qwb-facts :is(th, td):first-child { text-align: left; }
.qwb-facts.qwb-paths :is(th, td):nth-child(2) { text-align: left; }
.qwb-facts.qwb-two td { text-align: left; white-space: normal; }
.qwb-facts.qwb-two th { width: 11em; }
.qwb-facts thead th { border-bottom: 1px solid var(--qwb-line, #999); font-weight: 600; white-space: normal; }
.qwb-facts tbody th { font-weight: 600; }
.qwb-warn { color: var(--jp-warn-color0, #b25000); font-weight: 600; }
</style>"""


@dataclass(frozen=True)
class PathLine:
    """One way to run the layer: its error and its cost."""

    name: str
    grid: str
    sqnr_db: float
    """Integer output against the float layer."""
    multiplies: int
    adds: int
    look_ups: int
    newton_steps: int
    bytes: int

    @staticmethod
    def of(name: str, run: LayerRun) -> PathLine:
        """Return the line of a run."""
        cost = run.operations
        return PathLine(
            name,
            run.weight.grid.label,
            run.errors["integer vs float"].sqnr_db,
            cost.total_multiplies,
            cost.total_adds,
            cost.look_ups,
            cost.newton_steps,
            cost.total_bytes,
        )


def facts(run: LayerRun) -> list[tuple[str, str, bool]]:
    """Return what a run says: name, text, and whether it is a warning."""
    reports, outputs = run.errors, int(run.codes.size)
    off = run.steps_off_fake
    differing = int((off != 0).sum())
    largest = int(abs(off).max(initial=0))
    spare = run.accumulator.bits - run.worst_case_bits
    overflows = f"{run.overflows:,} additions left it" if run.overflows else "nothing left it"
    lines = [
        (
            "from float",
            f"integer {_decibel(reports['integer vs float'].sqnr_db)}, "
            f"fake-quant {_decibel(reports['fake vs float'].sqnr_db)} SQNR",
            False,
        ),
        (
            "from fake-quant",
            f"{differing:,} of {outputs:,} outputs differ ({_share(differing, outputs)}), by at most {largest} "
            f"step{'s' if largest != 1 else ''}",
            False,
        ),
        (
            "accumulator",
            f"{run.accumulator}: the worst case needs {run.worst_case_bits} bits, these inputs {run.observed_bits}; "
            + (overflows if spare < 0 or run.overflows else f"{spare} bits to spare"),
            bool(run.overflows),
        ),
        (
            "saturated",
            f"{run.saturated:,} of {outputs:,} outputs ({_share(run.saturated, outputs)})",
            run.saturated > 0,
        ),
        ("level table", f"relative error {100 * run.table_error:.3g} % ({run.layers[0].weight.values.dtype})", False),
        ("output step", f"{run.step:.4g}, zero point {run.output.zero_point}", False),
    ]
    if run.approximation:
        lines.insert(0, ("approximation", run.approximation, True))
    return lines


def facts_html(lines: Sequence[tuple[str, str, bool]]) -> str:
    """Return the facts as a table of two columns."""
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f"<td{' class=qwb-warn' if warns else ''}>{html.escape(text)}</td></tr>"
        for name, text, warns in lines
    )
    return f"{_STYLE}<table class='qwb-facts qwb-two'><tbody>{body}</tbody></table>"


_HEADS = ("path", "weight grid", "SQNR / dB", "multiplies", "adds", "look-ups", "Newton steps", "bytes moved")


def paths_html(lines: Sequence[PathLine]) -> str:
    """Return cost against error, one row for each way to run the layer."""
    head = "".join(f'<th scope="col">{text}</th>' for text in _HEADS)
    body = ""
    for line in lines:
        numbers = (line.multiplies, line.adds, line.look_ups, line.newton_steps, line.bytes)
        cells = "".join(f"<td>{_count(value)}</td>" for value in numbers)
        body += (
            f'<tr><th scope="row">{html.escape(line.name)}</th><td>{html.escape(line.grid)}</td>'
            f"<td>{line.sqnr_db:.2f}</td>{cells}</tr>"
        )
    note = (
        '<div class="qwb-dim">Counted, not timed: what these input rows cost, every array moved once. SQNR of the integer '
        "outputs against the float layer.</div>"
    )
    return (
        f"{_STYLE}<table class='qwb-facts qwb-paths'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"
    )


def paths_text(lines: Sequence[PathLine]) -> list[str]:
    """Return the same as lines of tab-separated text, for a picture."""
    return [
        "path\tSQNR / dB\tmultiplies\tlook-ups\tNewton\tbytes",
        *(
            f"{line.name}\t{line.sqnr_db:.2f}\t{_count(line.multiplies)}\t{_count(line.look_ups)}\t"
            f"{_count(line.newton_steps)}\t{_count(line.bytes)}"
            for line in lines
        ),
    ]


def numbers_of(run: LayerRun, lines: Sequence[PathLine]) -> dict[str, Any]:
    """Return a run's facts and costs as plain data."""
    return {
        "sqnr_db": {name: report.sqnr_db for name, report in run.errors.items()},
        "off_from_fake": int((run.steps_off_fake != 0).sum()),
        "outputs": int(run.codes.size),
        "worst_case_bits": run.worst_case_bits,
        "observed_bits": run.observed_bits,
        "accumulator": str(run.accumulator),
        "overflows": run.overflows,
        "saturated": run.saturated,
        "table_error": run.table_error,
        "paths": [vars(line) for line in lines],
    }


def _decibel(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "exact"


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.3g} %" if total else "none"


def _count(value: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
