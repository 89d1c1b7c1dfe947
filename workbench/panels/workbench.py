"""The whole workbench in one cell: model bar, layers, the live grid, and the views from weights to methods, recipe and figures."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ipywidgets as widgets

from workbench.panels.code import preamble
from workbench.panels.layers_panel import LayersPanel
from workbench.panels.open_bar import OpenBar
from workbench.panels.panel import Panel, guarded
from workbench.panels.session import Session
from workbench.panels.snapshot import Snapshot, stack_snapshots

#: Seconds after the cell has finished before the first tab is built: the live grid is on the page by then.
_TAB_DELAY = 0.05
#: How long a picture for the saved notebook waits for the sketch of the first layer.
_PICTURE_PATIENCE = 1.0

#: Cell -> its last run and the workbenches made in it.
_open_by_cell: dict[str, tuple[str, list[Workbench]]] = {}


class Workbench(Panel):
    """The workbench on a model: ``Workbench(open_model(source))``, ``Workbench(source)``, or empty, to open one there.

    Running its cell again closes the workbench that the cell had made before, and frees its model.

    Args:
        source: a model, or what ``open_model`` takes; None starts empty.
        session: the session to show; by default a new one that closes with the workbench.
    """

    title: ClassVar[str] = "Quantization Workbench"

    def __init__(self, source: Any = None, session: Session | None = None) -> None:
        _close_predecessor(self)
        self._owns_session = session is None
        session = session if session is not None else Session()
        if source is not None:
            session.open(source)
        self._built: dict[int, Panel] = {}
        super().__init__(session)

    def build(self) -> Sequence[widgets.Widget]:
        """Lay out bar, layers, grid and tabs; the tabs' figures are made when they are first shown."""
        self.bar = OpenBar(self.session)
        self.layers = LayersPanel(self.session)
        self.grid = self._panel_or_reason(_grid_panel)
        self._makers: tuple[tuple[str, Callable[[Session], Panel]], ...] = (
            ("Weights", _weights_panel),
            ("Outliers", _outliers_panel),
            ("Error", _error_panel),
            ("Integer", _integer_panel),
            ("Methods", _methods_panel),
            ("Recipe", _recipe_panel),
            ("Evaluate", _evaluate_panel),
        )
        holders = [widgets.VBox(layout={"width": "auto", "min_height": "120px"}) for _ in self._makers]
        self.tabs = widgets.Tab(holders, titles=tuple(name for name, _ in self._makers), selected_index=0)
        self.tabs.add_class("qwb-tabs")
        self.tabs.observe(self._show_tab, "selected_index")
        _after_the_cell(lambda: self._show_tab(None))
        main = widgets.Box([_card(self.layers), _card(self.grid), self.tabs]).add_class("qwb-main")
        self.body.add_class("qwb-bench")
        return (_card(self.bar), main)

    @guarded
    def _show_tab(self, _change: Any) -> None:
        index = self.tabs.selected_index
        if index is None or index in self._built or self._is_closed:
            return
        panel = self._panel_or_reason(self._makers[index][1])
        if isinstance(panel, Panel):
            self._built[index] = panel
        self.tabs.children[index].children = (panel,)

    def _panel_or_reason(self, make: Callable[[Session], Panel]) -> widgets.Widget:
        """Make a panel; one that fails must not take the others with it, so its reason stands in its place."""
        try:
            return make(self.session)
        except Exception as error:
            return widgets.HTML(f'<div class="qwb-error">{html.escape(f"{type(error).__name__}: {error}")}</div>')

    def code(self) -> str:
        """Return Python that measures the present layer at the present grid."""
        session = self.session
        return "\n".join(
            [
                preamble(session, "exact_error"),
                "report = exact_error(",
                f"    layer, grid, granularity={session.granularity!r}, scale={session.scale_rule!r}, "
                f"clip={session.clip!r}",
                ")",
                "print(report)",
            ]
        )

    def panels(self) -> dict[str, Panel]:
        """Return the panels that exist by now, by name."""
        found = {"Grid": self.grid, **{self._makers[index][0]: panel for index, panel in sorted(self._built.items())}}
        found["Layers"] = self.layers
        return {name: panel for name, panel in found.items() if isinstance(panel, Panel)}

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of every panel that exists by now."""
        return {name: panel.numbers() for name, panel in self.panels().items()}

    def snapshot(self) -> Snapshot:
        """Return the pictures of the panels that exist by now under one another, and their numbers."""
        if self.session.layer is not None and self.session.sketch is None:
            self.session.wait(_PICTURE_PATIENCE, kinds=("sketch",))
        return stack_snapshots({name: panel.snapshot() for name, panel in self.panels().items()})

    def close(self) -> None:
        """Take the workbench off the page; its own session closes too, which frees the model."""
        if self._is_closed:
            return
        for panel in (self.bar, self.layers, self.grid, *self._built.values()):
            panel.close()
        for cell, (run, workbenches) in list(_open_by_cell.items()):
            others = [other for other in workbenches if other is not self]
            _open_by_cell[cell] = (run, others)
            if not others:
                del _open_by_cell[cell]
        super().close()
        if self._owns_session:
            self.session.close()


def _card(content: widgets.Widget) -> widgets.VBox:
    return widgets.VBox([content]).add_class("qwb-card")


def _grid_panel(session: Session) -> Panel:
    from workbench.panels.grid_panel import GridPanel

    return GridPanel(session)


def _weights_panel(session: Session) -> Panel:
    from workbench.panels.weights_panel import WeightsPanel

    return WeightsPanel(session)


def _outliers_panel(session: Session) -> Panel:
    from workbench.panels.outliers_panel import OutliersPanel

    return OutliersPanel(session)


def _error_panel(session: Session) -> Panel:
    from workbench.panels.error_panel import ErrorPanel

    return ErrorPanel(session)


def _integer_panel(session: Session) -> Panel:
    from workbench.panels.integer_panel import IntegerPanel

    return IntegerPanel(session)


def _methods_panel(session: Session) -> Panel:
    from workbench.panels.methods_panel import MethodsPanel

    return MethodsPanel(session)


def _recipe_panel(session: Session) -> Panel:
    from workbench.panels.recipe_panel import RecipePanel

    return RecipePanel(session)


def _evaluate_panel(session: Session) -> Panel:
    from workbench.panels.evaluate_panel import EvaluatePanel

    return EvaluatePanel(session)


def _after_the_cell(action: Callable[[], None]) -> None:
    """Run ``action`` on this thread's event loop soon, or at once where none runs (scripts, tests)."""
    try:
        asyncio.get_running_loop().call_later(_TAB_DELAY, action)
    except RuntimeError:
        action()


def _close_predecessor(workbench: Workbench) -> None:
    """Close what an earlier run of the same cell made: its output is gone, and ipywidgets would keep it for ever."""
    cell, run = _running_cell()
    if not cell:
        return
    run_before, before = _open_by_cell.get(cell, ("", []))
    if run_before != run:
        for old in list(before):
            old.close()
        before = []
    _open_by_cell[cell] = (run, [*before, workbench])


def _running_cell() -> tuple[str, str]:
    """Return the ids of the cell and of its run, as the notebook's front end names them; empty outside a notebook."""
    try:
        from IPython import get_ipython

        parent = get_ipython().kernel.get_parent("shell")  # pyright: ignore[reportOptionalMemberAccess]
        return str(parent["metadata"].get("cellId", "")), str(parent["header"]["msg_id"])
    except (ImportError, AttributeError, KeyError, TypeError):
        return "", ""
