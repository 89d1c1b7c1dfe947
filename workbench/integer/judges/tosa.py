"""Judge: the TOSA reference model, in the environment of its own that tosa-tools needs, under ``tosa-*``."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.convolution import conv2d, geometry
from workbench.integer.fixed_point import effective_scale, quantize_multiplier
from workbench.integer.judges.plan import Plan
from workbench.integer.judges.table import JudgeRow
from workbench.integer.judges.trials import Trial, codes, compare, generator, layer_scales, zero_point
from workbench.integer.linear import matmul
from workbench.integer.requantize import requantize

#: Names an interpreter that has tosa-tools, where no path is given.
VARIABLE = "WORKBENCH_TOSA_PYTHON"
_ROUNDING = {"tosa-single": 1, "tosa-double": 3}
_TYPES = {"int8": "INT8", "uint8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT48"}


@dataclass(frozen=True)
class _Job:
    tensors: dict[str, tuple[np.ndarray, bool]]
    """Values, and whether they are constants of the graph."""
    steps: list[dict[str, Any]]
    ours: Callable[[str], np.ndarray]


def interpreter(given: str | None) -> str | None:
    """Return the interpreter to use: the given one, or what ``WORKBENCH_TOSA_PYTHON`` names, or None."""
    chosen = given or os.environ.get(VARIABLE)
    # It is started in another folder. A link is left unresolved: that is how an environment's own interpreter is known.
    return str(Path(chosen).absolute()) if chosen and len(Path(chosen).parts) > 1 else chosen or None


def tosa(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield the rows of the TOSA reference model: RESCALE alone, and after MATMUL, CONV2D and DEPTHWISE_CONV2D; TABLE.

    Raises:
        IntegerError: the interpreter does not start, or has no tosa-tools.
    """
    del version
    rows, jobs = [], []
    for semantics in _ROUNDING:
        for operator, (draw, types) in _LAYERS.items():
            for dtype in types:
                name = f"{operator} {np.dtype(dtype).name}"
                wide = np.dtype(dtype).itemsize > 1
                if not plan.wants(semantics, name) or (wide and semantics == "tosa-double"):
                    continue  # RESCALE with 16-bit multipliers rounds once only
                rng = generator(plan.seed, name)
                drawn = [draw(rng, dtype, number, semantics) for number in range(plan.models)]
                rows.append((JudgeRow("tosa-tools", "", semantics, name), len(jobs), len(jobs) + len(drawn)))
                jobs += drawn
    if not jobs:
        return
    outputs, found = _run(str(plan.tosa_python), jobs)
    for row, start, stop in rows:
        trials = [Trial(lambda place=place: _taken(outputs[place]), jobs[place].ours) for place in range(start, stop)]
        yield compare(replace(row, version=found), trials)


def _taken(output: np.ndarray | str) -> np.ndarray:
    if isinstance(output, str):
        raise IntegerError(output)
    return output


def _run(python: str, jobs: list[_Job]) -> tuple[list[np.ndarray | str], str]:
    worker = Path(__file__).with_name("tosa_worker.py")
    with tempfile.TemporaryDirectory(prefix="workbench-tosa-") as name:
        folder = Path(name)
        described = []
        for number, job in enumerate(jobs):
            tensors = {}
            for key, (values, constant) in job.tensors.items():
                file = f"{number}-{key}.npy"
                np.save(folder / file, values)
                tensors[key] = {"file": file, "type": _TYPES[values.dtype.name], "constant": constant}
            described.append({"tensors": tensors, "steps": job.steps})
        (folder / "jobs.json").write_text(json.dumps(described), encoding="utf-8")
        try:
            # The folder is the only thing that the two environments share.
            subprocess.run([python, "-I", str(worker), name], check=True, capture_output=True, text=True, cwd=name)
        except OSError as error:
            message = f"the interpreter for tosa-tools does not start: {python} ({error.strerror})"
            raise IntegerError(message) from error
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            message = f"tosa-tools does not run in {python}: {last}"
            raise IntegerError(message) from error
        outputs = [
            np.load(file) if (file := folder / f"{number}.npy").exists() else (folder / f"{number}.txt").read_text()
            for number in range(len(jobs))
        ]
        return outputs, (folder / "version.txt").read_text()


