"""Random layers, built for the judges: the same numbers as TensorFlow Lite models and as ONNX nodes."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from workbench.integer.judges.runners import onnx_model, run_litert, run_onnx, run_tflm
from workbench.integer.judges.tflite_builder import TFLiteModel

#: onnxruntime's sums and global averages are other kernels, with other roundings, on other processors.
ON_X86 = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="another recipe on other processors")
RUNNERS = {"litert-reference": run_litert, "tflm": run_tflm}


def codes(rng, shape, dtype=np.int8):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, size=shape, dtype=dtype)


def scale(rng, low=0.005, high=0.2):
    return np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))


def one_operator(name, inputs, output, options=None, *, version=1, constants=()):
    """A model of one operator. ``inputs``, ``constants``: (array, scale, zero point[, axis]); ``output``: (shape, ...)."""
    model = TFLiteModel()
    ends = [model.tensor(f"x{i}", v.shape, v.dtype, s, z) for i, (v, s, z) in enumerate(inputs)]
    fixed = [
        model.tensor(f"c{i}", v.shape, v.dtype, s, z, data=v, axis=axis) for i, (v, s, z, axis) in enumerate(constants)
    ]
    shape, dtype, out_scale, out_zero = output
    y = model.tensor("y", shape, dtype, out_scale, out_zero)
    model.operator(name, [*ends, *fixed], [y], options or {}, version=version)
    return model.finish(ends, [y])


__all__ = ["ON_X86", "RUNNERS", "codes", "one_operator", "onnx_model", "run_onnx", "scale"]
