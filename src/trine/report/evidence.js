function forest(parent, spec) {
  const card = add(parent, "section", null, "card");
  add(card, "h3", spec.title);
  add(card, "p", spec.unit, "soft");
  const whole = spec.rows.filter((row) => row.value !== null && row.low !== null);
  if (!whole.length) return;
  const plot = add(card, "div", null, "plot");
  const tops = whole.map((row) => (row.high === null ? row.value : row.high));
  const all = [...whole.map((row) => row.low), ...tops, ...(spec.limit === undefined ? [] : [spec.limit, 0])];
  const spread = Math.max(...all) - Math.min(...all) || Math.abs(all[0]) || 1;
  const low = Math.min(...all) - spread * 0.06, high = Math.max(...all) + spread * 0.06;
  const [left, right, line, width] = [200, 90, 28, 540], height = line * whole.length + 34;
  const at = (value) => left + ((value - low) / (high - low)) * (width - left - right);
  const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.title}: ${spec.unit}` });
  for (const tick of ticks(low, high, 4)) {
    draw(svg, "line", { class: "grid", x1: at(tick), x2: at(tick), y1: 0, y2: height - 24 });
    draw(svg, "text", { x: at(tick), y: height - 8, "text-anchor": "middle" }, figure(Number(tick.toPrecision(6))));
  }
  if (spec.limit !== undefined) {
    draw(svg, "line", { class: "mark", x1: at(spec.limit), x2: at(spec.limit), y1: 0, y2: height - 24 });
    draw(svg, "line", { class: "cross", x1: at(0), x2: at(0), y1: 0, y2: height - 24 });
  }
  whole.forEach((row, place) => {
    const y = line * (place + 0.5), color = row.strong ? 1 : 0;
    const shown = row.name.length > 30 ? `${row.name.slice(0, 29)}…` : row.name;
    draw(draw(svg, "text", { x: left - 12, y: y + 4, "text-anchor": "end" }, shown), "title", {}, row.name);
    draw(svg, "line", { class: `curve s${color}`, x1: at(row.low), x2: at(tops[place]), y1: y, y2: y });
    draw(svg, "circle", { class: `f${color}`, cx: at(row.value), cy: y, r: row.strong ? 6 : 4 });
    draw(svg, "text", { x: width - right + 10, y: y + 4 }, figure(Number(row.value.toPrecision(4))));
  });
}

add(page, "h1", data.name);
add(page, "p", data.about, "soft");
tiles(page, data.tiles);
add(page, "h2", "95 % intervals");
const plots = add(page, "div", null, "charts");
for (const one of data.forests) forest(plots, one);
for (const one of data.tables) {
  add(page, "h2", one.title);
  table(add(page, "section", null, "card"), one.heads, one.rows);
}
