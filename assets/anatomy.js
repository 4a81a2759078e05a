// Drawings that are not plotly's (components/ratios/anatomy_charts.py): the model as a map on a canvas, and the matrices of one
// layer. chart.js calls isx.drawings[kind](plot, chart, pinned, choose) whenever one is to be drawn; `pinned` is A's drawing.
const { say, make, count, percentage, written } = isx;
const TYPE = 12; // px; the other lengths of a map grow with it in presenter mode
const GAP = 14; // px between attention and MLP
const HEIGHT = 460; // of a map of many layers
const ROW = { least: 5, most: 20 };
const font = (size, weight = "") => `${weight} ${size}px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif`;
const MATRIX = { most: 3, gap: 16 }; // px per row or column; px between matrices
const OPENED = "isx-opened"; // of the body, while the matrices of the chosen layer are shown
const EDGE = 8; // px beside the edge of the kept neurons, where it can be dragged
const short = (number) => written(number >= 100 ? Math.round(number) : Number(number.toPrecision(2)));
const set = Object.assign; // of a pen's style: set(pen, { fillStyle }).fill()

// A canvas of this size in px of the page, and what draws on it.
function paper(canvas, width, height) {
  const sharp = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.max(1, Math.round(width * sharp)), height: Math.max(1, Math.round(height * sharp)) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const pen = canvas.getContext("2d");
  pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  return pen;
}

// The map

// What lies where: rows of heads, and a bar of neurons as the last part of each. `kept` and `pinned` are widths.
function place(view) {
  const { plot, rows, pinned } = view;
  const width = plot.clientWidth;
  const [presented, type] = [isx.presents(), TYPE * isx.enlargement()];
  const [left, top] = [2.5 * type, 1.7 * type]; // beside and above the rows, for words
  const each = ((presented ? plot.clientHeight : HEIGHT) - top) / rows.length;
  const row = Math.min(Math.max(Math.floor(each), ROW.least), presented ? 4 * type : ROW.most);
  const scale = (width - left - GAP - 2) / Math.max(...rows.map(({ costs: [attention, mlp] }) => attention + mlp));
  const start = left + GAP + scale * Math.max(...rows.map(({ costs }) => costs[0]));
  const parts = rows.map((one, layer) => {
    const slot = (scale * one.costs[0]) / one.kv.length;
    const narrow = Math.min(1, slot / 8); // gaps that a narrow head can spare
    const part = (x, width, share) => ({ x, width, kept: width * share(one), pinned: pinned?.[layer] && width * share(pinned[layer]) });
    const heads = one.kv.map((group, head) => {
      const gaps = group === one.kv[head + 1] ? 1 : 3;
      return part(left + slot * head, slot - narrow * gaps, ({ kept, dims }) => (kept.includes(head) ? dims[1] / dims[0] : 0));
    });
    return [...heads, part(start, scale * one.costs[1], ({ neurons }) => neurons[1] / neurons[0])];
  });
  return { width, row, type, left, top, parts, start, height: top + row * rows.length };
}

