const KINDS = {
  max_vio: ["MaxVio", "(largest load − mean) / mean; 0 is perfect balance. Each cell: the worst of its steps."],
  entropy: ["Routing entropy", "of the normalised scores, in nats. Each cell: the lowest of its steps."],
  dead: ["Dead experts", "experts that received no token in a step. Each cell: the most of its steps."],
  bias_spread: ["Bias spread", "largest minus smallest selection bias. Each cell: the widest of its steps."],
};

function heatmap(parent, router) {
  const card = add(parent, "section", null, "card");
  const choices = add(card, "div", null, "choices");
  const note = add(card, "p", null, "soft");
  const plot = add(card, "div", null, "plot");
  const canvas = add(plot, "canvas");
  const tip = add(plot, "div", null, "tip");
  tip.hidden = true;
  const axis = add(card, "p", null, "soft");
  let rows = [], kind = "max_vio";
  function show(name) {
    kind = name;
    rows = router.rows[name];
    for (const button of choices.children) button.setAttribute("aria-pressed", String(button.value === name));
    const all = rows.flat(), low = Math.min(...all), high = Math.max(...all);
    canvas.width = router.steps.length;
    canvas.height = router.layers.length;
    canvas.style.height = `${Math.max(90, Math.min(420, router.layers.length * 26))}px`;
    const context = canvas.getContext("2d");
    rows.forEach((row, y) => row.forEach((value, x) => {
      context.fillStyle = `rgb(${shade((value - low) / (high - low || 1)).join(",")})`;
      context.fillRect(x, y, 1, 1);
    }));
    note.textContent = `${KINDS[name][0]}: ${KINDS[name][1]} From ${figure(low)} (light) to ${figure(high)} (dark).`;
  }
  for (const name of Object.keys(KINDS)) {
    const button = add(choices, "button", KINDS[name][0]);
    button.value = name;
    button.type = "button";
    button.addEventListener("click", () => show(name));
  }
  const layers = router.layers;
  axis.textContent = `Rows: layers ${layers[0]} (top) to ${layers[layers.length - 1]}. Columns: steps ${count(1)} to ${count(router.steps[router.steps.length - 1])}.`;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.min(router.steps.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * router.steps.length)));
    const y = Math.min(layers.length - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * layers.length)));
    tip.textContent = `layer ${layers[y]}, steps to ${count(router.steps[x])}: ${figure(rows[y][x])}`;
    tip.hidden = false;
    const far = event.clientX - box.left > box.width / 2;
    tip.style.left = far ? "auto" : `${event.clientX - box.left + 12}px`;
    tip.style.right = far ? `${box.right - event.clientX + 12}px` : "auto";
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  show(kind);
}

function ledger(parent, record) {
  const card = add(parent, "section", null, "card");
  const dropped = (one) => Object.entries(one.dropped || {}).map(([why, n]) => `${count(n)} ${why}`).join(", ") || "none";
  const rows = record.sources.map((one) => [
    one.name, one.set, one.licence, one.files, one.documents, dropped(one), one.bytes, one.tokens ?? 0, (one.sha256 || "").slice(0, 12), one.path,
  ]);
  table(card, ["source", "set", "licence", "files", "documents", "dropped", "bytes", "tokens", "SHA-256", "path"], rows);
  const sets = Object.entries(record.sets || {}).map(([name, one]) => [name, one.documents, one.bytes, one.tokens ?? 0]);
  add(card, "p", "Sets", "soft");
  table(card, ["set", "documents", "bytes", "tokens"], sets);
  for (const one of record.skipped_files || []) add(card, "p", `left out: ${one.reason}`, "soft");
  if (record.quarantine) {
    const [first] = record.quarantine.first;
    add(card, "p", `${count(record.quarantine.records)} in quarantine; the first, ${first.path}: ${first.reason}`, "soft");
  }
  if (record.cleaning) {
    const figures = (what, value) => (typeof value === "object"
      ? Object.entries(value).flatMap(([name, one]) => figures(`${what} ${name}`, one)) : [[what.replaceAll("_", " "), value]]);
    add(card, "p", "Cleaning", "soft");
    table(card, ["step", "count"], Object.entries(record.cleaning).flatMap(([step, one]) => figures(step, one)));
  }
}

add(page, "h1", data.name);
add(page, "p", "trine training report", "soft");
tiles(page, data.tiles);
if (data.plan.length) {
  add(page, "h2", "Plan and run");
  table(add(page, "section", null, "card"), ["", "planned", "measured", "difference"], data.plan);
}
if (data.charts.length) {
  add(page, "h2", "Curves");
  const charts = add(page, "div", null, "charts");
  for (const spec of data.charts) chart(charts, spec);
}
if (data.router) { add(page, "h2", "Router, by layer and step"); heatmap(page, data.router); }
if (data.samples.length) {
  add(page, "h2", "Samples");
  const samples = add(page, "div", null, "samples");
  for (const one of data.samples) {
    const text = add(add(samples, "section", null, "card"), "pre");
    add(text, "span", one.prompt, "prompt");
    text.append(one.completion);
  }
}
if (data.ledger.sources) { add(page, "h2", "Data ledger"); ledger(page, data.ledger); }
if (data.config) {
  add(page, "h2", "Config");
  const details = add(add(page, "section", null, "card"), "details");
  add(details, "summary", "every value the run used");
  add(details, "pre", data.config);
}
