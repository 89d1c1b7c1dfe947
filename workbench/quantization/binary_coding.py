"""Binary coding: each group of weights as a bias and a few signed magnitudes, found for it (LUT-GEMM's format)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from workbench.errors import QuantizationError
from workbench.grids.binary_coding import BinaryCodingGrid
from workbench.grids.uniform import UniformGrid
from workbench.quantization.blocks import row_blocks, rows_of
from workbench.quantization.checks import as_grid
from workbench.quantization.granularity import Granularity, PerTensor, parse_granularity
from workbench.quantization.quantize import QuantizedTensor
from workbench.quantization.scale_formats import check_scale_format
from workbench.quantization.source import Matrix, as_matrix

if TYPE_CHECKING:
    import pandas as pd

    from workbench.kernels.lut_gemm import LutWeight

_FORMATS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class BinaryCodedTensor(QuantizedTensor):
    """A weight as planes of signs: ``w_hat = bias + sum_i (2 * bit i of the code - 1) * alphas[i]`` in each group.

    ``scale`` is the sum of a group's alphas, so that its levels fill [-1, 1] on the axis of a scalar grid, and
    ``offset`` is where zero lies there (``-bias / scale``; 0 where the scale is 0: such a group is its bias).

    >>> q = quantize_binary(np.array([[-3.0, -1.0, 1.0, 3.0]], dtype=np.float32), "bcq:bits=2,bias=false")
    >>> q.codes, q.alphas
    (array([[0, 1, 2, 3]], dtype=uint8), array([[[1., 2.]]], dtype=float32))
    >>> q
    BinaryCodedTensor('weight', 1x4, bcq:bits=2,bias=false, channel, 2 float32 scales, 18 bits per weight)
    """

    alphas: Float[np.ndarray, "rows groups bits"]
    """float32, at least 0, ascending in each group: bit i of a code adds or subtracts alphas[i]."""
    bias: Float[np.ndarray, "rows groups"]
    """float32; zeros where the grid has no bias."""

    @property
    def stored_scale(self) -> Float[np.ndarray, "rows groups bits"]:
        """The numbers a file would hold: the alphas."""
        return self.alphas

    def rows(self, start: int, stop: int) -> Float[np.ndarray, "rows columns"]:
        """Return the float32 weights that rows ``start`` to ``stop`` of the matrix view stand for."""
        from workbench.kernels.binary_coding import decode_groups

        alphas, bias = (rows_of(part, start, stop) for part in (self.alphas, self.bias))
        return decode_groups(self.codes[start:stop], self.group_size, alphas, bias)

    def steps(self, start: int, stop: int) -> Float[np.ndarray, "rows groups"]:
        """Return the widest gap between neighbouring levels in each group of rows ``start`` to ``stop``, float64."""
        from workbench.kernels.binary_coding import widest_gaps

        return widest_gaps(rows_of(self.alphas, start, stop).astype(np.float64))

    def packed(self) -> LutWeight:
        """Return the weight as the look-up kernels read it: keys of four signs, tile by tile (``kernels.lut_gemm``)."""
        from workbench.kernels.lut_gemm import pack

        rows = self.codes.shape[0]
        alphas, bias = self.alphas, self.bias
        if len(alphas) != rows:  # one set for the whole tensor
            alphas, bias = np.repeat(alphas, rows, axis=0), np.repeat(bias, rows, axis=0)
        return pack(self.codes, alphas, bias, self.group_size)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per group: its alphas, and its bias where the grid has one."""
        import pandas as pd

        rows, groups, bits = self.alphas.shape
        index = pd.MultiIndex.from_product([range(rows), range(groups)], names=["row", "group"])
        table = {f"alpha_{i}": self.alphas[..., i].ravel() for i in range(bits)}
        if self.grid.normalization == "range":
            table["bias"] = self.bias.ravel()
        return pd.DataFrame(table, index=index)

    def _repr_html_(self) -> str:
        return super()._repr_html_().replace("zero points</td>", "biases</td>")

    def _count_of_scales(self) -> int:
        return self.alphas.size


