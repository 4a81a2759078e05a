// The lesson's answers, read from what the page shows: null until the page has it, else the values for the sentence, the truth
// that the control shows, whether a prediction comes close, and the weights of what was measured before.
const { lesson, say, fixed, signed, percentage } = isx;
const { words } = lesson;
const find = (selector) => document.querySelector(selector);
const chart = (id) => find(`#${id} .isx-chart`)?.isxChart;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const gap = (whole, value) => (typeof value === "number" ? isx.written(value) : (value ?? whole));
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => gap(whole, values[name])).replace(/(\d) %/g, "$1\u00a0%").replace(/(\p{L})\.\.(?!\.)/gu, "$1."); // "Mio." ends a sentence
const slider = () => Number(find("#sparsity input[type=range]")?.value);

// Whether the page's numbers belong to its controls: they follow a moment later.
const follows = () => Math.abs(parseFloat(find("#removed dd")?.dataset.percent) - slider()) < 0.06;

function settled(state) {
  const estimator = find("#estimator input:checked")?.closest("label")?.textContent.trim();
  const note = chart("ratio-chart")?.note;
  return follows() && (!state.estimator || !note || note.includes(estimator));
}

// Dense and sliced, row by row as the readout has them; null until the perplexity is whole.
function readout() {
  const { dense, sliced, source } = find("#readout [data-dense][data-sliced]")?.dataset ?? {};
  if (!follows() || !dense) return null;
  const rows = [...document.querySelectorAll("#readout tbody tr")].map((row) => [...row.querySelectorAll("td")].map((cell) => cell.textContent.trim()));
  return { rows, dense: Number(dense), sliced: sliced === "inf" ? Infinity : Number(sliced), source };
}

const bars = (module) => chart("ratio-chart")?.data.find((trace) => trace.type === "bar" && trace.meta?.module === module)?.y;

// Layers in groups of about one size: first and last of each. Their number is known once the ratios are drawn.
function groups(count) {
  const layers = bars("mlp")?.length ?? count;
  const many = Math.min(count, layers);
  const start = (index) => Math.round((index * layers) / many);
  return Array.from({ length: many }, (_, index) => ({ first: start(index), last: start(index + 1) - 1 }));
}

const named = ({ first, last }) => fill(first === last ? words.layer : words.layers, { first, last });

// Places in order, ties sharing the mean of theirs; and Spearman's rho of two lists, NaN where one is all alike.
const ranks = (values) => values.map((value) => values.filter((other) => other < value).length + (values.filter((other) => other === value).length - 1) / 2);
function rankCorrelation(first, second) {
  const [a, b] = [first, second].map((values) => ranks(values).map((rank) => rank - (values.length - 1) / 2));
  const along = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return along(a, b) / Math.sqrt(along(a, a) * along(b, b));
}

function cost(said) {
  const read = readout();
  if (!read) return null;
  const [all, layers] = read.rows;
  const times = read.sliced / read.dense;
  const values = { dense: fixed(read.dense, 2), sliced: fixed(read.sliced, 2), times: fixed(times, 2), layersDense: layers[0], layersSliced: layers[1], allDense: all[0], allSliced: all[1] };
  return { values, truth: times, close: Math.abs(said / times - 1) < 0.15, source: read.source };
}

function budget(said) {
  const ratios = follows() && bars("mlp");
  if (!ratios) return null;
  const parts = groups(6);
  const truth = parts.map(({ first, last }) => mean(ratios.slice(first, last + 1)));
  const most = truth.indexOf(Math.max(...truth));
  const least = truth.indexOf(Math.min(...truth));
  const rho = said ? rankCorrelation(said, truth) : NaN;
  const values = { most: named(parts[most]), mostShare: percentage(truth[most], 0), least: named(parts[least]), leastShare: percentage(truth[least], 0), order: Number.isNaN(rho) ? "" : fill(words.order, { rho: fixed(rho, 2) }) };
  return { values, truth, close: rho > 0.6, source: chart("ratio-chart").protocol };
}

