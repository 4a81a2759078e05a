// The browser's half of the chart bridge; components/ui/chart_bridge.py is the other. Runs once for every chart, with
// gradio's `element`, `props`, `watch` and `trigger` in scope. The plot's div is made once and never replaced, so zoom
// and legend survive; every new value goes through Plotly.react.
const { say, make } = isx;
const find = (name) => element.querySelector(`.isx-${name}`);
const plot = find("plot");
const LETTER = 7; // px of an axis' words
const config = { displayModeBar: false, responsive: false, scrollZoom: false, doubleClick: "reset" };
const height = plot.clientHeight || parseInt(plot.style.height);
let chart = null;
let drawn = null; // its traces
let overlay = null; // of the pinned setting's chart, see components/ui/chart_bridge.py
let overlaid = []; // those of the overlay's traces that are drawn
const added = () => find("chart").isxAdded ?? []; // traces of another script, which the event `isx-add` announces
let pointed; // the legend group under the pointer
const chosen = new Set(); // legend groups whose colour stays
let inSight = false;
let later = null;

// "@name" is a colour of components/ui/palette.py; its value differs between the light and the dark page.
function coloured(figure) {
  const colour = isx.colours(plot);
  const shade = (_, name) => JSON.stringify(colour(name));
  return JSON.parse(JSON.stringify(figure).replace(/"@([\w-]+)"/g, shade));
}

// Traces that are as they were keep their identity: Plotly.react then moves shapes and words alone, three times as fast.
function kept(before, now) {
  if (!before || !now || typeof before !== "object" || typeof now !== "object") return now;
  const keys = Object.keys(now);
  for (const key of keys) now[key] = kept(before[key], now[key]);
  const same = keys.length === Object.keys(before).length && keys.every((key) => now[key] === before[key]);
  return same ? before : now;
}

// A line that stands back is gray until it is pointed at or chosen.
function toned(trace) {
  if (!trace.meta?.gray || trace.legendgroup === pointed || chosen.has(trace.legendgroup)) return trace;
  const grays = ["line", "marker", "error_y"].map((part) => [part, { ...trace[part], color: "@quiet" }]);
  return { ...trace, ...Object.fromEntries(grays), opacity: 0.35 };
}

function point(group) {
  pointed = group;
  if (chart.data.some((trace) => trace.meta?.gray)) drawNow();
}

function toggle(group) {
  if (!chosen.delete(group)) chosen.add(group);
  point();
}

// The chart with the pinned setting's overlay. Some of its curves are left out while they are no other ones.
function whole() {
  const { xaxis, yaxis, shapes = [] } = chart.layout;
  const axes = added().length ? { xaxis: { ...xaxis, autorange: true }, yaxis: { ...yaxis, autorange: true } } : {};
  // Outlines over a bar are seen where it is pale.
  const seen = (trace) => (overlay && trace.type === "bar" ? { ...trace, marker: { ...trace.marker, opacity: 0.6 } } : trace);
  const data = [...chart.data.map(toned).map(seen), ...overlaid, ...added()];
  return { data, layout: { ...chart.layout, ...axes, shapes: [...shapes, ...(overlay?.shapes ?? [])] } };
}

function compare() {
  const points = (trace) => JSON.stringify([trace.x, trace.y]);
  const same = overlay && new Set(chart.data.map(points));
  overlaid = overlay ? overlay.data.filter((trace) => trace.meta.overlay === "always" || !same.has(points(trace))) : [];
}

function caption() {
  const kinds = overlay ? [...new Set([...overlaid.map((trace) => trace.meta.kind), ...overlay.kinds])].join(say(" and ")) : "";
  return kinds ? say("{note} {drawn}: the pinned setting A.", { note: chart.note, drawn: `${kinds[0].toUpperCase()}${kinds.slice(1)}` }) : chart.note;
}

function figure() {
  const colours = coloured(whole());
  const { data, layout } = isx.presents() ? enlarged(colours, isx.enlargement()) : colours;
  const sized = { ...layout, width: plot.clientWidth, height: plot.clientHeight };
  if (plot.clientWidth < 560) stack(sized);
  for (const shape of sized.shapes || [])
    if (shape.name === "selected-layer") [shape.x0, shape.x1] = [chart.selected - 0.5, chart.selected + 0.5];
  // Points whose customdata is a number stand for a layer each.
  for (const trace of data)
    if (typeof trace.customdata?.[0] === "number") trace.selectedpoints = [trace.customdata.indexOf(chart.selected)];
  drawn = kept(drawn, data);
  return { data: drawn, layout: sized };
}

