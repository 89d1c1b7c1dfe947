"""ONNX's quantization operators as functions: QuantizeLinear and its relatives, by the operators' own specifications.

An element type is given by name: an integer of 2, 4, 8, 16 or 32 bits, or a small float. Codes of 2 and 4 bits lie one
per byte in int8 or uint8; codes of small floats are their bit patterns in uint8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.grids import FloatGrid
from workbench.integer.convolution import conv2d, convolve
from workbench.integer.linear import accumulate, linear, matmul

#: Integer element types: smallest and largest code, and the numpy type that carries them.
INTEGERS: dict[str, tuple[int, int, type]] = {
    "int2": (-2, 1, np.int8),
    "uint2": (0, 3, np.uint8),
    "int4": (-8, 7, np.int8),
    "uint4": (0, 15, np.uint8),
    "int8": (-128, 127, np.int8),
    "uint8": (0, 255, np.uint8),
    "int16": (-(1 << 15), (1 << 15) - 1, np.int16),
    "uint16": (0, (1 << 16) - 1, np.uint16),
    "int32": (-(1 << 31), (1 << 31) - 1, np.int32),
}
#: Float element types by ONNX's names, as grids (OCP's formats).
FLOATS: dict[str, FloatGrid] = {
    "float8e4m3fn": FloatGrid(exponent_bits=4, mantissa_bits=3),
    "float8e5m2": FloatGrid(exponent_bits=5, mantissa_bits=2),
    "float4e2m1": FloatGrid(exponent_bits=2, mantissa_bits=1),
}


def quantize_linear(
    x: np.ndarray, scale: Any, zero_point: Any = 0, *, element: str = "uint8", axis: int = 1, block_size: int = 0
) -> np.ndarray:
    """Return ``saturate(round(x / scale) + zero_point)``, half to even: ONNX QuantizeLinear.

    Small floats have zero point 0 and are cast with saturation instead of rounded to integers.

    Args:
        x: float32 or float16; the division is done in the scale's type.
        scale: one number (per tensor), one per slice of ``axis``, or, with ``block_size``, an array of the rank of x
            whose ``axis`` has one number per block.
        zero_point: of the scale's shape.
        element: a name of ``INTEGERS`` or ``FLOATS``.
        axis: where several scales lie.
        block_size: how many neighbours along ``axis`` share a scale; 0 for none.

    Raises:
        IntegerError: unknown types, or shapes that do not fit.
    """
    values = np.asarray(x)
    scales = np.asarray(scale)
    if scales.dtype.kind != "f":
        scales = scales.astype(np.float32)
    if values.dtype.kind != "f":
        message = f"QuantizeLinear takes floats, not {values.dtype}"
        raise IntegerError(message)
    divisor = _spread(scales, values.shape, axis, block_size, "scale")
    zeros = _zeros(zero_point, scales, values.shape, axis, block_size, element)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotient = values.astype(divisor.dtype) / divisor
    if element in FLOATS:
        grid = FLOATS[element]
        return grid.encode(quotient.astype(np.float64) / grid.peak).astype(np.uint8)
    low, high, kind = INTEGERS[element]
    codes = np.rint(quotient.astype(np.float64)) + zeros
    return np.clip(np.nan_to_num(codes, nan=0.0), low, high).astype(kind)


def dequantize_linear(
    codes: np.ndarray,
    scale: Any,
    zero_point: Any = 0,
    *,
    element: str | None = None,
    axis: int = 1,
    block_size: int = 0,
) -> np.ndarray:
    """Return ``(codes - zero_point) * scale`` in the scale's type: ONNX DequantizeLinear.

    Args:
        codes: integers, or bit patterns of small floats.
        scale: float32 or float16, see ``quantize_linear``.
        zero_point: of the scale's shape.
        element: what the codes are; by default integers of their own type.
        axis: where several scales lie.
        block_size: how many neighbours along ``axis`` share a scale; 0 for none.

    Raises:
        IntegerError: unknown types, shapes that do not fit, or codes that the element type does not have.
    """
    values, scales = np.asarray(codes), np.asarray(scale)
    if scales.dtype.kind != "f":
        scales = scales.astype(np.float32)
    if values.dtype.kind not in "iu":
        message = f"DequantizeLinear takes integer codes, not {values.dtype}"
        raise IntegerError(message)
    element = values.dtype.name if element is None else element
    zeros = _zeros(zero_point, scales, values.shape, axis, block_size, element)
    factor = _spread(scales, values.shape, axis, block_size, "scale")
    if element in FLOATS:
        grid = FLOATS[element]
        return (grid.decode(values.astype(np.int64)) * grid.peak).astype(factor.dtype) * factor
    low, high, _ = INTEGERS[element]
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        message = f"codes of {element} lie between {low} and {high}, not {int(values.min())} to {int(values.max())}"
        raise IntegerError(message)
    return (values.astype(np.int64) - zeros).astype(factor.dtype) * factor


def dynamic_quantize_linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return uint8 codes, their float32 scale and their uint8 zero point: ONNX DynamicQuantizeLinear.

    The range is widened to hold 0; a tensor of zeros gets scale 1, as in ONNX Runtime (the specification divides by 0).

    Args:
        x: float32, any shape.

    Raises:
        IntegerError: values that are not finite floats.
    """
    values = np.asarray(x)
    if values.dtype.kind != "f" or not np.all(np.isfinite(values)):
        message = "DynamicQuantizeLinear takes finite floats"
        raise IntegerError(message)
    values = values.astype(np.float32)
    low, high = np.float32(min(values.min(initial=0), 0)), np.float32(max(values.max(initial=0), 0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero_point = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    return quantize_linear(values, scale, zero_point), np.asarray(scale), np.asarray(zero_point)


def qlinear_matmul(  # noqa: PLR0917 - the operator's own order
    a: np.ndarray,
    a_scale: Any,
    a_zero_point: Any,
    b: np.ndarray,
    b_scale: Any,
    b_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
) -> np.ndarray:
    """Return the quantized product of two matrices, batched ones included: ONNX QLinearMatMul.

    Args:
        a: int8 or uint8 (..., rows, depth).
        a_scale: one number.
        a_zero_point: one number.
        b: int8 or uint8 (..., depth, columns).
        b_scale: one number, or one per column where ``b`` is a matrix.
        b_zero_point: of the same shape.
        y_scale: one number.
        y_zero_point: one number; its type is the output's.

    Raises:
        IntegerError: see ``workbench.integer.linear``.
    """
    right = np.asarray(b)
    zero, kind = _single(y_zero_point, "y_zero_point"), np.asarray(y_zero_point).dtype
    if right.ndim == 2:
        return linear(
            a,
            np.ascontiguousarray(right.T),
            input_scale=_single(a_scale, "a_scale"),
            weight_scale=np.ravel(b_scale),
            output_scale=_single(y_scale, "y_scale"),
            input_zero_point=_single(a_zero_point, "a_zero_point"),
            weight_zero_point=np.ravel(b_zero_point),
            output_zero_point=zero,
            dtype=kind,
            semantics="onnxruntime",
        )
    return matmul(
        a,
        right,
        a_scale=_single(a_scale, "a_scale"),
        b_scale=_single(b_scale, "b_scale"),
        output_scale=_single(y_scale, "y_scale"),
        a_zero_point=_single(a_zero_point, "a_zero_point"),
        b_zero_point=_single(b_zero_point, "b_zero_point"),
        output_zero_point=zero,
        dtype=kind,
        semantics="onnxruntime",
    )


def qlinear_conv(  # noqa: PLR0917 - the operator's own order
    x: np.ndarray,
    x_scale: Any,
    x_zero_point: Any,
    w: np.ndarray,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: np.ndarray | None = None,
    **geometry: Any,
) -> np.ndarray:
    """Return a quantized convolution of images: ONNX QLinearConv.

    Args:
        x: int8 or uint8 (batch, channels, height, width).
        x_scale: one number.
        x_zero_point: one number.
        w: int8 or uint8 (outputs, channels / group, rows, columns).
        w_scale: one number, or one per output.
        w_zero_point: of the same shape.
        y_scale: one number.
        y_zero_point: one number; its type is the output's.
        bias: int32 (outputs,), scale x_scale * w_scale.
        geometry: ``pads`` (top, left, bottom, right), ``strides``, ``dilations``, ``group``, ``auto_pad``.

    Raises:
        IntegerError: see ``workbench.integer.conv2d``.
    """
    return conv2d(
        x,
        w,
        bias,
        input_scale=_single(x_scale, "x_scale"),
        weight_scale=np.ravel(w_scale),
        output_scale=_single(y_scale, "y_scale"),
        input_zero_point=_single(x_zero_point, "x_zero_point"),
        weight_zero_point=np.ravel(w_zero_point),
        output_zero_point=_single(y_zero_point, "y_zero_point"),
        layout="NCHW",
        dtype=np.asarray(y_zero_point).dtype,
        semantics="onnxruntime",
        **_geometry(geometry),
    )


def matmul_integer(a: np.ndarray, b: np.ndarray, a_zero_point: Any = 0, b_zero_point: Any = 0) -> np.ndarray:
    """Return the int32 product of two integer matrices: ONNX MatMulInteger.

    Args:
        a: int8 or uint8 (rows, depth).
        b: int8 or uint8 (depth, columns).
        a_zero_point: one number.
        b_zero_point: one number, or one per column.

    Raises:
        IntegerError: see ``workbench.integer.accumulate``.
    """
    return accumulate(
        a,
        np.ascontiguousarray(np.asarray(b).T),
        input_zero_point=_single(a_zero_point, "a_zero_point"),
        weight_zero_point=np.ravel(b_zero_point),
    )


def conv_integer(
    x: np.ndarray, w: np.ndarray, x_zero_point: Any = 0, w_zero_point: Any = 0, **geometry: Any
) -> np.ndarray:
    """Return the int32 sums of a convolution of images: ONNX ConvInteger.

    Args:
        x: int8 or uint8 (batch, channels, height, width).
        w: int8 or uint8 (outputs, channels / group, rows, columns).
        x_zero_point: one number.
        w_zero_point: one number, or one per output.
        geometry: see ``qlinear_conv``.

    Raises:
        IntegerError: see ``workbench.integer.convolve``.
    """
    return convolve(
        x,
        w,
        input_zero_point=_single(x_zero_point, "x_zero_point"),
        weight_zero_point=np.ravel(w_zero_point),
        layout="NCHW",
        **_geometry(geometry),
    )


def _geometry(given: dict[str, Any]) -> dict[str, Any]:
    unknown = set(given) - {"pads", "strides", "dilations", "group", "auto_pad", "kernel_shape"}
    if unknown:
        message = f"a convolution of ONNX has no attribute {sorted(unknown)[0]!r}"
        raise IntegerError(message)
    auto = given.get("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto == "SAME_LOWER":
        message = "auto_pad SAME_LOWER (the odd cell above and to the left) is not supported: give pads"
        raise IntegerError(message)
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    padding = {"SAME_UPPER": "same", "VALID": "valid"}.get(auto, ((top, bottom), (left, right)))
    return {
        "padding": padding,
        "stride": tuple(given.get("strides", (1, 1))),
        "dilation": tuple(given.get("dilations", (1, 1))),
        "groups": int(given.get("group", 1)),
    }


def _single(value: Any, name: str) -> Any:
    array = np.asarray(value)
    if array.size != 1:
        message = f"{name} is one number, not {array.shape}"
        raise IntegerError(message)
    return array.reshape(()).item()


def _zeros(  # noqa: PLR0917
    zero_point: Any, scales: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int, element: str
) -> np.ndarray:
    if element not in INTEGERS and element not in FLOATS:
        message = f"an element type is {', '.join([*INTEGERS, *FLOATS])}, not {element!r}"
        raise IntegerError(message)
    zeros = np.asarray(zero_point)
    if zeros.dtype.kind not in "iu" or (zeros.size != 1 and zeros.shape != scales.shape):
        message = f"zero points are integers, as many as scales ({scales.shape}), not {zeros.dtype} {zeros.shape}"
        raise IntegerError(message)
    if element in FLOATS:
        if np.any(zeros):
            message = f"the zero point of {element} is 0"
            raise IntegerError(message)
        return np.zeros((), dtype=np.int64)
    low, high, _ = INTEGERS[element]
    if zeros.size and (int(zeros.min()) < low or int(zeros.max()) > high):
        message = f"a zero point of {element} lies between {low} and {high}"
        raise IntegerError(message)
    return _spread(zeros.astype(np.int64), shape, axis, block_size, "zero point")


def _spread(values: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int, name: str) -> np.ndarray:
    """Return one number per element's slice or block, in a shape that broadcasts with the tensor's."""
    if values.size == 1 and block_size == 0:
        return values.reshape(())
    if not -len(shape) <= axis < len(shape):
        message = f"a tensor of shape {shape} has no axis {axis}"
        raise IntegerError(message)
    axis %= len(shape)
    if block_size == 0:
        if values.shape != (shape[axis],):
            message = f"one {name}, or one per slice of axis {axis} ({shape[axis]}), not {values.shape}"
            raise IntegerError(message)
        return values.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    blocks = list(shape)
    blocks[axis] = -(-shape[axis] // block_size)
    if values.size == 1:
        return values.reshape(())
    if values.shape != tuple(blocks):
        message = f"blocks of {block_size} along axis {axis} of {shape} need {name}s of shape {tuple(blocks)}"
        raise IntegerError(message)
    return np.take(np.repeat(values, block_size, axis=axis), np.arange(shape[axis]), axis=axis)
