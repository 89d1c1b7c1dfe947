"""Rotary embedding: within its stated bound of the exact rotation, in both layouts, and its formula in integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer import rotary, rotary_table, watch


def exact(real: np.ndarray, angles: np.ndarray, layout: str) -> np.ndarray:
    pairs = angles.shape[-1]
    out = real.copy()
    one, other = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if layout == "interleaved" else (
        slice(0, pairs), slice(pairs, 2 * pairs)
    )  # fmt: skip
    a, b = real[..., one], real[..., other]
    out[..., one] = a * np.cos(angles) - b * np.sin(angles)
    out[..., other] = b * np.cos(angles) + a * np.sin(angles)
    return out


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_stated_bounds(dtype, bits, layout):
    """Half a step, and each entry's half unit times |a| + |b|; 2**-19 of the result where scales differ."""
    generator = np.random.default_rng(1)
    limits = np.iinfo(dtype)
    table = rotary_table(50, 16, base=500.0, bits=bits)
    angles = np.arange(50)[:, None] * 500.0 ** (-np.arange(8) / 8)
    zero = 0 if dtype == np.int16 else int(generator.integers(limits.min // 2, limits.max // 2 + 1))
    codes = generator.integers(limits.min, limits.max + 1, (3, 50, 16)).astype(dtype)
    q = codes.astype(np.float64) - zero
    turned = exact(q, angles, layout)
    for scale, step in ((None, None), (0.1, 0.1 * math.sqrt(2)), (0.1, 0.37), (0.01, 0.015)):
        ratio = 1.0 if scale is None else float(np.float32(scale)) / float(np.float32(step))
        got = rotary(
            codes, table, layout=layout, input_scale=scale, output_scale=step, input_zero_point=zero, dtype=np.int16
        )
        wanted = turned * ratio
        inside = np.abs(wanted) < 32767
        reach = 2 * np.abs(q).max() * ratio
        bound = 0.5 + reach * 2.0 ** -(table.fraction_bits + 1) + (reach * 2.0**-19 if scale else 0.0) + 1e-9
        assert np.abs(got - wanted)[inside].max() <= bound
        # What docs/integer_operators.md promises for int8 and int16 inputs of symmetric scales.
        if zero == 0 and dtype == np.int16:
            assert np.abs(got - wanted)[inside].max() <= (2.6 if bits == 16 else 0.7)


@settings(max_examples=50, deadline=None)
@given(
    codes=st.lists(st.integers(-128, 127), min_size=18, max_size=18),
    positions=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    zero=st.integers(-128, 127),
    zero_point=st.integers(-128, 127),
    layout=st.sampled_from(["half", "interleaved"]),
)
def test_the_formula_in_plain_integers(codes, positions, zero, zero_point, layout):
    """Partial rotation: 4 of 6 numbers turn, the rest pass."""
    table = rotary_table(10, 4)
    x = np.array(codes, dtype=np.int8).reshape(3, 6)
    got = rotary(
        x, table, positions=positions, layout=layout, input_zero_point=zero, output_zero_point=zero_point
    ).tolist()
    for row, place, result in zip(x.tolist(), positions, got, strict=True):
        q = [value - zero for value in row]
        wanted = list(q)
        for pair in range(2):
            one, other = (2 * pair, 2 * pair + 1) if layout == "interleaved" else (pair, pair + 2)
            angle = place * 10000.0 ** (-2 * pair / 4)
            c, s = round(math.cos(angle) * 2**14), round(math.sin(angle) * 2**14)
            wanted[one] = (q[one] * c - q[other] * s + 2**13) >> 14
            wanted[other] = (q[other] * c + q[one] * s + 2**13) >> 14
        assert result == [min(max(value + zero_point, -128), 127) for value in wanted]


def test_position_0_changes_nothing_and_positions_choose_rows():
    generator = np.random.default_rng(2)
    codes = generator.integers(-32768, 32768, (2, 4, 7, 8)).astype(np.int16)
    for bits in (16, 32):
        table = rotary_table(100, 8, bits=bits)
        assert np.array_equal(rotary(codes, table, positions=np.zeros(7, dtype=int)), codes)
        whole = rotary(codes, table, positions=np.arange(90, 97))
        one = rotary(codes[:, :, 3:4], table, positions=np.array([93]))
        assert np.array_equal(whole[:, :, 3:4], one)
        assert np.array_equal(rotary(codes, table), rotary(codes, table, positions=np.arange(7)))
    assert table.cosine.dtype == np.int32 and table.cosine[0].tolist() == [1 << 22] * 4
    own = rotary_table(100, 8, frequencies=10000.0 ** (-np.arange(4) / 4), bits=32)
    assert np.array_equal(own.sine, table.sine)


def test_types_and_empty_shapes():
    table = rotary_table(5, 4)
    codes = np.full((5, 4), 100, dtype=np.int8)
    assert rotary(codes, table, dtype=np.int16).dtype == np.int16
    assert rotary(codes[:0], table).shape == (0, 4)
    assert rotary(np.zeros((0, 5, 4), dtype=np.int8), table).shape == (0, 5, 4)
    with watch() as seen:
        rotary(np.full((5, 4), 127, dtype=np.int8), table)
    assert seen.observations[0].operator == "rotary" and seen.saturated == int(
        (np.abs(rotary(np.full((5, 4), 127, dtype=np.int8), table, dtype=np.int16)) > 127).sum()
    )


TABLE = rotary_table(4, 4)
CODES = np.zeros((3, 4), dtype=np.int8)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: rotary(CODES.astype(np.int32), TABLE), "not int32"),
        (lambda: rotary(CODES[0], TABLE), "positions, 4 or more"),
        (lambda: rotary(CODES[:, :3], TABLE), "positions, 4 or more"),
        (lambda: rotary(CODES, TABLE, layout="pairs"), "'half' or 'interleaved'"),
        (lambda: rotary(CODES, TABLE, positions=[1, 2]), r"integers \(3,\)"),
        (lambda: rotary(CODES, TABLE, positions=[1, 2, 4]), "positions 0 to 3, not 4"),
        (lambda: rotary(CODES, TABLE, positions=[-1, 2, 3]), "positions 0 to 3"),
        (lambda: rotary(CODES, TABLE, input_scale=1.0), "both scales, or neither"),
        (lambda: rotary(CODES, TABLE, input_scale=1e9, output_scale=1e-9), "too large"),
        (lambda: rotary(CODES, TABLE, input_zero_point=300), "zero point"),
        (lambda: rotary_table(4, 3), "an even width"),
        (lambda: rotary_table(4, 4, bits=8), "16 or 32 bits"),
        (lambda: rotary_table(4, 4, base=-1.0), "a base"),
        (lambda: rotary_table(4, 4, frequencies=[1.0]), r"\(2,\)"),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(IntegerError, match=match):
        call()
