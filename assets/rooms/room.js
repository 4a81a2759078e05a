// A class: many students predict together. Whoever starts it leads it with a secret, which stays in this browser; a student
// has a random id, which nobody else gets. Predictions are sent again, with the same id, until the server has counted them.
// The server is components/rooms/, what people see panel.js. `isx.room` is for both sides.
const { lesson, lesson: { steps }, say } = isx;
const PAUSE = { lead: 400, student: 1500, away: 4000 }; // ms between two questions to the server
const PATIENCE = 10_000; // ms for one answer
const SHORT = 60; // seconds that this page waits by itself where the server asks it to
const query = new URLSearchParams(location.search);
const fragment = new URLSearchParams(location.hash.slice(1));
let room = null; // what this browser keeps of the class: { code, student, lead, waiting }
let state = null; // as the server has told it
let followed = 0; // the class's question that the lesson was last set to
let led = 0; // the question that the presenter has gone on to, until the server knows
let timer, polls, problem, offline, isSending, over; // `problem`: what was refused; `offline`: that nobody answers

const id = (bytes) => Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (one) => one.toString(16).padStart(2, "0")).join("");
const kept = (code) => isx.kept(`isx-room-${code}`);
const keep = (found) => isx.store(`isx-room-${found.code}`, JSON.stringify(found));

// The secret of a presenter's link leaves the address at once: an address is seen, and copied.
const codeOf = (text) => text.replace(/[\s-]/g, "").toUpperCase();
const linked = codeOf(query.get("room") ?? "");
if (linked && fragment.get("lead")) {
  keep({ ...kept(linked), code: linked, lead: fragment.get("lead") });
  history.replaceState(history.state, "", `${location.pathname}${location.search}`);
}