function drawMap(view) {
  const { plot, canvas, chart, rows, at } = view;
  const placed = (view.placed = place(view));
  const { width, height, row, type, left, top, parts, start } = placed;
  plot.style.height = `${height}px`;
  const pen = paper(canvas, width, height);
  const ink = isx.colours(plot);
  const margin = row > 9 ? 2 : 1;
  set(pen, { fillStyle: ink("band") }).fillRect(0, top + row * chart.selected, width, row);
  const paths = { pale: new Path2D(), attention: new Path2D(), mlp: new Path2D(), pinned: new Path2D(), locked: new Path2D(), instead: new Path2D() };
  parts.forEach((line, layer) => {
    const y = top + row * layer + margin;
    const tall = row - 2 * margin;
    line.forEach((part, index) => {
      paths.pale.rect(part.x, y, part.width, tall);
      if (part.kept) paths[index < line.length - 1 ? "attention" : "mlp"].rect(part.x, y, part.kept, tall);
      if (lockOf(view, { layer, part: index })) paths.locked.rect(part.x, y, part.width, tall);
      if (differs(view, { layer, part: index })) paths.instead.rect(part.x, y + tall - 1, part.width, 2);
      if (part.pinned === undefined || Math.abs(part.pinned - part.kept) < 0.1) return;
      paths.pinned.moveTo(part.x + part.pinned, y - margin);
      paths.pinned.lineTo(part.x + part.pinned, y + tall + margin);
    });
  });
  for (const [name, shade] of [["pale", "removed"], ["attention", "attention"], ["mlp", "mlp"]]) set(pen, { fillStyle: ink(shade) }).fill(paths[name]);
  set(pen, { strokeStyle: ink("rule"), lineWidth: 1 }).stroke(paths.pale);
  set(pen, { strokeStyle: ink("ink"), lineWidth: 1.5 }).setLineDash([3, 2]);
  pen.stroke(paths.pinned);
  pen.setLineDash([]);
  pen.stroke(paths.locked);
  set(pen, { fillStyle: ink("crimson") }).fill(paths.instead);
  set(pen, { font: font(type), fillStyle: ink("quiet"), textBaseline: "middle" }).fillText(say("Attention"), left, top / 2);
  pen.fillText(say("MLP"), start, top / 2);
  const step = Math.ceil((1.1 * type) / row);
  rows.forEach((_, layer) => {
    const isChosen = layer === chart.selected;
    if (!isChosen && (layer % step || Math.abs(layer - chart.selected) < step)) return;
    set(pen, { textAlign: "right", font: font(type, isChosen ? "bold" : ""), fillStyle: ink(isChosen ? "ink" : "quiet") });
    pen.fillText(count(layer), left - 8, top + row * (layer + 0.5));
  });
  if (at) {
    const part = parts[at.layer][at.part];
    set(pen, { strokeStyle: ink("ink"), lineWidth: 2 }).strokeRect(part.x - 1, top + row * at.layer, part.width + 2, row);
  }
  tell(view);
  label(view);
}

// The name, the score, the rank and the sizes of the part under the pointer or the keyboard's cursor.
function words(view, { layer, part, along }) {
  const { rows, pinned, chart } = view;
  const one = rows[layer];
  const before = pinned?.[layer];
  if (part === one.kv.length) {
    const [dense, kept] = one.neurons;
    const lines = [say("Layer {layer}, MLP", { layer }), say("{dense} → {kept} neurons", { dense: count(dense), kept: count(kept) })];
    if (one.held !== undefined) lines.push(say("they hold {held} of the score of all", { held: percentage(one.held) }));
    if (before && before.neurons[1] !== kept) lines.push(say("pinned A: {kept} neurons", { kept: count(before.neurons[1]) }));
    if (canLock(view, layer)) lines.push(say("drag the edge of what is kept to lock its number"));
    if (along === undefined || !one.curve.length) return lines;
    const rank = Math.min(dense, 1 + Math.floor(along * dense));
    const score = short(one.curve[Math.round(along * (one.curve.length - 1))]);
    const fate = !chart.drawing.isRanked ? "" : rank <= kept ? say(": kept") : say(": removed");
    return [...lines, say("here: rank {rank} of {count}, score {score} times the mean{fate}", { rank: count(rank), count: count(dense), score, fate })];
  }
  const [dense, dim] = one.dims;
  const isKept = one.kept.includes(part);
  const lines = [say("Layer {layer}, query head {head} (key/value head {group})", { layer, head: part, group: one.kv[part] })];
  lines.push(isKept ? say("kept: {dense} → {kept} channels", { dense, kept: dim }) : say("removed: {dense} → 0 channels", { dense }));
  if (one.scores.length) {
    const score = one.scores[part];
    const rank = 1 + one.scores.filter((other) => other > score).length;
    lines.push(say("explained variance kept: {explained}", { explained: percentage(isKept ? one.explained[part] : 0) }));
    lines.push(say("score: {score} of the layer's, rank {rank} of {count}", { score: percentage(score), rank, count: one.kv.length }));
  }
  const other = before && (before.kept.includes(part) ? before.dims[1] : 0);
  if (before && other !== (isKept ? dim : 0)) lines.push(say("pinned A: {kept} channels", { kept: other }));
  if (differs(view, { layer, part })) lines.push(say("changed by the last lock"));
  if (canLock(view, layer)) {
    const isLocked = lockOf(view, { layer, part });
    lines.push(isLocked ? say("locked; a click or L unlocks it") : isKept ? say("a click or L removes it") : say("a click or L keeps it"));
  }
  return lines;
}

