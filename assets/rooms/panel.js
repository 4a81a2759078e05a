// The class in the lesson's panel: how to start or join one, what a student sees of it, and the presenter's view.
const { lesson, say, make } = isx;
const { steps } = lesson;
const { draw, rows } = isx.roomChart;
const SPOKEN = 5000; // ms between two counts that a screen reader hears
const STORED = say("The server stores the class's predictions, by question number and without names, for 24 hours or until the class is deleted; on a free Space they are lost when the Space restarts and its disk is cleared.");
let parts = null; // of the lesson's panel, and ours
let view = null; // what is in the class's section
let error = "";
let isAttempting = false;
let spoken = 0;

const button = (act, textContent) => make("button", { type: "button", textContent, "data-room": act });
const set = (element, name, value) => element[name] !== value && (element[name] = value);
const at = () => lesson.at();

// Start, join, and take home: at the end of the lesson's panel.
lesson.fillClass = (found) => {
  parts = found;
  view = null;
  const code = make("input", { type: "text", required: true, maxLength: 9, autocomplete: "off", autocapitalize: "characters", spellcheck: false, size: 9 });
  const form = make("form", { className: "isx-room-form" }, make("label", {}, make("span", { textContent: say("Class code") }), code), make("button", { textContent: say("Join") }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => isx.room.join(code.value));
  });
  const problem = make("p", { className: "isx-room-problem", role: "alert" });
  parts.outside = make("details", { className: "isx-room-outside" }, make("summary", { textContent: say("Class") }), make("p", { className: "isx-quiet", textContent: say("A class predicts together: the presenter sees the predictions as they arrive; students see them after each reveal.") }), button("start", say("Start a class")), form, problem, make("p", { className: "isx-quiet", textContent: STORED }));
  parts.problem = problem;
  parts.record = button("record", say("Save my predictions (HTML)"));
  parts.class.append(parts.outside, parts.record);
  parts.class.parentElement.addEventListener("click", clicked);
  render();
};

// One at a time: a second click would start another class, or join as another student.
async function attempt(act) {
  if (isAttempting) return;
  [isAttempting, error] = [true, ""];
  try {
    await act();
  } catch (refused) {
    error = refused.message;
    parts.outside.open = true;
  } finally {
    isAttempting = false;
  }
  render();
}

const acts = {
  start: () => attempt(isx.room.start),
  leave: () => isx.room.leave(),
  large: () => {
    const panel = parts.bar.closest(".isx-lesson");
    if (panel.classList.toggle("isx-lesson-wide")) panel.querySelector(".isx-lesson-body").scrollTop = 0;
  },
  invite: () => {
    view.invite.hidden = !view.invite.hidden;
    render();
  },
  copy: () => copy(link(), view.copied),
  secret: () => copy(`${link()}#lead=${isx.room.now.lead}`, view.copied),
  csv: async () => save(await isx.room.file("answers.csv"), "csv"),
  report: () => save(isx.record.ofClass(), "html"),
  record: () => save(isx.record.own(), "html"),
  remove: () => isx.room.lead("remove", {}),
  delete: () => (view.sure.hidden = !view.sure.hidden),
  sure: async () => {
    if (await isx.room.lead("delete", {})) isx.room.leave();
  },
};

async function clicked(event) {
  const pressed = event.target.closest("[data-room]");
  if (!pressed) return;
  error = "";
  try {
    await acts[pressed.dataset.room]();
  } catch (refused) {
    error = refused.message;
  }
  render();
}

