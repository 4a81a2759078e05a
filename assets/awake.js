// A server that slept or was restarted knows nothing of a page that stayed open: the page says so. Its settings are in
// the address bar, so to reload is to go on with them.
(() => {
  const say = window.isxSay;
  const PAUSE = 30_000; // ms between two looks at a server that answers
  const AGAIN = 3_000; // ms between two at one that does not
  let began = null;
  let asked = 0;
  let waiting = false;
  let line = null;

  const ask = async () => {
    try {
      const answer = await fetch(`${window.gradio_config?.root ?? location.origin}/healthz`, { cache: "no-store" });
      return (await answer.json()).began ?? null;
    } catch {
      return null; // no answer, or some other server's
    }
  };

  const tell = (words, reloads) => {
    if (line?.isConnected && line.firstChild.data === words) return; // or a press on its button would find another one
    line?.remove();
    line = document.createElement("div");
    line.className = "isx-awake";
    line.setAttribute("role", "alert");
    line.append(words);
    if (reloads) {
      const button = document.createElement("button");
      button.textContent = say("Reload");
      button.addEventListener("click", () => location.reload());
      line.append(button);
    }
    document.body.append(line);
  };

  const look = async () => {
    const now = await ask();
    waiting = now === null && began !== null;
    if (waiting) {
      tell(say("The server is not responding: it is asleep or starting up. This page waits for it."));
      setTimeout(look, AGAIN);
    } else if (began === null) began = now;
    else if (now !== began) tell(say("The server has restarted. Reload to continue with these settings."), true);
    else line?.remove();
  };

  const perhaps = () => {
    if (waiting || document.visibilityState === "hidden" || Date.now() < asked + PAUSE) return;
    asked = Date.now();
    look();
  };
  window.isxLook = look;
  for (const event of ["visibilitychange", "focus", "online", "pointerdown", "keydown"]) {
    addEventListener(event, perhaps, true);
  }
  setTimeout(perhaps, 1000);
})();
