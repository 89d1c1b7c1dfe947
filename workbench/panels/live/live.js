/** Weights, a grid on them and its error, redrawn as a slider moves; Python is told at rest. */

// ---- arithmetic of workbench/kernels/query.py; ties at a threshold go up

const clamp = (x, low, high) => Math.min(high, Math.max(low, x)), { abs } = Math;

/** 256 histogram counts, then columns low, high, n, m0, d1, d2: moments about each bin's middle, over the energy. */
export function openSketch(bytes) {
	const histogram = new Float32Array(bytes, 0, 256), size = (bytes.byteLength / 4 - 256) / 6;
	const [low, high, n, m0, d1, d2] = [0, 1, 2, 3, 4, 5].map((k) => new Float32Array(bytes, 1024 + 4 * k * size, size));
	const [N, S0, S1, S2] = [0, 1, 2, 3].map(() => new Float64Array(size + 1));
	for (let i = 0; i < size; i++) {
		const middle = (low[i] + high[i]) / 2;
		N[i + 1] = N[i] + n[i];
		S0[i + 1] = S0[i] + m0[i];
		S1[i + 1] = S1[i] + d1[i] + middle * m0[i];
		S2[i + 1] = S2[i] + d2[i] + 2 * middle * d1[i] + middle * middle * m0[i];
	}
	return { size, histogram, low, high, n, m0, d1, d2, N, S0, S1, S2 };
}

/** Uniform and power grids by formula, others from the catalogue. */
export function gridOf({ family, bits, exponent, rounding, range }, catalogue) {
	const half = 2 ** (bits - 1), power = family === "power";
	if (!power && family !== "uniform") return catalogue[family] ?? catalogue[`${family}:${bits}`];
	const n = power || range === "narrow" ? half - 1 : range === "full" ? half : 2 * half - 1;
	const first = !power && range === "asymmetric" ? 0 : -n, root = power ? 1 / exponent : 1;
	const at = (q) => Math.sign(q) * (abs(q) / n) ** root, levels = [];
	for (let q = first; q <= (n === half ? n - 1 : n); q++) levels.push(at(q));
	const border = (k) => (power && rounding === "nearest" ? (levels[k] + levels[k + 1]) / 2 : at(first + k + 0.5));
	const normalization = power ? "absmax" : { narrow: "absmax", full: "signed", asymmetric: "range" }[range];
	return { first, levels, thresholds: levels.slice(1).map((_, k) => border(k)), normalization };
}

/** Clip shrinks a grid about 0 or a range's middle. */
export function place({ levels, thresholds, normalization }, clip) {
	const about = normalization === "range" ? (1 - clip) / 2 : 0, put = (x) => about + clip * x;
	return { levels: levels.map(put), thresholds: thresholds.map(put) };
}

let mass = 0, first = 0, massOff = 0, firstOff = 0; // beyond adds to these

/** Mass and first moment of bin i above t, and their slack. */
function beyond({ low, high, m0, d1, d2 }, i, t) {
	const width = high[i] - low[i], off = d1[i] / m0[i], mean = (low[i] + high[i]) / 2 + off, d = t - mean;
	const spread = Math.max(d2[i] / m0[i] - off * off, 0) + 1e-13 * mean * mean, rise = clamp(mean - low[i], 0, width);
	const tail = (d * d) / (spread + d * d), x = (t - low[i]) / width, tilt = 12 * (rise / width - 0.5), rest = 1 - x;
	const most = d > 0 ? Math.min(1, 1 - tail, rise / (t - low[i])) : 1;
	const least = d > 0 ? 0 : Math.max(tail || 0, high[i] > t ? Math.min(1, -d / (high[i] - t)) : 0), floor = Math.max(0, -d);
	const roof = Math.max(floor, Math.min((Math.sqrt(spread + d * d) - d) / 2, ((high[i] - t) * rise) / width));
	const p = clamp(rest + 0.5 * tilt * x * rest, least, most);
	const q = clamp(width * rest * rest * (0.5 + tilt * (rest / 3 + 0.5 * (x - 0.5))), floor, roof);
	mass += m0[i] * p;
	first += m0[i] * q;
	massOff += m0[i] * Math.max(p - least, most - p);
	firstOff += m0[i] * Math.max(q - floor, roof - q);
	return p;
}

