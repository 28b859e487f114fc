const columns = data.columns, size = columns.pattern.length;
const types = [...new Set(data.cells.map((cell) => cell.type))];
const layers = [...new Set(data.cells.map((cell) => cell.layer))].sort((a, b) => (a === null ? -1 : b === null ? 1 : a - b));
const cellAt = new Map(data.cells.map((cell, i) => [`${cell.layer} ${cell.type}`, i]));
const cellOf = new Map(data.cells.flatMap((cell, i) => cell.members.map((member) => [member, i])));
const short = (value) => (value === null || value === undefined ? "–" : figure(value));
const percent = (value) => (value === null || value === undefined ? "–" : `${Number((100 * value).toPrecision(3))} %`);
const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e3).toFixed(1)} kB`);
const shape = (i) => data.shapes[columns.shape[i]];
const nameOf = (i) => data.patterns[columns.pattern[i]].replace("{l}", columns.layer[i]).replace("{e}", columns.expert[i]);
const MEASURES = {
  snr: ["SNR", (i) => columns.snr[i], false],
  within: ["SNR within its type", (i) => columns.snr[i], true],
  share: ["Signal share", (i) => columns.share[i], false],
  rank: ["Rank over size", (i) => (columns.rank[i] === null ? null : columns.rank[i] / Math.min(...shape(i))), false],
};
let measure = "snr", outlined = null, picked = null;

function mean(members, value) {
  const all = members.map(value).filter((one) => one !== null);
  return all.length ? all.reduce((a, b) => a + b, 0) / all.length : null;
}

function ends(values, most = 1) {
  const sorted = values.filter((one) => one !== null).sort((a, b) => a - b);
  return sorted.length ? [sorted[0], sorted[Math.ceil(most * (sorted.length - 1))]] : [0, 1];
}

const colour = (value, [low, high]) => `rgb(${shade((value - low) / (high - low || 1)).join(",")})`;

function box(svg, x, y, width, height, value, ends, mark) {
  const attributes = { x, y, width, height, rx: 2, class: (value === null ? "none " : "") + mark };
  if (value !== null) attributes.fill = colour(value, ends);
  return draw(svg, "rect", attributes);
}

function pointed(plot, svg, tip, found, text) {
  const at = (event) => {
    const area = svg.getBoundingClientRect();
    return found(event.clientX - area.left, event.clientY - area.top);
  };
  svg.addEventListener("pointermove", (event) => {
    const one = at(event), area = plot.getBoundingClientRect(), x = event.clientX - area.left;
    tip.hidden = one === null;
    if (one === null) return;
    tip.textContent = text(one);
    tip.style.left = x > area.width / 2 ? "auto" : `${x + 14}px`;
    tip.style.right = x > area.width / 2 ? `${area.width - x + 14}px` : "auto";
    tip.style.top = `${event.clientY - area.top + 14}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  return at;
}

