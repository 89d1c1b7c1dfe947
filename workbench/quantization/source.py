"""Everything that holds weights, seen as one matrix of rows: a layer, a numpy array, a torch tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from workbench.checkpoints.layer import Layer, Weights
from workbench.errors import QuantizationError

if TYPE_CHECKING:
    import torch

#: Stored types whose values are weights as they stand. Wider ones (longdouble) would not survive float64 sums.
FLOAT_DTYPES = frozenset(
    np.dtype(kind)
    for kind in (
        np.float16,
        np.float32,
        np.float64,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
    )
)


class Matrix(NamedTuple):
    """A weight as a matrix view, with the shape to restore and the name to speak of it by."""

    weights: Weights
    """Rows of the matrix view (rows, columns) = (out, in * kernel height * kernel width), read by slices."""
    shape: tuple[int, ...]
    """Shape of the tensor itself."""
    name: str
    """The layer's dotted name, or ``weight`` for an array without one."""


class ArrayWeights(Weights):
    """The matrix view of an array in memory: axis 0 is the rows, the rest is flattened; a 1-D array is one row.

    >>> ArrayWeights(np.zeros((8, 3, 5, 5), dtype=np.float32)).shape
    (8, 75)
    >>> ArrayWeights(np.zeros(8, dtype=np.float16)).shape
    (1, 8)
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array.reshape(1, -1) if array.ndim < 2 else array
        rows = self._array.shape[0]
        self.shape = (rows, self._array.size // rows if rows else 0)
        self.dtype = array.dtype.newbyteorder("=")

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``, C-contiguous, in the stored dtype."""
        part = self._array[start:stop].reshape(-1, self.shape[1])
        return np.ascontiguousarray(part.astype(self.dtype, copy=False))


def as_matrix(weight: Any) -> Matrix:
    """See a weight as a matrix of rows, without reading or copying it.

    Args:
        weight: a ``Layer``, a ``Weights`` view, a torch tensor (bf16 and float8 without a copy), or anything that
            ``numpy.asarray`` turns into a floating-point array. float64 weights are read as they are: scales are
            float32 all the same, and errors are summed in float64.

    Returns:
        The matrix view, the tensor's own shape, and its name.

    Raises:
        QuantizationError: the weight is empty, not floating point, or not an array of numbers.

    >>> as_matrix(np.ones((4, 3, 3, 3), dtype=np.float32)).weights.shape
    (4, 27)
    """
    if isinstance(weight, Layer):
        matrix = Matrix(weight.weight, tuple(weight.shape), weight.name)
    elif isinstance(weight, Weights):
        matrix = Matrix(weight, tuple(weight.shape), "weight")
    else:
        array = _array_of(weight)
        matrix = Matrix(ArrayWeights(array), tuple(array.shape), "weight")
    if 0 in matrix.shape or 0 in matrix.weights.shape:
        message = f"{matrix.name} is empty (shape {matrix.shape}); a weight to quantize holds at least one number"
        raise QuantizationError(message)
    return matrix


def _array_of(weight: Any) -> np.ndarray:
    """Return the numpy array that holds a tensor's or an array's own memory."""
    if type(weight).__module__.partition(".")[0] == "torch" or _is_torch_tensor(weight):
        return _array_of_torch(weight)
    try:
        array = np.asarray(weight)
    except (TypeError, ValueError) as error:
        message = f"a weight is a layer, a numpy array or a torch tensor, not a {type(weight).__name__} ({error})"
        raise QuantizationError(message) from None
    if array.dtype.newbyteorder("=") not in FLOAT_DTYPES:
        message = (
            f"weights are floating-point numbers (float16, bfloat16, float32 or float64), "
            f"not {type(weight).__name__ if array.dtype == object else array.dtype}"
        )
        raise QuantizationError(message)
    return array


def _is_torch_tensor(weight: Any) -> bool:
    """Say whether this is a torch tensor (or a subclass such as ``Parameter``) without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(weight).__mro__)


def _array_of_torch(tensor: torch.Tensor) -> np.ndarray:
    """Return a torch tensor's memory as a numpy array; bf16 and float8 pass through integers of their width."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        message = f"a weight is a layer, a numpy array or a torch tensor, not a {type(tensor).__name__}"
        raise QuantizationError(message)
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        message = f"a {kind} torch tensor holds no plain weights; pass a dense floating-point tensor"
        raise QuantizationError(message)
    tensor = tensor.detach().cpu()
    through = {
        torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e4m3fnuz: (torch.uint8, ml_dtypes.float8_e4m3fnuz),
        torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
        torch.float8_e5m2fnuz: (torch.uint8, ml_dtypes.float8_e5m2fnuz),
    }
    if tensor.dtype in through:
        width, kind = through[tensor.dtype]
        return tensor.view(width).numpy().view(kind)
    if tensor.dtype not in {torch.float16, torch.float32, torch.float64}:
        message = f"weights are floating-point numbers (float16, bfloat16, float32 or float64), not {tensor.dtype}"
        raise QuantizationError(message)
    return tensor.numpy()
