// A matrix of numbers as a picture with axes: hover reads a cell, a marker is dragged or moved by the arrow keys.
// Every pixel, tick and read-out is made here: moving the marker asks no kernel.

const STYLE = `
.wbm{display:block;width:100%;min-width:0;font:12px var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,inherit)}
.wbm-read{min-height:1.5em;line-height:1.5em;font-variant-numeric:tabular-nums;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.wbm canvas{display:block;width:100%;outline:none;touch-action:none;cursor:crosshair}
.wbm canvas:focus-visible{box-shadow:0 0 0 2px var(--jp-brand-color1,#1976d2);border-radius:2px}`;
const REST = 120; // ms without a move before the kernel is told
const PAD = { left: 62, right: 78, top: 10, bottom: 44 };

const clamp = (v, low, high) => Math.min(high, Math.max(low, v));

/** Position in [0, cells] of value v on an axis given by its cell borders (ascending). */
function place(edges, v) {
  const last = edges.length - 1;
  if (v <= edges[0]) return 0;
  if (v >= edges[last]) return last;
  let low = 0, high = last;
  while (high - low > 1) { const mid = (low + high) >> 1; if (edges[mid] <= v) low = mid; else high = mid; }
  return low + (v - edges[low]) / (edges[high] - edges[low]);
}
function value(edges, position) {
  const cell = clamp(Math.floor(position), 0, edges.length - 2);
  return edges[cell] + (position - cell) * (edges[cell + 1] - edges[cell]);
}
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw) ?? raw;
  const out = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) out.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  return out;
}
function text(v) {
  if (!Number.isFinite(v)) return String(v);
  const a = Math.abs(v);
  if (a !== 0 && (a >= 1e6 || a < 1e-3)) return v.toExponential(2).replace("-", "−");
  return String(+v.toPrecision(4)).replace("-", "−");
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "wbm";
  const style = document.createElement("style");
  style.textContent = STYLE;
  const read = document.createElement("div");
  read.className = "wbm-read";
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  root.append(style, read, canvas);
  el.append(root);

  const g = (name) => model.get(name);
  let image = null, marker = g("marker").slice(), hover = null, dragging = false, timer = 0, frame = 0, was = null;
  const shape = () => [g("rows"), g("columns")];
  const numbers = () => { const d = g("data"); return new Float32Array(d.buffer.slice(d.byteOffset, d.byteOffset + d.byteLength)); };
  let values = numbers();

  // Light text means a dark page.
  const dark = () => { const [r, gr, b] = getComputedStyle(root).color.match(/[\d.]+/g).map(Number); return 0.3 * r + 0.6 * gr + 0.1 * b > 140; };

  function paint() {
    const [rows, columns] = shape();
    if (!rows || !columns || values.length !== rows * columns) { image = null; return; }
    const table = g("colours"), base = dark() && table.byteLength >= 1536 ? 768 : 0;
    const low = g("low"), span = g("high") - low || 1, up = g("up");
    image = document.createElement("canvas");
    image.width = columns; image.height = rows;
    const ctx = image.getContext("2d"), pixels = ctx.createImageData(columns, rows);
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      const v = values[r * columns + c], at = 4 * ((up ? rows - 1 - r : r) * columns + c);
      if (!Number.isFinite(v)) continue;
      const k = base + 3 * clamp(Math.round(((v - low) / span) * 255), 0, 255);
      for (let i = 0; i < 3; i++) pixels.data[at + i] = table.getUint8(k + i);
      pixels.data[at + 3] = 255;
    }
    ctx.putImageData(pixels, 0, 0);
    was = dark();
  }

  const box = () => ({ x: PAD.left, y: PAD.top, w: Math.max(20, canvas.clientWidth - PAD.left - PAD.right), h: Math.max(20, g("height") - PAD.top - PAD.bottom) });
  const toX = (v, b) => b.x + (place(g("x_edges"), v) / shape()[1]) * b.w;
  const toY = (v, b) => { const p = place(g("y_edges"), v) / shape()[0]; return b.y + (g("up") ? 1 - p : p) * b.h; };
  function at(px, py) {
    const b = box(), [rows, columns] = shape(), fy = clamp((py - b.y) / b.h, 0, 1);
    return [value(g("x_edges"), clamp((px - b.x) / b.w, 0, 1) * columns), value(g("y_edges"), (g("up") ? 1 - fy : fy) * rows)];
  }
  function cell([x, y]) {
    const [rows, columns] = shape();
    return [clamp(Math.floor(place(g("x_edges"), x)), 0, columns - 1), clamp(Math.floor(place(g("y_edges"), y)), 0, rows - 1)];
  }
  function say([x, y]) {
    const [c, r] = cell([x, y]), v = values[r * shape()[1] + c];
    const name = (word, edges, i, exact) => {
      if (!g("whole")) return `${word} ${text(exact)}`;
      const first = Math.round(edges[i]), end = Math.round(edges[i + 1]) - 1;
      return end > first ? `${word}s ${first}–${end}` : `${word} ${first}`;
    };
    return `${name(g("y_name"), g("y_edges"), r, y)}, ${name(g("x_name"), g("x_edges"), c, x)}: ${g("value_name")} ${text(v)} ${g("value_unit")}`.trim();
  }

  function draw() {
    frame = 0;
    if (!root.isConnected || !canvas.clientWidth) return;
    if (image === null || was !== dark()) paint();
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = g("height");
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); canvas.style.height = height + "px";
    }
    const ctx = canvas.getContext("2d"), b = box(), ink = getComputedStyle(root).color;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = getComputedStyle(root).font; ctx.fillStyle = ctx.strokeStyle = ink; ctx.lineWidth = 1;
    ctx.imageSmoothingEnabled = false;
    if (image) ctx.drawImage(image, b.x, b.y, b.w, b.h);
    ctx.strokeRect(b.x - 0.5, b.y - 0.5, b.w + 1, b.h + 1);
    const xe = g("x_edges"), ye = g("y_edges");
    ctx.textAlign = "center"; ctx.textBaseline = "top";
    for (const t of ticks(xe[0], xe[xe.length - 1], b.w / 80)) { const x = toX(t, b); ctx.fillRect(x, b.y + b.h, 1, 4); ctx.fillText(text(t), x, b.y + b.h + 7); }
    ctx.fillText(g("x_label"), b.x + b.w / 2, b.y + b.h + 25);
    ctx.textAlign = "right"; ctx.textBaseline = "middle";
    for (const t of ticks(ye[0], ye[ye.length - 1], b.h / 45)) { const y = toY(t, b); ctx.fillRect(b.x - 4, y, 4, 1); ctx.fillText(text(t), b.x - 7, y); }
    ctx.save(); ctx.translate(10, b.y + b.h / 2); ctx.rotate(-Math.PI / 2); ctx.textAlign = "center"; ctx.fillText(g("y_label"), 0, 0); ctx.restore();
    bar(ctx, b);
    const best = g("best");
    if (best.length === 2) cross(ctx, toX(best[0], b), toY(best[1], b));
    if (marker.length === 2) point(ctx, b, toX(marker[0], b), toY(marker[1], b));
    const shown = hover ?? (marker.length === 2 ? marker : null);
    read.textContent = shown && image ? say(shown) : g("hint");
    canvas.setAttribute("role", g("pickable") ? "slider" : "img");
    canvas.setAttribute("aria-label", g("label"));
    if (g("pickable")) {
      canvas.setAttribute("aria-valuetext", marker.length === 2 && image ? say(marker) : "no marker");
      canvas.setAttribute("aria-valuemin", xe[0]); canvas.setAttribute("aria-valuemax", xe[xe.length - 1]);
      canvas.setAttribute("aria-valuenow", marker.length === 2 ? marker[0] : xe[0]);
    }
  }
  function bar(ctx, b) {
    const x = b.x + b.w + 12, table = g("colours"), base = was && table.byteLength >= 1536 ? 768 : 0;
    for (let i = 0; i < 256; i++) {
      ctx.fillStyle = `rgb(${[0, 1, 2].map((k) => table.getUint8(base + 3 * i + k))})`;
      ctx.fillRect(x, b.y + b.h * (1 - (i + 1) / 256), 10, b.h / 256 + 0.7);
    }
    ctx.fillStyle = ctx.strokeStyle; ctx.textAlign = "left"; ctx.textBaseline = "middle";
    const low = g("low"), high = g("high");
    if (high > low) for (const t of ticks(low, high, 4)) ctx.fillText(text(t), x + 14, b.y + b.h * (1 - (t - low) / (high - low)));
    ctx.save(); ctx.translate(x + 58, b.y + b.h / 2); ctx.rotate(-Math.PI / 2); ctx.textAlign = "center"; ctx.fillText(g("value_label"), 0, 0); ctx.restore();
  }
  const twice = (ctx, line) => { for (const [w, c] of [[4, "#000"], [2, "#fff"]]) { ctx.lineWidth = w; ctx.strokeStyle = c; ctx.beginPath(); line(); ctx.stroke(); } };
  const cross = (ctx, x, y) => twice(ctx, () => { ctx.moveTo(x - 5, y - 5); ctx.lineTo(x + 5, y + 5); ctx.moveTo(x - 5, y + 5); ctx.lineTo(x + 5, y - 5); });
  const point = (ctx, b, x, y) => twice(ctx, () => {
    if (g("marker_kind") === "row") { ctx.moveTo(b.x, y); ctx.lineTo(b.x + b.w, y); }
    if (g("marker_kind") === "column") { ctx.moveTo(x, b.y); ctx.lineTo(x, b.y + b.h); }
    ctx.moveTo(x + 7, y); ctx.arc(x, y, 7, 0, 2 * Math.PI);
  });
  const redraw = () => { frame ||= requestAnimationFrame(draw); };

  function tell() { clearTimeout(timer); timer = 0; model.set("marker", marker.slice()); model.save_changes(); }
  function move(to) {
    const round = (v, step) => (step > 0 ? +(Math.round(v / step) * step).toFixed(6) : v);
    marker = [round(to[0], g("x_step")), round(to[1], g("y_step"))];
    hover = null; redraw(); clearTimeout(timer); timer = setTimeout(tell, REST);
  }
  canvas.addEventListener("pointerdown", (e) => { if (!g("pickable")) return; canvas.setPointerCapture(e.pointerId); dragging = true; canvas.focus(); move(at(e.offsetX, e.offsetY)); e.preventDefault(); });
  canvas.addEventListener("pointermove", (e) => { const to = at(e.offsetX, e.offsetY); if (dragging) move(to); else { hover = to; redraw(); } });
  const drop = () => { if (dragging) { dragging = false; tell(); } };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", drop);
  canvas.addEventListener("pointerleave", () => { hover = null; redraw(); });
  canvas.addEventListener("keydown", (e) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (!g("pickable") || !(way || e.key === "Home" && g("best").length)) return;
    e.preventDefault(); e.stopPropagation(); // JupyterLab would move the cell cursor
    if (!way) { move(g("best")); return; }
    const [rows, columns] = shape(), far = e.shiftKey ? 8 : 1, xe = g("x_edges"), ye = g("y_edges");
    const [c, r] = marker.length === 2 ? cell(marker) : [0, 0];
    const nc = clamp(c + way[0] * far, 0, columns - 1), nr = clamp(r + way[1] * far * (g("up") ? -1 : 1), 0, rows - 1);
    // The axis that does not move keeps its value, even between cell centres.
    const keep = marker.length === 2 ? marker : null;
    move([keep && !way[0] ? keep[0] : (xe[nc] + xe[nc + 1]) / 2, keep && !way[1] ? keep[1] : (ye[nr] + ye[nr + 1]) / 2]);
  });

  const fresh = () => { values = numbers(); image = null; redraw(); };
  const moved = () => { if (!dragging && !timer) { marker = g("marker").slice(); redraw(); } };
  model.on("change:data change:colours change:low change:high change:rows change:columns change:up", fresh);
  model.on("change:marker", moved);
  model.on("change:x_edges change:y_edges change:best change:label change:height change:hint change:x_label change:y_label change:value_label change:pickable change:marker_kind", redraw);
  const size = new ResizeObserver(redraw);
  size.observe(root);
  const look = new MutationObserver(() => { redraw(); setTimeout(redraw, 400); }); // theme sheets load late
  look.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  redraw();
  return () => { size.disconnect(); look.disconnect(); clearTimeout(timer); cancelAnimationFrame(frame); model.off(null, null); };
}

export default { render };