function heat(plot) {
  const value = MEASURES[measure][1], perType = MEASURES[measure][2];
  const values = data.cells.map((cell) => mean(cell.members, value));
  const all = ends(values, 0.97);
  const scales = new Map(types.map((type) => [type, perType ? ends(values.filter((_, i) => data.cells[i].type === type)) : all]));
  const left = Math.min(250, 12 + 6.6 * Math.max(...types.map((type) => type.length)));
  const width = Math.max(plot.parentElement.clientWidth - 40, left + 9 * layers.length);
  const wide = Math.min(44, (width - left) / layers.length), tall = 24, height = types.length * tall + 22;
  const taken = new Set(outlined === null ? [] : data.shares[outlined].cells);
  plot.replaceChildren();
  const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0, "aria-label": "SNR by layer and type" });
  svg.style.width = `${width}px`;
  const step = Math.ceil(30 / wide);
  layers.forEach((layer, x) => {
    if (layer === null || layer % step === 0) draw(svg, "text", { x: left + (x + 0.5) * wide, y: height - 6, "text-anchor": "middle" }, layer === null ? "–" : layer);
  });
  types.forEach((type, y) => {
    draw(svg, "text", { x: left - 8, y: y * tall + 16, "text-anchor": "end" }, type.length > 38 ? `…${type.slice(-37)}` : type);
    layers.forEach((layer, x) => {
      const i = cellAt.get(`${layer} ${type}`);
      if (i === undefined) return;
      const mark = i === cellOf.get(picked) ? "picked" : taken.has(i) ? "taken" : "";
      box(svg, left + x * wide + 1.5, y * tall + 1.5, wide - 3, tall - 3, values[i], scales.get(type), mark);
    });
  });
  const tip = add(plot, "div", null, "tip");
  tip.hidden = true;
  const found = (x, y) => cellAt.get(`${layers[Math.floor((x - left) / wide)]} ${types[Math.floor(y / tall)]}`) ?? null;
  const text = (i) => {
    const cell = data.cells[i], where = cell.layer === null ? "outside the layers" : `layer ${cell.layer}`;
    const [low, high] = ends(cell.members.map(value)), many = cell.members.length;
    const spread = many > 1 ? `\n${count(many)} matrices, ${short(low)} to ${short(high)}` : "";
    return `${cell.type}, ${where}\n${MEASURES[measure][0]} ${short(values[i])}${spread}`;
  };
  const at = pointed(plot, svg, tip, found, text);
  svg.addEventListener("click", (event) => { const i = at(event); if (i !== null) pick(best(data.cells[i].members)); });
  svg.addEventListener("keydown", (event) => move(event, svg));
  return perType ? "each type from its lowest (light) to its highest (dark)" : `from ${short(all[0])} (light) to ${short(all[1])} and more (dark)`;
}

const best = (members) => members.reduce((a, b) => ((columns.snr[b] ?? -1) > (columns.snr[a] ?? -1) ? b : a));

function move(event, svg) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || picked === null) return;
  event.preventDefault();
  const cell = data.cells[cellOf.get(picked)];
  let x = layers.indexOf(cell.layer) + step[0], y = types.indexOf(cell.type) + step[1];
  for (; x >= 0 && y >= 0 && x < layers.length && y < types.length; x += step[0], y += step[1]) {
    const i = cellAt.get(`${layers[x]} ${types[y]}`);
    if (i === undefined) continue;
    const holder = svg.parentElement;
    pick(best(data.cells[i].members));
    return holder.querySelector("svg").focus({ preventScroll: true });
  }
}

function experts(parent, cell) {
  add(parent, "p", `The ${count(cell.members.length)} experts of layer ${cell.layer}, by SNR; click for one.`, "soft");
  const plot = add(parent, "div", null, "plot strip");
  const width = Math.max(260, plot.clientWidth), row = Math.max(1, Math.floor(width / 15));
  const tall = 15, height = Math.ceil(cell.members.length / row) * tall;
  const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "SNR by expert" });
  const range = ends(cell.members.map((i) => columns.snr[i]));
  cell.members.forEach((i, place) =>
    box(svg, (place % row) * 15 + 1, Math.floor(place / row) * tall + 1, 13, 13, columns.snr[i], range, i === picked ? "picked" : ""));
  const tip = add(plot, "div", null, "tip");
  tip.hidden = true;
  const found = (x, y) => (x < row * 15 ? cell.members[Math.floor(y / tall) * row + Math.floor(x / 15)] ?? null : null);
  const at = pointed(plot, svg, tip, found, (i) => `expert ${columns.expert[i]}: SNR ${short(columns.snr[i])}`);
  svg.addEventListener("click", (event) => { const i = at(event); if (i !== null) pick(i); });
}

function counts(i) {
  const found = [];
  let value = 0, shift = 0;
  for (const character of atob(columns.histogram[i])) {
    const byte = character.charCodeAt(0);
    value += (byte & 127) * 2 ** shift;
    shift += 7;
    if (byte < 128) { found.push(value); value = 0; shift = 0; }
  }
  return found;
}