function tell(view) {
  const { tip, at, placed, plot } = view;
  tip.hidden = !at;
  if (!at) return;
  const [title, ...lines] = words(view, at);
  tip.replaceChildren(make("b", {}, title), ...lines.map((text) => make("div", {}, text)));
  const part = placed.parts[at.layer][at.part];
  const x = part.x + (at.along ?? 0.5) * part.width;
  const below = placed.top + placed.row * (at.layer + 1) + 6;
  const isLow = below + tip.offsetHeight > plot.clientHeight && at.layer * placed.row > tip.offsetHeight;
  tip.style.left = `${Math.max(0, Math.min(x - 20, placed.width - tip.offsetWidth))}px`;
  tip.style.top = `${isLow ? below - placed.row - tip.offsetHeight - 12 : below}px`;
}

// The part at a point of the canvas: of its row the one that begins before it.
function partAt({ placed }, { offsetX, offsetY }) {
  const layer = Math.floor((offsetY - placed.top) / placed.row);
  const line = placed.parts[layer];
  if (!line) return null;
  const part = Math.max(0, line.findLastIndex(({ x }) => x <= offsetX));
  const { x, width } = line[part];
  return { layer, part, along: part === line.length - 1 ? Math.min(Math.max((offsetX - x) / width, 0), 1) : undefined };
}

function point(view, at) {
  if (JSON.stringify(at) === JSON.stringify(view.at)) return;
  view.at = at;
  drawMap(view);
}

const card = () => document.getElementById("layer-chart"); // a published page has none
const isOpen = () => document.body.classList.contains(OPENED);

// Choose a layer and show its matrices; once more hides them.
function open(view, layer) {
  const hide = layer === view.chart.selected && isOpen();
  if (layer !== view.chart.selected) view.choose(layer);
  document.body.classList.toggle(OPENED, !hide);
  label(view);
  if (!hide) card()?.scrollIntoView({ block: "nearest", behavior: isx.calm?.matches ? "instant" : "smooth" });
}

// Locks of units in the opened layer, which overrides.js keeps: of a head, by a click, and of the number of neurons, by
// dragging the edge of those that are kept.

const canLock = (view, layer) => Boolean(isx.locks) && isOpen() && layer === view.chart.selected;

function lockOf({ rows }, { layer, part }) {
  const isHead = part < rows[layer].kv.length;
  const value = isx.locks?.().get(isHead ? `${layer} attention head ${part}` : `${layer} mlp`);
  return isHead || value?.startsWith("neurons") ? value : undefined;
}

// Whether the last lock has changed a part: what was kept or removed instead.
function differs({ rows, before }, { layer, part }) {
  const [now, then] = [rows[layer], before?.[layer]];
  if (!then) return false;
  return part < now.kv.length ? now.kept.includes(part) !== then.kept.includes(part) : now.neurons[1] !== then.neurons[1];
}

const lock = (text) => window.dispatchEvent(new CustomEvent("isx-lock-unit", { detail: text }));

function lockHead(view, { layer, part }) {
  const value = lockOf(view, { layer, part }) ?? (view.rows[layer].kept.includes(part) ? "remove" : "keep");
  lock(`${layer} attention head ${part} ${value}`);
}

