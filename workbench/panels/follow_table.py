"""The tables of a followed number: the terms of its sum, and its steps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.integer.trace import Step, Trace

TERM_COLUMNS = (
    "term",
    "input",
    "input code",
    "input integer",
    "weight",
    "weight code",
    "weight integer",
    "product",
    "partial sum",
)
#: Longer sums show this many terms at each end.
MOST_TERMS = 2048

_STYLE = """<style>
.qwb-steps { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 4px 0; }
.qwb-steps :is(th, td) { padding: 2px 10px 2px 2px; text-align: left; vertical-align: top; }
.qwb-steps th { border-bottom: 1px solid var(--qwb-line, #999); font-weight: 600; }
.qwb-steps :is(th, td):nth-child(4) { text-align: right; }
.qwb-steps code { background: none; color: inherit; font-size: 12px; }
</style>"""


def shown_terms(count: int) -> list[int | None]:
    """Return the numbers of the terms to show; None stands for those left out of a very long sum."""
    if count <= 2 * MOST_TERMS:
        return list(range(count))
    return [*range(MOST_TERMS), None, *range(count - MOST_TERMS, count)]


def term_rows(trace: Trace, numbers: Sequence[int | None]) -> list[list[str]]:
    """Return one row of texts for each term: its real numbers, codes, integers, product, and the sum after it."""
    terms, rows = trace.terms, []
    for number in numbers:
        if number is None:
            rows.append(["…"] * len(TERM_COLUMNS))
            continue
        rows.append(
            [
                str(number),
                "padding" if terms.source[number] < 0 else f"{terms.input_real[number]:.5g}",
                str(int(terms.input_code[number])),
                str(int(terms.input_integer[number])),
                f"{terms.weight_real[number]:.5g}",
                str(int(terms.weight_code[number])),
                str(int(terms.weight_integer[number])),
                str(int(terms.product[number])),
                f"{int(terms.partial_sum[number])}" + (" overflow" if terms.overflow[number] else ""),
            ]
        )
    return rows


def steps_html(steps: Sequence[Step]) -> str:
    """Return steps as a table: stage, name, formula, result, note."""
    body = "".join(
        f"<tr><td>{html.escape(step.stage)}</td><td>{html.escape(step.name)}</td>"
        f"<td><code>{html.escape(step.formula)}</code></td><td>{html.escape(str(step.result))}</td>"
        f'<td class="qwb-dim">{html.escape(step.note)}</td></tr>'
        for step in steps
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("stage", "step", "formula", "result", ""))
    return f"{_STYLE}<table class='qwb-steps'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
