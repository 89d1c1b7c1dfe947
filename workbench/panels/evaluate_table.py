"""The evaluate panel's table and its texts side by side."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.panels.sortable_table import Cell, Column, Line

if TYPE_CHECKING:
    from workbench.evaluation.evaluate import Evaluation
    from workbench.evaluation.generation import Generated

COLUMNS = (
    Column("figure", words=True),
    Column("float", about="The model as it is, with its standard error."),
    Column("recipe", about="The model quantized by the recipe, with its standard error."),
    Column("difference", about="Recipe minus float, with the standard error of the pairs where they are known."),
    Column("unit", words=True),
    Column("over", words=True, about="How much was measured, and what was taken as independent."),
)


def table_lines(metrics: Sequence[str], plain: Evaluation | None, coded: Evaluation | None) -> list[Line]:
    """Return a row for each figure that one of the two has."""
    from workbench.evaluation.metrics import METRICS

    lines = []
    for name in metrics:
        ours = coded[name] if coded is not None and name in coded else None
        theirs = plain[name] if plain is not None and name in plain else None
        row = ours or theirs
        if row is None:
            continue
        metric = METRICS[name]
        better = "lower is better" if metric.better == "lower" else "higher is better"
        difference = "" if plain is None or coded is None else _difference(name, plain, coded, row.unit)
        against = Cell("the reference", tone="dim") if metric.reference else Cell("…", tone="dim")
        lines.append(
            Line(
                (
                    Cell(metric.title),
                    against
                    if theirs is None
                    else Cell(shown(theirs.value, theirs.standard_error, row.unit), theirs.value),
                    Cell("…", tone="dim")
                    if ours is None
                    else Cell(shown(ours.value, ours.standard_error, row.unit), ours.value),
                    Cell(difference),
                    Cell(f"{'%' if row.unit == 'share' else row.unit}, {better}"),
                    Cell(f"{row.count:,}; {row.clusters}"),
                )
            )
        )
    return lines


def _difference(name: str, plain: Evaluation, coded: Evaluation, unit: str) -> str:
    """Return recipe minus float; paired, where the two were measured on the same tokens or inputs."""
    from workbench.evaluation.metrics import METRICS

    if name not in plain or name not in coded:
        return ""
    value, error = coded[name].value - plain[name].value, math.nan
    detail = METRICS[name].source if METRICS[name].source == "last_word" else name
    ours: Any = coded.details.get(detail)
    theirs: Any = plain.details.get(detail)
    if ours is not None and theirs is not None and name in {"perplexity", "last_word_perplexity"}:
        ratio, ratio_error = ours.ratio(theirs, "auto") if name == "perplexity" else ours.ratio(theirs)
        value, error = plain[name].value * (ratio - 1.0), plain[name].value * ratio_error
    elif ours is not None and theirs is not None and name in {"accuracy", "last_word"}:
        value, error = ours.change(theirs)
    text = shown(value, error, unit)
    return text if text.startswith(("-", "−")) else f"+{text}"


def shown(value: float, error: float, unit: str) -> str:
    """Return a value with its standard error, with as many digits as the error allows; shares in per cent.

    >>> shown(12.3456, 0.034, "per token"), shown(0.5, 0.01, "share")
    ('12.346 ± 0.034', '50.0 ± 1.0')
    """
    factor = 100.0 if unit == "share" else 1.0
    value, error = factor * value, factor * error
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(error) or error <= 0.0:
        return f"{value:.4g}".replace("-", "−")
    digits = max(0, min(10, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


_STYLE = """<style>
.qwb-written { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 8px; margin: 4px 6px 4px 0; }
.qwb-written > div { box-sizing: border-box; border: 1px solid var(--qwb-line, #999); border-radius: 4px; padding: 4px 8px; min-width: 0; }
.qwb-written pre { margin: 2px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.45 var(--jp-code-font-family, monospace);
  color: inherit; background: none; min-height: 6em; }
.qwb-written .qwb-prompt { color: var(--qwb-dim, #59636e); }
.qwb-written mark { color: inherit; font-weight: 700; text-decoration: underline 2px; background: color-mix(in srgb, #e69f00 35%, transparent); }
</style>"""


def written_html(found: Generated | None) -> str:
    """Return both continuations beside each other; tokens that differ are underlined, bold and coloured."""
    if found is None:
        return (
            f"{_STYLE}<div class='qwb-written'>{_box('Float', '', [], [])}{_box('Recipe', '', [], [])}</div>"
            "<div class='qwb-dim'>No text yet: press Write. Both write the likeliest token each time.</div>"
        )
    count = len(found.tokens)
    if found.first_difference is None:
        said = f"The same {count} token{'s' if count != 1 else ''}."
    else:
        said = f"The first difference is token {found.first_difference + 1}; tokens that differ are underlined."
    left = _box("Float", found.prompt, found.reference_pieces, found.reference_differs)
    right = _box("Recipe", found.prompt, found.pieces, found.differs)
    return f"{_STYLE}<div class='qwb-written'>{left}{right}</div><div class='qwb-dim' role='status'>{said}</div>"


def _box(name: str, prompt: str, pieces: Sequence[str], differs: Sequence[bool]) -> str:
    marked = "".join(
        f"<mark>{html.escape(piece) or '·'}</mark>" if flag else html.escape(piece)
        for piece, flag in zip(pieces, differs, strict=True)
    )
    return f"<div><b>{name}</b><pre><span class='qwb-prompt'>{html.escape(prompt)}</span>{marked}</pre></div>"
