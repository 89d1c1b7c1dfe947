"""The session: what follows from what, from any thread; nonsense becomes a message; nothing is left behind."""

from __future__ import annotations

import gc
import json
import threading
import weakref

import ml_dtypes
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import workbench
from workbench.grids import PowerGrid, UniformGrid
from workbench.panels import Session
from workbench.panels.session import FIRST_GRID

UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"


def oracle_mse(layer, grid, clip=1.0):
    """Mean squared error per output channel with absmax scales, in plain float64 numpy."""
    weight = np.asarray(layer.weight).astype(np.float64)
    scale = np.float32(clip * np.abs(weight).max(axis=1, keepdims=True)).astype(np.float64)
    decoded = np.float32(scale * grid.levels[np.searchsorted(grid.thresholds, weight / scale, side="right")])
    return float(np.mean((weight - decoded) ** 2))


def test_it_opens_on_a_layer_with_its_errors(session, checkpoint):
    assert session.model.source == str(checkpoint)
    assert session.layer_name == UP
    assert session.layer is session.model[UP]
    assert session.message == ""
    assert not session.exact.approximate
    assert session.exact.mse == pytest.approx(oracle_mse(session.layer, session.grid), rel=1e-9)
    assert session.report.approximate
    assert abs(session.report.mse / session.exact.mse - 1) <= session.report.bound + 1e-12
    assert len(session.exact.per_channel) == 64


def test_it_starts_empty_and_says_so():
    with_nothing = Session()
    assert with_nothing.model is None
    assert with_nothing.layer_name == ""
    assert str(with_nothing.grid) == str(workbench.parse_grid(FIRST_GRID))
    with_nothing.best_exponent()
    assert "open a model" in with_nothing.message
    with_nothing.select("anything")
    assert "no model is open" in with_nothing.message
    with_nothing.close()


def test_a_change_brings_the_approximate_number_at_once_and_the_exact_one_later(session):
    seen = []
    session.observe(lambda change: seen.append((change.name, change.new)), ["report", "exact"])
    session.set_grid("uniform:bits=3")
    assert seen[0] == ("exact", None)  # an old exact number never stands beside a new grid
    assert seen[1][0] == "report"
    assert session.report.approximate
    assert session.exact is None or session.exact.mse == pytest.approx(
        oracle_mse(session.layer, session.grid), rel=1e-9
    )
    assert session.wait(300)
    assert session.exact.mse == pytest.approx(oracle_mse(session.layer, UniformGrid(bits=3)), rel=1e-9)
    assert abs(session.report.mse / session.exact.mse - 1) <= session.report.bound + 1e-12


def test_clip_and_layer_change_the_numbers(session):
    session.clip = 0.7
    session.select(DOWN)
    assert session.wait(300)
    assert session.exact.mse == pytest.approx(oracle_mse(session.model[DOWN], session.grid, clip=0.7), rel=1e-9)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
def test_sketch_and_exact_pass_agree_at_every_granularity(session, granularity):
    session.granularity = granularity
    assert session.wait(300)
    assert session.sketch.granularity == granularity
    assert abs(session.report.mse / session.exact.mse - 1) <= session.report.bound + 1e-9


@pytest.mark.parametrize(
    "grid", ["uniform:bits=4,range=full", "uniform:bits=4,range=asymmetric", "nf4", "mxfp4", "nvfp4"]
)
def test_other_grids_are_measured_too(session, grid):
    session.set_grid(grid)
    assert session.wait(300)
    assert session.message == ""
    assert not session.exact.approximate
    if session.report is not None and np.isfinite(session.report.bound):
        assert abs(session.report.mse / session.exact.mse - 1) <= session.report.bound + 1e-9
    assert set(session.layer_errors) == set(session.measured_layers())


def test_block_formats_bring_their_group_size(session):
    session.set_grid("mxfp4")
    assert session.granularity == "group:32"
    session.set_grid("nvfp4")
    assert session.granularity == "group:16"


@pytest.mark.parametrize("rule", ["percentile:99", "mse"])
def test_other_scale_rules_are_measured_by_the_exact_pass(session, rule):
    session.scale_rule = rule
    assert session.wait(300)
    expected = workbench.exact_error(session.layer, session.grid, granularity="channel", scale=rule)
    assert session.exact.mse == pytest.approx(expected.mse, rel=1e-12)
    assert set(session.layer_errors) == set(session.measured_layers())
    if rule == "mse":  # a clip of each group's own beats one that all share
        assert session.exact.mse < session.report.mse
    else:
        assert session.report is None


def test_the_tree_is_measured_in_the_background(session):
    names = session.measured_layers()
    assert "model.norm" not in names
    assert len(names) == 5
    assert set(session.layer_errors) == set(session.layer_statistics) == set(names)
    for name in names:
        report = session.layer_errors[name]
        assert report.mse == pytest.approx(oracle_mse(session.model[name], session.grid), rel=report.bound + 1e-9)
    before = session.layer_errors
    session.set_grid("uniform:bits=8")
    assert session.wait(300)
    assert set(session.layer_errors) == set(names)
    assert all(session.layer_errors[name].mse < before[name].mse for name in names)