/** Squared error over energy, its relative bound, weights per code. */
export function query(sketch, grid, clip) {
	const { low, high, n, m0, N, S0, S1, S2, size } = sketch, { levels, thresholds } = place(grid, clip), last = thresholds.length, counts = [];
	let home = 0, slack = 0, before = 0;
	while (home < last && thresholds[home] <= 0) home++;
	let error = S2[size] - 2 * levels[home] * S1[size] + levels[home] ** 2 * S0[size];
	for (let k = 0; k < last; k++) {
		const t = thresholds[k], gap = levels[k + 1] - levels[k], middle = (levels[k] + levels[k + 1]) / 2, off = t - middle;
		let start = 0, stop = size, share = 0;
		while (start < stop) {
			const half = (start + stop) >> 1;
			if (high[half] < t) start = half + 1;
			else stop = half;
		}
		let cut = start;
		mass = first = massOff = firstOff = 0;
		for (; cut < size && low[cut] < t; cut++) if (m0[cut]) share += beyond(sketch, cut, t) * n[cut];
		slack += 2 * gap * (firstOff + abs(off) * massOff);
		if (k >= home) error -= 2 * gap * (S1[size] - S1[cut] - middle * (S0[size] - S0[cut]) + first + off * mass);
		else error += 2 * gap * (S1[cut] - middle * S0[start] - t * (S0[cut] - S0[start]) - first + off * (S0[cut] - S0[start] - mass));
		counts[k] = N[cut] - share - before;
		before = N[cut] - share;
	}
	counts[last] = N[size] - before;
	error = Math.max(error, 0);
	slack += 2 ** -22 * Math.sqrt(error); // decoded weights are float32
	return { error, bound: slack < error ? slack / (error - slack) : error && Infinity, counts };
}

/** f on 61 points; its lowest value, in two zooms. */
export function lowest(f, low, high) {
	const xs = [...Array(61).keys()].map((i) => +(low + ((high - low) * i) / 60).toFixed(4)), ys = xs.map((x) => f(x));
	let y = Math.min(...ys), x = xs[ys.indexOf(y)];
	for (const step of [(high - low) / 480, (high - low) / 3840]) {
		const middle = x;
		for (let i = -8; i <= 8; i++) {
			const at = clamp(+(middle + i * step).toFixed(4), low, high), value = f(at);
			if (value < y) [x, y] = [at, value];
		}
	}
	return { x, y, xs, ys };
}

// ---- words

const decibel = (error) => (error > 0 ? -10 * Math.log10(error) : Infinity), part = (p) => (p < 1e-3 ? +(100 * p).toPrecision(1) : (100 * p).toFixed(1)) + " %";
const signs = (text) => String(text).replace("-", "−");
const db = (x) => (x === Infinity ? "∞ dB" : signs(x.toFixed(2)) + " dB");
const scientific = (x) => (x > 0 ? x.toExponential(3).replace(/e\+?(.*)/, (_, e) => " × 10" + e.replace(/./g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d] ?? "⁻")) : "0");

function ticks(low, high, most) {
	const unit = 10 ** Math.floor(Math.log10((high - low) / most)), step = [1, 2, 5, 10].map((m) => m * unit).find((s) => (high - low) / s <= most), found = [];
	for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(+(i * step).toPrecision(6));
	return found;
}

// ---- pens