def _rescale_step(shape: tuple[int, ...], dtype: Any, semantics: str, *, wide: bool, channels: bool) -> dict[str, Any]:
    return {
        "operator": "RESCALE",
        "kind": "RescaleAttribute",
        "attribute": [not wide, _ROUNDING[semantics], channels, False, False],
        "inputs": ["sums", "multiplier", "shift", "sums_zero", "out_zero"],
        "output": "y",
        "shape": list(shape),
        "type": _TYPES[np.dtype(dtype).name],
        "numpy": np.dtype(dtype).name,
        "last": True,
    }


def _factors(real: np.ndarray, semantics: str, zero: int, dtype: Any, *, wide: bool) -> dict[str, Any]:
    multiplier, shift = quantize_multiplier(real, semantics, accumulator_bits=48 if wide else 32)
    return {
        "multiplier": (np.atleast_1d(multiplier).astype(np.int16 if wide else np.int32), True),
        "shift": (np.atleast_1d(shift).astype(np.int8), True),
        "sums_zero": (np.zeros(1, dtype=np.int64 if wide else np.int32), True),
        "out_zero": (np.full(1, zero, dtype=dtype), True),
    }


def _rescale(rng: np.random.Generator, dtype: Any, number: int, semantics: str) -> _Job:
    wide = np.dtype(dtype) == np.int16
    channels = 40 if number % 2 else 1
    real = np.exp2(rng.uniform(-24, -8, channels)) if number % 4 > 1 else np.exp2(rng.integers(-20, -4, channels))
    top = (1 << 40) if wide else (1 << 28)
    # Small and large sums alike: their size is log-uniform.
    size = np.exp2(rng.uniform(0, np.log2(top), (50, 40)))
    sums = (size * rng.choice([-1, 1], (50, 40))).astype(np.int64 if wide else np.int32)
    # A result beyond 32 bits is an error to the specification.
    factors = _factors(real, semantics, zero_point(rng, dtype), dtype, wide=wide)
    limit = (2.0**31 - 2**16) / np.broadcast_to(real, (40,))
    sums = np.where(np.abs(sums) < limit, sums, sums % 1000).astype(sums.dtype)
    step = _rescale_step((50, 40), dtype, semantics, wide=wide, channels=channels > 1)
    zero = int(factors["out_zero"][0][0])

    def ours(named: str) -> np.ndarray:
        return requantize(sums, scale=real, zero_point=zero, dtype=dtype, semantics=named)

    # The reference model takes no 48-bit inputs from outside: there they are a constant.
    return _Job({"sums": (sums, wide), **factors}, [step], ours)


def _matmul(rng: np.random.Generator, dtype: Any, number: int, semantics: str) -> _Job:
    wide = np.dtype(dtype) == np.int16
    batch, rows, depth, columns = (int(rng.integers(1, top)) for top in (4, 20, 60, 20))
    a, b = codes(rng, (batch, rows, depth), dtype), codes(rng, (batch, depth, columns), dtype)
    first, second, last = layer_scales(rng, 1, depth, dtype, ties=number % 4 > 1)
    last = np.float32(last * np.iinfo(dtype).max / 127)
    zeros = [zero_point(rng, dtype) for _ in range(3)]
    real = effective_scale(first, second[0], last, semantics)
    step = {
        "operator": "MATMUL",
        "kind": "MatMulAttribute",
        "attribute": [],
        "inputs": ["a", "b", "a_zero", "b_zero"],
        "output": "sums",
        "shape": [batch, rows, columns],
        "type": "INT48" if wide else "INT32",
        "last": False,
    }
    tensors = {
        "a": (a, False),
        "b": (b, False),
        "a_zero": (np.full(1, zeros[0], dtype=dtype), True),
        "b_zero": (np.full(1, zeros[1], dtype=dtype), True),
        **_factors(real, semantics, zeros[2], dtype, wide=wide),
    }

    def ours(named: str) -> np.ndarray:
        return matmul(
            a,
            b,
            a_scale=first,
            b_scale=second[0],
            output_scale=last,
            a_zero_point=zeros[0],
            b_zero_point=zeros[1],
            output_zero_point=zeros[2],
            dtype=dtype,
            semantics=named,
        )

    last_step = _rescale_step((batch, rows, columns), dtype, semantics, wide=wide, channels=False)
    return _Job(tensors, [step, last_step], ours)


