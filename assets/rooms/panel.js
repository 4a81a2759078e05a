// The class in the lesson's panel: how to start or join one, what a student sees of it, and the presenter's view.
const { lesson, lesson: { at, steps }, say, make } = isx;
const { draw, table } = isx.roomChart;
const SPOKEN = 5000; // ms between two counts that a screen reader hears
const STORED = say("The server stores the class's predictions, by question number and without names, for 24 hours or until the class is deleted; on a free Space they are lost when the Space restarts and its disk is cleared.");
let parts = null; // of the lesson's panel, and ours
let view = null; // what is in the class's section
let error = "";
let isEntering = false;
let spoken = 0;

const set = (element, name, value) => element[name] !== value && (element[name] = value);

// Start, join, and take home: at the end of the lesson's panel.
lesson.fillClass = (found) => {
  const bar = isx.parts(found.bar, `
    <div class="isx-room-bar"><b data-part="name"></b><button type="button" data-room="leave">${say("Leave")}</button></div><p class="isx-room-problem" role="alert" data-part="refused"></p>`);
  const ours = isx.parts(found.class, `
    <details class="isx-room-outside" data-part="outside"><summary>${say("Class")}</summary>
      <p class="isx-quiet">${say("A class predicts together: the presenter sees the predictions as they arrive; students see them after each reveal.")}</p>
      <button type="button" data-room="start">${say("Start a class")}</button>
      <form class="isx-room-form" data-part="form"><label><span>${say("Class code")}</span>
        <input type="text" data-part="code" required size="9" autocomplete="off" autocapitalize="characters" spellcheck="false"></label><button>${say("Join")}</button></form>
      <p class="isx-room-problem" role="alert" data-part="problem"></p><p class="isx-quiet">${STORED}</p></details>
    <button type="button" data-room="record" data-part="record">${say("Save my predictions (HTML)")}</button>`);
  [parts, view] = [{ ...found, ...bar, ...ours }, null];
  parts.form.addEventListener("submit", (event) => {
    event.preventDefault();
    enter(() => isx.room.join(parts.code.value));
  });
  parts.body.addEventListener("click", ({ target }) => {
    const pressed = target.closest("[data-room]");
    if (pressed) attempt(acts[pressed.dataset.room]);
  });
  render();
};

async function attempt(act) {
  error = "";
  await Promise.resolve().then(act).catch((refused) => (error = refused.message));
  render();
}

// One at a time: a second click would start another class, or join as another student.
async function enter(act) {
  if (isEntering) return;
  isEntering = true;
  await attempt(act);
  [isEntering, parts.outside.open] = [false, parts.outside.open || Boolean(error)];
}

const acts = {
  start: () => enter(isx.room.start),
  leave: () => isx.room.leave(),
  large: () => lesson.toggleWide(),
  invite: () => (view.invite.hidden = !view.invite.hidden),
  copy: () => copy(link(), view.copied),
  secret: () => copy(`${link()}#lead=${isx.room.now.lead}`, view.copied),
  csv: async () => save(await isx.room.file("answers.csv"), "csv"),
  report: () => save(isx.record.ofClass(), "html"),
  record: () => save(isx.record.own(), "html"),
  remove: () => isx.room.lead("remove", {}),
  delete: () => (view.sure.hidden = !view.sure.hidden),
  sure: () => isx.room.lead("delete", {}).then((deleted) => deleted && isx.room.leave()),
};

const save = (blob, ending) => isx.save(blob, `intraslice-${isx.room.now ? `class-${isx.room.now.code}` : "lesson"}.${ending}`);

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
  const kept = [...new URLSearchParams(location.search)].filter(([name]) => ["model", "text", "sequences", "length", "seed", "dtype", "samples"].includes(name));
  return `${location.origin}${location.pathname}?${new URLSearchParams([...kept, ["room", isx.room.now.code]])}`;
}

function fill(words, shape, truth, mine) {
  const { caption, picture, twin, figure } = view;
  const { control } = steps[at()];
  set(caption, "textContent", words);
  const image = draw(control, shape, truth, mine);
  if (picture.dataset.drawn !== image) {
    picture.dataset.drawn = image;
    picture.innerHTML = image;
    view.table.innerHTML = shape ? table(control, shape) : "";
  }
  twin.hidden = !shape;
  figure.hidden = false;
}

