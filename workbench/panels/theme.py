"""The page around the panels: their style sheet, light or dark, and whose keys are whose."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import anywidget
import traitlets

from workbench.panels.closing import close_tree

if TYPE_CHECKING:
    from workbench.panels.session import Session

#: Colours come from the page's own theme (JupyterLab and Voilà define them), with fallbacks for other pages.
STYLE = """
.qwb { --qwb-fg: var(--jp-ui-font-color1, #1f2328); --qwb-dim: var(--jp-ui-font-color2, #59636e);
  --qwb-line: var(--jp-border-color2, #d0d7de); --qwb-bg: var(--jp-layout-color1, #fff);
  --qwb-soft: var(--jp-layout-color2, #f3f4f6); --qwb-accent: var(--jp-brand-color1, #1976d2);
  color: var(--qwb-fg); font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px; }
.qwb .qwb-title { font-size: 14px; font-weight: 600; line-height: 26px; margin: 0; }
.qwb .qwb-dim { color: var(--qwb-dim); }
.qwb .qwb-error { color: var(--jp-error-color0, #b3261e); white-space: normal; line-height: 1.35; margin: 2px 0; }
.qwb .qwb-error:empty { display: none; }
.qwb .qwb-errors { font-size: 12px; }
.qwb .widget-html-content { line-height: 1.4; }
.qwb-panel { min-width: 0; overflow: visible; }
.qwb .qwb-row { gap: 8px; }
.qwb .qwb-clip, .qwb .qwb-clip > .widget-html-content { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.qwb .qwb-body > * { flex: 0 0 auto !important; }
.qwb .qwb-bench { container-type: inline-size; gap: 8px; }
.qwb .qwb-main { display: grid; gap: 8px; grid-template: "layers grid" auto "tabs tabs" auto / minmax(370px, 5fr) minmax(0, 9fr); }
.qwb .qwb-main > * { width: auto; min-width: 0; margin: 0; overflow: visible; }
.qwb .qwb-main > :nth-child(1) { grid-area: layers; max-height: 960px; }
.qwb .qwb-main > :nth-child(1) > *, .qwb .qwb-main > :nth-child(1) > * > :last-child { min-height: 0; overflow: hidden; }
.qwb .qwb-main > :nth-child(1) :has(> .qwb-layers) { display: flex; flex-direction: column; flex: 1 1 auto; }
.qwb .qwb-main > :nth-child(1) .qwb-body > * { flex: 1 1 auto !important; min-height: 0; }
.qwb .qwb-main > :nth-child(2) { grid-area: grid; }
.qwb .qwb-main > :nth-child(3) { grid-area: tabs; }
@container (min-width: 1500px) { .qwb .qwb-main { grid-template: "layers grid" auto "layers tabs" 1fr / minmax(370px, 5fr) minmax(0, 9fr); } }
@container (max-width: 900px) { .qwb .qwb-main { grid-template: "layers" 420px "grid" auto "tabs" auto / minmax(0, 1fr); } }
.qwb .qwb-card .wb-live { padding: 4px 0 0; }
.qwb .qwb-card .wb-live:is([data-theme="light"], [data-theme="dark"]) { background: transparent; }
.qwb .qwb-card > .qwb-panel { flex: 1 1 auto; }
.qwb .qwb-tabs > .widget-tab-contents { border: 1px solid var(--qwb-line); border-radius: 0 0 6px 6px; padding: 8px 10px; overflow: visible; }
.qwb .qwb-card { overflow: visible; }
.qwb-card { border: 1px solid var(--qwb-line); border-radius: 6px; padding: 6px 10px 8px; background: var(--qwb-bg); }
.qwb button.qwb-button, .qwb .qwb-button button, .qwb button.jupyter-button.qwb-button {
  background: var(--qwb-soft); color: var(--qwb-fg); border: 1px solid var(--qwb-line); border-radius: 4px;
  height: 26px; line-height: 24px; padding: 0 10px; font: inherit; cursor: pointer; box-shadow: none; }
.qwb button.qwb-button:hover { border-color: var(--qwb-dim); }
.qwb button.qwb-button.mod-active, .qwb button.qwb-button[aria-pressed=true] {
  background: var(--qwb-accent); border-color: var(--qwb-accent); color: #fff; }
.qwb :is(button, input, select, textarea, [tabindex]):focus-visible { outline: 2px solid var(--qwb-accent); outline-offset: 1px; }
.qwb-code pre { margin: 4px 0 0; overflow-x: auto; user-select: text; white-space: pre; font-family: var(--jp-code-font-family, monospace);
  font-size: 12px; line-height: 1.45; color: var(--qwb-fg); background: var(--qwb-soft);
  border: 1px solid var(--qwb-line); border-radius: 4px; padding: 6px 8px; }
.qwb-code > div { display: flex; gap: 8px; align-items: center; margin: 4px 0; }
"""


class ThemeWatcher(anywidget.AnyWidget):
    """Reads off the page whether it is light or dark, says so when that changes, and keeps the panels' keys for them."""

    _esm = """
    function isDark() {
      const body = document.body;
      const lab = body.dataset.jpThemeLight;                       // JupyterLab, Notebook 7
      if (lab !== undefined) return lab === "false";
      const code = body.dataset.vscodeThemeKind;                   // VS Code
      if (code) return code.includes("dark") || code === "vscode-high-contrast";
      const ground = getComputedStyle(document.documentElement).getPropertyValue("--jp-layout-color0").trim();
      if (ground) {                                                // Voilà: the theme is only in its colours
        const probe = document.createElement("span");
        probe.style.color = ground;
        body.append(probe);
        const [r, g, b] = (getComputedStyle(probe).color.match(/[\\d.]+/g) || [255, 255, 255]).map(Number);
        probe.remove();
        return 0.299 * r + 0.587 * g + 0.114 * b < 128;
      }
      return matchMedia("(prefers-color-scheme: dark)").matches;
    }
    /** Keys pressed in a panel are the panel's: JupyterLab takes arrows and letters for itself unless the very element
        in focus says otherwise. */
    function keepKeys() {
      if (globalThis.__workbenchKeys) return;
      globalThis.__workbenchKeys = true;
      addEventListener("focusin", ({ target }) => {
        if (target.closest?.(".qwb")) target.dataset.lmSuppressShortcuts = "true";
      }, true);
    }
    function initialize({ model }) {
      keepKeys();
      const tell = () => {
        if (model.get("dark") === isDark()) return;
        model.set("dark", isDark());
        model.save_changes();
      };
      const observer = new MutationObserver(tell);
      observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "class"] });
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
      tell();
      setTimeout(tell, 500);                                       // theme sheets may still be loading
      return () => observer.disconnect();
    }
    export default { initialize };
    """
    dark = traitlets.Bool(False).tag(sync=True)


_watchers: weakref.WeakKeyDictionary[Session, ThemeWatcher] = weakref.WeakKeyDictionary()


def follow_theme(session: Session) -> None:
    """Keep ``session.theme`` equal to what the page shows, until the session closes."""
    if session in _watchers:
        return
    watcher = _watchers[session] = ThemeWatcher()
    alive = weakref.ref(session)

    def tell(_change: object) -> None:
        followed = alive()
        if followed is not None:
            followed.theme = "dark" if watcher.dark else "light"

    watcher.observe(tell, "dark")
    session.on_close(lambda: close_tree(watcher))
