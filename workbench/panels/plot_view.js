// A plotly figure drawn from its whole description: Plotly.react changes in place what differs from before.

const CONFIG = { displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

/** Resolves to plotly.js, which one hidden widget brings to the page for all figures. */
function library(key) {
  globalThis[key] ??= (() => { const slot = {}; slot.promise = new Promise((resolve) => { slot.resolve = resolve; }); return slot; })();
  return globalThis[key].promise;
}

async function render({ model, el }) {
  const root = document.createElement("div");
  root.style.width = "100%";
  root.setAttribute("role", "figure");
  el.style.minWidth = "0";
  el.append(root);
  let frame = 0, alive = true, Plotly = null, bound = false, clicks = 0;

  async function draw() {
    frame = 0;
    const spec = JSON.parse(model.get("spec")), { layout } = spec;
    root.style.height = `${layout.height ?? 280}px`; // room is taken before plotly.js has arrived: nothing jumps
    const text = (axis) => layout[axis]?.title?.text ?? "";
    root.setAttribute("aria-label", `${layout.title?.text ?? ""}: ${text("yaxis")} over ${text("xaxis")}`);
    if (!Plotly || !alive || !root.clientWidth) return; // hidden: drawn when it is shown
    layout.width = root.clientWidth;
    await Plotly.react(root, spec.data, layout, CONFIG);
    if (bound || !alive) return;
    bound = true;
    root.on("plotly_click", (event) => {
      const point = event.points.find((p) => p.customdata !== undefined);
      if (!point) return;
      model.set("clicked", { count: ++clicks, data: point.customdata });
      model.save_changes();
    });
  }
  const redraw = () => { frame ||= requestAnimationFrame(draw); };

  model.on("change:spec", redraw);
  let width = 0;
  const size = new ResizeObserver(() => { if (root.clientWidth !== width) { width = root.clientWidth; redraw(); } });
  size.observe(root);
  redraw();
  library(model.get("library")).then((found) => { Plotly = found; redraw(); });
  return () => {
    alive = false;
    size.disconnect();
    cancelAnimationFrame(frame);
    model.off("change:spec", redraw);
    Plotly?.purge(root);
  };
}

export default { render };