function isAtEdge(view, { layer, part }, { offsetX }) {
  const bar = view.placed.parts[layer][part];
  return part === view.rows[layer].kv.length && canLock(view, layer) && Math.abs(offsetX - bar.x - bar.kept) <= EDGE;
}

function drag(view, event) {
  const { layer } = view.dragged;
  const [bar, [dense]] = [view.placed.parts[layer].at(-1), view.rows[layer].neurons];
  const neurons = Math.min(Math.max(Math.round((dense * (event.offsetX - bar.x)) / bar.width), 1), dense);
  view.dragged.neurons = neurons; // kept if their edge is at the pointer
  view.rows = view.rows.with(layer, { ...view.rows[layer], neurons: [dense, neurons] });
  drawMap(view);
}

function label({ button, chart }) {
  const layer = chart.selected;
  button.textContent = isOpen() ? say("Close layer {layer}", { layer }) : say("Open layer {layer}", { layer });
  button.setAttribute("aria-expanded", isOpen());
}

const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] };
function press(view, event) {
  const { layer, part } = view.at ?? { layer: view.chart.selected, part: 0 };
  if (event.key === "Enter" || event.key === " ") open(view, layer);
  else if (event.key === "Escape" && view.at) point(view, null);
  else if (event.key.toLowerCase() === "l" && view.at && canLock(view, layer) && part < view.rows[layer].kv.length) lockHead(view, view.at);
  else if (steps[event.key]) {
    const [down, right] = steps[event.key];
    const next = Math.min(Math.max(layer + down, 0), view.rows.length - 1);
    point(view, { layer: next, part: Math.min(Math.max(part + right, 0), view.rows[next].kv.length) });
  } else return;
  event.preventDefault();
}

function begin(plot) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const tip = make("div", { className: "isx-tip", role: "status", hidden: true });
  const button = make("button", { type: "button", className: "isx-open", onclick: () => open(view, view.chart.selected) });
  const view = (plot.isxMap = { plot, canvas, tip, button });
  plot.replaceChildren(canvas, tip);
  plot.classList.add("isx-map");
  if (card()) plot.parentElement.querySelector(".isx-under").prepend(button);
  canvas.addEventListener("pointermove", (event) => {
    if (view.dragged) return drag(view, event);
    const at = partAt(view, event);
    canvas.style.cursor = at && isAtEdge(view, at, event) ? "col-resize" : "";
    point(view, at);
  });
  canvas.addEventListener("pointerleave", () => view.dragged || point(view, null));
  canvas.addEventListener("pointerdown", (event) => {
    const at = partAt(view, event);
    if (!at || !isAtEdge(view, at, event)) return;
    view.dragged = at;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => {
    const { layer, neurons } = view.dragged ?? {};
    if (neurons) lock(`${layer} mlp neurons ${neurons}`);
    setTimeout(() => (view.dragged = null)); // after the click that belongs to it
  });
  canvas.addEventListener("click", (event) => {
    const at = partAt(view, event);
    if (!at || view.dragged) return;
    const isHead = at.part < view.rows[at.layer].kv.length && event.offsetX >= view.placed.left;
    if (isHead && canLock(view, at.layer)) lockHead(view, at);
    else open(view, at.layer);
  });
  // A lock that is refused changes no plan: the map shows the plan again, and the reason, which else is far below.
  const refused = () => {
    const reason = document.querySelector("#overrides-problem")?.textContent.trim();
    if (!reason) return;
    view.rows = view.drawn;
    drawMap(view);
    if (view.at) tip.append(make("div", {}, reason));
  };
  addEventListener("isx-locks", () => setTimeout(refused));
  plot.addEventListener("keydown", (event) => press(view, event));
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && !view.at && point(view, { layer: view.chart.selected, part: 0 }));
  plot.addEventListener("blur", () => point(view, null));
  return view;
}