// Throws an Error with the server's sentence, its status, and the seconds to wait; status 0 where there was no answer.
async function call(path, body, { parse = "json", as = room } = {}) {
  const headers = as?.lead ? { "x-room-lead": as.lead } : as ? { "x-room-student": as.student } : {};
  const address = new URL(`${window.gradio_config?.root ?? location.origin}/rooms${path}`);
  address.searchParams.set("lang", isx.language.code);
  const options = body ? { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body) } : { headers };
  let response, found;
  try {
    response = await fetch(address, { ...options, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (response.status === 204) return null;
    found = response.ok ? await response[parse]() : await response.json();
  } catch {
    throw Object.assign(new Error(say("The server is not responding. This page keeps trying.")), { status: 0 });
  }
  if (!response.ok) throw Object.assign(new Error(found.error), { status: response.status, wait: Number(response.headers.get("retry-after")) });
  return found;
}

const path = (action) => `/${room.code}/${action}`;
const changed = () => {
  lesson.tell();
  dispatchEvent(new Event("isx-room"));
};
const passes = ({ status, wait }) => status === 0 || status >= 500 || (wait > 0 && wait <= SHORT); // it is worth another try

const start = () => call("", {}).then(({ code, lead }) => enter({ code, lead }));

async function join(text) {
  const code = codeOf(text);
  const found = kept(code);
  if (!found.lead) found.student ??= id(16);
  const joined = found.lead ? { code } : await call(`/${code}/join`, {}, { as: found });
  enter({ ...found, code: joined.code });
}

function enter(found) {
  room = found;
  [state, followed, led, problem, offline, over] = [null, 0, 0, "", "", false];
  keep(room);
  lesson.room = { ...hooks, code: room.code, isLead: Boolean(room.lead) };
  lesson.use();
  isx.address((wanted) => wanted.set("room", room.code));
  poll();
}

// Back to the lesson alone; a class that has ended stays in view until somebody leaves it.
function leave() {
  clearTimeout(timer);
  [room, state, problem, offline] = [null, null, "", ""];
  lesson.room = null;
  lesson.use();
  isx.address((wanted) => wanted.delete("room"));
  if (lesson.at() >= 0) lesson.show(lesson.kept().at, true);
  changed();
}

async function poll() {
  clearTimeout(timer);
  const turn = (polls = (polls ?? 0) + 1);
  const isOld = () => turn !== polls || !room;
  let pause = room.lead ? PAUSE.lead : PAUSE.student;
  try {
    await send();
    if (led) await lead("step", { step: led });
    if (isOld()) return;
    const news = await call(`${path("state")}${state ? `?since=${encodeURIComponent(state.version)}` : ""}`);
    if (isOld()) return;
    const wasOffline = offline;
    offline = "";
    if (news) take(news);
    else if (wasOffline) changed();
  } catch (error) {
    if (isOld()) return;
    if ([403, 404, 410].includes(error.status)) return end(error.message);
    if (!passes(error)) setTimeout(() => { throw error; }); // a mistake of ours: the console has it, the class goes on
    [offline, pause] = [error.message, PAUSE.away];
    changed();
  }
  timer = setTimeout(poll, pause);
}

function end(words) {
  // The lesson goes on alone, with what was predicted in the class. The server cannot tell who was in a class that is gone,
  // and whom the presenter has removed; nobody is who has made a prediction.
  const hasPredicted = room.lead || Object.keys({ ...room.sent, ...state?.mine }).length;
  const ended = hasPredicted ? say("The class has ended. The lesson goes on without it.") : say("The class has ended, or the presenter has removed the students without a prediction; to join again, reload the page. The lesson goes on without the class.");
  [over, problem] = [true, state ? ended : words];
  changed();
}

function take(news) {
  const first = !state;
  state = news;
  if (first) for (const [step, value] of Object.entries(state.mine ?? {})) lesson.set(step - 1, { said: lesson.unpooled(steps[step - 1].control, value) });
  if (state.step !== followed && !led) {
    [followed, problem] = [state.step, ""];
    lesson.show(followed - 1, first);
  }
  for (const step of Object.keys(state.revealed)) {
    if (lesson.isShown(step - 1)) continue;
    const counted = state.mine?.[step];
    // What the class has counted, where the student has moved the slider since.
    if (counted !== undefined) lesson.set(step - 1, { said: lesson.unpooled(steps[step - 1].control, counted) });
    lesson.reveal(step - 1);
  }
  changed();
}

// The prediction that waits for the server, if any.
async function send() {
  if (!room.waiting || isSending) return;
  isSending = true;
  const { waiting } = room;
  try {
    await call(path("answer"), waiting);
    room.sent = { ...room.sent, [waiting.step]: waiting.value };
    if (room.waiting === waiting) delete room.waiting;
    problem = "";
  } catch (error) {
    if (passes(error)) throw error;
    delete room.waiting; // refused, and why
    problem = error.message;
  } finally {
    isSending = false;
    keep(room);
    changed();
  }
}

function predict(at) {
  const said = lesson.current();
  if (said === undefined || said === null || said < 0) {
    problem = say("Make a prediction first.");
    return changed();
  }
  const { control } = steps[at];
  lesson.set(at, { said });
  problem = "";
  room.waiting = { id: id(8), step: at + 1, value: lesson.pooled(control, said) };
  keep(room);
  changed();
  poll();
}

// What leads goes through here: the server first, then the page.
async function lead(action, body) {
  try {
    const news = await call(path(action), body);
    problem = "";
    if (action === "step" && body.step === led) led = 0;
    if (news?.version) take(news);
    return news;
  } catch (error) {
    problem = error.message;
    if (action === "step" && !passes(error)) led = 0;
    changed();
    return null;
  }
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const isRevealed = (at) => Boolean(state?.revealed[at + 1]);

// What the lesson asks of its class.
const hooks = {
  button(at, shown) {
    if (over) return {};
    if (room.lead) return shown ? (at + 1 < steps.length ? { label: say("Next question") } : {}) : { label: say("Reveal") };
    if (!state) return { label: say("Send prediction"), disabled: true };
    if (at + 1 !== state.step) return { label: say("Go to question {step}", { step: state.step }) };
    if (shown || isRevealed(at)) return { label: say("Please wait"), disabled: true };
    if (room.waiting) return { label: say("Sending …"), disabled: true };
    const sent = room.sent?.[at + 1] ?? state.mine[at + 1];
    if (sent === undefined) return { label: say("Send prediction") };
    const now = lesson.current();
    return same(sent, now === undefined ? sent : lesson.pooled(steps[at].control, now)) ? { label: say("Sent"), disabled: true } : { label: say("Send again") };
  },
  // Whether the class has taken the press on the lesson's main button, or of a key. A key sends no prediction: the next
  // question takes the focus, and with it what was meant for the slider of the last one.
  forward(at, shown, byKey) {
    if (over) return false;
    if (room.lead) return !shown && (lead("reveal", { step: at + 1, truth: lesson.truth() }), true);
    const { disabled } = hooks.button(at, shown);
    if (disabled) return true;
    if (at + 1 !== state.step) lesson.show(state.step - 1);
    else if (!byKey) predict(at);
    return true;
  },
  opened(index) {
    if (room.lead && state && !over && index + 1 !== state.step) {
      followed = led = index + 1;
      lead("step", { step: index + 1 });
    }
    changed();
  },
  measured(at, truth) {
    if (room.lead && !over && truth !== null && isRevealed(at) && state.revealed[at + 1].truth === null) lead("reveal", { step: at + 1, truth });
    changed();
  },
};

document.addEventListener("visibilitychange", () => room && !over && !document.hidden && poll());

isx.room = {
  start,
  join,
  leave,
  lead,
  file: (action) => call(path(action), null, { parse: "blob" }),
  get now() {
    return room && { ...room, isLead: Boolean(room.lead), state, problem: problem || offline, over };
  },
};

const attempt = () =>
  join(linked).catch((error) => {
    if (passes(error)) setTimeout(attempt, PAUSE.away);
    else isx.address((wanted) => wanted.delete("room"));
    dispatchEvent(new CustomEvent("isx-room", { detail: error.message }));
  });
if (linked) isx.ready.then(() => lesson.show(lesson.kept().at)).then(attempt);
