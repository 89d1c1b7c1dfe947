"""The browser's arithmetic against Python's: the same module under node, on the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.panels.live import families, transport
from workbench.quantization import kmeans, occupancy, sketch, sketch_error

MODULE = Path(transport.__file__).with_name("live.js")
NODE = shutil.which("node")
RUNNER = """
import { readFileSync } from "node:fs";
const [, , modulePath, dataPath, levelsPath, casesPath] = process.argv;
const source = readFileSync(modulePath);
const live = await import("data:text/javascript;base64," + source.toString("base64"));
const bytes = (path) => { const b = readFileSync(path); return b.buffer.slice(b.byteOffset, b.byteOffset + b.length); };
const sketch = live.openSketch(bytes(dataPath)), values = new Float64Array(bytes(levelsPath));
const { catalogue, cases } = JSON.parse(readFileSync(casesPath));
for (const e of Object.values(catalogue)) {
  e.levels = Array.from(values.subarray(e.start, e.middle));
  e.thresholds = Array.from(values.subarray(e.middle, e.stop));
}
const answers = cases.map(({ state, clip }) => {
  const grid = live.gridOf(state, catalogue), { error, bound, counts } = live.query(sketch, grid, clip);
  return { error, bound, counts: Array.from(counts), levels: grid.levels, thresholds: grid.thresholds };
});
const best = live.lowest((a) => live.query(sketch, live.gridOf({ family: "power", bits: 4, exponent: a, rounding: "power" }, {}), 1).error, 0.05, 2);
console.log(JSON.stringify({ answers, best }));
"""

pytestmark = pytest.mark.skipif(NODE is None, reason="node runs the browser's module outside a browser")


@pytest.fixture(scope="module")
def weight():
    generator = np.random.default_rng(7)
    weight = (0.02 * generator.standard_t(5, (192, 256))).astype(np.float32)
    weight[3] = 0.0  # an all-zero channel has no scale
    return weight


def states(normalization):
    """Every kind of grid that the browser draws for a sketch of this normalization, with its Python twin."""
    if normalization == "signed":
        return [({"family": "uniform", "bits": b, "range": "full"}, UniformGrid(b, "full")) for b in (2, 4, 8)]
    if normalization == "range":
        return [
            ({"family": "uniform", "bits": b, "range": "asymmetric"}, UniformGrid(b, "asymmetric")) for b in (2, 4, 8)
        ]
    found = [({"family": "uniform", "bits": b, "range": "narrow"}, UniformGrid(b)) for b in (2, 3, 4, 6, 8)]
    for bits in (2, 3, 4, 5, 8):
        for exponent in (0.2, 0.5, 0.55, 1.0, 1.6):
            for rounding in ("power", "nearest"):
                state = {"family": "power", "bits": bits, "exponent": exponent, "rounding": rounding}
                found.append((state, PowerGrid(bits, exponent, rounding)))
    found += [({"family": name, "bits": 4}, parse_grid(name)) for name in ("nf4", "e2m1", "e4m3")]
    found += [({"family": name, "bits": 5}, parse_grid(f"{name}:bits=5")) for name in ("log", "apot")]
    return found


def run(folder, data, catalogue, levels, cases):
    """Answer the cases with live.js under node."""
    for name, content in (("data", data), ("levels", levels)):
        (folder / name).write_bytes(content)
    (folder / "cases").write_text(json.dumps({"catalogue": catalogue, "cases": cases}))
    (folder / "run.mjs").write_text(RUNNER)
    paths = [folder / "run.mjs", MODULE, folder / "data", folder / "levels", folder / "cases"]
    done = subprocess.run([str(NODE), *map(str, paths)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("normalization", ["absmax", "signed", "range"])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:32"])
def test_errors_bounds_and_occupancy_are_pythons(weight, tmp_path, granularity, normalization):
    full = sketch(weight, granularity, normalization)
    data = transport.pack_sketch(full)
    seen = transport.unpack_sketch(data, full)
    grids = families.catalogue_grids()
    fitted = None
    asked = states(normalization)
    if normalization == "absmax":
        fitted = kmeans(full, 3)
        grids["k-means:3"] = fitted
        asked.append(({"family": "k-means", "bits": 3}, fitted))
    levels, catalogue = transport.pack_levels(grids)
    clips = (1.0, 0.83, 0.4)
    cases = [{"state": state, "clip": clip} for state, _ in asked for clip in clips]
    answers = run(tmp_path, data, catalogue, levels, cases)["answers"]
    twins = [(grid, clip) for _, grid in asked for clip in clips]
    for (grid, clip), answer in zip(twins, answers, strict=True):
        np.testing.assert_allclose(answer["levels"], grid.levels, rtol=1e-14, atol=0)
        np.testing.assert_allclose(answer["thresholds"], grid.thresholds, rtol=1e-13, atol=0)
        report = sketch_error(seen, grid, clip=clip)
        # Offsets of integer zero points are rounded by neither: the sums are the same all the same.
        assert answer["error"] == pytest.approx(report.mse * seen.count / seen.energy, rel=1e-9)
        if np.isfinite(report.bound):
            assert answer["bound"] == pytest.approx(report.bound, rel=1e-3, abs=2e-6)
        assert sum(answer["counts"]) == pytest.approx(seen.count)
        if normalization == "absmax":
            counts = occupancy(seen, grid, clip).counts
            np.testing.assert_allclose(answer["counts"], counts, atol=1e-6 * seen.count)


def test_the_browsers_bound_holds_against_all_weights(weight, tmp_path):
    from workbench.quantization import exact_error

    full = sketch(weight)
    levels, catalogue = transport.pack_levels({})
    asked = [(state, grid) for state, grid in states("absmax") if state["family"] in {"power", "uniform"}]
    cases = [{"state": state, "clip": 0.9} for state, _ in asked]
    answers = run(tmp_path, transport.pack_sketch(full, 512), catalogue, levels, cases)["answers"]
    for (_, grid), answer in zip(asked, answers, strict=True):
        exact = exact_error(weight, grid, clip=0.9).relative
        assert abs(answer["error"] - exact) <= answer["bound"] * exact


def test_the_best_exponent_is_never_worse_than_a_scan(weight, tmp_path):
    full = sketch(weight)
    data = transport.pack_sketch(full)
    seen = transport.unpack_sketch(data, full)
    best = run(tmp_path, data, {}, b"", [])["best"]
    scan = min(sketch_error(seen, PowerGrid(4, a)).relative for a in np.linspace(0.05, 2, 61).round(4))
    assert best["y"] <= scan * (1 + 1e-9)
    assert sketch_error(seen, PowerGrid(4, best["x"])).relative == pytest.approx(best["y"], rel=1e-9)


def test_the_module_is_small_and_stands_alone():
    text = MODULE.read_text(encoding="utf-8")
    assert len(MODULE.read_bytes()) < 20_000
    assert "import " not in text.replace("important", "")
    assert "http" not in text
