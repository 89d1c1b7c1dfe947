from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.figures import palette


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [v / 255 for v in palette.rgb(colour)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_reads_and_lines_show_on_their_paper(name: str) -> None:
    look = palette.theme(name)
    assert contrast(look.ink, look.paper) >= 7
    assert contrast(look.quiet, look.paper) >= 4.5
    for colour in (look.weights, look.levels, look.uniform):
        assert contrast(colour, look.paper) >= 3, colour


@pytest.mark.parametrize("name", ["light", "dark"])
def test_parts_of_one_figure_differ_in_lightness_or_hue(name: str) -> None:
    look = palette.theme(name)
    parts = [look.weights, look.levels, look.uniform, look.best, look.quiet]
    assert len(set(parts)) == len(parts)
    assert look.weights not in look.compared


def test_unknown_theme_is_refused_in_one_sentence() -> None:
    with pytest.raises(WorkbenchError, match="light or dark"):
        palette.theme("sepia")


@pytest.mark.parametrize("name", ["light", "dark"])
def test_diverging_table_is_neutral_at_zero_and_tells_signs_apart(name: str) -> None:
    table = palette.diverging(name).astype(int)
    assert table.shape == (256, 3)
    assert np.ptp(table[127]) < 12  # grey: no sign
    red, blue = table[:, 0], table[:, 2]
    assert (blue[:110] > red[:110]).all()
    assert (red[146:] > blue[146:]).all()


def test_sequential_table_rises_in_lightness() -> None:
    light = [luminance("#{:02x}{:02x}{:02x}".format(*colour)) for colour in palette.sequential()]
    assert (np.diff(light) >= -1e-3).all()
    assert light[-1] - light[0] > 0.6


def test_template_is_transparent_and_complete() -> None:
    for name in ("light", "dark"):
        layout = palette.template(name).layout
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert layout.font.color == palette.theme(name).ink
