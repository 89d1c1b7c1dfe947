/**
 * A model's layers: a tree to unfold, or a flat list when searched or sorted. Only the rows in view exist in the page.
 * Numbers arrive as float32 arrays in row order.
 */

const ROW = 26; // px; the style sheet has the same height
const FULL_BAR = 40; // dB
const BANDS = [[8, "#d55e00"], [14, "#e69f00"], [20, "#f0c24b"], [28, "#56b4e9"], [Infinity, "#0072b2"]]; // about a bit each
const STALE_AFTER = 600; // ms after which a number from the grid before is taken off

const COLUMNS = [
	["name", "layer", "The model's own order"],
	["kind", "kind", "What the weight does"],
	["shape", "shape", "Rows (outputs) × the other axes"],
	["parameters", "weights", "Number of weights"],
	["sigma", "max/σ", "Largest weight in standard deviations: how heavy the tails are"],
	["kurtosis", "kurtosis", "Fourth standardised moment; a Gaussian has 3"],
	["sqnr", "SQNR ≈ dB", "Signal to quantization noise at the present grid; the bar is full at 40 dB"],
];

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const decimals = (x) => (Math.abs(x) >= 1000 ? compact.format(x) : Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(1));
const reading = (x) => (x === Infinity ? "∞" : Number.isFinite(x) ? decimals(x) : "");
const shade = (x) => (BANDS.find(([dB]) => x < dB) ?? BANDS[4])[1];

/** Fold dotted names into a tree; chains with one child become one row, as in a file browser. */
export function treeOf(names) {
	const root = { label: "", path: "", children: new Map(), leaf: -1 };
	names.forEach((name, leaf) => {
		let node = root;
		let path = "";
		for (const part of name.split(".")) {
			path = path ? `${path}.${part}` : part;
			if (!node.children.has(part)) node.children.set(part, { label: part, path, children: new Map(), leaf: -1 });
			node = node.children.get(part);
		}
		node.leaf = leaf;
	});
	const squeeze = (node) => {
		node.children = [...node.children.values()].map((child) => {
			while (child.children.size === 1 && child.leaf < 0) {
				const [only] = child.children.values();
				child = { ...only, label: `${child.label}.${only.label}` };
			}
			return squeeze(child);
		});
		node.leaves = node.children.flatMap((child) => child.leaves).concat(node.leaf < 0 ? [] : [node.leaf]);
		return node;
	};
	return squeeze(root);
}

/** A search matches when every word is in the name, the kind or the role; * stands for anything. */
export function matcher(query) {
	const words = query.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
		const escaped = word.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*");
		return new RegExp(word.includes("*") ? `^${escaped}$` : escaped);
	});
	return (...texts) => words.every((word) => texts.some((text) => word.test(text.toLowerCase())));
}

const element = (tag, className = "", text = "", attributes = {}) => {
	const made = Object.assign(document.createElement(tag), { className, textContent: text });
	for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
	return made;
};

