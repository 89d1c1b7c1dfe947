"""The base of the panels: errors of callbacks are shown, code is shown, a picture stays, closing lets go."""

from __future__ import annotations

import base64
import gc
import io
import threading
import weakref

import ipywidgets as widgets
import pytest
from ipywidgets.widgets.widget import _instances
from PIL import Image

from workbench.errors import GridError
from workbench.panels import Panel, Session
from workbench.panels.panel import guarded


class Knob(Panel):
    """A panel with one slider that may fail."""

    title = "Knob <&>"

    def build(self):
        self.slider = widgets.FloatSlider(value=1.0, min=0.0, max=1.0)
        self.slider.observe(self.turn, "value")
        self.watch(self.follow, "clip")
        self.followed = []
        return (self.slider,)

    @guarded
    def turn(self, change):
        if change.new == 0.25:
            raise GridError("a quarter is not allowed; take a half")
        1 / change.new

    @guarded
    def follow(self, change):
        self.followed.append(change.new)

    def code(self):
        return f"clip = {self.session.clip!r}"


@pytest.fixture
def knob():
    panel = Knob(Session())
    yield panel
    panel.close()
    panel.session.close()


def test_the_error_line_shows_what_a_callback_raised_and_clears(knob):
    assert knob.error_text == ""
    knob.slider.value = 0.25
    assert "a quarter is not allowed; take a half" in knob.error_text
    assert "GridError" not in knob.error_text  # our own sentences need no class name
    assert 'role="alert"' in knob.error_text
    knob.slider.value = 0.5
    assert knob.error_text == ""
    knob.slider.value = 0.0
    assert "ZeroDivisionError" in knob.error_text


def test_another_callback_does_not_clear_it(knob):
    knob.slider.value = 0.25
    knob.session.clip = 0.5
    assert "quarter" in knob.error_text


def test_text_from_outside_is_escaped(knob):
    knob.show_error("<script>alert(1)</script>")
    assert "<script>" not in knob.error_text
    assert "<&>" not in knob._heading.value


def test_code_follows_the_session_while_shown(knob):
    view, button = knob._code_view, knob._code_button
    assert view.layout.display == "none"
    button.value = True
    assert view.layout.display is None
    assert view.code == "clip = 1.0"
    knob.session.clip = 0.5
    assert view.code == "clip = 0.5"
    button.value = False
    assert view.layout.display == "none"
    knob.session.clip = 0.75
    assert view.code == "clip = 0.5"  # nobody looks: nothing is made


def test_a_picture_lies_beside_the_widget(knob):
    data = knob._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert image.format == "PNG"
    assert image.width > 100
    assert len(set(image.convert("L").tobytes())) > 2  # there is writing on it


def test_a_panel_without_picture_still_shows(knob, monkeypatch):
    monkeypatch.setattr(knob, "snapshot", lambda: 1 // 0)
    data = knob._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "image/png" not in data
    assert "ZeroDivisionError" in knob.error_text


def test_snapshot_saves_picture_and_numbers(knob, tmp_path):
    snapshot = knob.snapshot()
    path = snapshot.save(tmp_path / "knob")
    assert path.read_bytes() == snapshot.png
    assert '"clip": 1.0' in path.with_suffix(".json").read_text()


def test_close_lets_go_of_session_and_widgets():
    session = Session()
    Knob(session).close()  # makes what all panels share
    before = set(_instances)
    panel = Knob(session)
    panel._code_button.value = True
    followed = panel.followed
    gone = weakref.ref(panel)
    panel.close()
    panel.close()
    session.clip = 0.5
    assert followed == []
    assert set(_instances) == before
    del panel
    gc.collect()
    assert gone() is None
    session.close()


def test_callbacks_from_other_threads_are_shown_too(knob):
    thread = threading.Thread(target=lambda: setattr(knob.slider, "value", 0.25))
    thread.start()
    thread.join()
    assert "quarter" in knob.error_text


def test_a_panel_without_session_makes_one():
    panel = Knob()
    assert isinstance(panel.session, Session)
    panel.close()
    panel.session.close()


def test_the_theme_is_one_for_the_session():
    from workbench.panels.theme import _watchers

    session = Session()
    first, second = Knob(session), Knob(session)
    watcher = _watchers[session]
    watcher.dark = True
    assert session.theme == "dark"
    watcher.dark = False
    assert session.theme == "light"
    first.close()
    second.close()
    session.close()
    assert watcher.comm is None
