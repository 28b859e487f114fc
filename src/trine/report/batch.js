const view = data;
const HUES = 6;

const count = (n) => Number(n).toLocaleString("en-US");
const percent = (x) => (100 * x).toFixed(1) + " %";
const hue = (place) => "p" + (place % HUES);

function tile(parent, label, value, note) {
  const card = add(parent, "div", null, "card tile");
  add(card, "div", label, "soft");
  add(card, "div", value, "value");
  add(card, "div", note, "soft");
}

function head() {
  add(page, "h1", "A batch as the model sees it");
  add(page, "p", `${view.name}, step ${count(view.step)}, phase ${view.phase}`, "soft");
  const tiles = add(page, "div", null, "tiles");
  const total = view.rows.length * view.sequence_length;
  const predicted = view.rows.reduce((sum, row) => sum + row.predicted, 0);
  const padding = view.rows.reduce((sum, row) => sum + row.padding, 0);
  const pieces = view.rows.reduce((sum, row) => sum + row.pieces.length, 0);
  const packing = view.packing.replace("_", "-");
  tile(tiles, "batch", `${count(view.batch_sequences)} × ${count(view.sequence_length)}`, `sequences × tokens; ${view.rows.length} shown`);
  tile(tiles, "packing", packing === "rsdb" ? "RSDB" : packing, `${count(pieces)} pieces of documents shown`);
  tile(tiles, "attention", view.document_mask ? "masked" : "open", view.document_mask ? "stays inside a document" : "crosses documents");
  tile(tiles, "targets", percent(predicted / total), `${count(predicted)} of ${count(total)} tokens`);
  tile(tiles, "padding", percent(padding / total), `${count(padding)} tokens`);
}

function sources() {
  const card = add(page, "section", null, "card sources");
  const table = add(add(card, "div", null, "scroll"), "table");
  const top = add(table, "tr");
  for (const name of ["source", "tokens", "of these rows", "of the mix"]) add(top, "th", name);
  const total = view.sources.reduce((sum, one) => sum + one.tokens, 0) || 1;
  for (const one of view.sources) {
    const line = add(table, "tr", null, hue(one.place));
    const name = add(line, "td");
    add(name, "span", null, "swatch");
    name.append(one.name);
    add(line, "td", count(one.tokens), "number");
    add(line, "td", percent(one.tokens / total), "number");
    add(line, "td", percent(one.share), "number");
    const bar = add(add(line, "td", null, "bars"), "div", null, "bar");
    bar.style.width = percent(one.tokens / total).replace(" ", "");
  }
  if (view.answers_only) {
    const keys = add(card, "p", null, "keys soft");
    add(keys, "span", "Like this", "yes");
    keys.append(": trained, the answers, each with the token that ends it. ");
    add(keys, "span", "Grey: only read.", "read");
    keys.append(" A heading: a document begins or goes on. Shades: single tokens.");
    return;
  }
  const keys = add(card, "p", "Colour: the source. A heading: a document begins or goes on. Shades: single tokens. ", "keys soft");
  add(keys, "span", "Marked like this: what follows is no target.", "no");
}

function words(parent, piece) {
  const ignored = new Set(piece.ignored);
  const trained = piece.trained && new Set(piece.trained);
  const kind = (i) => trained ? (trained.has(i) ? "yes" : "read") : ignored.has(i) ? "no" : null;
  const body = add(parent, "div", null, "text");
  piece.tokens.forEach((token, i) => {
    const span = add(body, "span", null, kind(i));
    for (const part of token.split(/(\n|\t)/)) {
      if (part === "\n" || part === "\t") add(span, "i", part === "\n" ? "⏎" : "⇥", "space");
      if (part) span.append(part);
    }
  });
  const left = piece.take - piece.tokens.length;
  if (left) add(parent, "div", piece.tokens.length ? `… ${count(left)} more tokens` : `${count(left)} tokens, not shown`, "soft");
}

function row(one) {
  const card = add(page, "section", null, "card row");
  add(card, "h3", `Sequence ${count(one.sequence)}`);
  add(card, "p", `${one.pieces.length} ${one.pieces.length === 1 ? "piece" : "pieces"}, ${count(one.predicted)} targets`, "soft");
  const strip = add(card, "div", null, "strip");
  for (const piece of one.pieces) add(strip, "i", null, hue(piece.source)).style.flex = `${piece.take} 1 0`;
  if (one.padding) add(strip, "i", null, "pad").style.flex = `${one.padding} 1 0`;
  for (const piece of one.pieces) {
    const box = add(card, "div", null, "piece " + hue(piece.source));
    const line = add(box, "div", null, "head");
    add(line, "b", view.sources.find((source) => source.place === piece.source).name);
    const end = piece.begin + piece.take;
    line.append(` · document ${count(piece.document)} · `);
    line.append(piece.take === piece.length ? `whole, ${count(piece.length)} tokens` : `tokens ${count(piece.begin)} to ${count(end)} of ${count(piece.length)}`);
    if (piece.begin) add(line, "span", " · goes on from an earlier sequence", "cut");
    if (end < piece.length) add(line, "span", " · cut, goes on later", "cut");
    words(box, piece);
  }
  if (one.padding) {
    const box = add(card, "div", null, "piece pad");
    const line = add(box, "div", null, "head");
    add(line, "span", null, "swatch");
    line.append(`${count(one.padding)} tokens of padding: no attention, no target`);
  }
}

page.replaceChildren();
head();
sources();
add(page, "h2", view.rows.length < view.batch_sequences ? `The first ${view.rows.length} of ${count(view.batch_sequences)} sequences` : "Every sequence");
view.rows.forEach(row);
