from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workbench.errors import WorkbenchError
from workbench.figures.binary_coding import coding_figure, splits
from workbench.quantization import quantize

numbers = st.floats(-4, 4, width=32)


@given(arrays(np.float64, st.integers(1, 5), elements=st.floats(0, 4, width=32)), numbers)
@settings(max_examples=40, deadline=None)
def test_the_last_row_is_what_the_codes_stand_for(alphas, bias):
    alphas = np.sort(alphas)
    bits = len(alphas)
    codes = np.arange(2**bits)
    signs = 2.0 * ((codes[:, None] >> np.arange(bits)) & 1) - 1.0
    rows = splits(alphas, bias)
    assert [len(row) for row in rows] == [2**depth for depth in range(bits + 1)]
    np.testing.assert_allclose(rows[-1], signs @ alphas + bias, atol=1e-12)


def test_levels_of_a_quantized_group_stand_in_the_figure():
    weight = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    coded = quantize(weight, "bcq:bits=3")
    figure = coding_figure(weight[0], coded.alphas[0, 0], coded.bias[0, 0], dress="dark")
    edges, nodes, rug = figure.data
    last = nodes.x[nodes.y == 0]
    assert set(np.round(coded.dequantize()[0], 5)) <= set(np.round(last, 5))
    np.testing.assert_allclose(rug.customdata, coded.dequantize()[0], rtol=1e-5)  # each weight's nearest sum
    assert np.isnan(edges.x).sum() == 2 + 4 + 8
    assert list(figure.layout.yaxis.ticktext) == ["weights", "± α₀", "± α₁", "± α₂", "bias"]
    assert "signs +" in nodes.customdata[2]
    assert figure.layout.xaxis.title.text == "weight"


def test_nothing_to_show_still_draws_and_a_wrong_theme_does_not():
    assert len(coding_figure(np.zeros(0), np.ones(1)).data[2].x) == 0
    with pytest.raises(WorkbenchError):
        coding_figure(np.zeros(1), np.ones(1), dress="neon")
