"""What every panel has: a title, its body, the Code button, an error line, and a picture of itself."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import ipywidgets as widgets

from workbench.errors import WorkbenchError
from workbench.panels.closing import close_tree
from workbench.panels.code import CodeView
from workbench.panels.session import Session
from workbench.panels.snapshot import Snapshot, text_snapshot
from workbench.panels.state import one_sentence
from workbench.panels.theme import follow_theme

#: Layout of the panels' buttons: as high as a text field, as wide as their text.
BUTTON_LAYOUT = {"width": "auto", "height": "26px", "margin": "0", "flex": "0 0 auto"}

Method = TypeVar("Method", bound=Callable[..., Any])


def guarded(method: Method) -> Method:
    """Make a panel's callback show its exceptions in the panel's error line: Jupyter would swallow them.

    The line is emptied when a callback of the same name succeeds.
    """

    @functools.wraps(method)
    def call(self: Panel, *arguments: Any, **named: Any) -> Any:
        try:
            result = method(self, *arguments, **named)
        except Exception as error:
            self.show_error(error, method.__name__)
            return None
        self.clear_error(method.__name__)
        return result

    return call  # pyright: ignore[reportReturnType]


class Panel(widgets.VBox):
    """Base of the panels: ``Panel(session)`` shows a part of the session and sets it, and stands alone in a cell.

    A subclass gives ``title``, builds its widgets in ``build`` (called once, in the thread that makes the panel),
    watches traits with ``watch``, and overrides ``code`` and ``snapshot``.
    """

    title: ClassVar[str] = ""

    def __init__(self, session: Session | None = None, **layout: Any) -> None:
        self.session = session if session is not None else Session()
        self._watched: list[tuple[Callable[[Any], None], tuple[str, ...]]] = []
        self._failed_in = ""
        self._is_closed = False
        super().__init__(**layout)
        follow_theme(self.session)
        self.add_class("qwb").add_class("qwb-panel")
        self.layout.width = "100%"
        self._heading = widgets.HTML(f'<h3 class="qwb-title">{html.escape(self.title)}</h3>')
        self.tools = widgets.HBox(layout={"margin": "0 0 0 auto", "align_items": "center"}).add_class("qwb-row")
        self._code_button = widgets.ToggleButton(
            value=False,
            description="Code",
            tooltip=f"Show the Python behind {self.title or 'this panel'}",
            layout=BUTTON_LAYOUT,
        )
        self._code_button.add_class("qwb-button")
        self._code_button.observe(self._toggle_code, "value")
        self._code_view = CodeView(layout={"display": "none", "width": "100%"})
        self._error_line = widgets.HTML(layout={"display": "none", "width": "100%"})
        self.body = widgets.VBox(layout={"width": "100%", "min_width": "0", "overflow": "visible"}).add_class(
            "qwb-body"
        )
        head = widgets.HBox(
            [self._heading, self.tools, self._code_button],
            layout={"width": "auto", "align_items": "center", "overflow": "visible"},
        ).add_class("qwb-row")
        self.children = (head, self._error_line, self._code_view, self.body)
        try:
            self.body.children = tuple(self.build())
        except WorkbenchError as error:
            self.show_error(error, "build")

    # ------------------------------------------------------------------ for subclasses

    def build(self) -> Sequence[widgets.Widget]:
        """Make the widgets of the body."""
        return ()

    def code(self) -> str:
        """Return Python that gives what the panel shows, and that runs as it stands."""
        raise NotImplementedError

    def numbers(self) -> dict[str, Any]:
        """Return the numbers that the panel shows: plain data that ``json`` can write."""
        return self.session.to_spec()

    def snapshot(self) -> Snapshot:
        """Return a picture of the panel and the numbers in it; the base draws the numbers as text."""
        numbers = self.numbers()
        lines = [self.title, *(f"{name}: {value}" for name, value in numbers.items() if not isinstance(value, dict))]
        return text_snapshot(lines, numbers)

    def watch(self, handler: Callable[[Any], None], *names: str) -> None:
        """Call ``handler(change)`` when one of the session's traits changes, until the panel closes."""
        self.session.observe(handler, list(names))
        self._watched.append((handler, names))

    def show_error(self, error: Exception | str, where: str = "") -> None:
        """Show one sentence in the panel's error line."""
        sentence = one_sentence(error)
        self._failed_in = where
        self._error_line.value = f'<div class="qwb-error" role="alert">{html.escape(sentence)}</div>'
        self._error_line.layout.display = None

    def clear_error(self, where: str = "") -> None:
        """Empty the error line, if it came from the same place."""
        if self._error_line.value and self._failed_in == where:
            self._error_line.value = ""
            self._error_line.layout.display = "none"

    @property
    def error_text(self) -> str:
        """What the error line says, as HTML; empty when all is well."""
        return self._error_line.value

    # ------------------------------------------------------------------ the Code button

    @guarded
    def _toggle_code(self, _change: Any) -> None:
        shown = self._code_button.value
        names = ["layer_name", "grid", "granularity", "scale_rule", "clip", "channel", "model", "compared"]
        if shown:
            self._refresh_code()
            self.session.observe(self._refresh_code, names)
        else:
            self.session.unobserve(self._refresh_code, names)
        self._code_view.layout.display = None if shown else "none"

    @guarded
    def _refresh_code(self, _change: Any = None) -> None:
        self._code_view.code = self.code()

    def follow_code(self) -> None:
        """Bring the lines of the Code button up to date, if they are on the page."""
        if self._code_button.value and not self._is_closed:
            self._refresh_code()

    # ------------------------------------------------------------------ in a notebook

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str] | None:
        """Show the widget, and leave a picture beside it for GitHub and for a dead kernel."""
        bundle: dict[str, str] | None = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            try:
                bundle["image/png"] = base64.b64encode(self.snapshot().png).decode("ascii")
            except Exception as error:
                self.show_error(error, "snapshot")  # no picture is no reason to show no panel
        return bundle

    def __repr__(self) -> str:
        """Name the layer and the grid; ipywidgets would print every trait."""
        return f"{type(self).__name__}({self.session.layer_name!r}, {str(self.session.grid)!r})"

    def close(self) -> None:
        """Take the panel off the page and off the session; the session itself stays open."""
        if self._is_closed:
            return
        self._is_closed = True
        for handler, names in self._watched:
            _stop_observing(self.session, handler, names)
        self._watched.clear()
        if self._code_button.value:
            self._code_button.value = False
        close_tree(self, itself=False)
        layout = self.layout
        super().close()
        layout.close()


def _stop_observing(session: Session, handler: Callable[[Any], None], names: Sequence[str]) -> None:
    for name in names:
        try:
            session.unobserve(handler, name)
        except ValueError:  # the session let go of its observers when it closed
            continue
