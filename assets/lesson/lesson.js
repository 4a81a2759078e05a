// The lesson: a panel beside the live page. Each step sets the page to a state (components/frame/link.py does it, as a
// link would), asks first, and then shows the answer as the page measures it. Steps (state, control,
// what is covered, texts) are texts/LANGUAGE/lesson.json; the controls of the predictions are controls.js, a step's answer is a
// function of answers.js. Progress stays in this browser. In a class, ../rooms/room.js is
// `lesson.room`, which says what the main button does and follows the class's questions.
const { lesson, make, say } = isx;
const { words, steps, fill } = lesson;
const storeName = () => (lesson.room ? `isx-lesson-${lesson.room.code}` : "isx-lesson"); // a class has its own progress
const LOOK = 300; // ms between two looks at the page
const PATIENCE = 8000; // ms for the page to take a step's state; after that the lesson goes on with what is there
let at = -1; // the step in view, from 0
let phase, readings, arrived, asked, pressed, placed; // how far the page is with it
let panel, parts, control, looking;
let kept = load();

function load() {
  const { at, said = {}, shown = {}, found = {}, notes = false } = isx.kept(storeName());
  return { at: steps[at] ? at : 0, said, shown, found, notes };
}

const keep = () => isx.store(storeName(), JSON.stringify(kept));
const step = () => steps[at];
const shown = () => Boolean(kept.shown[step().id]);

function build() {
  panel = make("section", { className: "isx-lesson", title: "", "aria-labelledby": "isx-lesson-title" });
  parts = isx.parts(panel, `
    <div class="isx-lesson-top"><nav aria-label="${words.steps}"><ol data-part="links"></ol></nav><button type="button" data-go="close">${words.close}</button></div>
    <div class="isx-lesson-body" data-part="body">
      <div class="isx-lesson-bar" data-part="bar"></div><h3 data-part="title" id="isx-lesson-title" tabindex="-1"></h3><div class="isx-lesson-context" data-part="context"></div>
      <div class="isx-lesson-ask"><p data-part="question"></p><div class="isx-lesson-control" data-part="control"></div></div>
      <div class="isx-lesson-room" data-part="room"></div><div class="isx-lesson-answer" data-part="answer" aria-live="polite"></div>
      <div class="isx-lesson-notes" data-part="notes" id="isx-lesson-notes"></div><div class="isx-lesson-class" data-part="class"></div>
    </div>
    <div class="isx-lesson-bottom"><button type="button" data-go="notes" data-part="more" aria-controls="isx-lesson-notes">${words.notes}</button>
      <button type="button" data-go="back" data-part="back">${words.back}</button><button type="button" data-go="on" data-part="on" class="isx-on"></button></div>`, { close, back, on: () => forward(), notes: toggleNotes });
  panel.addEventListener("keydown", (event) => event.key === "Enter" && !event.repeat && event.target.matches("input[type=number]") && forward());
  document.querySelector(".gradio-container").append(panel);
  addEventListener("keydown", pressedKey);
  looking = setInterval(look, LOOK);
  lesson.fillClass(parts);
}

function close() {
  clearInterval(looking);
  removeEventListener("keydown", pressedKey);
  panel.remove();
  at = -1;
  veil([]);
  isx.address((wanted) => wanted.delete("lesson"));
  document.querySelector("#lesson")?.focus();
}

const back = () => at > 0 && show(at - 1);

function forward(byKey = false) {
  if (lesson.room?.forward(at, shown(), byKey)) return;
  if (!shown()) reveal();
  else if (at === steps.length - 1) close();
  else show(at + 1);
}

function toggleNotes() {
  kept.notes = !kept.notes;
  keep();
  tellNotes();
}

// Keys of the panel; page down and up everywhere, since that is what a lecturer's remote control sends.
const along = { PageDown: 1, ArrowRight: 1, PageUp: -1, ArrowLeft: -1 };
function pressedKey(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector(".isx-tour, dialog[open]")) return;
  const types = isx.types(target);
  const slides = target.matches?.("input[type=range], input[type=radio]");
  const inside = panel.contains(target);
  const ours = key.startsWith("Page") ? !types && (inside || !slides) : inside && !types && !(slides && key in along);
  if (!ours && !(inside && key === "Escape")) return;
  if (along[key]) event.repeat || (along[key] > 0 ? forward(true) : back()); // of a key that is held only the first press counts
  else if (key.toLowerCase() === "n") toggleNotes();
  else if (key === "Escape") panel.classList.contains("isx-lesson-wide") ? lesson.toggleWide() : close();
  else return;
  event.preventDefault();
}

