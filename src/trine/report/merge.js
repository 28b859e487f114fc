const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(value < 0.1 ? 2 : 1) + " %");
const short = (value) => (value === null || value === undefined ? "–" : figure(value));

add(page, "h1", data.name);
add(page, "p", `trine merge report: ${data.method}, ${data.numerics} arithmetic. Differences are taken from ${data.reference}.`, "soft");
tiles(page, data.tiles);

add(page, "h2", "By layer");
if (data.charts.length) {
  const charts = add(page, "div", null, "charts");
  for (const spec of data.charts) chart(charts, spec);
} else add(page, "p", "No tensor lies in a numbered layer.", "soft");

add(page, "h2", "Cosines over the whole model");
table(add(page, "section", null, "card"), ["", ...data.labels], data.cosines.map((row, i) => [data.labels[i], ...row.map(short)]));

for (const [title, head, rows] of [["Layer by layer", "layer", data.layers], ["By kind of tensor", "kind", data.kinds]]) {
  add(page, "h2", title);
  const heads = [head, "elements", ...data.labels.map((label) => `size of ${label}`), "sign conflicts", "unchanged"];
  if (data.trims) heads.push(...data.models.map((model) => `trimmed of ${model}`));
  if (data.votes) heads.push(...data.models.map((model) => `outvoted of ${model}`));
  const cells = (one) => [
    String(one[head]), one.elements, ...one.norms.map((norm) => percent(one.reference_norm ? norm / one.reference_norm : null)),
    percent(one.sign_conflicts), percent(one.unchanged),
    ...(data.trims ? one.trimmed.map(percent) : []), ...(data.votes ? one.outvoted.map(percent) : []),
  ];
  table(add(page, "section", null, "card"), heads, rows.map(cells));
}

add(page, "h2", "What the figures mean");
const meanings = add(page, "section", null, "card");
for (const text of data.meanings) add(meanings, "p", text);
if (data.notes.length) {
  add(page, "h2", "Notes");
  const notes = add(page, "section", null, "card");
  for (const text of data.notes) add(notes, "p", text);
}
add(page, "h2", "Recipe");
add(add(page, "section", null, "card"), "pre", data.recipe);
