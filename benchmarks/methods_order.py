"""The orders that methods are expected to come in, checked on finished cells: met or not, with the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from typing import Any

Stored = Mapping[str, Mapping[str, Any]]

DATA_FREE = ("rtn", "rtn-clip", "powerquant", "hqq")
SECOND_ORDER = ("gptq-absmax", "gptq")
LEARNED = ("adaround", "brecq", "autoround", "nupes")
#: Each subject's figure that does not saturate, lower is better (``Subject.finer``).
FINER = {"gemma": "ratio", "minilm": "distance", "resnet": "divergence"}
#: Differences of figures below this share are noise of float32 sums.
NOISE = 1e-6


def layer_loss(stored: Stored, subject: str, bits: str, method: str) -> float | None:
    """Return the geometric mean over layers, each alone, of the relative output error; None where nothing was measured."""
    layers = stored.get(f"alone | {subject} | {bits} | {method}", {}).get("layers", {})
    logs = [math.log(error) for error in layers.values() if error > 0.0]
    return math.exp(statistics.fmean(logs)) if logs else None


def value(stored: Stored, subject: str, setting: str, method: str, name: str) -> float | None:
    """Return the mean over seeds of one of the subject's figures."""
    found = [
        cell[name]
        for key, cell in stored.items()
        if key.split(" | ")[:3] == [subject, setting, method] and name in cell
    ]
    return statistics.fmean(found) if found else None


def noise(stored: Stored, subject: str, setting: str, name: str, methods: Collection[str]) -> float:
    """Return the standard error of a difference of two methods' figures in a row, as far as the cells tell; else 0.

    From the spread of the seeds, pooled over these methods, where several ran, else from the standard error that the text
    of the evaluation alone gives a perplexity's ratio.
    """
    row: dict[str, list[float]] = {}
    errors = []
    for key, cell in stored.items():
        parts = key.split(" | ")
        if parts[:2] == [subject, setting] and parts[2] in methods and name in cell:
            row.setdefault(parts[2], []).append(cell[name])
            errors.append(cell.get(f"{name}_error", 0.0))
    seeded = [found for found in row.values() if len(found) > 1]
    if seeded:
        counts = statistics.fmean(len(found) for found in seeded)
        return math.sqrt(2.0 * statistics.fmean(statistics.variance(found) for found in seeded) / counts)
    return statistics.fmean(errors) if errors else 0.0


def orders(stored: Stored) -> str:
    """Return one line for each expectation that the cells can decide, as markdown."""
    lines = []
    alone = dict.fromkeys(tuple(key.split(" | ")[1:3]) for key in stored if key.startswith("alone | "))
    for subject, bits in alone:
        lines += _classes(
            f"{subject} {bits} channel, each layer alone", lambda m, s=subject, b=bits: layer_loss(stored, s, b, m)
        )
        if bits != "W2":
            lines += _nupes(
                f"{subject} {bits} channel, each layer alone", lambda m, s=subject, b=bits: layer_loss(stored, s, b, m)
            )
    places = dict.fromkeys(
        tuple(key.split(" | ")[:2])
        for key in stored
        if key.count(" | ") == 3 and not key.startswith("alone") and not key.split(" | ")[1].startswith("float")
    )
    for subject, setting in places:
        name = FINER[subject]
        figure = lambda m, s=subject, w=setting, n=name: value(stored, s, w, m, n)  # noqa: E731
        error = noise(stored, subject, setting, name, (*DATA_FREE, *SECOND_ORDER, *LEARNED))
        lines += _classes(f"{subject} {setting}, {name}", figure, error)
        if setting in {"W4 channel", "W3 channel", "W4A4", "W3A3"}:
            error = noise(stored, subject, setting, name, LEARNED)
            lines += _nupes(f"{subject} {setting}, {name}", figure, error)
    lines += _joint(stored)
    return "\n".join(lines) or "nothing measured yet"


def _say(met: bool, text: str, short: float = 0.0, error: float = 0.0) -> str:
    """Return a line.

    Args:
        met: the verdict.
        text: what was expected, and the figures.
        short: by how much the expectation was missed at most.
        error: standard error of a difference of such figures; 0 where it is not known.
    """
    if met:
        return f"- met: {text}"
    verdict = "not decided (missed by less than twice the standard error of a difference)"
    beside = f"; missed by {short:.2g}, standard error of a difference {error:.2g}" if error > 0.0 else ""
    return f"- {verdict if short < 2.0 * error else 'NOT met'}: {text}{beside}"


def _classes(title: str, figure: Callable[[str], float | None], error: float = 0.0) -> list[str]:
    """Learned below second order below data-free: the best of each class."""
    best = {}
    for name, methods in (("learned", LEARNED), ("second order", SECOND_ORDER), ("data-free", DATA_FREE)):
        found = {method: known for method in methods if (known := figure(method)) is not None}
        if not found:
            return []
        least = min(found, key=lambda method: found[method])
        best[name] = (found[least], least)
    values = [each[0] for each in best.values()]
    text = ", ".join(f"{name} {known:.5g} ({method})" for name, (known, method) in best.items())
    short = max(values[0] - values[1], values[1] - values[2])
    return [_say(values[0] < values[1] < values[2], f"{title}: {text}", short, error)]


def _nupes(title: str, figure: Callable[[str], float | None], error: float = 0.0) -> list[str]:
    """NUPES at or below AdaRound, BRECQ and AutoRound."""
    found = {method: known for method in LEARNED if (known := figure(method)) is not None}
    own = found.pop("nupes", None)
    if own is None or not found:
        return []
    met = all(own <= other * (1.0 + NOISE) for other in found.values())
    others = ", ".join(f"{method} {other:.5g}" for method, other in found.items())
    short = own - min(found.values())
    return [_say(met, f"{title}: NUPES {own:.5g} against {others}", short, error)]


def _joint(stored: Stored) -> list[str]:
    """Joint exponent and clip at or below the best-clipped uniform grid, on every layer."""
    lines = []
    for key, cell in stored.items():
        if key.startswith("joint | ") and cell.get("ratios"):
            ratios = cell["ratios"]
            over = [name for name, ratio in ratios.items() if ratio > 1.0 + NOISE]
            worst = max(ratios, key=lambda name, ratios=ratios: ratios[name])
            text = (
                f"{key.removeprefix('joint | ').replace(' | ', ' ')}, joint exponent and clip over best-clipped uniform, "
                f"error of the weights: at or below on {len(ratios) - len(over)} of {len(ratios)} layers, mean ratio "
                f"{statistics.fmean(ratios.values()):.4f}, largest {ratios[worst]:.4f} ({worst})"
            )
            lines.append(_say(not over, text))
    return lines