function hurts(said) {
  const names = { attention: say("attention"), mlp: say("MLP") };
  const traces = (chart("estimator-check-chart")?.data ?? []).filter((trace) => typeof trace.customdata?.[0] === "number");
  const points = traces.flatMap((trace) => trace.customdata.map((layer, index) => ({ layer, module: names[trace.meta.module], damage: trace.y[index] })));
  if (points.length < 2) return null;
  const [worst, next] = points.sort((a, b) => b.damage - a.damage);
  const last = Math.max(...points.map((point) => point.layer));
  const truth = Math.floor((4 * worst.layer) / (last + 1));
  return { values: { layer: worst.layer, module: worst.module, nextLayer: next.layer, nextModule: next.module, last }, truth, close: said === truth, source: chart("estimator-check-chart").protocol };
}

function directions(said) {
  const heat = chart("rank-chart")?.data.find((trace) => trace.type === "heatmap");
  if (!heat) return null;
  const sorted = heat.z.flat().sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)];
  const share = (100 * at(0.5)) / heat.zmax;
  return { values: { heads: sorted.length, median: at(0.5), dim: heat.zmax, share: fixed(share, 0), few: at(0.1), many: at(0.9) }, truth: share, close: Math.abs(said - share) <= 10, source: chart("rank-chart").protocol };
}

function choosing(said, [uniform, chosen]) {
  if (!chosen) return null;
  const change = 100 * (chosen.sliced / uniform.sliced - 1);
  const truth = change >= 0 ? 0 : change > -5 ? 1 : change >= -20 ? 2 : 3;
  return { values: { uniform: fixed(uniform.sliced, 2), chosen: fixed(chosen.sliced, 2), change: signed(change, 1) }, truth, close: said === truth, source: chosen.source };
}

function doubling(said, readings) {
  if (!readings.length) return null;
  const tried = readings.map(({ percent, sliced, dense }) => ({ percent, times: sliced / dense }));
  const { source } = readings.at(-1);
  const values = { tried: tried.map(({ percent, times }) => fill(words.tried, { percent, times: fixed(times, 2) })).join("; ") };
  const over = tried.findIndex(({ times }) => times >= 2);
  if (over < 0 && readings.length < 4) return { values: { ...values, crossing: "…" }, close: null, source };
  if (over <= 0) {
    const edge = over ? tried.at(-1).percent : tried[0].percent;
    return { values: { ...values, crossing: fill(over ? words.beyond : words.before, { percent: edge }) }, close: over ? said > edge : said < edge, source };
  }
  const [low, high] = [tried[over - 1], tried[over]];
  const way = Math.log(2 / low.times) / Math.log(high.times / low.times);
  const crossing = low.percent + way * (high.percent - low.percent);
  return { values: { ...values, crossing: fill(words.at, { percent: fixed(crossing, 0) }) }, truth: crossing, close: Math.abs(said - crossing) <= 4, source };
}

function across(said) {
  const shown = Number(find("#shift-words [data-percent]")?.dataset.percent) === slider();
  const of = (method) => (chart("shift-chart")?.data ?? []).filter((trace) => trace.legendgroup === method).map((trace) => trace.y);
  const [intra, cross] = [of("intraslice"), of("crossmodule")];
  if (!shown || intra.length < 3 || cross.length < 3) return null;
  const [own, other] = [mean(intra[0]), mean(cross[0])];
  const truth = Math.abs(own / other - 1) < 0.1 ? 2 : own < other ? 0 : 1;
  const wins = intra[0].filter((error, layer) => error < cross[0][layer]).length;
  const last = { lastIntra: percentage(intra[0].at(-1), 0), lastCross: percentage(cross[0].at(-1), 0), spreadIntra: fixed(intra[2].at(-1), 3), spreadCross: fixed(cross[2].at(-1), 3) };
  const values = { intra: percentage(own, 0), cross: percentage(other, 0), wins, layers: intra[0].length, ...last };
  return { values, truth, close: said === truth, source: find("#shift-words [data-source]")?.dataset.source };
}

// Which model's answer stands where: drawn once for each browser, since a prediction outlasts a reload.
const ORDER = "isx-answers-order";
const MODELS = ["dense", "intraslice", "crossmodule"];
const drawn = () => MODELS.map((name) => [Math.random(), name]).sort(([a], [b]) => a - b).map(([, name]) => name);
const models = isx.stored(ORDER)?.split(" ") ?? drawn();
isx.store(ORDER, models.join(" "));
function written() {
  const whole = models.map((name) => find(`#${name}-answer section:not([aria-busy])`));
  const texts = whole.map((section) => section?.querySelector(".isx-text:not(.isx-quiet)")?.textContent.trim());
  const percents = whole.map((section) => section?.querySelector("h3 [data-percent]")?.dataset.percent ?? slider());
  return percents.every((percent) => Number(percent) === slider()) && texts.every(Boolean) ? texts : null;
}
function who(said) {
  if (!written()) return null;
  const truth = models.indexOf("dense");
  const title = (name) => find(`#${name}-answer h3`).firstChild.textContent.trim();
  return { values: { who: models.map((name, index) => `${"ABC"[index]}: ${title(name)}.`).join(" ") }, truth, close: said === truth };
}