// Fonts, lines and marks of a chart that a room looks at.
function enlarged(node, by, key = "") {
  if (Array.isArray(node)) return node.map((item) => enlarged(item, by));
  if (!node || typeof node !== "object") return node;
  const larger = { size: /font$|^marker$/.test(key), width: key === "line" };
  const entry = ([name, item]) => [name, larger[name] && typeof item === "number" ? item * by : enlarged(item, by, name)];
  const scaled = Object.fromEntries(Object.entries(node).map(key === "margin" ? ([side, item]) => [side, item * by] : entry));
  if (key.startsWith("yaxis") && scaled.title?.text) scaled.title.text = halved(scaled.title.text);
  return scaled;
}

// An axis' words in two lines, where one would be longer than the axis.
function halved(words) {
  const breaks = [...words.matchAll(/ /g)].map((match) => match.index);
  const middle = breaks.sort((one, other) => Math.abs(one - words.length / 2) - Math.abs(other - words.length / 2))[0];
  return words.length < 10 || middle === undefined ? words : `${words.slice(0, middle)}<br>${words.slice(middle + 1)}`;
}

// Words in lines that fit a width, broken at spaces.
function broken(words, width) {
  const parts = halved(words).split("<br>");
  return lengthOf(words) <= width || parts.length < 2 ? words : parts.map((part) => broken(part, width)).join("<br>");
}

// Pixels of the longest line.
function lengthOf(words) {
  return LETTER * Math.max(...words.split("<br>").map((line) => line.replace(/<.*?>/g, "").length));
}

// Panels that stand side by side on a wide screen stand one above the other on a narrow one, and long words have two lines.
function stack(layout) {
  layout.margin = { ...layout.margin, l: 46, r: 6 };
  const panels = Object.keys(layout).filter((key) => key.startsWith("xaxis")).length;
  const gap = 0.2;
  const share = (1 - gap * (panels - 1)) / panels;
  for (let index = 0; chart.side_by_side && index < panels; index++) {
    const mark = index ? index + 1 : "";
    layout[`xaxis${mark}`].domain = [0, 1];
    layout[`yaxis${mark}`].domain = [1 - share - index * (share + gap), 1 - index * (share + gap)];
  }
  const { l, r, t, b } = layout.margin;
  const lengths = { x: layout.width - l - r, y: layout.height - t - b };
  for (const [name, axis] of Object.entries(layout).filter(([name]) => /^[xy]axis/.test(name))) {
    const [start, end] = axis.domain ?? [0, 1];
    if (axis.title?.text?.length * LETTER > lengths[name[0]] * (end - start)) layout[name] = { ...axis, title: { ...axis.title, text: halved(axis.title.text) } };
  }
  const long = layout.annotations.filter(({ text }) => lengthOf(text) > lengths.x);
  for (const words of long) Object.assign(words, { text: broken(words.text, lengths.x), align: words.xanchor });
  if (long.some(({ yanchor }) => yanchor === "bottom")) layout.margin.t += 18; // headings
}

// A chart out of sight is drawn when it comes into sight, or when the slider rests: a drag pays for what is seen alone.
function draw() {
  clearTimeout(later);
  if (inSight) drawNow();
  else later = setTimeout(drawNow, 200);
}

// plotly.js takes half a second to run: not before the page is on the screen, with its headline.
function loadPlotly() {
  const script = (isx.plotlyScript ??= document.head.appendChild(make("script", { src: "plotly.min.js" })));
  script.addEventListener("load", drawNow, { once: true });
  script.addEventListener("error", () => (isx.plotlyScript = null), { once: true }); // the next drawing tries again
}

function drawNow() {
  clearTimeout(later);
  later = null;
  if (!chart || !plot.clientWidth) return;
  if (chart.drawing) return isx.drawings[chart.drawing.kind](plot, chart, overlay?.drawing, choose);
  if (!window.Plotly) return loadPlotly();
  plot.style.height = `${chart.side_by_side && plot.clientWidth < 560 ? 1.7 * height : height}px`;
  const { data, layout } = figure();
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page; plotly would zoom
  Plotly.react(plot, data, layout, config);
  if (plot.dataset.wired) return;
  plot.dataset.wired = "yes";
  plot.on("plotly_click", ({ points: [at] }) => {
    if (at.id) pick(at.id);
    else if (at.data.meta?.gray) toggle(at.data.legendgroup);
    else choose(typeof at.customdata === "number" ? at.customdata : Math.round(at.x));
  });
  plot.on("plotly_hover", ({ points: [at] }) => point(at.data.legendgroup));
  plot.on("plotly_unhover", () => point());
  plot.on("plotly_legendclick", ({ data, curveNumber }) => {
    const { meta, legendgroup } = data[curveNumber];
    if (meta?.gray) toggle(legendgroup);
    return !meta?.gray;
  });
}

