// A server that slept or was restarted knows nothing of a page that stayed open: the page says so. Its settings are in
// the address bar, so to reload is to go on with them.
const { say, make } = isx;
const PAUSE = 30_000; // ms between two looks at a server that answers
const AGAIN = 3_000; // ms between two at one that does not
let began = null;
let asked = 0;
let waiting = false;
let line = null;

// Null where there is no answer, or some other server's.
const ask = () =>
  fetch(`${window.gradio_config?.root ?? location.origin}/healthz`, { cache: "no-store" })
    .then((answer) => answer.json())
    .then(({ began }) => began ?? null)
    .catch(() => null);

function tell(words, ...buttons) {
  if (line?.isConnected && line.firstChild.data === words) return; // or a press on its button would find another one
  line?.remove();
  line = make("div", { className: "isx-awake", role: "alert" }, words, ...buttons);
  document.body.append(line);
}

isx.look = async () => {
  const now = await ask();
  waiting = now === null && began !== null;
  if (waiting) {
    tell(say("The server is not responding: it is asleep or starting up. This page waits for it."));
    setTimeout(isx.look, AGAIN);
  } else if (began === null) began = now;
  else if (now !== began) {
    const reload = make("button", { textContent: say("Reload"), onclick: () => location.reload() });
    tell(say("The server has restarted. Reload to continue with these settings."), reload);
  } else line?.remove();
};

function perhaps() {
  if (waiting || document.hidden || Date.now() < asked + PAUSE) return;
  asked = Date.now();
  isx.look();
}

for (const event of ["visibilitychange", "focus", "online", "pointerdown", "keydown"]) addEventListener(event, perhaps, true);
setTimeout(perhaps, 1000);
