// Shows what two models answered on this device, as the Compare tab shows the server's answers: isx.answers.
const { say, make, fixed } = isx;
const signed = (number) => isx.signed(number, 2);
const speed = (number) => fixed(number, number >= 20 ? 0 : 1);
const percentage = (logprob) => isx.percentage(Math.exp(logprob));
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";

// The position of the first token that differs, or -1. An answer that has ended differs where the other goes on.
function divergence(dense, other) {
  const common = Math.min(dense.tokens.length, other.tokens.length);
  for (let at = 0; at < common; at++) if (dense.tokens[at].id !== other.tokens[at].id) return at;
  if (dense.growing || other.growing || dense.text === other.text) return -1;
  return dense.text.startsWith(other.text) && !other.ended ? -1 : common;
}

// A column: the answer so far, its first divergent token highlighted, and its length.
function column(name, title, answer, dense = null) {
  const at = dense && answer ? divergence(dense, answer) : -1;
  const said = make("p", { className: "isx-text" });
  const tokens = answer?.tokens ?? [];
  const text = (from, to = undefined) => (to === undefined && answer ? answer.text.slice(isx.device.text(tokens.slice(0, from)).length) : isx.device.text(tokens.slice(from, to)));
  if (at < 0) said.append(text(0));
  else said.append(text(0, at), make("mark", {}, text(at, at + 1) || "■"), make("span", { className: "isx-parted" }, text(at + 1)));
  const note = make("p", { className: "isx-quiet" }, answer ? state(answer, at, dense) : "");
  return make("section", { className: `isx-answer isx-of-${name}`, "aria-busy": Boolean(answer?.growing) }, make("h3", {}, title), said, note);
}

function state(answer, at, dense) {
  const count = answer.count ?? answer.tokens.length;
  const counted = count === 1 ? say("1 token") : say("{count} tokens", { count });
  const suffix = answer.growing ? say(" so far") : answer.stopped ? say(", stopped") : answer.ended ? "" : say(", truncated");
  if (!dense || (at < 0 && !count)) return `${counted}${suffix}.`;
  if (at < 0 && (answer.growing || answer.stopped)) return say("{counted}{suffix}. Identical to the dense answer so far.", { counted, suffix });
  if (at < 0) return say("{counted}{suffix}. Identical to the dense answer.", { counted, suffix });
  return say("{counted}{suffix}. Diverges from the dense answer at token {at}.", { counted, suffix, at: at + 1 });
}

const heading = (...names) => make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name))));
const row = (name, ...cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)));

// Sizes and speeds of both models on this device.
function costs(titles, sizes, measured) {
  const both = (kind) => {
    const [dense, sliced] = [measured.dense, measured.sliced].map((one) => one?.[kind]);
    if (!dense || !sliced) return ["–", "–"];
    return [say("{speed} tokens/s", { speed: speed(dense) }), `${say("{speed} tokens/s", { speed: speed(sliced) })} (${fixed(sliced / dense, 2)} ×)`];
  };
  const body = make("tbody", {}, row(say("File"), ...sizes), row(say("Prefill on your device"), ...both("prefill")), row(say("Decode on your device"), ...both("decode")));
  const table = make("table", { className: "isx-device-costs" }, heading("", ...titles), body);
  for (const [name, speeds] of Object.entries(measured))
    for (const kind of ["prefill", "decode"]) table.dataset[`${name}${kind}`] = speeds[kind].toFixed(3);
  return table;
}

// The likeliest first tokens of both models.
function candidates(titles, dense, sliced) {
  const [first, other] = [dense.tokens[0]?.top ?? [], sliced.tokens[0]?.top ?? []];
  const top = Math.exp(Math.max(...[...first, ...other].map(({ logprob }) => logprob)));
  const bar = (name, found) => {
    if (!found) return "–";
    const width = make("span", {}, make("i", { style: `width:${((100 * Math.exp(found.logprob)) / top).toFixed(1)}%` }));
    return make("div", { className: `isx-bars isx-of-${name}` }, width, make("b", {}, percentage(found.logprob)));
  };
  const rows = first.slice(0, 8).map((token) => row(make("code", {}, visible(token.text)), bar("dense", token), bar("intraslice", other.find(({ id }) => id === token.id))));
  return make("table", { className: "isx-next" }, heading(say("Token"), ...titles), make("tbody", {}, ...rows));
}

// The dense answer's tokens, coloured by how much likelier the dense model finds them: `scored` has the sliced model's
// log-probabilities of as many as it has scored.
function losses(dense, scored) {
  const increases = scored.map((sliced, at) => (sliced === undefined ? undefined : dense.tokens[at].logprob - sliced));
  const found = increases.filter((increase) => increase !== undefined);
  const mean = found.reduce((sum, increase) => sum + increase, 0) / Math.max(found.length, 1);
  const [spans, rows] = [[], []];
  increases.forEach((increase, at) => {
    const { text, logprob } = dense.tokens[at];
    const strength = Math.round(45 * Math.min(Math.max(increase ?? 2, 0) / 2, 1));
    const numbers = { dense: percentage(logprob), sliced: percentage(scored[at]), increase: signed(increase ?? 0) };
    const title = increase === undefined ? say("not among the sliced model's likeliest tokens") : say("{dense} → {sliced}, {increase} nats", numbers);
    spans.push(make("span", { className: "isx-token", title, style: strength ? `--isx-strength:${strength}%` : "" }, text));
    rows.push(row(visible(text), percentage(logprob), ...(increase === undefined ? ["–", "–"] : [percentage(scored[at]), signed(increase)])));
  });
  const counts = { mean: signed(mean), count: found.length, all: dense.tokens.length };
  const lacksSome = scored.length === dense.tokens.length && found.length < scored.length;
  const note = lacksSome
    ? say("The dense answer, scored by both models: mean loss increase {mean} nats per token over {count} of {all} tokens. The others could not be scored, for example because the sliced model finds them too unlikely; with them, the mean would probably be higher.", counts)
    : say("The dense answer, scored by both models: mean loss increase {mean} nats per token over {count} of {all} tokens.", counts);
  const table = make("table", {}, heading(say("Token"), say("Dense"), "IntraSlice", say("Loss increase, nats")), make("tbody", {}, ...rows));
  const fold = make("details", { className: "isx-fold" }, make("summary", {}, say("Data table")), make("div", { className: "isx-scroll" }, table));
  return make("div", {}, make("p", { className: "isx-note" }, note), make("p", { className: "isx-passage" }, ...spans), fold);
}

// Everything about two answers, in `element`. Either answer may be missing or growing.
function show(element, { titles, dense, sliced, scored = [], sizes = ["–", "–"], measured = {} }) {
  const columns = make("div", { className: "isx-device-answers" }, column("dense", titles[0], dense));
  if (titles[1]) columns.append(column("intraslice", titles[1], sliced, dense));
  const whole = [columns];
  if (titles[1]) whole.push(costs(titles, sizes, measured));
  if (dense?.tokens.length && sliced?.tokens.length && !dense.growing && !sliced.growing) {
    whole.push(make("h3", {}, say("Next-token probabilities")), candidates(titles, dense, sliced));
    if (scored.length) whole.push(make("h3", {}, say("Loss increase per token")), losses(dense, scored));
  }
  element.replaceChildren(...whole);
}

isx.answers = { show };
