"""Quantized models: the module, the table, the bits, the pages of a notebook."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import chain, row_calibration

from workbench.methods.runner import quantize_model
from workbench.quantization.recipe import Entry, Recipe


@pytest.fixture(scope="module")
def found():
    return quantize_model(
        chain(), Recipe((Entry("*", weight="uniform:bits=4", method="gptq", activation="int8"),)), row_calibration()
    )


def test_bits_and_bytes_count_everything(found):
    sizes = {"first": 12 * 16, "second": 16 * 16, "head": 16 * 5}
    bits = sum(sizes[name] * 4 + rows * 32 for name, rows in (("first", 16), ("second", 16), ("head", 5)))
    assert found.bits_per_weight == pytest.approx(bits / sum(sizes.values()))
    others = 4 * (16 + 16 + 16 + 5)
    assert found.nbytes == bits // 8 + others


def test_every_module_is_a_new_one_with_its_own_hooks(found):
    one, other = found.module(), found.module()
    one.first.weight.zero_()
    assert other.first.weight.abs().max() > 0.0
    given = torch.randn(4, 12)
    with torch.no_grad():
        coded = other(given)
        for layer in (other.first, other.second, other.head):
            assert len(layer._forward_pre_hooks) == 1
            layer._forward_pre_hooks.clear()
        assert not torch.equal(other(given), coded)


def test_tables_and_pages(found):
    frame = found.to_frame()
    assert list(frame.index) == ["first", "second", "head"]
    assert list(frame["activation"]) == ["int8"] * 3
    assert (frame["error"] <= frame["start_error"] * 1.5).all()
    assert "3 layers at 6.242 bits per weight" in repr(found).replace(f"{found.bits_per_weight:.4g}", "6.242")
    page = found._repr_html_()
    assert "<table" in page
    assert "second" in page
    assert np.isfinite(frame["seconds"].to_numpy(dtype=float)).all()