// `set`: whether the page is still to be set to the step's state; a link has set it already.
function show(index, set = true) {
  if (!panel?.isConnected) build();
  at = kept.at = index;
  keep();
  [readings, pressed, placed] = [[], false, false];
  isx.address((wanted) => wanted.set("lesson", index + 1));
  const { title, question } = step();
  parts.title.textContent = `${index + 1}. ${title}`;
  parts.context.replaceChildren(...question.slice(0, -1).map((textContent) => make("p", { textContent })));
  parts.question.textContent = question.at(-1);
  parts.links.replaceChildren(...steps.map(link));
  parts.back.disabled = index === 0;
  control = null;
  parts.control.replaceChildren();
  parts.answer.replaceChildren();
  lesson.room?.opened(index);
  tell();
  begin(0, set);
  look();
  parts.title.parentElement.scrollTop = 0;
  parts.title.focus({ preventScroll: true });
}

function link({ id, title }, index) {
  const wanted = new URLSearchParams(location.search);
  ["sparsity", "estimator", "bias", "cap", "order", "locked", "tab"].forEach((name) => wanted.delete(name));
  wanted.set("lesson", index + 1);
  const label = fill(words.step, { step: index + 1, steps: steps.length, title });
  const current = index === at ? { "aria-current": "step" } : {};
  const properties = { href: `?${wanted}`, textContent: index + 1, title, className: kept.shown[id] ? "isx-done" : "", "aria-label": label, ...current };
  return make("li", {}, isx.link(properties, () => show(index)));
}

function tell() {
  const usual = !shown() ? words.show : at === steps.length - 1 ? words.finish : words.next;
  const { label = usual, disabled = false } = lesson.room?.button(at, shown()) ?? {};
  parts.on.textContent = label;
  parts.on.disabled = disabled;
  panel.classList.toggle("isx-lesson-asks", !shown() && !lesson.room?.isLead);
  lesson.renderClass();
  parts.links.querySelectorAll("a")[at].classList.toggle("isx-done", shown());
  tellNotes();
}

function tellNotes() {
  parts.more.setAttribute("aria-expanded", kept.notes);
  parts.notes.hidden = !kept.notes;
  const texts = [...step().notes, words.keys];
  parts.notes.replaceChildren(make("h4", { textContent: words.notes }), ...texts.map((textContent) => make("p", { textContent })));
}

// A step that compares several settings has a phase for each.
function begin(number, set = true) {
  [phase, arrived, asked] = [number, false, Date.now()];
  if (set) dispatchEvent(new CustomEvent("isx-lesson", { detail: { step: at + 1, phase } }));
}

function reveal() {
  kept.shown[step().id] = true;
  keep();
  tell();
  look();
  const body = parts.answer.parentElement; // a small screen shows the prediction and the answer, not the question
  const seen = parts.room.hidden ? parts.control : parts.room; // of a class, its predictions
  body.scrollTop = panel.classList.contains("isx-lesson-wide") ? 0 : seen.offsetTop - body.offsetTop;
}

// Covers what would give the answer away, also from those who hear the page.
function veil(selectors) {
  const wanted = new Set(selectors.flatMap((selector) => [...document.querySelectorAll(selector)]));
  for (const one of [...document.querySelectorAll("[data-isx-veil]"), ...wanted]) {
    if (wanted.has(one)) one.dataset.isxVeil = words.veil;
    else one.removeAttribute("data-isx-veil");
    one.inert = wanted.has(one);
  }
}

function holds({ sparsity, estimator = isx.usual.estimator }) {
  return lesson.slider() === Number(sparsity) && document.querySelector("#estimator input:checked")?.value === estimator;
}

// Looks at the page again and again: has it taken the state, has it measured, has the user moved something?
function look() {
  const state = step().states[phase];
  veil(shown() ? [] : step().veil);
  if (!control && document.querySelector("#ratio-chart, #tabs") && (step().control.kind !== "bars" || lesson.hasLayers())) ask();
  if (!arrived) {
    if (!holds(state) && Date.now() < asked + PATIENCE) return;
    arrived = true;
    isx.openTab(step().tab);
  }
  const target = placed ? null : document.querySelector(step().target);
  if (target?.offsetHeight >= 20) {
    placed = true;
    isx.scrollTo(target);
  }
  if (step().press && !pressed) press();
  if (step().states.length > 1) measure(state);
  control?.update?.(lesson.written() ?? []);
  if (shown()) answer();
}