function sheet(canvas, ink, left, [low, high]) {
	const dpr = devicePixelRatio, height = canvas.height / dpr, right = canvas.width / dpr - 14, c = canvas.getContext("2d");
	c.setTransform(dpr, 0, 0, dpr, 0, 0);
	c.clearRect(0, 0, right + 14, height);
	c.font = "11px system-ui, 'DejaVu Sans', sans-serif";
	c.textBaseline = "middle";
	const X = (x) => left + ((x - low) / (high - low)) * (right - left);
	const text = (words, x, y, align = "center") => {
		[c.fillStyle, c.textAlign] = [ink.quiet, align];
		c.fillText(words, x, y);
	};
	const line = (points, colour = ink.quiet, thick = 1, dash = []) => {
		[c.strokeStyle, c.lineWidth] = [colour, thick];
		c.setLineDash(dash);
		c.beginPath();
		for (const [x, y] of points) c.lineTo(x, y);
		c.stroke();
	};
	const upright = (x, y0, y1, ...pen) => line([[x, y0], [x, y1]], ...pen), level = (y, ...pen) => line([[left, y], [right, y]], ...pen);
	const scale = (marks, Y, words) => marks.forEach((m) => (level(Y(m), ink.lines), text(words(m), left - 6, Y(m), "right")));
	const axis = (y) => {
		level(y);
		for (const x of ticks(low, high, Math.max(3, (right - left) / 70))) {
			upright(X(x), y, y + 4);
			text(signs(x), X(x), y + 13);
		}
	};
	canvas.toValue = (x) => clamp(low + ((x - left) / (right - left)) * (high - low), low, high);
	return { c, right, height, X, text, line, upright, level, scale, axis };
}

function drawWeights(canvas, ink, { counts, domain, levels, thresholds, share, code, spot, log }) {
	const left = 58, top = 8, { c, right, height, X, text, upright, level, scale, axis } = sheet(canvas, ink, left, domain), many = levels.length;
	const base = height - 106, strip = height - 88, floor = height - 22, peak = Math.max(1, ...counts), wide = (right - left) / 256;
	const rise = (n) => (log ? (n ? Math.log10(n) + 0.3 : 0) : n), Y = (n) => base - (rise(n) / rise(peak) / 1.05) * (base - top);
	const decades = [...Array(10).keys()].map((i) => 10 ** i).filter((n) => n <= peak);
	scale(log ? decades : ticks(0, peak, 4), Y, (n) => n.toLocaleString("en", { notation: "compact" }));
	const box = (x0, x1, y0, y1, colour, alpha) => {
		[c.fillStyle, c.globalAlpha] = [colour, alpha];
		if (x1 > x0) c.fillRect(x0, y0, x1 - x0, y1 - y0);
		c.globalAlpha = 1;
	};
	box(left, X(levels[0]), top, floor, ink.shade, 1); // beyond the outermost levels: clipped
	box(X(levels[many - 1]), right, top, floor, ink.shade, 1);
	counts.forEach((n, i) => n && box(left + i * wide, left + (i + 1) * wide + 0.3, Y(n), base, ink.weights, 0.7));
	if (many < 40) for (const t of thresholds) upright(X(t), top, floor, ink.quiet, 1, [1, 3]);
	c.globalAlpha = clamp(24 / many, 0.2, 1);
	for (const l of levels) upright(X(l), top, base, ink.levels, many < 40 ? 1.5 : 1);
	const most = Math.max(...share), full = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((x) => x >= most) ?? 1;
	share.forEach((p, k) => {
		const x0 = k ? X(thresholds[k - 1]) : left, x1 = k < many - 1 ? X(thresholds[k]) : right, gap = Math.min(1, (x1 - x0) / 4);
		const y = floor - (p && Math.max(1, (p / full) * (floor - strip)));
		box(x0 + gap, x1 - gap, y, floor, ...(k === code ? [ink.picked, 1] : [ink.levels, 0.55]));
	});
	c.globalAlpha = 1;
	level(base);
	axis(floor);
	text(part(full), left - 6, strip, "right");
	if (spot !== null) upright(X(spot), top, floor, ink.picked, 2);
}