def quantize_binary(
    weight: Any,
    grid: BinaryCodingGrid | str = "bcq:bits=3",
    granularity: str | Granularity = "channel",
    *,
    importance: Any = None,
    scale_format: str | None = None,
) -> BinaryCodedTensor:
    """Fit a binary coding to each group of a weight: the smallest squared error that the grid's solver finds.

    Minimises sum_k f_k (w_k - bias - sum_i s_ik alpha_i)^2 over signs s, alphas and bias, in float64. Greedy and
    refined: Guo et al., Network Sketching, CVPR 2017 (arXiv 1706.02021), algorithms 1 and 2; alternating: Xu et al.,
    ICLR 2018 (arXiv 1802.00150), algorithm 2. Least squares is solved exactly, over sums by code. Alternation never
    raises the error, so that the result is at least as good as the uniform grid it also starts from.

    Args:
        weight: a ``Layer``, array or tensor, as ``quantize`` takes it.
        grid: bits, bias, solver and rounds, or a text form such as ``bcq:bits=3``.
        granularity: what shares alphas and bias: ``tensor``, ``channel``, ``group:128``.
        importance: weight f >= 0 of each squared error: one per input column (the diagonal of E[x x^T], say), or one
            per weight (rows, columns). None: all alike. A group without any counts all alike.
        scale_format: how alphas and biases are stored: ``float32``, ``float16`` or ``bfloat16``; alternating then takes
            the nearest sum again.

    Raises:
        QuantizationError: NaN or infinite weights, an importance of another shape or below 0, an unknown format, or
            alphas that it cannot hold.
        GridError: the grid's text form cannot be read, or it names no binary coding.
    """
    from workbench.kernels.binary_coding import fit_groups, nearest_codes

    chosen = as_grid(grid)
    if not isinstance(chosen, BinaryCodingGrid):
        message = f"a binary coding is written bcq:bits=3 (or BinaryCodingGrid(3)), not {chosen}"
        raise QuantizationError(message)
    granularity = parse_granularity(granularity)
    stored = _FORMATS[check_scale_format(scale_format, chosen)]
    matrix = as_matrix(weight)
    rows, columns = matrix.weights.shape
    mass = _importance(importance, rows, columns)
    whole = isinstance(granularity, PerTensor)
    size = rows * columns if whole else granularity.group_size(columns)
    codes = np.empty((rows, columns), dtype=np.uint8)
    groups = 1 if whole else -(-columns // size)
    alphas = np.empty((1 if whole else rows, groups, chosen.bits), dtype=np.float32)
    bias = np.empty(alphas.shape[:2], dtype=np.float32)
    for start, block in [(0, matrix.weights.rows(0, rows))] if whole else row_blocks(matrix.weights):
        stop = start + len(block)
        values = _finite(block, matrix)
        own = mass if mass is None or len(mass) == 1 else mass[start:stop]
        if whole:
            values = values.reshape(1, -1)
            own = None if own is None else np.broadcast_to(own, (rows, columns)).reshape(1, -1)
        found, fitted, offsets, _ = fit_groups(
            values, own, size, chosen.bits, bias=chosen.bias, solver=chosen.solver, rounds=chosen.rounds
        )
        fitted, offsets = _rounded(fitted, stored, matrix), _rounded(offsets, stored, matrix)
        if chosen.solver == "alternating" and stored != np.float32:
            found = nearest_codes(values, size, fitted.astype(np.float64), offsets.astype(np.float64))
        codes[start:stop] = found.reshape(block.shape)
        place = slice(0, 1) if whole else slice(start, stop)
        alphas[place], bias[place] = fitted, offsets
    return assemble_binary(codes, alphas, bias, chosen, granularity, matrix.shape, matrix.name, stored.name)


def from_uniform(quantized: QuantizedTensor) -> BinaryCodedTensor:
    """Return a uniformly quantized weight as a binary coding of the same bits, the same numbers up to float32 rounding.

    ``w = s * (u - z)`` with the bits u_i of u = 0 ... 2^q - 1 is ``sum_i alpha_i (2 u_i - 1) + bias`` with
    ``alpha_i = s * 2^(i-1)`` and ``bias = s * (2^q - 1) / 2 - s * z`` (LUT-GEMM, arXiv 2206.09557, section 3.2; as the
    authors' code has it). Grids around zero have z = the number of codes below 0.

    Args:
        quantized: on a ``UniformGrid`` of 1 to 8 bits of any range.

    Raises:
        QuantizationError: another grid, or more bits.
    """
    grid = quantized.grid
    if not isinstance(grid, UniformGrid) or grid.bits > 8:
        message = f"only uniform grids of 1 to 8 bits are sums of powers of two and a bias, not {grid}"
        raise QuantizationError(message)
    bits, count = grid.bits, grid.n
    step = quantized.scale.astype(np.float64) / count
    zero = np.rint(quantized.offset * count) if grid.range == "asymmetric" else np.full(step.shape, float(count))
    middle = (2**bits - 1) / 2.0
    raised = quantized.codes.astype(np.int64) - (0 if grid.range == "asymmetric" else -count)
    bias = step * (middle - zero)
    if grid.range == "full":  # the scale carries a sign, alphas have none: the codes count from the other end
        columns = quantized.codes.shape[1]
        sign = np.repeat(step < 0.0, quantized.group_size, axis=1)[:, :columns]
        raised = np.where(sign, 2**bits - 1 - raised, raised)
        step = np.abs(step)
    alphas = (step[..., None] * 2.0 ** (np.arange(bits) - 1)).astype(np.float32)
    target = BinaryCodingGrid(bits)
    return assemble_binary(
        raised.astype(np.uint8),
        alphas,
        bias.astype(np.float32),
        target,
        quantized.granularity,
        quantized.shape,
        quantized.name,
        "float32",
    )


def assemble_binary(  # noqa: PLR0917 - the fields, in their order
    codes: Int[np.ndarray, "rows columns"],
    alphas: Float[np.ndarray, "rows groups bits"],
    bias: Float[np.ndarray, "rows groups"],
    grid: BinaryCodingGrid,
    granularity: Granularity,
    shape: tuple[int, ...],
    name: str,
    scale_format: str,
) -> BinaryCodedTensor:
    """Put a tensor together from its parts: scale and offset follow from alphas and biases."""
    scale = alphas.sum(axis=-1, dtype=np.float64)
    offset = np.divide(-bias.astype(np.float64), scale, out=np.zeros_like(scale), where=scale > 0.0)
    return BinaryCodedTensor(
        codes=codes,
        scale=scale.astype(np.float32),
        offset=offset,
        grid=grid,
        granularity=granularity,
        shape=shape,
        name=name,
        scale_format=scale_format,
        alphas=alphas,
        bias=bias,
    )


def _finite(block: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Return a block in float32, or float64 where it is stored so; NaN and infinity are refused."""
    values = block if block.dtype == np.float64 else block.astype(np.float32)
    if not np.isfinite(values).all():
        stray = int(np.count_nonzero(~np.isfinite(values)))
        message = (
            f"{matrix.name} holds NaN or infinite weights ({stray:,} in one block); a binary coding needs finite ones"
        )
        raise QuantizationError(message)
    return np.ascontiguousarray(values)


def _rounded(values: np.ndarray, stored: np.dtype, matrix: Matrix) -> np.ndarray:
    """Pass numbers through the format that stores them; float32 again."""
    with np.errstate(over="ignore"):
        rounded = values.astype(stored).astype(np.float32)
    if not np.isfinite(rounded).all():
        message = (
            f"an alpha or bias of {matrix.name} ({np.abs(values).max():.4g}) overflows {stored.name}; "
            "store them as bfloat16 or float32"
        )
        raise QuantizationError(message)
    return rounded


def _importance(importance: Any, rows: int, columns: int) -> np.ndarray | None:
    if importance is None:
        return None
    if hasattr(importance, "detach"):
        importance = importance.detach().cpu().double().numpy()
    mass = np.atleast_2d(np.asarray(importance, dtype=np.float64))
    if mass.shape not in {(1, columns), (rows, columns)}:
        message = (
            f"one importance per column ({columns},) or per weight ({rows}, {columns}), not {np.shape(importance)}"
        )
        raise QuantizationError(message)
    if not (np.isfinite(mass).all() and (mass >= 0.0).all()):
        message = "importances are finite numbers, 0 or above"
        raise QuantizationError(message)
    return np.ascontiguousarray(mass)
