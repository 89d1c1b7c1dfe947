"""Names of stored number types: safetensors' tags, numpy's dtypes (with ml_dtypes), and the words that people read."""

from __future__ import annotations

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
"""Tags of the safetensors format that hold whole bytes per number."""

SUB_BYTE_TAGS = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Tags that pack several numbers into a byte; known by name, not read."""

FLOAT8 = frozenset(SAFETENSORS_DTYPES[tag] for tag in SAFETENSORS_DTYPES if tag.startswith("F8_E") and tag != "F8_E8M0")
"""8-bit floating types that hold weights (E8M0 holds only scales)."""


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of this type can be weights: floating, the ml_dtypes included, scales-only E8M0 excluded."""
    return dtype.kind == "f" or dtype == BFLOAT16 or dtype in FLOAT8


def is_float8(dtype: np.dtype) -> bool:
    """Whether this is an 8-bit floating type."""
    return dtype in FLOAT8
