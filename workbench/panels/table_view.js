// A small table whose rows are picked by mouse or keyboard: one tab stop, arrows move, Enter or Space picks.

const STYLE = `
.wbt{width:100%;min-width:0;overflow:auto;color:var(--jp-ui-font-color1,inherit);font:12px var(--jp-ui-font-family,system-ui,sans-serif)}
.wbt table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.wbt caption{text-align:left;font-weight:600;padding:2px 6px 4px;white-space:nowrap}
.wbt th,.wbt td{padding:2px 6px;text-align:right;white-space:nowrap;font-weight:400}
.wbt thead th{position:sticky;top:0;background:var(--jp-layout-color1,Canvas);border-bottom:1px solid var(--jp-border-color1,#999);font-weight:600}
.wbt .wbt-text{text-align:left}
.wbt.wbt-pickable tbody tr{cursor:pointer}
.wbt tbody tr:nth-child(even){background:var(--jp-layout-color2,rgba(128,128,128,.1))}
.wbt.wbt-pickable tbody tr:hover{outline:1px solid var(--jp-brand-color1,#1976d2);outline-offset:-1px}
.wbt tbody tr[aria-selected=true]{box-shadow:inset 4px 0 0 #e69f00;font-weight:600}
.wbt tbody tr:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:-2px}`;

function render({ model, el }) {
  const root = document.createElement("div");
  root.dataset.lmSuppressShortcuts = "true";
  const style = document.createElement("style");
  style.textContent = STYLE;
  const table = document.createElement("table");
  root.append(style, table);
  el.append(root);
  let lines = [];

  function pick(i) { model.set("picked", i); model.save_changes(); mark(); }
  function focus(i) {
    const at = Math.min(lines.length - 1, Math.max(0, i));
    lines.forEach((line, k) => { line.tabIndex = k === at ? 0 : -1; });
    lines[at]?.focus();
  }
  function mark() {
    const picked = model.get("picked"), stop = lines[picked] ? picked : 0;
    lines.forEach((line, i) => {
      if (model.get("pickable")) line.setAttribute("aria-selected", String(i === picked));
      line.tabIndex = model.get("pickable") && i === stop ? 0 : -1;
    });
  }
  function draw() {
    const pickable = model.get("pickable"), columns = model.get("columns");
    root.className = pickable ? "wbt wbt-pickable" : "wbt";
    root.style.maxHeight = model.get("max_height") + "px";
    table.replaceChildren();
    table.setAttribute("role", pickable ? "grid" : "table");
    const caption = table.createCaption();
    caption.textContent = model.get("caption");
    const head = table.createTHead().insertRow();
    for (const name of columns) { const th = document.createElement("th"); th.scope = "col"; th.textContent = name; head.append(th); }
    const body = table.createTBody();
    const rows = model.get("rows");
    lines = rows.map((row, i) => {
      const line = body.insertRow();
      row.forEach((cell, k) => {
        const place = line.insertCell();
        place.textContent = cell;
        // A column of words is read from the left, its heading with it; numbers line up at the right.
        if (rows.every((r) => !/\d/.test(r[k]) || /[a-z]{2}/i.test(r[k]))) { place.className = "wbt-text"; head.cells[k].className = "wbt-text"; }
      });
      if (pickable) {
        line.addEventListener("click", () => { pick(i); focus(i); });
        line.addEventListener("keydown", (e) => {
          const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: lines.length - 1 }[e.key];
          if (to === undefined && e.key !== "Enter" && e.key !== " ") return;
          e.preventDefault(); e.stopPropagation();
          if (to === undefined) pick(i); else focus(to);
        });
      }
      return line;
    });
    mark();
  }
  model.on("change:rows change:columns change:caption change:pickable change:max_height", draw);
  model.on("change:picked", mark);
  draw();
  return () => { model.off("change:rows change:columns change:caption change:pickable change:max_height", draw); model.off("change:picked", mark); };
}

export default { render };
