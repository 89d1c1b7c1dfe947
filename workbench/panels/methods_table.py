"""The methods panel's table of results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workbench.figures.frame import short
from workbench.grids.text import brief_grid
from workbench.panels.long_run import duration
from workbench.panels.methods_outcome import Outcome
from workbench.panels.sortable_table import Cell, Column, Line

COLUMNS = (
    Column("layer", words=True),
    Column("method", words=True),
    Column("grid", words=True, about="The grid that it ended with; a learned exponent is its own."),
    Column("bits per weight", about="Codes, scales, zero points and codebook over the number of weights."),
    Column("output SQNR / dB", about="Of the layer's outputs on its calibration inputs; more is better."),
    Column(
        "gain over RTN / dB",
        about="Against rounding to nearest from where the method starts: its own grid and scale rule.",
    ),
    Column("time", about="Wall time of the method itself."),
)


def table_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """Return a row for each result; of each layer the best output SQNR and the best gain are marked."""
    best: dict[str, float] = {}
    several: dict[str, int] = {}
    for each in outcomes:
        if not each.error:
            best[each.layer] = max(best.get(each.layer, -math.inf), each.sqnr_db)
            several[each.layer] = several.get(each.layer, 0) + 1
    return [_line(each, best.get(each.layer, math.inf), several.get(each.layer, 0)) for each in outcomes]


def _line(outcome: Outcome, best: float, several: int) -> Line:
    name = Cell(short(outcome.layer, 44))
    if outcome.error:
        dash = Cell("–", tone="dim")
        method = Cell(outcome.title or outcome.method)
        return Line((name, method, Cell(outcome.grid_asked), dash, dash, dash, dash), outcome.error)
    word, _, settings = outcome.method.partition(":")
    _ = word
    seed = f"; seed {outcome.seed}" if outcome.seed else ""
    notes = [*outcome.notes]
    if outcome.origin:
        notes.insert(0, f"Gaussian inputs, not the model's own: {outcome.origin}")
    return Line(
        (
            name,
            Cell(f"{outcome.title} ({settings}{seed})" if settings else outcome.title + seed.replace("; ", ", ")),
            Cell(brief_grid(outcome.grid)),
            Cell(f"{outcome.bits_per_weight:.3f}", outcome.bits_per_weight),
            Cell(decibel(outcome.sqnr_db), outcome.sqnr_db, best=several > 1 and outcome.sqnr_db >= best),
            Cell(signed(outcome.gain_db), outcome.gain_db),
            Cell(duration(outcome.seconds), outcome.seconds),
        ),
        " · ".join(notes),
    )


def decibel(value: float) -> str:
    """Return a signal-to-noise ratio for people."""
    return f"{value:.2f}" if math.isfinite(value) else "exact" if value > 0 else "–"


def signed(value: float) -> str:
    """Return a difference with its sign, a true minus."""
    return f"{value:+.2f}".replace("-", "−") if math.isfinite(value) else "exact" if value > 0 else "–"