function render({ model, el }) {
	const id = `qwb-layers-${Math.random().toString(36).slice(2)}`;
	const root = element("div", "qwb qwb-layers");
	const search = element("input", "", "", {
		type: "search", placeholder: "Search layers: attn, *.down_proj", "aria-label": "Search layers by name, kind or role", "aria-controls": id,
	});
	const count = element("span", "qwb-dim", "", { role: "status" });
	const bar = element("div", "bar");
	const grid = element("div", "grid", "", {
		id, tabindex: 0, role: "treegrid", "data-lm-suppress-shortcuts": "true",
		"aria-label": "Layers: Enter picks, Space compares", "aria-multiselectable": "true",
	});
	const head = element("div", "row head", "", { role: "row" });
	const view = element("div", "view", "", { role: "presentation" });
	const sheet = element("div", "sheet", "", { role: "rowgroup" });
	const foot = element("div", "foot qwb-dim");
	bar.append(search, count);
	view.append(sheet);
	grid.append(head, view);
	root.append(bar, grid, foot);
	el.append(root);

	let rows, tree, numbers, fresh, list = [], folded = new Set(), active = 0, expired = false, timer = 0;
	let sort = { key: "name", down: false };
	const floats = (name) => {
		const bytes = model.get(name);
		return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
	};

	const headers = COLUMNS.map(([key, text, tip]) => {
		const cell = element("div", `cell ${key}`, "", { role: "columnheader" });
		const button = element("button", "", text, { type: "button", title: `${tip}. Click to sort.`, tabindex: -1 });
		button.addEventListener("click", () => {
			const first = !["name", "kind", "sqnr"].includes(key); // the worst layer first: lowest SQNR, largest of the rest
			if (sort.key !== key) sort = { key, down: first };
			else if (sort.down === first && key !== "name") sort = { key, down: !first };
			else sort = { key: "name", down: false };
			relist(true);
		});
		cell.append(button);
		head.append(cell);
		return cell;
	});

	function load() {
		rows = model.get("rows");
		rows.names ??= [];
		tree = treeOf(rows.names);
		numbers = { sigma: floats("sigma"), kurtosis: floats("kurtosis"), sqnr: new Float32Array(rows.names.length).fill(NaN) };
		fresh = new Uint8Array(rows.names.length);
		folded = new Set();
		if (rows.names.length > 40) {
			// A long model opens with its repeated blocks folded, except the one that holds the picked layer.
			const fold = (node) => node.children.forEach((child) => {
				if (/(^|\.)\d+$/.test(child.path) && child.children.length) folded.add(child.path);
				fold(child);
			});
			fold(tree);
		}
		sort = { key: "name", down: false };
		search.value = "";
		newErrors();
		unfoldTo(model.get("picked"));
		relist(true);
		reveal(model.get("picked"));
	}

	function newErrors() {
		const arrived = floats("sqnr");
		if (arrived.length !== rows.names.length) return;
		arrived.forEach((x, i) => {
			fresh[i] = Number.isNaN(x) ? 0 : 1;
			if (fresh[i]) numbers.sqnr[i] = x;
		});
		// Old bars stay, dimmed, until the new ones arrive: nothing flickers. Their numbers go if that takes long.
		clearTimeout(timer);
		expired = false;
		timer = setTimeout(() => { expired = true; paint(); }, STALE_AFTER);
	}

	const worst = (node, key) => {
		const known = node.leaves.map((i) => (key === "sqnr" && !fresh[i] && expired ? NaN : numbers[key][i])).filter((x) => !Number.isNaN(x));
		return known.length ? (key === "sqnr" ? Math.min(...known) : Math.max(...known)) : NaN;
	};
	const total = (node) => node.leaves.reduce((sum, i) => sum + rows.parameters[i], 0);
	const unfoldTo = (name) => folded.forEach((path) => { if (name.startsWith(`${path}.`)) folded.delete(path); });

	/** Work out which rows there are; the active row stays the same layer where it still exists. */
	function relist(top = false) {
		const before = list[active]?.path;
		list = [];
		const query = search.value.trim();
		if (query || sort.key !== "name") {
			const matches = matcher(query);
			let found = rows.names.map((_, i) => i).filter((i) => matches(rows.names[i], rows.kinds[i], rows.roles[i]));
			if (sort.key !== "name") {
				const value = { kind: (i) => rows.roles[i] || rows.kinds[i], shape: (i) => rows.rows[i], parameters: (i) => rows.parameters[i] }[sort.key]
					?? ((i) => numbers[sort.key][i]);
				const [known, unknown] = [found.filter((i) => !Number.isNaN(value(i))), found.filter((i) => Number.isNaN(value(i)))];
				known.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (sort.down ? -1 : 1) || a - b);
				found = [...known, ...unknown];
			}
			list = found.map((i) => ({ label: rows.names[i], path: rows.names[i], leaf: i, level: 1, children: [], leaves: [i] }));
			count.textContent = query ? `${list.length} of ${rows.names.length}` : "";
		} else {
			const walk = (node, level) => node.children.forEach((child) => {
				list.push(Object.assign(child, { level }));
				if (!folded.has(child.path)) walk(child, level + 1);
			});
			walk(tree, 1);
			count.textContent = "";
		}
		headers.forEach((cell, i) => {
			const on = sort.key === COLUMNS[i][0];
			cell.setAttribute("aria-sort", on ? (sort.down ? "descending" : "ascending") : "none");
			cell.dataset.sorted = on && sort.key !== "name" ? (sort.down ? "down" : "up") : "";
		});
		const kept = list.findIndex((row) => row.path === (top ? model.get("picked") : before));
		active = Math.max(0, kept);
		grid.setAttribute("aria-rowcount", list.length + 1);
		sheet.style.height = `${list.length * ROW}px`;
		if (top) view.scrollTop = 0;
		paint();
	}

	function rowElement(row, at) {
		const leaf = row.leaf >= 0 && !row.children.length, i = row.leaf;
		const line = element("div", "row", "", {
			id: `${id}-${at}`, "data-at": at, role: "row", "aria-rowindex": at + 2, "aria-level": row.level, style: `top: ${at * ROW}px`,
		});
		const picked = i >= 0 && row.path === model.get("picked"), compared = model.get("compared").includes(row.path);
		if (i >= 0) line.setAttribute("aria-selected", picked || compared);
		if (row.children.length) line.setAttribute("aria-expanded", !folded.has(row.path));
		line.classList.toggle("picked", picked);
		line.classList.toggle("active", at === active);
		const name = element("div", "cell name", "", { style: `padding-left: ${4 + (row.level - 1) * 10}px` });
		const mark = element("span", row.children.length ? "twist" : "tick", row.children.length ? (folded.has(row.path) ? "▸" : "▾") : compared ? "✓" : "");
		if (leaf) mark.title = compared ? "Compared; click to leave out" : "Click to compare";
		name.append(mark, element("span", "label", row.label));
		name.title = i >= 0 ? `${row.path}\n${rows.shapes[i]} ${rows.dtypes[i]}, ${rows.kinds[i]} ${rows.roles[i]}` : `${row.path}: ${row.leaves.length} layers`;
		line.append(name);
		for (const [key, text] of [
			["kind", leaf ? rows.roles[i] || rows.kinds[i] : ""],
			["shape", leaf ? rows.shapes[i] : `${row.leaves.length} layers`],
			["parameters", compact.format(leaf ? rows.parameters[i] : total(row))],
			["sigma", reading(worst(row, "sigma"))],
			["kurtosis", reading(worst(row, "kurtosis"))],
		]) line.append(element("div", `cell ${key}`, text));
		line.append(errorCell(row, leaf));
		line.querySelectorAll(".cell").forEach((cell) => cell.setAttribute("role", "gridcell"));
		return line;
	}

	function errorCell(row, leaf) {
		const cell = element("div", "cell sqnr");
		const failure = leaf ? model.get("failures")[row.path] : undefined;
		const value = worst(row, "sqnr");
		const pending = row.leaves.some((i) => !fresh[i] && rows.measured[i]);
		if (failure) {
			cell.append(element("span", "number", "!"));
			cell.title = failure;
		} else if (!Number.isNaN(value)) {
			const strip = element("div", "strip", "", {
				style: `width: ${100 * Math.min(1, Math.max(0.02, value / FULL_BAR))}%; background: ${shade(value)}`,
			});
			const track = element("div", "track");
			track.append(strip);
			cell.append(track, element("span", "number", reading(value)));
			cell.title = `${leaf ? "" : "worst layer: "}${reading(value)} dB${pending ? " (being measured)" : ""}`;
		} else if (row.leaves.some((i) => rows.measured[i])) cell.append(element("div", "track"), element("span", "number", "…"));
		else cell.append(element("span", "number", "–"));
		cell.classList.toggle("pending", pending);
		return cell;
	}

	function paint() {
		const from = Math.max(0, Math.floor(view.scrollTop / ROW) - 6);
		const to = Math.min(list.length, Math.ceil((view.scrollTop + (view.clientHeight || 600)) / ROW) + 6);
		sheet.replaceChildren(...list.slice(from, to).map((row, k) => rowElement(row, from + k)));
		if (list[active] && active >= from && active < to) grid.setAttribute("aria-activedescendant", `${id}-${active}`);
		else grid.removeAttribute("aria-activedescendant");
		const compared = model.get("compared").length;
		foot.textContent = rows.names.length ? (compared ? `${compared} compared (Space or Ctrl+click)` : "Enter or click picks; Space or Ctrl+click compares") : "No model is open.";
	}

	function move(to) {
		active = Math.max(0, Math.min(list.length - 1, to));
		const top = active * ROW;
		if (top < view.scrollTop) view.scrollTop = top;
		else if (top + ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + ROW - view.clientHeight;
		paint();
	}
	function reveal(name) {
		const at = list.findIndex((row) => row.path === name);
		if (at >= 0) move(at);
	}
	function fold(row, shut) {
		if (shut) folded.add(row.path);
		else folded.delete(row.path);
		relist();
	}
	function pick(row) {
		if (row.leaf < 0) return fold(row, !folded.has(row.path));
		model.set("picked", row.path);
		model.save_changes();
		paint();
	}
	function compare(row) {
		if (row.leaf < 0) return;
		const now = model.get("compared");
		model.set("compared", now.includes(row.path) ? now.filter((name) => name !== row.path) : [...now, row.path]);
		model.save_changes();
		paint();
	}

	grid.addEventListener("keydown", (event) => {
		const row = list[active], page = Math.max(1, Math.floor(view.clientHeight / ROW) - 1);
		const parent = () => { const at = list.slice(0, active).findLastIndex((other) => other.level < row.level); return at < 0 ? active : at; };
		const open = row?.children.length && !folded.has(row.path);
		const acts = {
			ArrowDown: () => move(active + 1),
			ArrowUp: () => move(active - 1),
			PageDown: () => move(active + page),
			PageUp: () => move(active - page),
			Home: () => move(0),
			End: () => move(list.length - 1),
			ArrowRight: () => row?.children.length && (open ? move(active + 1) : fold(row, false)),
			ArrowLeft: () => row && (open ? fold(row, true) : move(parent())),
			Enter: () => row && pick(row),
			" ": () => row && compare(row),
			"/": () => search.focus(),
		};
		if (event.target !== grid || event.altKey || event.metaKey || event.ctrlKey) return;
		if (acts[event.key]) acts[event.key]();
		else if (event.key.length === 1) return void search.focus(); // the letter itself lands in the search field
		else return;
		event.preventDefault();
	});
	const searched = () => {
		if (!search.value) unfoldTo(model.get("picked"));
		relist(true);
		if (!search.value) reveal(model.get("picked"));
	};
	search.addEventListener("input", searched);
	search.addEventListener("keydown", (event) => {
		if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); grid.focus(); move(active); }
		else if (event.key === "Escape" && search.value) { event.preventDefault(); search.value = ""; searched(); }
	});
	sheet.addEventListener("click", (event) => {
		const line = event.target.closest(".row");
		if (!line) return;
		active = Number(line.dataset.at);
		const row = list[active];
		if (event.ctrlKey || event.metaKey || event.target.classList.contains("tick")) compare(row);
		else pick(row);
		paint();
	});
	view.addEventListener("scroll", paint, { passive: true });
	const sized = new ResizeObserver(() => {
		root.classList.toggle("narrow", root.clientWidth < 470);
		root.classList.toggle("wide", root.clientWidth >= 680);
		paint();
	});
	sized.observe(root);

	const onErrors = () => { newErrors(); if (sort.key === "sqnr") relist(); else paint(); };
	const onNumbers = () => { numbers.sigma = floats("sigma"); numbers.kurtosis = floats("kurtosis"); if (numbers[sort.key]) relist(); else paint(); };
	const onPicked = () => {
		const shown = list.some((row) => row.path === model.get("picked"));
		if (!shown) { unfoldTo(model.get("picked")); relist(); }
		reveal(model.get("picked"));
	};
	const listeners = [["change:rows", load], ["change:sqnr", onErrors], ["change:sigma change:kurtosis", onNumbers], ["change:picked", onPicked], ["change:compared change:failures", paint]];
	for (const [events, listener] of listeners) model.on(events, listener);
	load();
	return () => {
		clearTimeout(timer);
		sized.disconnect();
		for (const [events, listener] of listeners) model.off(events, listener);
	};
}

export default { render };