def _convolution(rng: np.random.Generator, dtype: Any, number: int, semantics: str, *, depthwise: bool = False) -> _Job:
    wide = np.dtype(dtype) == np.int16
    channels, times = int(rng.integers(1, 9)), int(rng.integers(1, 3))
    outputs = channels * times if depthwise else int(rng.integers(1, 13))
    window = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    stride, dilation = (1 + number % 2, 1 + number % 3), (1, 1 + number % 2)
    x = codes(rng, (1, *(int(each) for each in rng.integers(8, 12, 2)), channels), dtype)
    # The specification takes no remainder: what no window reaches is cut off the input.
    output, _ = geometry(x.shape[1:3], window, stride, 0, dilation)
    reach = [(n - 1) * s + (w - 1) * d + 1 for n, s, w, d in zip(output, stride, window, dilation, strict=True)]
    x = np.ascontiguousarray(x[:, : reach[0], : reach[1]])
    depth = window[0] * window[1] * (1 if depthwise else channels)
    shape = (outputs, *window, 1 if depthwise else channels)
    weight = codes(rng, shape, np.int8)
    bias = rng.integers(-5000, 5000, outputs).astype(np.int64 if wide else np.int32)
    scales = layer_scales(rng, outputs, depth, dtype, ties=number % 4 > 1)
    zeros = zero_point(rng, dtype), zero_point(rng, dtype)
    real = effective_scale(*scales, semantics)
    stored = weight
    if depthwise:
        # Height, width, channels, multiplier.
        stored = np.ascontiguousarray(np.moveaxis(weight[..., 0], 0, 2).reshape(*window, channels, times))
    name = "DepthwiseConv2dAttribute" if depthwise else "Conv2dAttribute"
    step = {
        "operator": "DEPTHWISE_CONV2D" if depthwise else "CONV2D",
        "kind": name,
        "attribute": [[0, 0, 0, 0], list(stride), list(dilation), False, "@INT48" if wide else "@INT32"],
        "inputs": ["x", "w", "bias", "x_zero", "w_zero"],
        "output": "sums",
        "shape": [1, *output, outputs],
        "type": "INT48" if wide else "INT32",
        "last": False,
    }
    tensors = {
        "x": (x, False),
        "w": (stored, True),
        "bias": (bias, True),
        "x_zero": (np.full(1, zeros[0], dtype=dtype), True),
        "w_zero": (np.zeros(1, dtype=np.int8), True),
        **_factors(real, semantics, zeros[1], dtype, wide=wide),
    }

    def ours(named: str) -> np.ndarray:
        return conv2d(
            x,
            weight,
            bias,
            input_scale=scales[0],
            weight_scale=scales[1],
            output_scale=scales[2],
            input_zero_point=zeros[0],
            output_zero_point=zeros[1],
            stride=stride,
            dilation=dilation,
            groups=channels if depthwise else 1,
            dtype=dtype,
            semantics=named,
        )

    last_step = _rescale_step((1, *output, outputs), dtype, semantics, wide=wide, channels=outputs > 1)
    return _Job(tensors, [step, last_step], ours)


def _depthwise(rng: np.random.Generator, dtype: Any, number: int, semantics: str) -> _Job:
    return _convolution(rng, dtype, number, semantics, depthwise=True)


def _table(rng: np.random.Generator, dtype: Any, number: int, semantics: str) -> _Job:
    del number, semantics
    from workbench.integer.activations import logistic

    x, scale, zero = codes(rng, (3, 500), dtype), float(np.float32(rng.uniform(0.01, 0.1))), zero_point(rng, dtype)
    entries = logistic(
        np.arange(-128, 128).astype(dtype), input_scale=scale, input_zero_point=zero, kind="table", semantics="tosa"
    )
    step = {
        "operator": "TABLE",
        "kind": "TableAttribute",
        "attribute": [],
        "inputs": ["x", "table"],
        "output": "y",
        "shape": [3, 500],
        "type": "INT8",
        "numpy": "int8",
        "last": True,
    }

    def ours(named: str) -> np.ndarray:
        return logistic(x, input_scale=scale, input_zero_point=zero, kind="table", semantics=named)

    return _Job({"x": (x, False), "table": (entries, True)}, [step], ours)


_LAYERS: dict[str, tuple[Callable[[np.random.Generator, Any, int, str], _Job], tuple[type, ...]]] = {
    "requantize": (_rescale, (np.int8, np.int16)),
    "matmul": (_matmul, (np.int8, np.int16)),
    "conv2d": (_convolution, (np.int8, np.int16)),
    "depthwise conv2d": (_depthwise, (np.int8, np.int16)),
    "table": (_table, (np.int8,)),
}
