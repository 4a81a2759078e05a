// The table of the settings that this browser has measured, and their dots in the sweep's chart. Runs once, with gradio's
// `element` and `trigger` in scope. A click on a setting goes back to it: the event `select`, whose data is `pick`, or a
// link to the page where weights, text or windows are others. Names come from the user and from files: they are only text.
const { say, make, tried } = isx;
const find = (selector) => element.querySelector(selector);
const sources = { here: say("here"), before: say("precomputed"), imported: say("imported") };

const title = (entry) => entry.title ?? entry.name;
const isHere = ({ key }) => key === tried.current().key;
const group = ({ model, text, tokens, window, dtype }) => say("Model {model}, text {text}: {tokens} tokens in windows of {window}, {dtype}", { model, text, tokens: isx.count(tokens), window, dtype });

function link(entry) {
  const setting = [...new URLSearchParams(entry.setting)].filter(([name]) => isx.undone.includes(name) || name === "upload");
  if (!isHere(entry) && setting.some(([name]) => name === "upload")) return make("span", { textContent: title(entry) }); // the file is not there
  const href = `?${new URLSearchParams([...setting, ["tab", "sweep"], ["lang", isx.language.code]])}`;
  const properties = { className: "isx-pick", href, textContent: title(entry), "data-at": `go ${tried.id(entry)}` };
  return isHere(entry) ? isx.link(properties, () => trigger("select", { pick: entry.setting })) : make("a", properties);
}

function rename(entry, cell) {
  const field = make("input", { type: "text", value: title(entry), maxLength: 100, "aria-label": say("Name of the setting") });
  const end = (isWanted) => {
    field.onblur = null; // a field that leaves the page loses the focus, too
    field.remove();
    if (isWanted && field.value !== title(entry)) tried.rename(entry, field.value);
    show(`rename ${tried.id(entry)}`);
  };
  isx.onKeys(field, { Enter: true, Escape: false }, end); // by itself, the key would press the button that gets the focus
  field.onblur = () => end(true);
  cell.replaceChildren(field);
  field.focus();
  field.select();
}

function row(entry, fronts) {
  const act = (name, sign, label, onclick) => make("button", { type: "button", className: "isx-sign", textContent: sign, title: label, onclick, "aria-label": `${label}: ${title(entry)}`, "data-at": `${name} ${tried.id(entry)}` });
  const name = make("th", { scope: "row" }, link(entry), act("rename", "✎", say("Rename"), () => rename(entry, name)), act("remove", "×", say("Remove"), () => tried.remove(entry)));
  const numbers = [isx.percentage(entry.removed), isx.fixed(entry.parameters / 1e6, 1), isx.fixed(entry.perplexity, 2), entry.kl === null ? "–" : isx.fixed(entry.kl, 3)];
  const best = Object.keys(fronts).filter((value) => fronts[value].includes(entry)).join(", ");
  const words = [best, [sources[entry.source], entry.day].filter(Boolean).join(", ")];
  const cells = [...numbers, ...words].map((textContent, column) => make("td", { className: column < numbers.length ? "isx-number" : "", textContent }));
  return make("tr", tried.id(entry) === tried.id(tried.current()) ? { "aria-current": "true" } : {}, name, ...cells);
}

// Settings that can be compared stand together, those of the page first.
function show(focused = document.activeElement?.dataset.at) {
  if (find("tbody input")) return; // which holds the name that is typed now
  const groups = Object.values(Object.groupBy(tried.all(), ({ key }) => `key ${key}`)).sort(([a], [b]) => isHere(b) - isHere(a));
  const lines = groups.flatMap((entries) => {
    const fronts = { [say("perplexity")]: tried.front(entries, "perplexity"), KL: tried.front(entries, "kl") };
    return [make("tr", {}, make("th", { scope: "colgroup", colSpan: 7, textContent: group(entries[0]) })), ...entries.map((entry) => row(entry, fronts))];
  });
  find("tbody").replaceChildren(...lines);
  if (focused) [...element.querySelectorAll("[data-at]")].find((one) => one.dataset.at === focused)?.focus({ preventScroll: true });
  draw();
}

// Plotly reads tags, and the chart a colour's name, in what they show of a point.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replace(/^@/, "&#64;");
function draw() {
  const chart = document.querySelector("#sweep-chart .isx-chart");
  const shown = tried.all().filter(isHere);
  const points = (entries) => ({ type: "scatter", x: entries.map(({ removed }) => removed), y: entries.map(({ perplexity }) => perplexity) });
  const hovertemplate = `<b>%{text}</b><br>${say("{removed} removed, perplexity {perplexity}", { removed: "%{x:.1%}", perplexity: "%{y:.2f}" })}<extra></extra>`;
  const dots = { name: say("Measured settings"), mode: "markers", marker: { color: "@ink", size: 10, symbol: "circle-open", line: { width: 1.6 } }, hovertemplate };
  const front = { name: say("Best front"), mode: "lines", hoverinfo: "skip", line: { color: "@ink", width: 1.4, dash: "dot", shape: "hv" } };
  const each = { text: shown.map((entry) => plain(title(entry))), ids: shown.map(({ setting }) => setting) };
  const traces = [{ ...points(tried.front(shown, "perplexity")), ...front }, { ...points(shown), ...dots, ...each }];
  chart.isxAdded = shown.length ? traces : [];
  chart.dispatchEvent(new Event("isx-add"));
}

async function bring([file]) {
  const told = new Response(file?.slice(0, 4e6)).text().then((text) => say("{imported} imported, {refused} refused.", tried.bring(text)));
  find("[role=status]").textContent = await told.catch(() => say("This file cannot be read. Expected a CSV or JSON file that was saved here."));
}

element.addEventListener("click", ({ target, target: { dataset } }) => {
  if (dataset.save) isx.save(new Blob([tried[dataset.save]()]), `settings.${dataset.save}`);
  if (!("clear" in dataset)) return;
  if (dataset.clear) tried.remove(...tried.all());
  [dataset.clear, target.textContent] = dataset.clear ? ["", say("Remove all")] : ["sure", say("Press again to remove all")];
});
find("input").addEventListener("change", async ({ target }) => (await bring(target.files), (target.value = "")));
addEventListener("isx-tried", () => show());
show();