function law(i, bins) {
  const [large, small] = [Math.max(...shape(i)), Math.min(...shape(i))], rank = columns.rank[i];
  const n = large - rank, m = small - rank, sigma = columns.sigma[i], step = columns.largest[i] / bins;
  const a = sigma * (Math.sqrt(n) - Math.sqrt(m)), b = sigma * (Math.sqrt(n) + Math.sqrt(m)), parts = 16;
  const density = (s) => (s <= a || s >= b ? 0 : Math.sqrt((s * s - a * a) * (b * b - s * s)) / (Math.PI * sigma * sigma * s));
  return Array.from({ length: bins }, (_, bin) => {
    let sum = 0;
    for (let k = 0; k < parts; k++) sum += density((bin + (k + 0.5) / parts) * step) * (step / parts);
    return sum;
  });
}

function histogram(parent, i) {
  const all = counts(i), bins = all.length, edge = columns.edge[i], largest = columns.largest[i];
  const fitted = data.measure === "calibrated" && edge ? law(i, bins) : null;
  const plot = add(parent, "div", null, "plot");
  const width = Math.max(260, plot.clientWidth), height = 260, left = 52, right = 14, top = 20, bottom = 40;
  const high = Math.log1p(1.1 * Math.max(...all, ...(fitted || [])));
  const toX = (share) => left + share * (width - left - right);
  const toY = (value) => height - bottom - (Math.log1p(value) / high) * (height - top - bottom);
  const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "Singular values" });
  for (const y of [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000].filter((one) => Math.log1p(one) <= high)) {
    draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: toY(y), y2: toY(y) });
    draw(svg, "text", { x: left - 8, y: toY(y) + 4, "text-anchor": "end" }, count(y));
  }
  all.forEach((value, bin) => {
    const signal = edge !== null && ((bin + 0.5) / bins) * largest > edge;
    draw(svg, "rect", { class: signal ? "f1" : "f0", x: toX(bin / bins) + 0.5, width: toX(1 / bins) - left - 1, y: toY(value), height: toY(0) - toY(value) });
  });
  if (fitted) draw(svg, "polyline", { class: "law", points: fitted.flatMap((value, bin) => (value || fitted[bin - 1] || fitted[bin + 1] ? [`${toX((bin + 0.5) / bins).toFixed(1)},${toY(value).toFixed(1)}`] : [])).join(" ") });
  for (const x of ticks(0, largest, Math.max(2, width / 110)))
    draw(svg, "text", { x: toX(x / largest), y: height - 22, "text-anchor": "middle" }, figure(Number(x.toPrecision(6))));
  draw(svg, "text", { x: toX(0.5), y: height - 4, "text-anchor": "middle" }, "singular value");
  if (edge && edge <= largest) {
    const x = toX(edge / largest), far = edge > largest / 2;
    draw(svg, "line", { class: "edge", x1: x, x2: x, y1: 6, y2: height - bottom });
    draw(svg, "text", { class: "edgename", x: x + (far ? -6 : 6), y: 14, "text-anchor": far ? "end" : "start" }, `noise edge ${figure(edge)}`);
  }
  const above = edge !== null && edge > largest ? `; the noise edge, ${figure(edge)}, lies above the largest` : "";
  const curve = fitted ? "; the line: what pure noise of this size would show" : "";
  add(parent, "p", `How many singular values lie in each of ${bins} bins, on a logarithmic scale: noise blue, signal orange${curve}${above}.`, "soft");
}

function matrix(parent, i) {
  parent.replaceChildren();
  const card = add(parent, "section", null, "card matrix");
  add(card, "h3", nameOf(i));
  const facts = add(card, "div", null, "facts");
  const noise = columns.edge[i] === null ? "–" : short(columns.edge[i]);
  for (const [label, value] of [["shape", shape(i).map(count).join(" × ")], ["SNR", short(columns.snr[i])], ["noise edge", noise], ["sigma", short(columns.sigma[i])], ["rank", columns.rank[i] === null ? "–" : `${count(columns.rank[i])} of ${count(Math.min(...shape(i)))}`], ["signal share", percent(columns.share[i])], ["largest", short(columns.largest[i])]]) {
    const fact = add(facts, "span", `${label} `);
    add(fact, "b", value);
  }
  if (data.problems[i]) add(card, "p", `No SNR: ${data.problems[i]}`, "wrong");
  if (columns.largest[i]) histogram(card, i);
  const cell = data.cells[cellOf.get(i)];
  if (cell.members.length > 1) experts(card, cell);
}

