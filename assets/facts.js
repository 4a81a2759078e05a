// The grid of facts (components/compare/charts.py), drawn as chart.js draws isx.drawings: a square for each question and
// model, equal questions one above the other; the chosen question's answers; what slicing loses and gains. The squares are
// one stop of the tab key, arrow keys go from one to another.
const { say, make, visible } = isx;
const SAYS = 2;
const words = [say("neither"), say("only selects it"), say("says it")]; // by level
const probability = (value) => isx.percentage(value, value < 0.1 ? 1 : 0);
const firstLine = (text) => `${text.split("\n")[0]} …`; // of what a model writes

// The columns, and that of the pinned setting if it has answers to the same questions.
function columnsOf({ questions, columns }, pinned) {
  const other = pinned?.questions?.[0]?.[1] === questions[0][1] && pinned.columns.find(({ colour }) => colour === "intraslice");
  return other ? [...columns, { ...other, name: say("A, pinned"), colour: "pinned" }] : columns;
}

function legend() {
  const entry = (text, level, more) => make("span", {}, make("i", { className: `isx-square ${more}`, "data-level": level }), text);
  const levels = words.map((text, level) => entry(text, level, "")).reverse();
  return make("p", { className: "isx-legend isx-of-dense" }, ...levels, entry(say("gained: more than the dense model"), SAYS, "isx-gained"));
}

// A table for each group: a row for each model, its squares, and how many right answers it says and selects.
function group(view, name) {
  const { questions, columns } = view;
  const indices = [...questions.keys()].filter((index) => questions[index][0] === name);
  const head = [say("says"), say("selects")].map((textContent) => make("th", { scope: "col", textContent }));
  const rows = columns.map((column, row) => {
    const squares = indices.map((index) => square(view, row, index));
    const isRight = [(index) => column.levels[index] === SAYS, (index) => column.selects[index] === 0];
    const cells = isRight.map((is) => make("td", {}, isx.written(indices.filter(is).length)));
    return make("tr", { className: `isx-of-${column.colour}` }, make("th", { scope: "row", textContent: column.name }), make("td", {}, ...squares), ...cells);
  });
  const title = make("th", { scope: "col", colSpan: 2 }, say("{group}, {count} questions", { group: name, count: indices.length }));
  return make("table", {}, make("thead", {}, make("tr", {}, title, ...head)), make("tbody", {}, ...rows));
}

function square({ questions, columns }, row, index) {
  const [, prompt, answer] = questions[index];
  const level = columns[row].levels[index];
  const gained = row && level > columns[0].levels[index];
  const label = `${visible(prompt)} … ${answer}. ${columns[row].name}: ${words[level]}`;
  const properties = { "data-level": level, "data-at": `${row} ${index}`, "aria-label": label, title: label };
  return make("button", { type: "button", className: gained ? "isx-square isx-gained" : "isx-square", ...properties });
}

function answers({ questions, columns, certainty }, index) {
  const [, prompt, right, ...wrong] = questions[index];
  const line = ({ name, colour, levels, says, selects }, row) => {
    const sure = row ? "" : say(" (probability of the right answer: {value})", { value: probability(certainty[index]) });
    const text = say("writes “{text}”, of those offered finds “{answer}” most likely{sure}", { text: firstLine(says[index]), answer: [right, ...wrong][selects[index]], sure });
    return make("p", { className: `isx-of-${colour}` }, make("i", { className: "isx-square", "data-level": levels[index] }), make("b", {}, name), ` ${text}`);
  };
  const question = make("p", { className: "isx-question" }, `${prompt} … `, make("b", {}, right), make("span", { className: "isx-quiet" }, ` ${say("offered besides:")} ${wrong.join(", ")}`));
  return [question, ...columns.map(line)];
}

// The questions of which slicing changes the level, those first of which the dense model was most sure.
function list(view, title, indices) {
  const { questions, columns, certainty } = view;
  const sliced = columns.find(({ colour }) => colour === "intraslice");
  const item = (index) => {
    const [, prompt, answer] = questions[index];
    const pick = make("button", { type: "button", className: "isx-pick", "data-pick": index }, `${visible(prompt)} `, make("b", {}, answer));
    const now = make("span", { className: "isx-quiet" }, ` ${probability(certainty[index])}; ${say("now writes “{text}”", { text: firstLine(sliced.says[index]) })}`);
    return make("li", { className: "isx-of-intraslice" }, make("i", { className: "isx-square", "data-level": sliced.levels[index] }), make("div", {}, pick, now));
  };
  const items = indices.length ? make("ol", { className: "isx-scroll", tabIndex: 0, "aria-label": title }, ...indices.map(item)) : make("p", { className: "isx-quiet", textContent: say("none") });
  return make("section", {}, make("h4", {}, `${title} (${isx.written(indices.length)})`), items);
}

function draw(plot) {
  const view = plot.isxFacts;
  const lists = [list(view, say("Lost by IntraSlice"), view.lost), list(view, say("Gained by IntraSlice"), view.gained)];
  const note = make("p", { className: "isx-note", textContent: say("Lost: says or selects less than the dense model. The percentage, by which both lists are sorted, is the dense model’s probability of the right answer.") });
  view.detail = make("div", { className: "isx-detail", "aria-live": "polite" });
  plot.replaceChildren(legend(), make("div", { className: "isx-groups" }, ...[...new Set(view.questions.map(([name]) => name))].map((name) => group(view, name))), view.detail, note, make("div", { className: "isx-changes" }, ...lists));
  return choose(plot, ...view.at);
}

// Show the answers to a question, and mark its squares; that of the model is the stop of the tab key.
function choose(plot, row, index) {
  const view = plot.isxFacts;
  view.at = [Math.min(row, view.columns.length - 1), Math.min(index, view.questions.length - 1)];
  const chosen = view.at.join(" ");
  for (const button of plot.querySelectorAll("[data-at]")) {
    const { at } = button.dataset;
    button.tabIndex = at === chosen ? 0 : -1;
    button.classList.toggle("isx-chosen", at.split(" ")[1] === chosen.split(" ")[1]);
  }
  view.detail.replaceChildren(...answers(view, view.at[1]));
  return plot.querySelector(`[data-at="${chosen}"]`);
}

const move = (plot, step) => choose(plot, ...plot.isxFacts.at.map((place, axis) => Math.max(0, place + step[axis]))).focus();

function begin(plot) {
  plot.style.height = "auto";
  plot.setAttribute("role", "group");
  plot.classList.add("isx-facts");
  isx.onKeys(plot, { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }, (step, { target }) => target.matches("[data-at]") && move(plot, step));
  plot.addEventListener("click", ({ target }) => {
    const { at, pick } = target.closest("button")?.dataset ?? {};
    if (at) choose(plot, ...at.split(" ").map(Number)).focus({ preventScroll: true });
    else if (pick) choose(plot, 0, Number(pick));
  });
}

isx.drawings.facts = (plot, { drawing }, pinned) => {
  if (!plot.classList.contains("isx-facts")) begin(plot);
  const before = plot.isxFacts;
  if (before?.drawing === drawing && before.pinned === pinned) return; // the plot's size has changed
  const isFocused = plot.querySelector(".isx-groups :focus");
  plot.isxFacts = { ...drawing, drawing, pinned, at: before?.at ?? [0, 0], columns: drawing.columns && columnsOf(drawing, pinned) };
  if (!drawing.columns) return plot.replaceChildren();
  const square = draw(plot);
  if (isFocused) square.focus({ preventScroll: true });
};
