"""Which methods to run: a box for each, by what they need, and a line for others with settings of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from workbench.errors import WorkbenchError
from workbench.panels.panel import BUTTON_LAYOUT

if TYPE_CHECKING:
    from workbench.methods.method import Method
    from workbench.panels.methods_state import MethodsState

#: The groups, with what tells their methods apart.
GROUPS = ("Data-free", "With inputs", "Learned")


class MethodChoice(widgets.VBox):
    """Boxes to tick, one per method, and a line for a method as text, e.g. ``nupes:steps=200``."""

    def __init__(self, state: MethodsState) -> None:
        from workbench.methods.method import all_methods

        self.state = state
        self.boxes: dict[str, widgets.Checkbox] = {}
        self._showing = False
        methods = all_methods()
        rows = []
        for group in GROUPS:
            members = [(word, method) for word, method in methods.items() if group_of(method) == group]
            if members:
                rows.append(self._row(group, members))
        self.extra = widgets.Text(
            description="Another",
            placeholder="with settings of its own, e.g. nupes:steps=200",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"flex": "0 1 380px", "width": "auto", "margin": "0 8px 0 0"},
        )
        self.add = widgets.Button(description="Add", tooltip="Add this method to the chosen ones", layout=BUTTON_LAYOUT)
        self.add.add_class("qwb-button")
        self.error = widgets.HTML(layout={"margin": "0", "min_width": "0", "flex": "1 1 auto"})
        self.more = widgets.Box(layout={"display": "flex", "flex_flow": "row wrap", "margin": "0", "width": "100%"})
        self.add.on_click(lambda _button: self.take_extra())
        self.extra.on_msg(self._entered)
        line = widgets.HBox([self.extra, self.add, self.error], layout={"align_items": "center"}).add_class("qwb-row")
        super().__init__([*rows, self.more, line], layout={"width": "100%", "overflow": "hidden"})
        state.observe(self._show, "methods")
        self._show()

    def take_extra(self) -> bool:
        """Add the method of the line, if there is one; False where it cannot be read: one sentence says why."""
        text = self.extra.value.strip()
        if not text:
            self.error.value = ""
            return True
        from workbench.methods.method import parse_method

        try:
            method = parse_method(text)
        except WorkbenchError as error:
            import html

            self.error.value = f'<span class="qwb-error" role="alert">{html.escape(str(error))}</span>'
            return False
        self.error.value = ""
        self.extra.value = ""
        self.state.methods = (*self.state.methods, str(method))
        return True

    def let_go(self) -> None:
        """Stop watching the state."""
        self.state.unobserve(self._show, "methods")

    def _entered(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("event") == "submit":
            self.take_extra()

    def _row(self, group: str, members: list[tuple[str, Method]]) -> widgets.HBox:
        boxes = []
        for word, method in members:
            box = self.boxes[word] = _box(method.title, method.summary)
            box.observe(self._ticked, "value")
            boxes.append(box)
        name = widgets.HTML(f"<b>{group}</b>", layout={"width": "96px", "margin": "0", "flex": "0 0 auto"})
        inner = widgets.Box(
            boxes, layout={"display": "flex", "flex_flow": "row wrap", "flex": "1 1 auto", "min_width": "0"}
        )
        return widgets.HBox([name, inner], layout={"width": "100%", "align_items": "baseline"})

    def _ticked(self, _change: Any) -> None:
        if self._showing:
            return
        ticked = [word for word, box in self.boxes.items() if box.value]
        with_settings = [text for text in self.state.methods if text not in self.boxes]
        self.state.methods = (*ticked, *with_settings)

    def _show(self, _change: Any = None) -> None:
        self._showing = True
        try:
            chosen = set(self.state.methods)
            for word, box in self.boxes.items():
                if box.value != (word in chosen):
                    box.value = word in chosen
        finally:
            self._showing = False
        others = [text for text in self.state.methods if text not in self.boxes]
        buttons = []
        for text in others:
            button = widgets.Button(description=f"{text} ✕", tooltip=f"Leave {text} out", layout=BUTTON_LAYOUT)
            button.add_class("qwb-button")
            button.on_click(lambda _button, text=text: self._leave_out(text))
            buttons.append(button)
        before = self.more.children
        self.more.children = tuple(buttons)
        for old in before:
            old.close()

    def _leave_out(self, text: str) -> None:
        self.state.methods = tuple(each for each in self.state.methods if each != text)


def group_of(method: Method) -> str:
    """Return which group a method belongs to."""
    if not method.needs:
        return "Data-free"
    return "Learned" if hasattr(method, "steps") else "With inputs"  # a budget of steps is what gradient methods have


def _box(title: str, summary: str) -> widgets.Checkbox:
    return widgets.Checkbox(
        value=False,
        description=title,
        tooltip=summary,
        indent=False,
        layout={"width": "auto", "margin": "0 12px 0 0", "flex": "0 0 auto"},
    )
