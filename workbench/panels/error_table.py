"""The error panel's table: grids and their errors, as HTML and as text."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.grids import Grid
    from workbench.quantization import ErrorReport

_HEADS = (
    "",
    "grid",
    "clip",
    "bits per weight",
    "MSE",
    "SQNR / dB",
    "against this / dB",
    "cosine",
    "largest error / steps",
)

_STYLE = """<style>
.qwb-errors { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 2px 0 4px; }
.qwb-errors :is(th, td) { padding: 2px 8px; text-align: right; white-space: nowrap; }
.qwb-errors :is(th, td):nth-child(-n+2) { text-align: left; }
.qwb-errors thead th { border-bottom: 1px solid var(--qwb-line, #999); font-weight: 600; white-space: normal; }
.qwb-errors tbody th { font-weight: 600; }
</style>"""

_NOTE = (
    '<div class="qwb-dim">= measured on every weight; ≈ from the sketch, within the bound shown. Other grids: same bits '
    "per code, same granularity, each at the clip that suits it; best of all: among those of equal bits per weight, "
    "scales counted.</div>"
)


@dataclass(frozen=True)
class Line:
    """One grid of the table."""

    name: str
    """What the grid is here."""
    grid: Grid
    clip: float
    bits_per_weight: float
    report: ErrorReport | None
    """None while it is measured."""

    def numbers(self) -> dict[str, Any]:
        """Return the line as plain data."""
        report = {} if self.report is None else {"badge": self.report.badge, **self.report.to_dict()}
        return {"grid": str(self.grid), "clip": self.clip, "bits_per_weight": self.bits_per_weight, **report}

    def cells(self, first: Line) -> list[str]:
        """Return the texts of the line from the grid on; gains are against the line ``first``."""
        cells = [self.grid.label, f"{self.clip:.3g}", f"{self.bits_per_weight:.4g}"]
        report = self.report
        if report is None:
            return [*cells, *["…"] * 5]
        bound = f" ± {100 * report.bound:.2g} %" if report.approximate and math.isfinite(report.bound) else ""
        gain = report.sqnr_db - first.report.sqnr_db if first.report is not None else math.nan
        return [
            *cells,
            f"{report.badge} {report.mse:.4g}{bound}",
            f"{report.badge} {report.sqnr_db:.2f}",
            "" if self is first or not math.isfinite(gain) else f"{gain:+.2f}".replace("-", "−"),
            f"{report.badge} {report.cosine:.6f}",
            "" if math.isnan(report.max_steps) else f"{report.badge} {report.max_steps:.3f}",
        ]


def table_html(lines: Sequence[Line]) -> str:
    """Return the table; every number carries its badge."""
    head = "".join(f'<th scope="col">{text}</th>' for text in _HEADS)
    body = ""
    for line in lines:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in line.cells(lines[0]))
        body += f'<tr><th scope="row">{html.escape(line.name)}</th>{cells}</tr>'
    return f"{_STYLE}<table class='qwb-errors'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{_NOTE}"


def table_text(lines: Sequence[Line]) -> list[str]:
    """Return the table as lines of tab-separated text, for a picture."""
    rows = ["\tgrid\t\tMSE\tSQNR / dB\tbits per weight"]
    for line in lines:
        label, _clip, bits, mse, sqnr, *_ = line.cells(lines[0])
        rows.append(f"{line.name}\t{label[:34]}\t\t{mse.split(' ±')[0]}\t{sqnr}\t{bits}")
    return rows


def grid_kind(grid: Grid) -> str:
    """Return a grid's family in a word or two, for a bar's foot."""
    kind: Any = grid
    if grid.family == "uniform":
        return "uniform" if kind.range == "narrow" else f"uniform {kind.range}"
    if grid.family == "power":
        return "power" if kind.rounding == "power" else "power nearest"
    if grid.family == "codebook":
        return "fitted codebook"
    return str(grid) if grid.family in {"float", "nf4"} else grid.family