function ask() {
  const { id, control: described } = step();
  control = lesson.controls[described.kind](described, kept.said[id], (said) => {
    kept.said[id] = said;
    keep();
    if (lesson.room) tell();
  });
  parts.control.replaceChildren(control.element);
}

function press() {
  const one = document.querySelector(step().press);
  if (!one?.offsetHeight || one.disabled) return;
  pressed = true;
  const server = document.querySelector('#run-on input[value="server"]');
  if (one.id === "generate" && server && !server.checked) server.click(); // whose columns the step reads
  one.click();
}

function measure(state) {
  const found = holds(state) && lesson.settled(state) && lesson.readout();
  if (found) readings[phase] ??= { percent: Number(state.sparsity), ...found };
  if (readings[phase] && shown() && phase + 1 < step().states.length) begin(phase + 1);
}

// What the page measures for this step: null until it has.
const find = () => (arrived || readings.length ? lesson.answers[step().id](kept.said[step().id], readings) : null);

// Whether what the page shows is the step's: a slider that was moved shows something else.
const isOfStep = () => step().states.length > 1 || holds(step().states[0]);

// For the record of the lesson, and for the class.
function remember(found, sentence) {
  const { id, control: described } = step();
  const before = JSON.stringify(kept.found[id]);
  kept.found[id] = { sentence, truth: lesson.measured(described, found) };
  if (JSON.stringify(kept.found[id]) === before) return;
  keep();
  lesson.room?.measured(at, kept.found[id].truth);
}

function answer() {
  const { id, answer: sentence, meaning, large, waiting = words.waiting } = step();
  const said = kept.said[id];
  const found = find();
  const told = found && [fill(sentence, found.values), found.source].filter(Boolean).join(" ");
  const paragraphs = [["p", told ?? waiting, found ? "isx-found" : "isx-quiet"]];
  if (found) {
    const guessed = (said ?? null) !== null;
    if (guessed && found.close !== null) paragraphs.unshift(["p", judged(said, found.close), found.close ? "isx-close" : "isx-far"]);
    if (!guessed && !lesson.room?.isLead) paragraphs.unshift(["p", words.no_guess, "isx-quiet"]);
    if (found.truth !== undefined) control?.reveal(found.truth);
  }
  if (found) paragraphs.push(["p", meaning, ""], ["h4", words.large, ""], ["p", large, ""]);
  if (found && isOfStep()) remember(found, told);
  const now = JSON.stringify(paragraphs);
  if (parts.answer.dataset.said === now && parts.answer.firstChild) return;
  parts.answer.dataset.said = now;
  parts.answer.replaceChildren(...paragraphs.map(([tag, textContent, className]) => make(tag, { textContent, className })));
}

function judged(said, close) {
  const { kind, choices, unit = "" } = step().control;
  const told = { choice: () => say("“{choice}”", { choice: choices[said] }), answers: () => "ABC"[said], bars: () => null }[kind] ?? (() => `${isx.written(said)}${unit}`);
  const judgement = !close ? words.far_guess : choices || kind === "answers" ? words.right_guess : words.close_guess;
  return told() === null ? judgement : `${fill(words.said, { said: told() })} ${judgement}`;
}

document.addEventListener("click", ({ target }) => target.closest?.("#lesson") && isx.ready.then(() => show(kept.at)));

// A step's link: the server has read it as well, and the page opens in the step's state.
const linked = Number(new URLSearchParams(location.search).get("lesson")) - 1;
const isClass = new URLSearchParams(location.search).has("room"); // whose question is the step
// A step of several states starts with the first, which a later one may have replaced before a reload.
if (steps[linked] && !isClass) isx.ready.then(() => show(linked, steps[linked].states.length > 1 && !holds(steps[linked].states[0])));

// What a class needs: `use` changes to its progress, or back.
Object.assign(lesson, {
  show: (index, again = false) => (index === at && panel?.isConnected && !again ? tell() : show(index)),
  at: () => at,
  kept: () => kept,
  isShown: (index) => Boolean(kept.shown[steps[index].id]),
  current: () => kept.said[step().id] ?? control?.current?.(),
  truth: () => lesson.measured(step().control, isOfStep() ? find() : null),
  tell: () => at >= 0 && tell(),
  use: () => (kept = load()),
  set(index, { said, shown: seen }) {
    const { id } = steps[index];
    if (said !== undefined) kept.said[id] = said;
    if (seen) kept.shown[id] = true;
    keep();
  },
  reveal: (index) => (index === at ? reveal() : lesson.set(index, { shown: true })),
});
