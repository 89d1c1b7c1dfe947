"""One of every kind of grid, for the tests that hold for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from workbench.grids import (
    PRESETS,
    AdditivePowerGrid,
    CodebookGrid,
    FloatGrid,
    LogGrid,
    PowerGrid,
    UniformGrid,
    parse_grid,
)

ZOO = [
    *(UniformGrid(bits, "narrow") for bits in (2, 3, 4, 8, 16)),
    *(UniformGrid(bits, "full") for bits in (1, 2, 4, 8)),
    *(UniformGrid(bits, "asymmetric") for bits in (1, 2, 4, 8)),
    *(PowerGrid(bits, exponent) for bits, exponent in ((2, 0.5), (3, 0.5), (4, 0.55), (8, 0.3), (4, 1.0), (6, 2.0))),
    *(PowerGrid(bits, exponent, "nearest") for bits, exponent in ((2, 0.4), (4, 0.5), (8, 1.7))),
    PowerGrid(4, 0.5, signed=False),
    PowerGrid(1, 0.5, signed=False),
    PowerGrid(4, 0.7, "nearest", shifted=True),
    *(LogGrid(bits) for bits in (2, 4, 8)),
    LogGrid(5, "log"),
    *(AdditivePowerGrid(bits) for bits in range(2, 9)),
    *(parse_grid(name) for name in PRESETS),
    FloatGrid(1, 2),
    FloatGrid(3, 0),
    FloatGrid(3, 4, special="ieee"),
    FloatGrid(5, 10),
    FloatGrid(8, 7),
    FloatGrid(2, 1, scale_format="e8m0", block=64),
    CodebookGrid((-1, -0.25, 0.1, 1)),
    CodebookGrid((-0.7, 0.3, 0.9)),
    CodebookGrid(tuple(x / 37 for x in range(-30, 38))),
]


def _distinct(levels: list[float]) -> bool:
    """Whether the levels are still different, and not all zero, after they were divided by the largest."""
    largest = max(1.0, *map(abs, levels))
    return len({level / largest for level in levels}) == len(levels)


_bits = st.integers(2, 8)
_exponents = st.floats(0.05, 2.0)
_levels = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=40, unique=True)

GRIDS = st.one_of(
    st.builds(UniformGrid, st.integers(2, 12), st.sampled_from(["narrow", "full", "asymmetric"])),
    st.builds(PowerGrid, _bits, _exponents, st.sampled_from(["power", "nearest"]), st.booleans(), st.booleans()),
    st.builds(LogGrid, _bits, st.sampled_from(["nearest", "log"])),
    st.builds(AdditivePowerGrid, _bits),
    st.builds(
        FloatGrid,
        st.integers(2, 6),
        st.integers(1, 6),
        st.sampled_from([None, "none", "nan", "ieee"]),
        st.sampled_from([None, "e8m0", "e4m3"]),
        st.sampled_from([None, 16, 32]),
    ),
    _levels.filter(_distinct).map(CodebookGrid),
    st.sampled_from([parse_grid(name) for name in PRESETS]),
)
