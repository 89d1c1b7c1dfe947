"""The benchmarks on methods run, at tiny sizes: cells survive, orders are judged rightly, yardsticks follow the formulas."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_cells_survive_and_errors_are_cells_too(tmp_path: Path):
    from methods_cells import Cells

    cells = Cells(tmp_path / "cells.json", {"steps": 3})
    assert cells.get("a", lambda: {"value": 1.0})["value"] == 1.0

    def fails():
        raise ValueError("no luck\nand more")

    assert cells.get("b", fails)["error"] == "ValueError: no luck"
    again = Cells(tmp_path / "cells.json", {"steps": 3})
    assert again.get("a", fails)["value"] == 1.0
    assert again.get("b", lambda: {"value": 2.0}).get("error")
    assert again.get("b", lambda: {"value": 2.0}, retry=True)["value"] == 2.0
    other = Cells(tmp_path / "cells.json", {"steps": 4})
    assert other.found == {}
    assert len(list(tmp_path.glob("cells.*.json"))) == 1  # the old figures are kept


def test_two_runs_share_a_file(tmp_path: Path):
    from methods_cells import Cells

    one, other = (Cells(tmp_path / "cells.json", {"steps": 3}) for _ in range(2))
    one.keep("a", {"value": 1.0})
    other.keep("b", {"value": 2.0})
    other.keep("a", {"value": 4.0})  # measured anew
    one.keep("c", {"value": 3.0})
    assert one.found["a"] == {"value": 4.0}
    assert set(Cells(tmp_path / "cells.json", {"steps": 3}).found) == {"a", "b", "c"} == set(one.found)


def cells_of(**losses: float) -> dict[str, dict]:
    whole = {f"gemma | W4 channel | {method} | 0": {"ratio": 1.0 + loss} for method, loss in losses.items()}
    alone = {f"alone | gemma | W4 | {method}": {"layers": {"a": loss, "b": loss}} for method, loss in losses.items()}
    return whole | alone


def test_orders_are_met_or_not():
    from methods_order import layer_loss, orders, value

    good = cells_of(rtn=0.4, hqq=0.3, gptq=0.2, adaround=0.15, brecq=0.14, autoround=0.13, nupes=0.1)
    assert math.isclose(layer_loss(good, "gemma", "W4", "gptq") or 0.0, 0.2)
    assert math.isclose(value(good, "gemma", "W4 channel", "gptq", "ratio") or 0.0, 1.2)
    lines = orders(good).splitlines()
    assert len(lines) == 4 and all(line.startswith("- met") for line in lines)
    worse = orders(good | cells_of(nupes=0.16)).splitlines()
    assert [line.startswith("- met") for line in worse] == [True, False, True, False]
    joint = {"joint | gemma | W4": {"ratios": {"a": 0.9, "b": 1.1}}}
    assert orders(joint).startswith("- NOT met") and "1 of 2 layers" in orders(joint)


def test_an_order_missed_within_the_noise_is_not_decided():
    from methods_order import noise, orders

    def seeded(nupes: float) -> dict[str, dict]:
        figures = {"rtn": (0.4,), "gptq": (0.2, 0.22, 0.18), "brecq": (0.1, 0.12, 0.08)}
        figures["nupes"] = (nupes - 0.02, nupes, nupes + 0.02)
        return {
            f"minilm | W4 channel | {method} | {seed}": {"distance": each}
            for method, several in figures.items()
            for seed, each in enumerate(several)
        }

    error = noise(seeded(0.1), "minilm", "W4 channel", "distance", ("gptq", "brecq", "nupes"))
    assert math.isclose(error, 0.02 * math.sqrt(2 / 3))
    assert noise(seeded(0.1), "minilm", "W4 channel", "distance", ("rtn",)) == 0.0
    verdicts = [orders(seeded(nupes)).splitlines()[1] for nupes in (0.1, 0.12, 0.2)]
    assert [line[:6] for line in verdicts] == ["- met:", "- not ", "- NOT "]
    assert "missed by 0.02, standard error of a difference 0.016" in verdicts[1]
    one = {"gemma | W8A8 | rtn | -": {"ratio": 1.002, "ratio_error": 0.001}}
    assert math.isclose(noise(one, "gemma", "W8A8", "ratio", ("rtn",)), 0.001)


def test_grids_are_of_equal_size_and_seeds_are_only_for_those_who_need_them():
    from methods import METHODS, Bench, Setting, estimate

    from workbench.quantization.recipe import weight_grid

    for bits in (4, 3):
        sizes = {len(weight_grid(Setting("", bits).grid(method))[0].levels) for method in METHODS if method != "hqq"}
        assert sizes == {2**bits - 1}
    assert len(weight_grid(Setting("", 2).grid("nupes"))[0].levels) == 4
    bench = Bench()
    every = list(bench.cells([0, 1, 2]))
    assert len({cell.key for cell in every}) == len(every)
    assert sum(cell.method == "rtn" for cell in every) == sum(cell.method == "gptq" for cell in every) / 3
    assert [cell.seed for cell in every][-1] == 2
    stored = {every[0].key: {"seconds": 1.0}}
    assert 0.0 < estimate(every, stored, 10) < estimate(every, {}, 10)
    assert estimate(every, {cell.key: {"seconds": 1.0} for cell in every}, 10) == 0.0


def test_words_choose_cells():
    from methods import Bench, _asked

    every = list(Bench().cells([0]))
    chosen = [cell for cell in every if _asked(cell, ["gemma", "resnet", "W4", "nupes", "rtn"])]
    assert {cell.key for cell in chosen} == {
        f"gemma | W4 {granularity} | {method} | {seed}"
        for granularity in ("channel", "group:128")
        for method, seed in (("nupes", "0"), ("rtn", "-"))
    }


def test_a_cell_of_the_resnet_is_quantized_judged_and_measured(tmp_path: Path):
    from methods import SETTINGS, Bench, Cell, table

    bench = Bench(steps=2, samples=4)
    cell = Cell("resnet", SETTINGS["resnet"][0], "adaround", 0)
    found = bench.run(cell)
    assert 10.0 < found["value"] <= 100.0 and found["images"] == 450
    assert 4.0 < found["bits_per_weight"] < 9.0
    assert 0.0 < found["divergence"] < 1000.0
    alone = bench.alone("resnet", 4, "rtn")["layers"]
    assert "blocks.0.conv1" in alone and all(0.0 < error < 1.0 for error in alone.values())
    made = table(bench, "resnet", {cell.key: found, "alone | resnet | W4 | rtn": {"layers": alone}})
    assert "output SQNR" in made
    assert f"{found['value']:.4g}" in made and "W4A4" in made


def test_the_plain_loops_follow_the_formulas_of_the_methods():
    import torch
    from methods_plain import Schedule, adaround_loop, gptq_loop, nelder_mead_exponent, nupes_loop

    from workbench.calibration.statistics import LayerStatistics
    from workbench.methods import LayerTask, parse_method
    from workbench.methods.gradient.variables import TEMPERATURES
    from workbench.quantization.search import search_exponent

    draw = np.random.default_rng(0)
    weight = draw.standard_normal((16, 24)).astype(np.float32)
    inputs = draw.standard_normal((200, 24)).astype(np.float32)
    scale = np.abs(weight).max(axis=1, keepdims=True)
    tensors = [torch.from_numpy(each) for each in (weight, scale, inputs)]
    statistics = LayerStatistics.from_inputs("layer", inputs)

    exponent, value, _ = nelder_mead_exponent([tensors[0]], 4)
    ours = search_exponent(weight, 4)
    assert ours.value <= value * (1.0 + 1e-3) and 0.2 < exponent < 1.2

    task = LayerTask.of(weight, "uniform:bits=4", statistics=statistics)
    assert statistics.gram is not None
    gram = torch.from_numpy(statistics.gram[0].astype(np.float32))
    plain = gptq_loop(tensors[0], tensors[1], 7, gram).numpy()
    found = parse_method("gptq").quantize_layer(task).quantized.dequantize()
    assert (np.abs(plain - found) < 1e-4).mean() > 0.98

    for word, loop in (
        ("adaround", lambda s: adaround_loop(tensors[0], tensors[1], 7, tensors[2], s)),
        ("nupes", lambda s: nupes_loop(tensors[0], tensors[1], 7, 0.7, tensors[2], s)),
    ):
        grid = "uniform:bits=4" if word == "adaround" else "power:bits=4,exponent=0.7"
        rate = 0.02 if word == "adaround" else 0.002
        task = LayerTask.of(weight, grid, statistics=statistics)
        method = parse_method(f"{word}:steps=200,start=task,ramp=0,optimizer=adam,decay=false,learning_rate={rate}")
        schedule = Schedule(
            200,
            rate,
            method.regularizer,
            scale_rate=method.scale_rate,
            exponent_rate=method.exponent_rate,
            temperature=(TEMPERATURES[0], method.temperature_end),
        )
        curve, trace = loop(schedule), method.quantize_layer(task).trace
        pairs = [(loss, curve[at - 1]) for at, loss in zip(trace.steps, trace.loss, strict=True) if 150 <= at < 200]
        # The first gradient is rounding noise, which Adam makes a full step of: the curves are the same but for that.
        assert np.median([abs(a - b) / b for a, b in pairs]) < 0.1, word


def test_a_peer_that_cannot_run_is_named_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import peers_worker

    job = {"peer": "hqq", "method": "", "scope": "layers", "bits": 4, "group": 8, "symmetric": True, "data_free": True}
    job |= {"steps": 1, "seed": 0, "threads": 1, "repeats": 1, "model": ""}
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    draw = np.random.default_rng(0)
    arrays = {"0.weight": draw.standard_normal((4, 8)), "0.inputs": draw.standard_normal((3, 8))}
    np.savez(tmp_path / "layers.npz", **{name: each.astype(np.float32) for name, each in arrays.items()})  # type: ignore[arg-type]

    def run(each) -> dict:
        monkeypatch.setitem(peers_worker.LAYERS, "hqq", each)
        (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
        peers_worker.main(tmp_path)
        return json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))

    def missing(*_):
        raise ImportError("No module named 'hqq'")

    assert run(missing)["error"] == "ImportError: No module named 'hqq'"
    result = run(lambda weight, inputs, job: weight.round())
    assert result["error"] is None and result["seconds"] >= 0.0 and "torch" in result["versions"]
    with np.load(tmp_path / "weights.npz") as stored:
        assert np.array_equal(stored["0"], np.round(arrays["0.weight"].astype(np.float32)))


def test_the_table_of_peers_shows_ratios_and_names_failures():
    from against_peers import CONTESTS, Ground, report

    assert len({contest.key for contest in CONTESTS}) == len(CONTESTS)
    good, bad = CONTESTS[0].key, CONTESTS[1].key
    cells = {
        f"{good} | layers | peer": {"errors": {"a": 0.2, "b": 0.1}, "seconds": 2.0, "versions": {"hqq": "1"}},
        f"{good} | layers | ours": {"errors": {"a": 0.1, "b": 0.05}, "seconds": 1.0},
        f"{bad} | layers | peer": {"error": "ImportError: no"},
        f"{bad} | layers | ours": {"errors": {"a": 0.1}, "seconds": 1.0},
    }
    text = report(cells)
    assert f"| {good} | hqq | 0.15 | 0.075 | 0.5 | 2 | 1 | 0.5 |" in text
    assert f"{bad} | layers | peer: ImportError: no" in text and "hqq 1" in text
    given = {"a": {"weight": np.eye(2, dtype=np.float32), "fresh": np.ones((3, 2), dtype=np.float32)}}
    errors = Ground().errors({"a": np.array([[1.0, 0.0], [0.0, 0.5]])}, given)
    assert errors == {"a": pytest.approx(0.125)}


def test_axes_are_weighed_against_the_noise_of_seeds():
    from status_quo import CHOICES, frame, weigh

    from workbench.methods import parse_method
    from workbench.quantization.recipe import weight_grid

    assert len({(choice.axis, choice.name) for choice in CHOICES}) == len(CHOICES)
    for choice in CHOICES:
        parse_method(f"{choice.method},steps=2")
        weight_grid(choice.grid)
    cells = {
        f"gemma | loss | {name} | {seed}": {"error": error * (1.0 + 0.01 * seed)}
        for name, error in (("mse", 0.1), ("lp", 0.2))
        for seed in range(3)
    }
    found = weigh(cells, "gemma", "loss")
    assert found is not None and found.matters and (found.best, found.worst) == ("mse", "lp")
    assert math.isclose(found.span, 2.0) and 1.005 < found.noise < 1.015
    assert weigh(cells, "gemma", "grid") is None
    table = frame(cells)
    assert len(table) == 6 and set(table.choice) == {"mse", "lp"}


def test_the_measured_tables_are_made_from_what_is_stored():
    import methods_page

    methods_page.main(["--check"])  # exits where docs/methods.md or the README's tables say anything else
    readme = methods_page.README.read_text(encoding="utf-8")
    assert methods_page.with_summary(readme) == readme
    with pytest.raises(SystemExit, match="lacks the lines"):
        methods_page.with_summary(readme.replace(methods_page.MARKS[1], ""))