const FIGURE = `
  <figure class="isx-room-figure" data-part="figure"><figcaption data-part="caption"></figcaption><div class="isx-room-picture" data-part="picture"></div>
    <details class="isx-room-table" data-part="twin"><summary>${say("Data table")}</summary><div data-part="table"></div></details></figure>`;

function buildLead(now) {
  const built = isx.parts(parts.room, `
    <div class="isx-room-invite" data-part="invite">
      <div class="isx-room-words"><p>${say("Class code")} <b class="isx-room-code" data-part="code"></b></p><p class="isx-room-link" data-part="address"></p>
        <div class="isx-room-tools"><button type="button" data-room="copy">${say("Copy link")}</button><button type="button" data-room="secret">${say("Copy presenter's link")}</button></div>
        <p class="isx-quiet isx-room-copied" role="status" data-part="copied"></p></div>
      <div class="isx-room-qr" data-part="qr"></div></div>
    <p class="isx-room-counts" data-part="counts"></p><p class="isx-room-heard" role="status" data-part="heard"></p>${FIGURE}
    <div class="isx-room-tools"><button type="button" data-room="invite">${say("Code and link")}</button><button type="button" data-room="large" data-part="large"></button>
      <button type="button" data-room="csv">CSV</button><button type="button" data-room="report">${say("Report (HTML)")}</button>
      <button type="button" data-room="remove" title="${say("Those who have made no prediction for any question of this class. They can join again.")}">${say("Remove students who have not answered")}</button>
      <button type="button" data-room="delete">${say("Delete class")}</button></div>
    <div class="isx-room-sure" data-part="sure" hidden><p>${say("Delete the class with all its predictions?")}</p>
      <button type="button" data-room="sure">${say("Delete now")}</button><button type="button" data-room="delete">${say("Cancel")}</button></div>`);
  built.code.textContent = now.code;
  built.address.textContent = link();
  return built;
}

const buildStudent = () => isx.parts(parts.room, `<p class="isx-room-line" role="status" data-part="line"></p>${FIGURE}`);

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
  fill(caption, shape, revealed?.truth ?? null, null);
}

function renderStudent(now) {
  const { state } = now;
  const step = at() + 1;
  const revealed = state.revealed[step];
  const sent = now.sent?.[step] ?? state.mine[step];
  const line = revealed ? (sent === undefined ? say("The answer is revealed. You made no prediction.") : say("The answer is revealed. The next question follows.")) : step !== state.step ? say("The class is on question {step}.", { step: state.step }) : now.waiting ? say("Your prediction is being sent.") : sent !== undefined ? say("Your prediction has been counted. You can change it until the presenter reveals the answer.") : say("Make a prediction and send it. The answer comes when the presenter reveals it.");
  set(view.line, "textContent", line);
  view.line.hidden = !line;
  if (revealed?.class.count) fill(say("Predictions of the class: {count}", { count: revealed.class.count }), revealed.class, revealed.truth, state.mine[step] ?? null);
  else {
    view.figure.hidden = true;
    view.picture.replaceChildren();
    delete view.picture.dataset.drawn;
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
    parts.room.replaceChildren();
    return;
  }
  const question = now.over ? say("ended") : now.state && !now.isLead ? say("question {step} of {steps}", { step: now.state.step, steps: steps.length }) : "";
  set(parts.name, "textContent", [`${say("Class")} ${now.code}`, question].filter(Boolean).join(" · "));
  set(parts.refused, "textContent", now.problem || error);
  if (ended || !now.state || at() < 0) return;
  if (view?.isLead !== now.isLead) view = { isLead: now.isLead, ...(now.isLead ? buildLead(now) : buildStudent()) };
  (now.isLead ? renderLead : renderStudent)(now);
}

lesson.renderClass = render;
lesson.toggleWide = () => {
  if (parts.bar.closest(".isx-lesson").classList.toggle("isx-lesson-wide")) parts.body.scrollTop = 0;
  render();
};
addEventListener("isx-room", ({ detail }) => {
  if (!parts) return;
  if (detail) [error, parts.outside.open] = [detail, true];
  render();
});
