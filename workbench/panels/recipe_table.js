// A recipe's entries as rows of text fields. Enter or leaving a field asks Python; Escape gives the old text back.

const STYLE = `
.wbr{width:100%;min-width:0;overflow-x:auto;color:var(--jp-ui-font-color1,inherit);font:12px/1.4 var(--jp-ui-font-family,system-ui,sans-serif)}
.wbr table{border-collapse:collapse;width:100%}
.wbr caption{text-align:left;font-weight:600;padding:2px 4px 4px}
.wbr th,.wbr td{padding:1px 3px;text-align:left;font-weight:400;white-space:nowrap}
.wbr thead th{font-weight:600;border-bottom:1px solid var(--jp-border-color1,#999)}
.wbr input{width:100%;min-width:0;box-sizing:border-box;font:12px var(--jp-code-font-family,ui-monospace,monospace);height:26px;padding:0 5px;color:inherit;
 background:var(--jp-layout-color1,Canvas);border:1px solid var(--jp-border-color2,#bbb);border-radius:3px}
.wbr input::placeholder{color:var(--jp-ui-font-color2,#6e7781);opacity:1;font-style:italic}
.wbr input:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:-1px}
.wbr input[aria-invalid=true]{border:2px solid var(--jp-error-color0,#b3261e)}
.wbr thead th:first-child,.wbr thead .wbr-facts{width:1%}
.wbr .wbr-facts{font-variant-numeric:tabular-nums;padding-left:8px}
.wbr .wbr-warn{color:var(--jp-warn-color0,#b25000)}
.wbr button{font:inherit;min-width:26px;height:26px;padding:0 6px;margin:0 1px;color:inherit;background:var(--jp-layout-color2,#f3f4f6);border:1px solid var(--jp-border-color2,#bbb);border-radius:3px;cursor:pointer}
.wbr button:disabled{opacity:.4;cursor:default}
.wbr button:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:1px}
.wbr .wbr-said{color:var(--jp-error-color0,#b3261e);white-space:normal}
.wbr .wbr-foot{display:flex;gap:10px;align-items:center;min-height:32px}`;

let tables = 0;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function render({ model, el }) {
  const id = `wbr${++tables}`;
  const root = make("div", "wbr");
  root.dataset.lmSuppressShortcuts = "true";
  el.style.minWidth = "0";
  const style = make("style", "", STYLE), table = make("table"), said = make("div", "wbr-said"), lists = make("div");
  said.setAttribute("role", "alert");
  const add = make("button", "", "+ Add a row");
  add.type = "button";
  const foot = make("div", "wbr-foot");
  foot.append(add, said);
  root.append(style, lists, table, foot);
  el.append(root);
  let fields = []; // rows of [inputs, facts cell, buttons]

  function ask(what, row, column, value) {
    const count = (model.get("asked").count ?? 0) + 1;
    model.set("asked", { what, row, column: column ?? -1, value: value ?? "", count });
    model.save_changes();
  }
  add.addEventListener("click", () => ask("add", -1));

  function button(text, label, act) {
    const made = make("button", "", text);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
  }
  function field(i, k, column) {
    const input = make("input");
    input.type = "text";
    input.spellcheck = false;
    input.setAttribute("aria-label", `${column[0]} of row ${i + 1}`);
    if (model.get("suggestions")[k]) input.setAttribute("list", `${id}-${k}`);
    const old = () => model.get("rows")[i]?.[0][k] ?? "";
    const commit = () => {
      const typed = input.value;
      if (typed.trim() === old()) { input.value = old(); return; }
      if (input.dataset.asked === typed) return; // Enter asks, and leaving the field would ask again
      input.dataset.asked = typed;
      ask("edit", i, k, typed);
    };
    input.addEventListener("change", commit);
    input.addEventListener("input", () => { delete input.dataset.asked; });
    input.addEventListener("keydown", (e) => {
      if (e.key === "Enter") commit(); // with a list of suggestions open, the browser fires no change
      if (e.key === "Escape") { input.value = old(); e.stopPropagation(); }
      const to = { ArrowUp: i - 1, ArrowDown: i + 1 }[e.key];
      if (to !== undefined && e.altKey && fields[to]) { fields[to][0][k].focus(); e.preventDefault(); }
    });
    return input;
  }
  function build() {
    const columns = model.get("columns"), rows = model.get("rows"), suggestions = model.get("suggestions");
    lists.replaceChildren(...Object.entries(suggestions).map(([k, values]) => {
      const list = make("datalist");
      list.id = `${id}-${k}`;
      for (const value of values) { const option = make("option"); option.value = value; list.append(option); }
      return list;
    }));
    table.replaceChildren();
    if (model.get("caption")) table.createCaption().textContent = model.get("caption");
    const head = table.createTHead().insertRow();
    head.append(make("th", "", "")); // the row's buttons stand first, so that they do not move with the width
    for (const [name, about, , width] of columns) {
      const th = make("th", "", name);
      th.scope = "col"; th.title = about; th.style.minWidth = `${width}ch`;
      if (width < 16) th.style.width = `${width + 1}ch`;
      head.append(th);
    }
    head.append(make("th", "wbr-facts", model.get("facts_name")));
    const body = table.createTBody();
    fields = rows.map((_, i) => {
      const line = body.insertRow();
      const buttons = [
        button("↑", `Move row ${i + 1} up`, () => ask("up", i)),
        button("↓", `Move row ${i + 1} down`, () => ask("down", i)),
        button("✕", `Remove row ${i + 1}`, () => ask("remove", i)),
      ];
      line.insertCell().append(...buttons);
      const inputs = columns.map((column, k) => { const made = field(i, k, column); line.insertCell().append(made); return made; });
      return [inputs, line.insertCell(), buttons];
    });
  }
  function fill() {
    const rows = model.get("rows");
    rows.forEach(([texts, facts, tone], i) => {
      const [inputs, place, [up, down, remove]] = fields[i];
      inputs.forEach((input, k) => {
        if (input !== document.activeElement || input.dataset.asked !== undefined) input.value = texts[k];
        delete input.dataset.asked;
        input.title = texts[k];
        const [, , otherwise, , first] = model.get("columns")[k];
        input.placeholder = i === 0 ? first : otherwise;
      });
      place.textContent = facts;
      place.className = tone ? `wbr-facts wbr-${tone}` : "wbr-facts";
      up.disabled = i === 0; down.disabled = i === rows.length - 1; remove.disabled = rows.length === 1;
    });
  }
  function mark() {
    const { row, column, sentence } = model.get("refused");
    said.textContent = sentence ?? "";
    fields.forEach(([inputs], i) => inputs.forEach((input, k) => {
      const bad = sentence !== undefined && i === row && k === column;
      if (bad) { input.value = model.get("rows")[i]?.[0][k] ?? ""; delete input.dataset.asked; input.setAttribute("aria-invalid", "true"); }
      else input.removeAttribute("aria-invalid");
    }));
  }
  function draw() {
    const rows = model.get("rows");
    // Rows keep their fields when only texts changed: what a person is typing in another cell stays, and so does the focus.
    if (fields.length !== rows.length) build();
    fill();
    mark();
  }
  function rebuild() { fields = []; build(); fill(); mark(); }
  model.on("change:rows change:answered", draw);
  model.on("change:refused", mark);
  model.on("change:columns change:suggestions change:caption change:facts_name", rebuild);
  rebuild();
  return () => { model.off("change:rows change:answered", draw); model.off("change:refused", mark); model.off("change:columns change:suggestions change:caption change:facts_name", rebuild); };
}

export default { render };