function show() {
  find("title").textContent = chart.title;
  compare();
  find("note").textContent = caption();
  const keys = chart.drawing ? say("{title}. Arrow keys go from part to part, Enter opens a layer; layer {layer} is chosen.", { title: chart.title, layer: chart.selected }) : say("{title}. Arrow keys choose a layer; layer {layer} is chosen.", { title: chart.title, layer: chart.selected });
  plot.setAttribute("aria-label", chart.layers ? keys : chart.title);
  plot.tabIndex = chart.layers ? 0 : -1;
  plot.classList.toggle("isx-clickable", chart.layers > 0 || chart.picks.length > 0 || added().length > 0);
  if (find("twin").open) fillTable();
  draw();
}

// The same numbers as a table. Filled when it is opened, so that dragging the slider does not pay for it. Where points can
// be picked, the row's name picks its point: the way for a keyboard and for fingers.
function fillTable() {
  const cell = (tag, content, column) => make(tag, { className: column ? "isx-number" : "", ...(tag === "th" && { scope: "col" }) }, content);
  const name = (row, text) => (chart.picks[row] === undefined ? text : make("button", { type: "button", className: "isx-pick", textContent: text, onclick: () => pick(chart.picks[row]) }));
  const line = (cells, row) => make("tr", {}, ...cells.map((text, column) => cell("td", column ? text : name(row, text), column)));
  find("head").replaceChildren(make("tr", {}, ...chart.table.columns.map((text, column) => cell("th", text, column))));
  find("rows").replaceChildren(...chart.table.rows.map((cells, row) => line(withPinned(cells, row), row)));
}

// A row's cells with the pinned setting's where they differ.
function withPinned(cells, index) {
  const before = overlay?.rows.length === chart.table.rows.length ? overlay.rows[index] : cells;
  return cells.map((cell, column) => (before[column] === cell || before.length !== cells.length ? cell : `${cell} (A: ${before[column]})`));
}

const pick = (name) => trigger("select", { pick: name });

function choose(layer) {
  if (!chart.layers) return;
  const chosen = Math.min(Math.max(layer, 0), chart.layers - 1);
  window.dispatchEvent(new CustomEvent("isx-layer", { detail: chosen }));
  trigger("select", { layer: chosen });
}

function receive() {
  if (props.value) chart = find("chart").isxChart = JSON.parse(props.value);
  // A question without an answer yet takes no room, nor does a chart with neither its own traces nor others.
  find("chart").hidden = !props.value || find("chart").isxAdded?.length + chart.data.length === 0;
  if (!props.value) return;
  window.dispatchEvent(new Event("isx-chart"));
  show();
}

async function save() {
  const load = (href) => make("a", { href, download: `${chart.title.replace(/[^\p{L}\p{N}]+/gu, "-").toLowerCase()}.png` }).click();
  if (chart?.drawing) return load(isx.picture(plot, chart.title));
  if (!chart || !window.Plotly) return; // the page is still being opened
  const { data, layout } = figure();
  const titled = {
    ...layout,
    paper_bgcolor: isx.colours(plot)("page"),
    title: { text: chart.title, x: 0.02, y: 0.97, font: { size: 17 } },
    margin: { ...layout.margin, t: layout.margin.t + 44 },
  };
  load(await Plotly.toImage({ data, layout: titled }, { format: "png", scale: 2, width: 1000, height: 560 }));
}

isx.onKeys(plot, { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }, (step) => chart?.layers > 0 && !chart.drawing && choose(chart.selected + step));
find("png").addEventListener("click", save);
find("twin").addEventListener("toggle", () => find("twin").open && chart && fillTable());
window.addEventListener("isx-layer", ({ detail }) => {
  if (!chart?.layers) return;
  chart.selected = detail;
  show();
});
new IntersectionObserver((entries) => {
  inSight = entries.at(-1).isIntersecting;
  if (inSight && later) drawNow();
}, { rootMargin: "120px" }).observe(plot);
window.addEventListener("beforeprint", drawNow); // on paper everything is in sight
new ResizeObserver(draw).observe(plot);
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });

find("chart").addEventListener("isx-add", receive);
watch("overlay", () => {
  overlay = props.overlay?.startsWith?.("{") ? JSON.parse(props.overlay) : null;
  if (chart) show();
});
watch("value", receive);
receive();