function drawCurve(canvas, ink, { range, floor, curve, uniform, x, y }) {
	const left = 36, top = 8, { c, height, X, line, upright, level, scale, axis } = sheet(canvas, ink, left, range), base = height - 22;
	const Y = (v) => base - (clamp(v - floor, 0, 20) / 20) * (base - top);
	scale(ticks(floor, floor + 20, 4), Y, signs);
	axis(base);
	isFinite(uniform) && level(Y(uniform), ink.uniform, 1.5, [6, 4]);
	line(curve.xs.map((v, i) => [X(v), Y(decibel(curve.ys[i]))]), ink.levels, 2);
	if (curve.xs[0]) upright(X(curve.x), Y(decibel(curve.y)), base, ink.best, 1.5, [2, 3]);
	if (x === null) return;
	line([], ink.ink, 1.5);
	c.arc(X(x), Y(y), 6.5, 0, 7);
	c.fillStyle = ink.picked;
	c.fill();
	c.stroke();
}

// ---- widget

const SPAN = { exponent: [0.05, 2], clip: [0.05, 1] };
const bytesOf = ({ buffer, byteOffset: start, byteLength: size }) => buffer.slice(start, start + size);
let views = 0;

function render({ model, el }) {
	const get = (key) => model.get(key), stop = new AbortController(), s = {};
	el.innerHTML = get("markup").replaceAll("{id}", `wb-live-${++views}-`);
	const root = el.firstElementChild, times = (root.__redrawMs = []), all = (selector) => [...root.querySelectorAll(selector)];
	const fields = all("[data-key]"), keys = fields.map((f) => f.dataset.key), canvases = all("canvas"), [hist, ...curves] = canvases;
	let sketch, catalogue, ink, ready, made, power, memory, frame = 0, timer = 0, held = false, saving = false, dirty = false, spot = null, hint = "";

	const redraw = () => ink && (frame ||= requestAnimationFrame(draw)), reload = () => (sketch = null);
	const listen = (target, types, f) => types.split(" ").forEach((type) => target.addEventListener(type, f, { signal: stop.signal }));
	const errorAt = (grid) => (clip) => query(sketch, grid, clip).error;

	function load() {
		const values = new Float64Array(bytesOf(get("levels"))), cut = (from, to) => Array.from(values.subarray(from, to));
		catalogue = {};
		for (const [key, e] of Object.entries(get("catalogue")))
			catalogue[key] = { ...e, levels: cut(e.start, e.middle), thresholds: cut(e.middle, e.stop) };
		sketch = openSketch(bytesOf(get("data")));
		memory = {};
	}

	function draw() {
		const start = performance.now(), info = get("info"), exact = get("exact"), mse = s.scale_rule === "mse";
		frame = 0;
		if (!sketch) load();
		const bits = catalogue[s.family]?.bits ?? s.bits, grid = gridOf({ ...s, bits }, catalogue);
		power = (exponent) => errorAt(gridOf({ ...s, family: "power", bits, exponent }));
		ready = !!grid && !info.waiting && !grid.still && sketch.size > 0 && info.granularity === s.granularity
			&& info.normalization === grid.normalization && !s.scale_rule.startsWith("percentile");
		const { range } = info, uniform = (memory["u" + bits] ??= lowest(errorAt(gridOf({ family: "uniform", bits, range })), ...SPAN.clip));
		const none = { ...uniform, xs: [], ys: [] };
		made = { exponent: none, clip: none };
		if (ready) made.clip = memory[[s.family, bits, s.exponent, s.rounding, s.range]] ??= lowest(errorAt(grid), ...SPAN.clip);
		const clip = ready && mse ? made.clip.x : s.clip;
		if (range !== "asymmetric") made.exponent = memory[[bits, clip, s.rounding]] ??= lowest((a) => power(a)(clip), ...SPAN.exponent);

		const told = Object.keys(exact.state).every((k) => exact.state[k] === s[k]) && exact, answer = ready && query(sketch, grid, clip);
		const { error, bound, approximate = true } = told || answer || {}, known = error !== undefined, sure = known && !approximate;
		const badge = sure ? "= " : mse ? "≲ " : "≈ ", { levels, thresholds } = ready ? place(grid, clip) : { levels: [], thresholds: [] };
		const share = Array.from(answer.counts ?? [], (n) => n / info.count);
		const dB = decibel(error), rival = decibel(uniform.y), gain = dB - rival, compared = isFinite(gain);
		const within = (words) => (sure || !known ? "" : range === "asymmetric" ? "zero points not rounded" : "± " + words);
		const [low, high] = info.domain, wide = (high - low) / 256, i = Math.min(255, Math.floor((spot - low) / wide)), n = sketch.histogram[i];
		const code = spot === null ? -1 : thresholds.filter((t) => t <= spot).length, at = (x) => signs((x * info.span).toPrecision(4));
		const words = {
			...info,
			about: info.waiting || `${info.about} · ${(bits + get("overhead")).toFixed(3)} bits per weight`,
			sqnr: known ? badge + db(dB) : "…",
			sqnr_note: within((4.343 * bound).toPrecision(2) + " dB") || (sure ? "exact" : "at rest"),
			mse: known ? badge + scientific((error * info.energy) / info.count) : "…",
			mse_note: within(part(bound)),
			uniform: sketch.size ? "≈ " + db(rival) : "…",
			uniform_note: sketch.size ? `${range}, clip ${uniform.x.toFixed(3)}` : "",
			gain: compared ? (gain < 0 ? "" : "+") + db(gain) : "…",
			gain_note: compared ? (error / uniform.y).toPrecision(3) + " × its error" : "",
			hint: hint || get("message"),
			readout: spot === null ? "" : `${at(low + i * wide)} to ${at(low + (i + 1) * wide)}: ${n.toLocaleString("en")} weights, ${part(n / info.count)}`
				+ (ready ? ` · code ${signs(grid.codes?.[code] ?? grid.first + code)}: level ${at(levels[code])}, ${part(share[code])}` : ""),
		};
		for (const name in made) words[name] = made[name].xs[0] ? "best " + made[name].x.toFixed(3) : "";
		for (const node of all("[data-out]")) {
			const text = words[node.dataset.out];
			if (node.textContent !== text) node.textContent = text;
		}
		for (const button of all("button")) button.disabled = !ready || isApart(button) || (mse && button.dataset.best !== "exponent");
		drawWeights(hist, ink, { ...info, levels, thresholds, share, counts: sketch.histogram, code, spot, log: s.log_counts });
		const tops = [made.exponent.y, made.clip.y, uniform.y].map(decibel).filter(isFinite), floor = 5 * Math.ceil((Math.max(0, ...tops) + 1) / 5) - 20;
		for (const canvas of curves) {
			const name = canvas.dataset.curve, live = (canvas.dataset.live = ready && !isApart(canvas) && !(mse && name === "clip"));
			drawCurve(canvas, ink, { range: SPAN[name], floor, curve: made[name], uniform: rival, x: live ? s[name] : null, y: dB });
		}
		times.push(performance.now() - start);
		if (times.length > 2e3) times.shift();
	}

	const isApart = ({ dataset: { only } }) => only && only !== s.family;

	function show() {
		const known = get("catalogue"), fixed = known[s.family];
		for (const f of fields) {
			const key = f.dataset.key, value = key === "bits" && fixed ? fixed.bits : s[key], apart = isApart(f);
			f.ariaInvalid = !!hint && f === document.activeElement;
			if (f.type === "checkbox") f.checked = value;
			else if (f.type !== "number" || f !== document.activeElement) f.value = value?.toFixed ? +value.toFixed(4) : value;
			if (f.selectedIndex < 0) f.add(new Option(known[value]?.label ?? value, value, true, true));
			f.disabled = apart || (key === "bits" && fixed) || (key === "clip" && s.scale_rule === "mse");
			if (f.options) f.hidden = f.previousElementSibling.hidden = apart;
		}
	}

	function flush() {
		clearTimeout(timer);
		if (!dirty) return;
		[dirty, saving, memory] = [false, true, {}];
		for (const key of keys) model.set(key, s[key]);
		model.save_changes();
		saving = false;
	}

	function edit(patch, wait = 0, words = "") {
		Object.assign(s, patch);
		[hint, dirty] = [words, true];
		clearTimeout(timer);
		if (!held) timer = setTimeout(flush, wait);
		show();
		redraw();
	}

	/** Python's state comes in, unless the person's hand is on it. */
	function take() {
		if (!(saving || dirty || held)) for (const key of keys) s[key] = get(key);
		show();
		redraw();
	}

	function typed({ target: f }) {
		const key = f.dataset.key, value = f.valueAsNumber, fit = clamp(key === "bits" ? Math.round(value) : value, +f.min, +f.max);
		if (f.value === "mse") s.clip = 1;
		if (f.options) return edit({ [key]: f.value });
		if (f.type === "checkbox") return edit({ [key]: f.checked });
		if (!isNaN(fit)) s[key] = fit;
		edit({}, 120, fit === value ? "" : `${key} runs from ${f.min} to ${f.max}; ${s[key]} is used`);
	}

	function search(which) {
		const along = (f) => lowest(f, ...SPAN.clip);
		if (which !== "both") return edit({ [which]: made[which].x });
		const exponent = lowest((a) => along(power(a)).y, ...SPAN.exponent).x;
		edit({ exponent, clip: along(power(exponent)).x });
	}

	/** Light or dark: the page, else the system. */
	function dress() {
		root.dataset.theme = "";
		const style = getComputedStyle(root), [r, g, b, a = 1] = style.backgroundColor.match(/[\d.]+/g).map(Number);
		root.dataset.theme = (a ? r + g + b < 384 : system.matches) ? "dark" : "light";
		for (const c of canvases) [c.width, c.height] = [c.clientWidth * devicePixelRatio, c.clientHeight * devicePixelRatio];
		ink = new Proxy(style, { get: (_, name) => style.getPropertyValue("--wb-" + name) });
		redraw();
	}

	const drag = ({ target: c, offsetX }) => held && c.dataset.live === "true" && edit({ [c.dataset.curve]: +c.toValue(offsetX).toFixed(3) }, 120);
	const point = (u) => ((spot = u), redraw()), system = matchMedia("(prefers-color-scheme: dark)");
	listen(root, "input", typed);
	listen(root, "focusout", () => ((hint = ""), setTimeout(take)));
	listen(root, "click", ({ target }) => target.dataset.best && search(target.dataset.best));
	listen(root, "pointerdown", (event) => {
		const { target, pointerId } = event;
		held = target.matches("[type=range], [data-curve]");
		target.dataset.curve && target.setPointerCapture(pointerId);
		drag(event);
	});
	listen(root, "pointermove", (event) => (event.target === hist ? point(hist.toValue(event.offsetX)) : drag(event)));
	listen(window, "pointerup pointercancel", () => ((held = false), flush()));
	listen(hist, "pointerleave blur", () => point(null));
	listen(hist, "keydown", ({ key }) => {
		const by = { ArrowLeft: -1, ArrowRight: 1 }[key], [low, high] = get("info").domain;
		if (by) point(clamp((spot ?? 0) + (by * (high - low)) / 256, low, high));
	});
	model.on("change:data change:levels change:catalogue change:info", reload);
	model.on("change", take);
	listen(system, "change", dress);
	const theme = new MutationObserver(dress), size = new ResizeObserver(dress);
	theme.observe(document.body, { attributes: true });
	size.observe(root);
	take();
	return () => {
		flush();
		stop.abort();
		theme.disconnect();
		size.disconnect();
		model.off(null, reload);
		model.off(null, take);
	};
}

export default { render };