def test_a_damaged_layer_does_not_stop_the_others(tmp_path):
    good = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    bad = good.copy()
    bad[3, 3] = np.nan
    save_file({"a.weight": good, "b.weight": bad, "c.weight": good}, tmp_path / "m.safetensors")
    session = Session(tmp_path / "m.safetensors")
    assert session.wait(300)
    assert set(session.layer_errors) == {"a", "c"}
    assert set(session.layer_failures) == {"b"}
    assert "b" in session.layer_failures["b"]
    session.select("b")
    assert session.wait(300)
    assert session.exact is None
    assert session.message
    session.close()


def test_cancel_keeps_what_is_done_and_resume_measures_the_rest(checkpoint):
    session = Session()
    stopped = threading.Event()

    def stop_early(change):
        if change.new and not stopped.is_set():
            stopped.set()
            session.cancel()

    session.observe(stop_early, "layer_statistics")
    session.open(checkpoint)
    session.observe(lambda change: None, "layer_errors")
    assert session.wait(300)
    if stopped.is_set() and session.paused:
        done = dict(session.layer_errors)
        session.resume()
        assert session.wait(300)
        assert all(session.layer_errors[name] is report for name, report in done.items())
    assert not session.paused
    assert set(session.layer_errors) == set(session.measured_layers())
    assert session.exact is not None
    session.close()


def test_cancel_before_anything_ran_leaves_everything_to_resume(session):
    session.worker.submit("blocker", lambda job: [job.progress(0.0) for _ in iter(int, 1)], priority=0)
    session.set_grid("uniform:bits=5")
    session.cancel()
    assert session.wait(300)
    assert session.paused
    assert session.busy == ""
    assert session.exact is None
    session.resume()
    assert session.wait(300)
    assert session.exact is not None
    assert set(session.layer_errors) == set(session.measured_layers())


NONSENSE = {
    "layer_name": ["no.such.layer", 7, ["a"]],
    "compared": ["model.layers.0.mlp.up_proj", ["no.such.layer"], 3],
    "grid": ["power:bits=99", "", "gibberish", 4, None, "power:bits=4,exponent=-1"],
    "granularity": ["rows", "group:0", "group:x", None, 3],
    "scale_rule": ["best", "percentile:200", "percentile:", None],
    "clip": [0.0, -1, 1.5, float("nan"), "much", None, True, 1e300],
    "channel": [-2, 64, 1.5, "one", None, True],
    "theme": ["blue", None],
}


@pytest.mark.parametrize(("trait", "value"), [(trait, value) for trait, values in NONSENSE.items() for value in values])
def test_nonsense_changes_nothing_and_leaves_a_message(session, trait, value):
    session.message = ""
    before = session.to_spec()
    setattr(session, trait, value)
    assert session.to_spec() == before
    assert session.message
    assert "\n" not in session.message
    session.set_grid("uniform:bits=6")
    assert session.message == ""  # the next thing that works takes it away


@given(
    st.one_of(st.text(max_size=30), st.floats(), st.integers(), st.none(), st.binary(max_size=8), st.lists(st.text()))
)
def test_no_setter_ever_raises(value):
    session = Session()
    for trait in NONSENSE:
        setattr(session, trait, value)
    session.set_grid(value)
    session.select(value)
    session.from_spec(value)
    session.from_spec({"grid": value, "layer": value, "clip": value})
    assert 0.05 <= session.clip <= 1.0
    session.close()


@pytest.mark.parametrize("source", ["", "  ", 7, None, "/no/such/model.safetensors"])
def test_what_cannot_be_opened_leaves_the_model_and_says_why(session, source):
    model = session.model
    session.open(source)
    assert session.wait(300)
    assert session.model is model
    assert session.message
    assert "Traceback" not in session.message


