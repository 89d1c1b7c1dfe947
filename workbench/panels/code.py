"""The lines of Python behind a panel, shown so that a person can select and copy them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from workbench.panels.theme import STYLE

if TYPE_CHECKING:
    from workbench.panels.integer_state import IntegerState
    from workbench.panels.session import Session


class CodeView(anywidget.AnyWidget):
    """Lines of Python to select, and a button that copies them."""

    _esm = """
    function render({ model, el }) {
      el.classList.add("qwb-code");
      const text = document.createElement("pre");
      text.tabIndex = 0;
      text.dataset.lmSuppressShortcuts = "true";   // in command mode JupyterLab would take Ctrl+C and arrows for itself
      text.setAttribute("aria-label", "Python code that gives the same result");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "qwb-button";
      button.textContent = "Copy";
      const said = document.createElement("span");
      said.setAttribute("role", "status");
      const show = () => { text.textContent = model.get("code"); };
      const select = () => getSelection().selectAllChildren(text);
      text.addEventListener("keydown", (event) => {
        if (event.key === "a" && (event.ctrlKey || event.metaKey)) { select(); event.preventDefault(); }
      });
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(model.get("code"));
        } catch {
          select();                              // no clipboard permission (plain http): copy the selection
          document.execCommand("copy");
        }
        said.textContent = "copied";
        setTimeout(() => { said.textContent = ""; }, 1500);
      });
      model.on("change:code", show);
      show();
      const bar = document.createElement("div");
      bar.append(button, said);
      el.append(text, bar);
      return () => model.off("change:code", show);
    }
    export default { render };
    """
    _css = STYLE  # each panel has a code view, so the panels' style sheet comes to the page with it
    code = traitlets.Unicode("").tag(sync=True)


def preamble(session: Session, *names: str) -> str:
    """Return the lines that bring a script to the session's layer and grid.

    They define ``model``, ``layer``, ``grid`` and import ``names`` from ``workbench`` besides.

    >>> print(preamble(session, "exact_error"))  # doctest: +SKIP
    from workbench import exact_error, open_model, parse_grid
    <BLANKLINE>
    model = open_model('data/tiny-gemma3')
    layer = model['model.layers.0.mlp.down_proj']
    grid = parse_grid('power:bits=4,exponent=0.55')
    """
    imports = ", ".join(sorted({"open_model", "parse_grid", *names}))
    return "\n".join(
        [
            f"from workbench import {imports}",
            "",
            model_line(session),
            f"layer = model[{session.layer_name!r}]",
            f"grid = parse_grid({str(session.grid)!r})",
        ]
    )


def run_lines(session: Session, state: IntegerState) -> str:
    """Return the lines that run the session's layer in integers as the integer panel does; they define ``run``."""
    named = [f"    {name}={value!r}," for name, value in state.options().items()]
    if state.inputs is not None and state.inputs.origin == "gaussian":
        head = [preamble(session, "run_layer"), "", "from workbench.calibration.layer_inputs import gaussian_inputs"]
        inputs = "gaussian_inputs(layer)"
    else:
        head, inputs = [preamble(session, "layer_inputs", "run_layer")], "layer_inputs(model, layer)"
    return "\n".join([*head, "", "run = run_layer(", f"    layer, {inputs}, grid=grid,", *named, ")"])


def model_line(session: Session) -> str:
    """Return the line that opens the session's model; a module in memory has no path and stays a name."""
    source: Any = session.to_spec()["source"]
    if source is None:
        return "model = open_model(module)  # the torch.nn.Module that the workbench was given"
    return f"model = open_model({source!r})"