function speed(said) {
  const [dense, sliced] = ["dense", "intraslice"].map((name) => find(`#${name}-cost dl`)?.dataset ?? {});
  const [reads, writes] = [sliced.reads / dense.reads, sliced.writes / dense.writes];
  if (!(writes > 0) || writes === Infinity) return null;
  const values = { writes: fixed(writes, 2), writesSliced: isx.written(sliced.writes), writesDense: isx.written(dense.writes), reads: fixed(reads, 2), cacheDense: dense.cache, cacheSliced: sliced.cache };
  return { values, truth: writes, close: Math.abs(said / writes - 1) < 0.1 };
}

function tokens(said) {
  const all = [...document.querySelectorAll("#passage .isx-token")].map((token) => ({ text: token.textContent.trim(), extra: Number(token.dataset.extra) }));
  const shown = Number(find("#passage [data-percent]")?.dataset.percent) === slider();
  if (!shown || !all.length) return null;
  const better = all.filter(({ extra }) => extra < 0).length;
  const worst = all.reduce((most, token) => (token.extra > most.extra ? token : most));
  const share = (100 * better) / all.length;
  const values = { better, tokens: all.length, share: fixed(share, 0), mean: signed(mean(all.map(({ extra }) => extra)), 2), worst: worst.text, worstLoss: signed(worst.extra, 2) };
  return { values, truth: share, close: Math.abs(said - share) <= 7 };
}

// Of four groups, in the order of the grid's; how many of the dense model's right answers the sliced one still says.
const ASKED = [0, 3, 6, 7];
function facts(said) {
  const view = find("#facts-chart .isx-plot")?.isxFacts;
  const [dense, sliced] = ["dense", "intraslice"].map((colour) => view?.columns?.find((column) => column.colour === colour));
  if (!follows() || !sliced) return null;
  const questions = [...view.questions.keys()];
  const says = ({ levels }) => questions.filter((index) => levels[index] === 2);
  const selects = (column) => questions.filter((index) => column.selects[index] === 0).length;
  const kept = says(dense).filter((index) => sliced.levels[index] === 2);
  const of = (name, indices) => indices.filter((index) => view.questions[index][0] === name).length;
  const groups = [...new Set(view.questions.map(([name]) => name))].map((name) => ({ name, kept: of(name, kept), dense: of(name, says(dense)) }));
  const shares = ASKED.map((group) => groups[group].kept / groups[group].dense); // NaN where the dense model says none
  const least = Math.min(...shares.filter((share) => !Number.isNaN(share)));
  const values = { dense: says(dense).length, kept: kept.length, groups: groups.map((group) => fill(words.of, group)).join("; "), selects: selects(sliced), selectsDense: selects(dense) };
  const truth = Number.isFinite(least) ? shares.indexOf(least) : null;
  return { values, truth, close: shares[said] === least, source: chart("facts-chart").protocol };
}

// Predictions and measured values in the units of the controls, alike for all pages: bars in per cent, and of the
// shuffled answers which model's it is.
function measured({ kind }, found) {
  if (!found) return null;
  if (kind === "answers") return MODELS.indexOf("dense");
  const { truth = null } = found;
  return kind === "bars" ? truth.map((share) => Math.round(1000 * share) / 10) : Number.isFinite(truth) ? Math.round(1000 * truth) / 1000 : null;
}
const pooled = ({ kind }, said) => (kind === "answers" ? MODELS.indexOf(models[said]) : said);
const unpooled = ({ kind }, value) => (kind === "answers" ? models.indexOf(MODELS[value]) : value);

Object.assign(lesson, { fill, groups, hasLayers: () => Boolean(bars("mlp")), measured, pooled, readout, settled, slider, unpooled, written });
lesson.answers = { cost, budget, hurts, directions, choosing, doubling, across, who, speed, words: tokens, facts };
