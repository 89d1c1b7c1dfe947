"""The whole workbench without a browser: it stands, it is lazy, it survives a broken panel, it leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from ipywidgets.widgets.widget import _instances

import workbench
from workbench.panels import Session, Workbench
from workbench.panels import workbench as module
from workbench.panels.panel import Panel


@pytest.fixture
def bench(checkpoint):
    made = Workbench(checkpoint)
    assert made.session.wait(300)
    yield made
    made.close()


def test_it_stands(bench):
    assert bench.session.message == ""
    assert bench.error_text == ""
    assert list(bench.panels()) == ["Grid", "Weights", "Layers"]
    assert all(panel.error_text == "" for panel in bench.panels().values())
    assert "small" in bench.bar.summary.value
    assert "Workbench" in repr(bench)


def test_tabs_are_built_when_first_shown(bench):
    for index, name in ((1, "Outliers"), (2, "Error")):
        assert name not in bench.panels()
        assert bench.tabs.children[index].children == ()
        bench.tabs.selected_index = index
        assert bench.session.wait(300)
        assert bench.panels()[name].error_text == ""
    built = bench.panels()["Outliers"]
    bench.tabs.selected_index = 1
    assert bench.panels()["Outliers"] is built


def test_a_panel_that_fails_leaves_its_reason_and_the_others(checkpoint, monkeypatch):
    def broken(_session):
        raise RuntimeError("no <figure> today")

    monkeypatch.setattr(module, "_weights_panel", broken)
    bench = Workbench(checkpoint)
    assert bench.session.wait(300)
    assert "no &lt;figure&gt; today" in bench.tabs.children[0].children[0].value
    assert "Grid" in bench.panels()
    bench.close()


def test_its_code_runs_and_gives_the_number(bench, capsys):
    bench.session.set_grid("power:bits=3,exponent=0.6")
    bench.session.clip = 0.8
    assert bench.session.wait(300)
    namespace = {}
    exec(bench.code(), namespace)
    assert namespace["report"].mse == bench.session.exact.mse
    for name, panel in {**bench.panels(), "Model": bench.bar}.items():
        exec(panel.code(), {})
        assert "open_model" in panel.code(), name
    capsys.readouterr()


def test_a_bad_source_is_one_sentence_and_the_workbench_stays():
    bench = Workbench("/no/such/folder")
    assert bench.session.wait(300)
    assert "/no/such/folder" in bench.bar.message.value
    assert bench.session.model is None
    assert bench.error_text == ""
    bench.close()


def test_the_bar_opens_what_is_typed(checkpoint):
    bench = Workbench()
    bench.bar.source.value = str(checkpoint)
    assert bench.session.model is None  # typing alone opens nothing
    bench.bar.source._handle_custom_msg({"event": "submit"}, [])
    assert bench.session.wait(300)
    assert bench.session.layer_name
    bench.bar.source.value = "/no/such/file.safetensors"
    bench.bar.open_button.click()
    assert bench.session.wait(300)
    assert "/no/such/file.safetensors" in bench.bar.message.value
    assert bench.session.layer_name
    bench.bar.source.value = str(checkpoint)
    bench.bar.open_button.click()
    assert bench.session.wait(300)
    assert bench.bar.message.value == ""
    bench.close()


def test_the_bar_shows_work_and_stops_it(bench):
    entered = threading.Event()

    def endless(job):
        job.announce()
        entered.set()
        for _ in iter(int, 1):
            job.progress(0.3)

    bench.session.worker.submit("sweep", endless, label="counting <sand>")
    assert entered.wait(30)
    assert bench.bar.working.layout.visibility == "visible"
    assert "counting &lt;sand&gt;" in bench.bar.status.value
    bench.bar.stop_button.click()
    assert bench.session.wait(300)
    assert bench.bar.stop_button.description == "Resume"
    bench.bar.stop_button.click()
    assert bench.session.wait(300)
    assert bench.bar.working.layout.visibility == "hidden"


def test_a_session_may_be_shared(session):
    bench = Workbench(session=session)
    bench.close()
    assert session.model is not None  # whoever made the session closes it


def test_close_leaves_nothing_behind(checkpoint):
    def once():
        bench = Workbench(checkpoint)
        assert bench.session.wait(300)
        for index in range(3):
            bench.tabs.selected_index = index
        bench._code_button.value = True
        assert bench.session.wait(300)
        model, alive = weakref.ref(bench.session.model), weakref.ref(bench)
        bench.close()
        return model, alive

    once()
    gc.collect()
    widgets, threads = len(_instances), threading.active_count()
    for _ in range(3):
        model, alive = once()
    gc.collect()
    assert model() is None
    assert alive() is None
    assert len(_instances) <= widgets
    assert threading.active_count() <= threads


def test_running_a_cell_again_closes_what_it_had_made(checkpoint, monkeypatch):
    runs = iter([("cell 1", "run 1"), ("cell 1", "run 1"), ("cell 2", "run 2"), ("cell 1", "run 3")])
    monkeypatch.setattr(module, "_running_cell", lambda: next(runs))
    first, beside, elsewhere = Workbench(), Workbench(), Workbench()
    assert not any(bench._is_closed for bench in (first, beside, elsewhere))  # two in one cell live together
    again = Workbench()
    assert first._is_closed
    assert beside._is_closed
    assert not elsewhere._is_closed
    for bench in (elsewhere, again):
        bench.close()
    assert not module._open_by_cell


def test_snapshot_has_the_panels(bench):
    snapshot = bench.snapshot()
    assert set(snapshot.numbers) == set(bench.panels())
    assert snapshot.png.startswith(b"\x89PNG")


def test_every_panel_stands_alone(session):
    from workbench import panels

    for name in ("GridPanel", "WeightsPanel", "OutliersPanel", "ErrorPanel", "LayersPanel"):
        panel = getattr(panels, name)(session)
        assert isinstance(panel, Panel)
        assert session.wait(300)
        assert panel.error_text == "", name
        assert panel.snapshot().png.startswith(b"\x89PNG")
        panel.close()


def test_it_imports_neither_torch_nor_transformers(fresh_python, checkpoint):
    program = f"""
import sys
from workbench import Workbench, open_model
bench = Workbench(open_model({str(checkpoint)!r}))
assert bench.session.wait(300)
print(sorted(name for name in ("torch", "transformers", "pandas") if name in sys.modules))
bench.close()
"""
    assert fresh_python(program).strip() == "[]"


def test_names_come_lazily():
    from workbench import panels

    assert {"Session", "Workbench", "GridPanel", "LayersPanel"} <= set(dir(panels))
    assert workbench.Session is Session
    with pytest.raises(AttributeError, match="no attribute"):
        _ = panels.NoSuchPanel
