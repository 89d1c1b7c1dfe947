"""The orders that methods are expected to come in, checked on finished cells: met or not, with the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

Stored = Mapping[str, Mapping[str, Any]]

DATA_FREE = ("rtn", "rtn-clip", "powerquant", "hqq")
SECOND_ORDER = ("gptq",)
LEARNED = ("adaround", "brecq", "autoround", "nupes")
#: Differences of figures below this share are noise of float32 sums.
NOISE = 1e-6


def layer_loss(stored: Stored, subject: str, setting: str, method: str) -> float | None:
    """Return the geometric mean over layers and seeds of the relative output error; None where nothing was measured."""
    logs = []
    for key, cell in stored.items():
        if key.split(" | ")[:3] == [subject, setting, method]:
            logs += [math.log(error) for error in cell.get("layers", {}).values() if error > 0.0]
    return math.exp(statistics.fmean(logs)) if logs else None


def value(stored: Stored, subject: str, setting: str, method: str) -> float | None:
    """Return the mean over seeds of the subject's figure."""
    found = [
        cell["value"]
        for key, cell in stored.items()
        if key.split(" | ")[:3] == [subject, setting, method] and "value" in cell
    ]
    return statistics.fmean(found) if found else None


def orders(stored: Stored) -> str:
    """Return one line for each expectation that the cells can decide, as markdown."""
    places = dict.fromkeys(
        (key.split(" | ")[0], key.split(" | ")[1])
        for key in stored
        if key.count(" | ") == 3 and not key.split(" | ")[1].startswith("float")
    )
    lines = []
    for subject, setting in places:
        lines += _classes(stored, subject, setting)
        if setting in {"W4 channel", "W3 channel", "W4A4", "W3A3"}:
            lines += _nupes(stored, subject, setting)
    lines += _joint(stored)
    return "\n".join(lines) or "nothing measured yet"


def _say(met: bool, text: str) -> str:
    return f"- {'met' if met else 'NOT met'}: {text}"


def _classes(stored: Stored, subject: str, setting: str) -> list[str]:
    """Learned below second order below data-free, in layer loss: the best of each class."""
    best = {}
    for name, methods in (("learned", LEARNED), ("second order", SECOND_ORDER), ("data-free", DATA_FREE)):
        found = {m: loss for m in methods if (loss := layer_loss(stored, subject, setting, m)) is not None}
        if not found:
            return []
        least = min(found, key=lambda method: found[method])
        best[name] = (found[least], least)
    values = [each[0] for each in best.values()]
    text = " < ".join(f"{name} {loss:.3e} ({method})" for name, (loss, method) in best.items())
    return [_say(values[0] < values[1] < values[2], f"{subject} {setting}, layer loss: {text}")]


def _nupes(stored: Stored, subject: str, setting: str) -> list[str]:
    """NUPES at or below AdaRound, BRECQ and AutoRound: in layer loss and in the subject's figure."""
    lines = []
    higher_is_better = subject != "gemma"
    for name, figure, sign in (
        ("layer loss", layer_loss, 1.0),
        ("figure", value, -1.0 if higher_is_better else 1.0),
    ):
        found = _figures(figure, stored, subject, setting)
        own = found.pop("nupes", None)
        if own is None or not found:
            continue
        met = all(sign * own <= sign * other * (1.0 + NOISE) for other in found.values())
        others = ", ".join(f"{method} {other:.4g}" for method, other in found.items())
        lines.append(_say(met, f"{subject} {setting}, {name}: NUPES {own:.4g} against {others}"))
    return lines


def _figures(figure: Callable[..., float | None], stored: Stored, subject: str, setting: str) -> dict[str, float]:
    known = {method: figure(stored, subject, setting, method) for method in LEARNED}
    return {method: found for method, found in known.items() if found is not None}


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
