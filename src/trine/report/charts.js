function draw(parent, tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const count = (n) => Number(n ?? 0).toLocaleString("en-US");

function figure(value) {
  const size = Math.abs(value);
  if (size >= 1e5) return (value / 1e6).toLocaleString("en-US", { maximumFractionDigits: 2 }) + " M";
  if (size >= 100) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  if (size === 0) return "0";
  return size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

function shade(share) {
  const stops = [[246, 243, 233], [240, 179, 95], [190, 62, 50], [74, 16, 60]];
  const place = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
  const i = Math.floor(place), t = place - i;
  return stops[i].map((c, j) => Math.round(c + (stops[i + 1][j] - c) * t));
}

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0);
  return found;
}

function range(spec) {
  let low = Infinity, high = -Infinity;
  for (const one of spec.series) for (const y of one.y) { low = Math.min(low, y); high = Math.max(high, y); }
  if (spec.zero) low = Math.min(0, low);
  const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  return [spec.zero && low === 0 ? 0 : low - room, high + room];
}

function chart(parent, spec) {
  const card = add(parent, "section", null, "card");
  add(card, "h3", spec.title);
  if (spec.unit) add(card, "p", spec.unit, "soft");
  const plot = add(card, "div", null, "plot");
  if (spec.series.length > 1) {
    const legend = add(card, "div", null, "legend");
    spec.series.forEach((one, i) => {
      const label = add(legend, "span", null, "abcdef"[i % 6]);
      add(label, "i");
      label.append(one.name);
    });
  }
  const [low, high] = range(spec);
  const first = Math.min(...spec.series.map((one) => one.x[0]));
  const last = Math.max(...spec.series.map((one) => one.x[one.x.length - 1]));
  const height = 220, left = 52, right = 10, top = 8, bottom = 24;

  function paint() {
    plot.replaceChildren();
    const width = Math.max(260, plot.clientWidth);
    const toX = (x) => left + ((x - first) / (last - first || 1)) * (width - left - right);
    const toY = (y) => height - bottom - ((y - low) / (high - low)) * (height - top - bottom);
    const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.title });
    for (const y of ticks(low, high, 5)) {
      draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: toY(y), y2: toY(y) });
      draw(svg, "text", { x: left - 8, y: toY(y) + 4, "text-anchor": "end" }, figure(Number(y.toPrecision(6))));
    }
    for (const x of ticks(first, last, Math.max(2, width / 110)).filter(Number.isInteger))
      draw(svg, "text", { x: toX(x), y: height - 6, "text-anchor": "middle" }, count(x));
    for (const step of spec.marks || [])
      draw(svg, "line", { class: "mark", x1: toX(step), x2: toX(step), y1: top, y2: height - bottom });
    spec.series.forEach((one, i) => {
      const faint = spec.title === "Training loss" && i === 0 && spec.series.length > 1 ? " faint" : "";
      const points = one.x.map((x, j) => `${toX(x).toFixed(1)},${toY(one.y[j]).toFixed(1)}`);
      draw(svg, "polyline", { class: `curve s${i % 6}${faint}`, points: points.join(" ") });
      if (spec.dots || one.x.length === 1)
        one.x.forEach((x, j) => draw(svg, "circle", { class: `f${i % 6}`, cx: toX(x), cy: toY(one.y[j]), r: 3 }));
    });
    hover(plot, svg, spec, { width, height, top, bottom, left, right, first, last, toX });
  }
  new ResizeObserver(paint).observe(plot);
  paint();
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

function hover(plot, svg, spec, at) {
  const line = draw(svg, "line", { class: "cross", y1: at.top, y2: at.height - at.bottom, visibility: "hidden" });
  const tip = add(plot, "div", null, "tip");
  tip.hidden = true;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * at.width;
    const wanted = at.first + ((place - at.left) / (at.width - at.left - at.right)) * (at.last - at.first);
    const xs = spec.series[0].x;
    const step = xs[nearest(xs, wanted)];
    const lines = spec.series.map((one) => `${one.name}: ${figure(one.y[nearest(one.x, step)])}`);
    tip.textContent = [`${spec.axis || "step"} ${count(step)}`, ...lines].join("\n");
    tip.hidden = false;
    const x = at.toX(step);
    tip.style.left = x > at.width / 2 ? "auto" : `${x + 10}px`;
    tip.style.right = x > at.width / 2 ? `${at.width - x + 10}px` : "auto";
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.setAttribute("visibility", "visible");
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; line.setAttribute("visibility", "hidden"); });
}

function table(parent, heads, rows) {
  const element = add(add(parent, "div", null, "scroll"), "table");
  const head = add(element, "tr");
  for (const one of heads) add(head, "th", one);
  for (const row of rows) {
    const line = add(element, "tr");
    for (const cell of row) add(line, "td", typeof cell === "number" ? count(cell) : cell, typeof cell === "number" ? "number" : "");
  }
}

function tiles(parent, all) {
  const row = add(parent, "div", null, "tiles");
  for (const one of all) {
    const tile = add(row, "section", null, "card tile");
    add(tile, "div", one.label, "soft");
    add(tile, "div", one.value, "value");
    add(tile, "div", one.note, "soft");
  }
}
