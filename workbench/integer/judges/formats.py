"""Judges of number formats: ml_dtypes' casts, gguf's block formats, and the node cases of onnx."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from workbench.grids import FloatGrid, UniformGrid, parse_grid
from workbench.integer.judges.onnx_nodes import OPERATORS, node_cases, plain, run_case
from workbench.integer.judges.plan import Plan
from workbench.integer.judges.table import JudgeRow
from workbench.integer.judges.trials import Trial, compare, generator
from workbench.quantization import quantize

_CASTS = {
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
}
_TIES = "they stand halfway between two codes, where llama.cpp goes {}"


def ml_dtypes(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield casts from float32 to each small float format, and all codes back."""
    import ml_dtypes as package

    for name, type_name in _CASTS.items():
        grid, dtype = FloatGrid(int(name[1]), int(name[3])), getattr(package, type_name)
        if plan.wants("", f"cast {name}"):
            row = JudgeRow("ml_dtypes", version, "", f"cast {name}")
            rng = generator(plan.seed, name)
            yield compare(row, (_cast(rng, grid, dtype) for _ in range(plan.models)))
        if plan.wants("", f"decode {name}"):
            yield compare(JudgeRow("ml_dtypes", version, "", f"decode {name}"), [_decode(grid, dtype)])


def _cast(rng: np.random.Generator, grid: FloatGrid, dtype: type) -> Trial:
    # Every third number is random bits; the rest cover the format's own range, with exact halfway points.
    wild = rng.integers(0, 1 << 32, 2000, dtype=np.uint32).view(np.float32)
    near = (rng.standard_normal(2000) * grid.peak / 3).astype(np.float32)
    levels = grid.levels * grid.peak
    middle = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    values = np.concatenate([wild[np.isfinite(wild)], near, middle, np.nextafter(middle, np.float32(0))])

    def theirs() -> np.ndarray:
        cast = np.clip(values, -grid.peak, grid.peak).astype(dtype)
        # Zero has one code in the grid; the cast keeps the sign of what became zero.
        return np.where(cast.astype(np.float32) == 0, 0, cast.view(np.uint8)).astype(np.int32)

    return Trial(theirs, lambda semantics: grid.encode(values.astype(np.float64) / grid.peak).astype(np.int32))


def _decode(grid: FloatGrid, dtype: type) -> Trial:
    patterns = np.sort(grid.codes).astype(np.uint8)
    return Trial(
        lambda: patterns.view(dtype).astype(np.float64),
        lambda semantics: np.asarray(grid.decode(patterns) * grid.peak, dtype=np.float64),
    )


def gguf(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield scales, codes and decoded weights of llama.cpp's Q4_0, Q8_0 and MXFP4 blocks."""
    for kind, grid, ties in (
        ("Q4_0", UniformGrid(bits=4, range="full"), "up"),
        ("Q8_0", UniformGrid(bits=8, range="narrow"), "away from zero"),
    ):
        for part, promised in (("scales", True), ("decode", True), ("encode", False)):
            name = f"{kind} {part}"
            if not plan.wants("", name):
                continue
            row = JudgeRow("gguf", version, "", name, promised=promised)
            rng = generator(plan.seed, name)
            found = compare(row, (_block(rng, kind, grid, part) for _ in range(plan.models)))
            yield found if promised or not found.mismatches else found.noted(_TIES.format(ties))
    for part, promised in (("decode", True), ("encode", False)):
        name = f"MXFP4 {part}"
        if plan.wants("", name):
            row = JudgeRow("gguf", version, "", name, promised=promised)
            rng = generator(plan.seed, name)
            found = compare(row, (_microscaled(rng, part) for _ in range(plan.models)))
            yield found if promised or not found.mismatches else found.noted(_TIES.format("towards zero"))


def _weights(rng: np.random.Generator) -> np.ndarray:
    weights = rng.standard_t(5, (24, 256)) * np.exp2(rng.integers(-8, 4, (24, 1)))
    weights[0, :64] = 0.0
    return weights.astype(np.float32)


def _block(rng: np.random.Generator, kind: str, grid: UniformGrid, part: str) -> Trial:
    import gguf as package
    import ml_dtypes as dtypes

    qtype = getattr(package.GGMLQuantizationType, kind)
    weights = _weights(rng)
    if part == "encode":
        # Sixteen bits, as most checkpoints have them: many weights then stand exactly between two codes.
        weights = weights.astype(dtypes.bfloat16).astype(np.float32)
    packed = package.quants.quantize(weights, qtype)
    blocks = packed.reshape(-1, package.GGML_QUANT_SIZES[qtype][1])
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32).reshape(len(weights), -1)
    if kind == "Q4_0":
        codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - np.int8(8)
    else:
        codes = blocks[:, 2:].copy().view(np.int8)
    codes = codes.reshape(weights.shape)

    def ours(semantics: str) -> np.ndarray:
        del semantics
        found = quantize(weights, grid, "group:32", scale_format="float16")
        if part == "scales":
            return np.asarray(found.stored_scale)
        if part == "decode":
            # From llama.cpp's own scales and codes.
            return np.repeat(found.stored_scale, 32, axis=1).astype(np.float32) * codes.astype(np.float32)
        return quantize(weights, grid, "group:32").codes.astype(np.int8)

    given: dict[str, Callable[[], np.ndarray]] = {
        "scales": lambda: scales,
        "decode": lambda: package.quants.dequantize(packed, qtype),
        "encode": lambda: codes,
    }
    return Trial(given[part], ours)


def _microscaled(rng: np.random.Generator, part: str) -> Trial:
    import gguf as package

    qtype = package.GGMLQuantizationType.MXFP4
    weights = _weights(rng)
    if part == "encode":
        # Quarters under a scale of 1: halfway points among them.
        weights = (rng.integers(-24, 25, (16, 64)) / 4).astype(np.float32)
        weights[:, ::32] = 6.0
        return Trial(
            lambda: package.quants.dequantize(package.quants.quantize(weights, qtype), qtype),
            lambda semantics: np.asarray(quantize(weights, parse_grid("mxfp4"), "group:32").dequantize()),
        )
    packed = package.quants.quantize(weights, qtype)
    blocks = packed.reshape(-1, package.GGML_QUANT_SIZES[qtype][1])
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    grid = FloatGrid(2, 1)
    scales = np.exp2(blocks[:, :1].astype(np.float64) - 127)
    return Trial(
        lambda: package.quants.dequantize(packed, qtype),
        lambda semantics: (grid.decode(codes) * grid.peak * scales).astype(np.float32).reshape(weights.shape),
    )


def onnx_nodes(plan: Plan, version: str) -> Iterator[JudgeRow]:
    """Yield one row per quantization operator of ONNX: all of the package's own cases are promised to agree."""
    wanted = [name for name in OPERATORS if plan.wants("onnxruntime", name)]
    if not wanted:
        return
    cases = list(node_cases())
    for name in wanted:
        trials = []
        count = 0
        for case in cases:
            if case.operator != name:
                continue
            count += 1
            for place, output in enumerate(case.outputs):
                trials.append(
                    Trial(
                        lambda output=output: plain(output),
                        lambda semantics, case=case, place=place: run_case(case)[place],
                    )
                )
        found = compare(JudgeRow("onnx", version, "onnxruntime", name), trials)
        yield found if found.note else found.noted(f"{count} cases")
