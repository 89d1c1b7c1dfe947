"""The top bar: which model is open, what is being done, and what went wrong."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, ClassVar

import ipywidgets as widgets

from workbench.checkpoints.tree import short_count
from workbench.panels.code import model_line
from workbench.panels.panel import BUTTON_LAYOUT, Panel, guarded


class OpenBar(Panel):
    """Type a source and open it; progress with a way to stop it; one line for messages."""

    title: ClassVar[str] = "Model"

    def build(self) -> Sequence[widgets.Widget]:
        """Make the controls and link them with the session."""
        self.source = widgets.Text(
            placeholder="folder, .safetensors, .gguf, .pt, or Hub id",
            description="Source",
            style={"description_width": "46px"},
            layout={"flex": "1 1 240px", "width": "auto", "min_width": "220px", "margin": "0"},
        )
        self.open_button = widgets.Button(
            description="Open", tooltip="Open the model at this address", layout=BUTTON_LAYOUT
        )
        self.summary = widgets.HTML(layout={"flex": "2 1 360px", "min_width": "0", "margin": "0"}).add_class("qwb-clip")
        self.progress = widgets.FloatProgress(min=0.0, max=1.0, layout={"width": "90px", "margin": "0"})
        self.status = widgets.HTML(layout={"margin": "0", "flex": "0 1 auto", "min_width": "0"}).add_class("qwb-clip")
        self.stop_button = widgets.Button(
            description="Cancel", tooltip="Stop what is being done; results so far stay", layout=BUTTON_LAYOUT
        )
        for button in (self.open_button, self.stop_button):
            button.add_class("qwb-button")
        self.message = widgets.HTML(layout={"display": "none", "width": "100%", "margin": "0"})
        self.working = widgets.HBox(
            [self.status, self.progress, self.stop_button],
            layout={"align_items": "center", "flex": "0 1 auto", "min_width": "0", "visibility": "hidden"},
        ).add_class("qwb-row")
        self.open_button.on_click(self._open)
        self.source.on_msg(self._open_on_enter)
        self.stop_button.on_click(self._stop_or_resume)
        self.watch(self._show_model, "model")
        self.watch(self._show_work, "busy", "progress", "paused")
        self.watch(self._show_message, "message")
        self._show_model(None)
        self._show_work(None)
        self._show_message(None)
        # One line holds it all: title, source, what is open, what is being done, and the Code button.
        self.tools.children = (self.source, self.open_button, self.summary, self.working)
        self.tools.layout.margin = "0"
        self.tools.layout.flex = "1 1 auto"
        self.tools.layout.min_width = "0"
        return (self.message,)

    @guarded
    def _open(self, _event: Any) -> None:
        if self.source.value.strip():
            self.session.open(self.source.value)

    def _open_on_enter(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("event") == "submit":
            self._open(None)

    @guarded
    def _stop_or_resume(self, _button: Any) -> None:
        if self.session.paused and not self.session.busy:
            self.session.resume()
        else:
            self.session.cancel()

    @guarded
    def _show_model(self, _change: Any) -> None:
        with self.session.lock:
            model = self.session.model
            if model is None:
                self.summary.value = '<span class="qwb-dim">No model is open.</span>'
                return
            family = model.config.get("model_type") or model.config.get("general.architecture") or model.format
            facts = [str(family), f"{len(model.layers)} layers", f"{short_count(model.parameters)} weights"]
            if model.quantization:
                facts.append(f"stored as {model.quantization}")
            self.summary.value = (
                f'<span title="{html.escape(str(model.source))}"><b>{html.escape(model.name)}</b> '
                f'<span class="qwb-dim">{html.escape(" · ".join(facts))}</span></span>'
            )

    @guarded
    def _show_work(self, _change: Any) -> None:
        with self.session.lock:
            busy, paused = self.session.busy, self.session.paused
            if busy:
                self.progress.value = self.session.progress
            self.status.value = html.escape(busy or ("stopped" if paused else ""))
            self.progress.layout.visibility = "visible" if busy else "hidden"
            self.stop_button.description = "Resume" if paused and not busy else "Cancel"
            self.working.layout.visibility = "visible" if busy or paused else "hidden"

    @guarded
    def _show_message(self, _change: Any) -> None:
        with self.session.lock:
            sentence = self.session.message
            self.message.value = (
                f'<div class="qwb-error" role="alert">{html.escape(sentence)}</div>' if sentence else ""
            )
            self.message.layout.display = None if sentence else "none"

    def code(self) -> str:
        """Return the line that opens the model."""
        return f"from workbench import open_model\n\n{model_line(self.session)}\nprint(model.tree)"