add(page, "h1", data.name);
add(page, "p", `trine spectrum scan of ${data.model}, ${data.measure} measure.`, "soft");
tiles(page, data.tiles);
add(page, "h2", "Layers and types of matrices");
const card = add(page, "section", null, "card");
const choices = add(card, "div", null, "choices"), outlines = add(card, "div", null, "choices");
const note = add(card, "p", null, "soft"), plot = add(add(card, "div", null, "heat"), "div", null, "plot");
add(card, "p", "Columns: layers; – is outside of them. Click a cell, or move by the arrow keys, for its matrix below.", "soft");
const detail = add(page, "div");

function paint() {
  for (const button of choices.children) button.setAttribute("aria-pressed", String(button.value === measure));
  for (const button of outlines.children) button.setAttribute("aria-pressed", String(button.value === String(outlined)));
  note.textContent = `${MEASURES[measure][0]}: ${heat(plot)}. Grey: no value.`;
}

function pick(i) {
  picked = i;
  history.replaceState(null, "", `#${encodeURIComponent(nameOf(i))}`);
  paint();
  matrix(detail, i);
}

function choice(parent, value, text, act) {
  const button = add(parent, "button", text);
  button.type = "button";
  button.value = value;
  button.addEventListener("click", () => { act(); paint(); });
}

for (const name of Object.keys(MEASURES)) choice(choices, name, MEASURES[name][0], () => { measure = name; });
if (data.shares.length) choice(outlines, "null", "no outline", () => { outlined = null; });
data.shares.forEach((share, i) => { if (share.top < 100) choice(outlines, i, `top ${share.top} %`, () => { outlined = i; }); });

function named(name) {
  for (let i = 0; i < size; i++) if (nameOf(i) === name) return i;
  return null;
}

function wanted() {
  try { return named(decodeURIComponent(location.hash.slice(1))); } catch { return null; }
}
pick(wanted() ?? best([...Array(size).keys()]));
window.addEventListener("hashchange", () => { const i = wanted(); if (i !== null && i !== picked) pick(i); });
new ResizeObserver(() => { paint(); matrix(detail, picked); }).observe(page);

if (data.shares.length) {
  add(page, "h2", "What training a share would cost");
  const rows = data.shares.map((one) => [`top ${one.top} %`, one.matrices, one.parameters, percent(one.of_parameters), bytes(one.gradient_bytes), bytes(one.state_bytes), bytes(one.gradient_bytes + one.state_bytes), one.lowest_layer === null ? "–" : String(one.lowest_layer)]);
  table(add(page, "section", null, "card"), ["", "matrices", "parameters", "of those in matrices", "gradients", "optimizer state", "together", "lowest layer"], rows);
}
add(page, "h2", "By type");
table(add(page, "section", null, "card"), ["type", "matrices", "parameters", "shape", "lowest SNR", "median", "highest", "in layer"], types.map((type) => {
  const members = data.cells.filter((cell) => cell.type === type).flatMap((cell) => cell.members);
  const scored = members.filter((i) => columns.snr[i] !== null).sort((a, b) => columns.snr[a] - columns.snr[b]);
  const snr = (place) => (scored.length ? short(columns.snr[scored[place]]) : "–");
  const shapes = [...new Set(members.map((i) => shape(i).map(count).join(" × ")))];
  const top = scored.length ? columns.layer[scored[scored.length - 1]] : null;
  return [type, members.length, members.reduce((sum, i) => sum + shape(i)[0] * shape(i)[1], 0), shapes.length > 1 ? `${shapes.length} shapes` : shapes[0], snr(0), snr(scored.length >> 1), snr(scored.length - 1), top === null ? "–" : String(top)];
}));
const wrong = Object.entries(data.problems);
if (wrong.length) {
  add(page, "h2", "Without an SNR");
  table(add(page, "section", null, "card"), ["matrix", "why"], wrong.slice(0, 200).map(([i, why]) => [nameOf(Number(i)), why]));
  if (wrong.length > 200) add(page, "p", `and ${count(wrong.length - 200)} more`, "soft");
}
add(page, "h2", "What the figures mean");
const meanings = add(page, "section", null, "card");
for (const text of data.meanings) add(meanings, "p", text);