function map(plot, chart, pinned, choose) {
  const view = plot.isxMap ?? begin(plot);
  const { rows } = chart.drawing;
  const isSame = pinned?.rows.length === rows.length;
  const locks = JSON.stringify([...(isx.locks?.() ?? [])]);
  if (rows !== view.drawn) view.before = view.drawn?.length === rows.length && locks !== view.locks ? view.drawn : null;
  Object.assign(view, { chart, rows, drawn: rows, locks, choose, pinned: isSame ? pinned.rows : null });
  if (view.at && !rows[view.at.layer]) view.at = null; // of another model
  if (view.at) view.at.part = Math.min(view.at.part, rows[view.at.layer].kv.length);
  drawMap(view);
}

// The map as a picture, with its title.
isx.picture = (plot, title) => {
  const { canvas } = plot.isxMap;
  const sharp = window.devicePixelRatio || 1;
  const picture = make("canvas", { width: canvas.width + 40 * sharp, height: canvas.height + 64 * sharp });
  const pen = picture.getContext("2d");
  const ink = isx.colours(plot);
  set(pen, { fillStyle: ink("page") }).fillRect(0, 0, picture.width, picture.height);
  pen.drawImage(canvas, 20 * sharp, 44 * sharp);
  set(pen, { fillStyle: ink("ink"), font: font(17 * sharp) }).fillText(title, 20 * sharp, 28 * sharp);
  return picture.toDataURL();
};

// One layer opened

function layer(plot, chart) {
  const { panels } = chart.drawing;
  const isWide = plot.clientWidth >= 720;
  const width = isWide ? (plot.clientWidth - 40) / 2 : plot.clientWidth;
  const lengths = panels.flatMap(({ rows }) => rows.map((row) => (width - MATRIX.gap * row.length) / row.reduce((sum, { dense }) => sum + dense[1], 0)));
  const scale = Math.min(MATRIX.most, ...lengths);
  plot.style.height = "auto";
  plot.setAttribute("role", "group");
  plot.classList.add("isx-matrices");
  plot.classList.toggle("isx-wide-matrices", isWide);
  plot.replaceChildren(...panels.map((panel) => side(panel, scale)));
}

function side({ title, colour, weights, rows, text }, scale) {
  const shades = colour === "cross" ? ["cross", "cross", "crimson"] : ["attention", "mlp"];
  const lines = rows.map((row, index) => make("div", { className: "isx-matrix-row" }, ...row.map((one, place) => matrix(one, scale, shades[index], place))));
  return make("section", {}, make("h4", {}, title, " ", make("span", { className: "isx-quiet" }, weights)), ...lines, make("p", {}, text));
}

// What is kept is a shape in a drawing of columns and rows, striped where its values are new.
function matrix({ name, size, change, dense: [height, width], rows, columns, isNew }, scale, shade, place) {
  const bits = [...columns].map((digit) => parseInt(digit, 16).toString(2).padStart(4, "0")).join("").slice(0, width);
  const kept = [...bits.matchAll(/1+/g)].map(({ 0: run, index }) => `M${index} 0h${run.length}v${rows}h${-run.length}z`).join("");
  const stripes = `isx-stripes-${shade}-${place}`;
  const tile = `<pattern id="${stripes}" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="scale(${1 / scale})"><path d="M-1 1L1 -1M0 5L5 0M4 6L6 4"/></pattern>`;
  const shapes = [`var(--isx-${shade})`, ...(isNew ? [`url(#${stripes})`] : [])].map((fill) => `<path d="${kept}" style="fill:${fill}"/>`);
  const innerHTML = `<svg viewBox="0 0 ${width} ${height}" width="${width * scale}" height="${height * scale}" preserveAspectRatio="none" aria-hidden="true">${shapes.join("")}${tile}</svg>`;
  const texts = [make("b", {}, name), " ", size.replaceAll(" × ", "\u00a0×\u00a0"), make("small", {}, change)];
  return make("figure", { innerHTML }, make("figcaption", {}, ...texts));
}

isx.drawings = { map, layer };
