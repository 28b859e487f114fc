const names = Object.keys(data.goals);
const onFront = data.merges.filter((one) => one.pareto);
const configs = [...new Set(data.merges.map((one) => one.config))], several = configs.length > 1;
const fill = (one) => (several ? `f${configs.indexOf(one.config) % 6}` : one.pareto ? "f1" : "f0");
const whole = (one) => names.every((name) => one.scores[name] !== null && one.scores[name] !== undefined);

function scatter(parent, across, up) {
  const card = add(parent, "section", null, "card");
  add(card, "h3", `${up} over ${across}`);
  const better = (name) => `${name}: ${data.goals[name] === "max" ? "more" : "less"} is better`;
  add(card, "p", `${better(across)}; ${better(up)}. The line joins the merges that no other beats.`, "soft");
  const plot = add(card, "div", null, "plot");
  const tip = add(plot, "div", null, "tip");
  tip.hidden = true;
  const points = data.merges.filter(whole);
  const compared = data.baseline && whole(data.baseline) ? [data.baseline] : [];
  const ends = (name) => {
    const all = [...points, ...compared].map((one) => one.scores[name]), low = Math.min(...all), high = Math.max(...all);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    return [low - room, high + room];
  };
  const [left, right, top, bottom, width, height] = [64, 16, 10, 40, 1080, 420];
  const [x0, x1] = ends(across), [y0, y1] = ends(up);
  const toX = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const toY = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${up} over ${across}` });
  for (const y of ticks(y0, y1, 6)) {
    draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: toY(y), y2: toY(y) });
    draw(svg, "text", { x: left - 8, y: toY(y) + 4, "text-anchor": "end" }, figure(Number(y.toPrecision(6))));
  }
  for (const x of ticks(x0, x1, 8)) draw(svg, "text", { x: toX(x), y: height - 20, "text-anchor": "middle" }, figure(Number(x.toPrecision(6))));
  draw(svg, "text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, across);
  const line = onFront.filter(whole).sort((a, b) => a.scores[across] - b.scores[across]);
  draw(svg, "polyline", { class: several ? "curve s5" : "curve s1", points: line.map((one) => `${toX(one.scores[across])},${toY(one.scores[up])}`).join(" ") });
  for (const one of [...points.filter((p) => !p.pareto), ...line]) {
    const dot = draw(svg, "circle", { class: fill(one), cx: toX(one.scores[across]), cy: toY(one.scores[up]), r: one.pareto ? 5 : several ? 3 : 4, tabindex: 0 });
    const values = Object.entries({ ...one.values, ...one.scores }).map(([name, value]) => `${name}: ${value === null ? "–" : figure(value)}`);
    const show = () => { tip.textContent = [`merge ${one.merge}${several ? `, ${one.config}` : ""}`, ...values].join("\n"); tip.hidden = false; };
    const hide = () => { tip.hidden = true; };
    dot.addEventListener("pointerenter", show);
    dot.addEventListener("focus", show);
    dot.addEventListener("pointerleave", hide);
    dot.addEventListener("blur", hide);
  }
  for (const one of compared) {
    const [x, y] = [toX(one.scores[across]), toY(one.scores[up])];
    draw(svg, "path", { class: "curve s4", d: `M${x - 6},${y}H${x + 6}M${x},${y - 6}V${y + 6}` });
    const end = x > width / 2;
    draw(svg, "text", { x: end ? x - 9 : x + 9, y: y - 6, "text-anchor": end ? "end" : "start" }, one.model);
  }
  if (!several) return;
  const legend = add(card, "div", null, "legend");
  configs.forEach((name, i) => {
    const label = add(legend, "span", null, "abcdef"[i % 6]);
    add(label, "i");
    label.append(name);
  });
}

function rows(merges) {
  const varied = [...new Set(data.merges.flatMap((one) => Object.keys(one.values)))], scored = Object.keys(data.merges[0].scores);
  const shown = (value) => (value === null || value === undefined ? "–" : figure(value));
  const cells = (one) => [`${one.merge}`, ...(several ? [one.config] : []), ...varied.map((name) => shown(one.values[name])), ...scored.map((name) => shown(one.scores[name])), one.pareto ? "yes" : "", one.recipe];
  table(add(page, "section", null, "card"), ["merge", ...(several ? ["config"] : []), ...varied, ...scored.map((name) => (data.goals[name] ? `${name} (${data.goals[name]})` : name)), "Pareto", "recipe"], merges.map(cells));
}

add(page, "h1", data.name);
add(page, "p", `trine sweep: ${count(data.merges.length)} merges by ${data.search}, ${count(onFront.length)} of them beaten by no other.`, "soft");
if (data.chosen) add(page, "p", `Chosen: merge ${data.chosen.merge === null ? "none" : data.chosen.merge}, ${data.chosen.why}.`);
if (data.merges.some(whole)) {
  if (names.length > 1) add(page, "h2", "Pareto front");
  for (const up of names.slice(1)) scatter(page, names[0], up);
  add(page, "h2", "Scores in the order of the merges");
  const charts = add(page, "div", null, "charts");
  for (const name of names) {
    const kept = data.merges.filter(whole), values = kept.map((one) => one.scores[name]);
    const better = data.goals[name] === "max" ? Math.max : Math.min;
    const best = values.map((_, i) => better(...values.slice(0, i + 1)));
    const x = kept.map((one) => one.merge);
    chart(charts, { title: name, unit: "each merge, and the best so far", axis: "merge", series: [{ name: "each", x, y: values }, { name: "best so far", x, y: best }], dots: true });
  }
}
add(page, "h2", "Merges that no other beats");
rows(onFront.length ? onFront : data.merges.slice(0, 0));
add(page, "h2", "All merges");
rows(data.merges);