def test_the_worker_reports_what_fails(session):
    session.background("bad", lambda job: 1 // 0, lambda result: None)
    assert session.wait(300)
    assert "ZeroDivisionError" in session.message


def test_background_shows_the_latest_result_only(session):
    gate, shown = threading.Event(), []

    def slow(job):
        gate.wait(10)
        return "old"

    session.background("answer", slow, shown.append)
    session.background("answer", lambda job: "new", shown.append)
    gate.set()
    assert session.wait(300)
    assert shown == ["new"]


def test_best_exponent_and_best_clip_are_taken(session):
    before = session.exact.mse
    session.best_exponent()
    assert session.wait(300)
    assert isinstance(session.grid, PowerGrid)
    assert session.exact.mse <= before * (1 + 1e-6)
    middle = session.exact.mse
    session.best_clip()
    assert session.wait(300)
    assert session.clip < 1.0
    assert session.exact.mse <= middle * (1 + 1e-6)


def test_best_exponent_of_a_uniform_grid_makes_it_a_power_grid(session):
    session.set_grid("uniform:bits=5")
    session.best_exponent()
    assert session.wait(300)
    assert isinstance(session.grid, PowerGrid)
    assert session.grid.bits == 5


def test_spec_round_trip_through_json(session, checkpoint):
    session.select(DOWN)
    session.compared = [UP]
    session.set_grid("power:bits=3,exponent=0.4")
    session.granularity = "group:16"
    session.scale_rule = "mse"
    session.clip = 0.9
    session.channel = 5
    text = json.dumps(session.to_spec())
    other = Session().from_spec(json.loads(text))
    assert other.wait(300)
    assert json.dumps(other.to_spec()) == text
    assert other.message == ""
    assert other.exact.mse == pytest.approx(session.exact.mse if session.exact else other.exact.mse)
    other.close()


@pytest.mark.parametrize("spec", [{"colour": 1}, {"version": 2}, [], "x", {"grid": "nonsense"}, {"clip": 7}])
def test_a_bad_spec_changes_nothing(session, spec):
    before = session.to_spec()
    session.from_spec(spec)
    assert session.to_spec() == before
    assert session.message


def test_a_module_has_no_address(tmp_path):
    torch = pytest.importorskip("torch")
    session = Session(torch.nn.Sequential(torch.nn.Linear(8, 4)))
    assert session.wait(300)
    assert session.layer.shape == (4, 8)
    assert session.to_spec()["source"] is None
    session.close()


def test_opening_another_model_closes_the_one_before(session, tmp_path):
    save_file({"other.weight": np.ones((4, 4), dtype=np.float32)}, tmp_path / "other.safetensors")
    before = session.model
    session.open(tmp_path / "other.safetensors")
    assert session.wait(300)
    assert session.layer_name == "other"
    assert set(session.layer_errors) == {"other"}
    with pytest.raises(workbench.WorkbenchError):
        np.asarray(before[UP].weight)


def test_close_frees_model_and_thread(checkpoint):
    session = Session(checkpoint)
    assert session.wait(300)
    model, thread = weakref.ref(session.model), session.worker.thread
    session.close()
    gc.collect()
    assert model() is None
    assert thread is None or not thread.is_alive()
    session.set_grid("uniform:bits=4")  # a late callback does no harm
    session.open(checkpoint)
    session.close()


def test_a_forgotten_session_ends_its_thread(checkpoint):
    session = Session(checkpoint)
    assert session.wait(300)
    thread, alive = session.worker.thread, weakref.ref(session)
    del session
    gc.collect()
    assert alive() is None
    if thread is not None:
        thread.join(30)
        assert not thread.is_alive()


def test_open_and_close_again_and_again_grows_nothing(checkpoint):
    def once():
        session = Session(checkpoint)
        assert session.wait(300)
        session.close()

    for _ in range(3):
        once()
    gc.collect()
    process = psutil.Process()
    threads, files = threading.active_count(), process.num_fds()
    kept = sum(type(thing) is Session for thing in gc.get_objects())
    for _ in range(5):
        once()
    gc.collect()
    assert threading.active_count() <= threads
    assert process.num_fds() <= files
    assert sum(type(thing) is Session for thing in gc.get_objects()) <= kept


def test_many_threads_may_turn_the_knobs_at_once(session):
    problems = []

    def turn(seed):
        generator = np.random.default_rng(seed)
        try:
            for _ in range(25):
                session.set_grid(
                    PowerGrid(bits=int(generator.integers(2, 9)), exponent=float(generator.uniform(0.2, 1.5)))
                )
                session.clip = float(generator.uniform(0.3, 1.0))
                session.select(generator.choice([UP, DOWN]))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=turn, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert session.wait(300)
    assert session.message == ""
    assert session.exact.mse == pytest.approx(oracle_mse(session.layer, session.grid, session.clip), rel=1e-9)
    assert abs(session.report.mse / session.exact.mse - 1) <= session.report.bound + 1e-9
    errors = session.layer_errors
    assert errors[session.layer_name].mse == pytest.approx(session.report.mse, rel=1e-12)


def test_sketches_in_memory_stay_within_their_bound(session):
    from workbench.panels.state import SketchShelf

    class Big:
        nbytes = 100

    shelf = SketchShelf(max_bytes=250)
    for name in "abcd":
        shelf.put((name,), Big())
    assert shelf.nbytes == 200
    assert shelf.get(("a",)) is None
    assert shelf.get(("c",)) is not None
    shelf.put(("e",), Big())
    assert shelf.get(("d",)) is None  # c was used later
    assert shelf.get(("c",)) is not None


def test_it_needs_neither_torch_nor_widgets(fresh_python, checkpoint):
    program = f"""
import sys
from workbench import Session
session = Session({str(checkpoint)!r})
assert session.wait(300)
assert session.exact is not None, session.message
print(sorted(name for name in ("torch", "transformers", "plotly", "ipywidgets") if name in sys.modules))
session.close()
"""
    assert fresh_python(program).strip() == "[]"


def test_bfloat16_codes_stay_on_disk_until_asked(session):
    assert session.layer.weight.dtype == np.dtype(ml_dtypes.bfloat16)


def test_a_grid_without_fixed_levels_is_refused_with_a_sentence(session):
    before = session.grid
    session.set_grid("bcq:bits=3")
    assert session.grid == before
    assert "no levels of its own" in session.message