function save(content, ending) {
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: `intraslice-${isx.room.now ? `class-${isx.room.now.code}` : "lesson"}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function copy(text, line) {
  try {
    await navigator.clipboard.writeText(text);
    line.textContent = say("Copied.");
  } catch {
    line.textContent = text;
  }
}

// The students' link: the same model and text; each chooses a language, and the lesson sets the rest.
function link() {
  const query = new URLSearchParams(location.search);
  for (const name of [...query.keys()]) if (!["model", "text", "sequences", "length", "seed", "dtype"].includes(name)) query.delete(name);
  query.set("room", isx.room.now.code);
  return `${location.origin}${location.pathname}?${query}`;
}

function figure() {
  const caption = make("figcaption");
  const picture = make("div", { className: "isx-room-picture" });
  const table = make("table");
  const twin = make("details", { className: "isx-room-table" }, make("summary", { textContent: say("Data table") }), table);
  return { caption, picture, table, twin, element: make("figure", { className: "isx-room-figure" }, caption, picture, twin) };
}

function fill({ caption, picture, table, twin, element }, words, shape, truth, mine) {
  const { control } = steps[at()];
  set(caption, "textContent", words);
  const image = draw(control, shape, truth, mine);
  if (picture.dataset.drawn !== image) {
    picture.dataset.drawn = image;
    picture.innerHTML = image;
    const [head, ...body] = shape ? rows(control, shape) : [[]];
    const row = (cells, tag) => make("tr", {}, ...cells.map((textContent) => make(tag, { textContent })));
    table.replaceChildren(make("thead", {}, row(head, "th")), make("tbody", {}, ...body.map((cells) => row(cells, "td"))));
  }
  twin.hidden = !shape;
  element.hidden = false;
}

function buildLead(now) {
  const counts = make("p", { className: "isx-room-counts" });
  const heard = make("p", { className: "isx-room-heard", role: "status" });
  const plot = figure();
  const code = make("b", { className: "isx-room-code", textContent: now.code });
  const copied = make("p", { className: "isx-quiet isx-room-copied", role: "status" });
  const qr = make("div", { className: "isx-room-qr" });
  const address = make("p", { className: "isx-room-link", textContent: link() });
  const invite = make("div", { className: "isx-room-invite" }, make("div", { className: "isx-room-words" }, make("p", {}, say("Class code"), " ", code), address, make("div", { className: "isx-room-tools" }, button("copy", say("Copy link")), button("secret", say("Copy presenter's link"))), copied), qr);
  const sure = make("div", { className: "isx-room-sure", hidden: true }, make("p", { textContent: say("Delete the class with all its predictions?") }), button("sure", say("Delete now")), button("delete", say("Cancel")));
  const large = button("large", "");
  const remove = button("remove", say("Remove students who have not answered"));
  remove.title = say("Those who have made no prediction for any question of this class. They can join again.");
  const files = make("div", { className: "isx-room-tools" }, button("invite", say("Code and link")), large, button("csv", "CSV"), button("report", say("Report (HTML)")), remove, button("delete", say("Delete class")));
  parts.room.replaceChildren(invite, counts, heard, plot.element, files, sure);
  return { isLead: true, counts, heard, plot, invite, copied, qr, sure, address, large };
}

function buildStudent() {
  const line = make("p", { className: "isx-room-line", role: "status" });
  const plot = figure();
  parts.room.replaceChildren(line, plot.element);
  return { isLead: false, line, plot };
}

async function drawQr() {
  const wanted = link();
  if (view.qr.dataset.link === wanted || isx.room.now.over) return; // asked for once, drawn or refused
  view.qr.dataset.link = wanted;
  const made = await isx.room.lead("qr", { link: wanted });
  if (made && view?.qr) {
    view.qr.innerHTML = made.svg;
    view.qr.firstChild.setAttribute("role", "img");
    view.qr.firstChild.setAttribute("aria-label", say("QR code of the class's link"));
  }
}

function renderBar(now) {
  const question = now.over ? say("ended") : now.state && !now.isLead ? say("question {step} of {steps}", { step: now.state.step, steps: steps.length }) : "";
  const words = [`${say("Class")} ${now.code}`, question].filter(Boolean).join(" · ");
  if (!parts.bar.firstChild) {
    const problem = make("p", { className: "isx-room-problem", role: "alert" });
    parts.bar.append(make("div", { className: "isx-room-bar" }, make("b"), button("leave", say("Leave"))), problem);
  }
  set(parts.bar.querySelector("b"), "textContent", words);
  set(parts.bar.querySelector("p"), "textContent", now.problem || error);
}

function renderLead({ state }) {
  const shape = state.answers[at() + 1] ?? null;
  const revealed = state.revealed[at() + 1];
  const words = say("Students: {students} · Predictions: {count}", { students: state.students, count: shape?.count ?? 0 });
  set(view.counts, "textContent", words);
  set(view.large, "textContent", parts.bar.closest(".isx-lesson-wide") ? say("Close large view") : say("Large view"));
  if (Date.now() > spoken + SPOKEN) {
    spoken = Date.now();
    set(view.heard, "textContent", words);
  }
  if (revealed && !view.begun) [view.begun, view.invite.hidden] = [true, true]; // the class is complete, most likely
  if (!view.invite.hidden) drawQr();
  const caption = !shape ? say("No predictions yet.") : !revealed ? say("The class's predictions; the measured value appears when the answer is revealed.") : revealed.truth === null ? say("The class's predictions; the page has not measured this yet.") : say("The class's predictions, and what was measured.");
  fill(view.plot, caption, shape, revealed?.truth ?? null, null);
}

function renderStudent(now) {
  const { state } = now;
  const step = at() + 1;
  const revealed = state.revealed[step];
  const sent = now.sent?.[step] ?? state.mine[step];
  const line = revealed ? (sent === undefined ? say("The answer is revealed. You made no prediction.") : say("The answer is revealed. The next question follows.")) : step !== state.step ? say("The class is on question {step}.", { step: state.step }) : now.waiting ? say("Your prediction is being sent.") : sent !== undefined ? say("Your prediction has been counted. You can change it until the presenter reveals the answer.") : say("Make a prediction and send it. The answer comes when the presenter reveals it.");
  set(view.line, "textContent", line);
  view.line.hidden = !line;
  if (revealed?.class.count) fill(view.plot, say("Predictions of the class: {count}", { count: revealed.class.count }), revealed.class, revealed.truth, state.mine[step] ?? null);
  else {
    view.plot.element.hidden = true;
    view.plot.picture.replaceChildren();
    delete view.plot.picture.dataset.drawn;
  }
}

function render() {
  if (!parts) return;
  const now = isx.room.now;
  set(parts.problem, "textContent", now ? "" : error);
  parts.outside.hidden = Boolean(now);
  parts.record.hidden = Boolean(now?.isLead) || !Object.keys(lesson.kept().shown).length;
  const ended = now?.over && !now.isLead; // the lesson goes on alone; a presenter may still save the report
  parts.bar.hidden = !now;
  parts.room.hidden = !now || ended;
  const panel = parts.bar.closest(".isx-lesson");
  panel?.classList.toggle("isx-lesson-led", Boolean(now?.isLead));
  if (!now) {
    view = null;
    panel?.classList.remove("isx-lesson-wide");
    parts.bar.replaceChildren();
    parts.room.replaceChildren();
    return;
  }
  renderBar(now);
  if (ended || !now.state || at() < 0) return;
  if (view?.isLead !== now.isLead) view = now.isLead ? buildLead(now) : buildStudent();
  if (now.isLead) renderLead(now);
  else renderStudent(now);
}

lesson.renderClass = render;
addEventListener("isx-room", ({ detail }) => {
  if (!parts) return;
  if (detail) [error, parts.outside.open] = [detail, true];
  render();
});
