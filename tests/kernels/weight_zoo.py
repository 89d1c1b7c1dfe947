"""Weights that are hard on kernels: every stored type, odd shapes, zeros, denormals, ties, huge and equal values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]

#: Grids of every kind of levels: few and many, symmetric and not, denormal thresholds, ties that weights can hit.
GRIDS = [
    "uniform:bits=2",
    "uniform:bits=4",
    "uniform:bits=4,range=full",
    "uniform:bits=4,range=asymmetric",
    "uniform:bits=8",
    "uniform:bits=8,range=asymmetric",
    "uniform:bits=12",
    "power:bits=3,exponent=0.3",
    "power:bits=4,exponent=0.55",
    "power:bits=4,exponent=0.5,rounding=nearest",
    "power:bits=8,exponent=0.2",
    "power:bits=8,exponent=2.0",
    "power:bits=4,exponent=0.5,shifted=true",
    "log:bits=4",
    "log:bits=8",
    "apot:bits=4",
    "nf4",
    "e2m1",
    "e4m3",
    "mxfp4",
]


def weights(rng: np.random.Generator, rows: int, columns: int, kind: str, dtype: np.dtype) -> np.ndarray:
    """Return a matrix of one kind of weights."""
    if kind == "gauss":
        w = rng.standard_normal((rows, columns)) * 0.02
    elif kind == "heavy":
        w = rng.standard_t(3, size=(rows, columns))
    elif kind == "dyadic":  # ties of uniform and float grids are hit exactly
        w = rng.integers(-32, 33, (rows, columns)) / 16.0
    elif kind == "tiny":
        w = rng.standard_normal((rows, columns)) * 1e-6
    elif kind == "positive":
        w = np.abs(rng.standard_normal((rows, columns))) + 0.5
    elif kind == "sparse":
        w = np.where(rng.random((rows, columns)) < 0.9, 0.0, rng.standard_normal((rows, columns)))
    else:
        w = np.zeros((rows, columns))
    return w.astype(dtype)


KINDS = ["gauss", "heavy", "dyadic", "tiny", "positive", "sparse", "zero"]


@st.composite
def matrices(draw, dtypes=tuple(DTYPES), largest=(24, 300)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = draw(st.integers(1, largest[0])), draw(st.integers(1, largest[1]))
    return weights(rng, rows, columns, draw(st.sampled_from(KINDS)), draw(st.sampled_from(dtypes)))
