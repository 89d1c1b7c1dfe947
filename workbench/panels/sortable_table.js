// A table of results. Headings are buttons that sort; rows are picked by mouse or keyboard (one tab stop, arrows move).

const STYLE = `
.wbs{width:100%;min-width:0;overflow:auto;color:var(--jp-ui-font-color1,inherit);font:12px/1.4 var(--jp-ui-font-family,system-ui,sans-serif)}
.wbs table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.wbs caption{text-align:left;font-weight:600;padding:2px 6px 4px}
.wbs th,.wbs td{padding:2px 8px;text-align:right;font-weight:400;vertical-align:top;white-space:nowrap}
.wbs thead th{position:sticky;top:0;z-index:1;background:var(--jp-layout-color1,Canvas);border-bottom:1px solid var(--jp-border-color1,#999);white-space:normal;vertical-align:bottom}
.wbs thead button{all:unset;cursor:pointer;font-weight:600;border-radius:2px}
.wbs thead button:hover{text-decoration:underline}
.wbs thead button:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:1px}
.wbs .wbs-text{text-align:left;white-space:normal}
.wbs tbody tr.wbs-odd{background:var(--jp-layout-color2,rgba(128,128,128,.1))}
.wbs .wbs-best{font-weight:700}
.wbs .wbs-best::before{content:"★ ";color:#e69f00}
.wbs .wbs-warn{color:var(--jp-warn-color0,#b25000)}
.wbs .wbs-dim,.wbs .wbs-note td{color:var(--jp-ui-font-color2,#59636e)}
.wbs .wbs-note td{text-align:left;white-space:normal;padding-top:0}
.wbs.wbs-pickable tbody tr.wbs-row{cursor:pointer}
.wbs.wbs-pickable tbody tr.wbs-row:hover{outline:1px solid var(--jp-brand-color1,#1976d2);outline-offset:-1px}
.wbs tbody tr[aria-selected=true]{box-shadow:inset 4px 0 0 #e69f00}
.wbs tbody tr:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:-2px}
.wbs .wbs-empty{padding:6px;color:var(--jp-ui-font-color2,#59636e)}`;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Returns the order in which rows stand: words by their text, numbers by their key, what has no key last. */
function ordered(rows, columns, [column, descending]) {
  const order = rows.map((_, i) => i);
  if (column < 0 || column >= columns.length) return order;
  const words = columns[column][1], way = descending ? -1 : 1;
  const value = (i) => { const cell = rows[i][0][column]; return words ? cell?.[0] ?? "" : cell?.[1] ?? null; };
  return order.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return x === y ? a - b : x === null ? 1 : -1;
    const by = words ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return by === 0 ? a - b : way * by;
  });
}

function render({ model, el }) {
  const root = make("div", "wbs");
  root.dataset.lmSuppressShortcuts = "true";
  el.style.minWidth = "0";
  const style = make("style", "", STYLE), table = make("table"), empty = make("div", "wbs-empty");
  root.append(style, table, empty);
  el.append(root);
  let lines = []; // [index of the row, its element] as they stand
  let frame = 0;

  function pick(i) { model.set("picked", i); model.save_changes(); mark(); }
  function focus(at) {
    const place = Math.min(lines.length - 1, Math.max(0, at));
    lines.forEach(([, line], k) => { line.tabIndex = k === place ? 0 : -1; });
    lines[place]?.[1].focus();
  }
  function mark() {
    if (!model.get("pickable")) return;
    const picked = model.get("picked"), at = Math.max(0, lines.findIndex(([i]) => i === picked));
    lines.forEach(([i, line], k) => { line.setAttribute("aria-selected", String(i === picked)); line.tabIndex = k === at ? 0 : -1; });
  }
  function heading(column, k, sort) {
    const [name, words, about] = column;
    const th = make("th", words ? "wbs-text" : "");
    th.scope = "col";
    const chosen = sort[0] === k;
    const button = make("button", "", name + (chosen ? (sort[1] ? " ▼" : " ▲") : ""));
    button.type = "button";
    button.title = about ? `${about} Click to sort.` : "Click to sort.";
    th.setAttribute("aria-sort", chosen ? (sort[1] ? "descending" : "ascending") : "none");
    button.addEventListener("click", () => {
      // First the way in which the best is on top for numbers (largest first), then the other, then the rows' own order.
      const next = !chosen ? [k, !words] : sort[1] === !words ? [k, words] : [-1, false];
      model.set("sort", next); model.save_changes(); draw();
      table.tHead?.rows[0]?.cells[k]?.firstChild.focus();
    });
    th.append(button);
    return th;
  }
  function draw() {
    frame = 0;
    const held = lines.findIndex(([, line]) => line === document.activeElement);
    const pickable = model.get("pickable"), columns = model.get("columns"), rows = model.get("rows"), sort = model.get("sort");
    root.className = pickable ? "wbs wbs-pickable" : "wbs";
    root.style.maxHeight = model.get("max_height") + "px";
    table.replaceChildren();
    table.hidden = rows.length === 0;
    empty.hidden = rows.length > 0 || !model.get("empty");
    empty.textContent = model.get("empty");
    table.setAttribute("role", pickable ? "grid" : "table");
    if (model.get("caption")) table.createCaption().textContent = model.get("caption");
    const head = table.createTHead().insertRow();
    columns.forEach((column, k) => head.append(heading(column, k, sort)));
    const body = table.createTBody();
    lines = ordered(rows, columns, sort).map((i, at) => {
      const [cells, note] = rows[i];
      const line = body.insertRow();
      line.className = at % 2 ? "wbs-row wbs-odd" : "wbs-row";
      cells.forEach(([text, , best, tone], k) => {
        const place = line.insertCell();
        place.append(make("span", [best && "wbs-best", tone && `wbs-${tone}`].filter(Boolean).join(" "), text));
        if (columns[k]?.[1]) place.className = "wbs-text";
        if (best) place.title = "best of this column";
      });
      if (note) {
        const below = body.insertRow();
        below.className = line.className.replace("wbs-row", "wbs-note");
        const place = below.insertCell();
        place.colSpan = columns.length;
        place.textContent = note;
      }
      if (pickable) {
        line.addEventListener("click", () => { pick(i); focus(at); });
        line.addEventListener("keydown", (e) => {
          const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[e.key];
          if (to === undefined && e.key !== "Enter" && e.key !== " ") return;
          e.preventDefault(); e.stopPropagation();
          if (to === undefined) pick(i); else focus(to);
        });
      }
      return [i, line];
    });
    mark();
    if (held >= 0) focus(held);
  }
  const redraw = () => { frame ||= requestAnimationFrame(draw); };
  const names = "change:rows change:columns change:caption change:empty change:pickable change:max_height change:sort";
  model.on(names, redraw);
  model.on("change:picked", mark);
  draw();
  return () => { cancelAnimationFrame(frame); model.off(names, redraw); model.off("change:picked", mark); };
}

export default { render };
