// A published site (components/export/published/site.py): its models answer in the reader's browser. Other scripts call
// window.intraslice.generate({sparsity, prompt, maxTokens, chat}), which resolves to {text, tokensPerSecond}.
window.isxSite = ({ steps, models, engine: engineFolder, about }) => {
  const at = (id) => document.getElementById(id);
  const device = window.isxDevice;
  const say = window.isxSay;
  const [status, bar, buttons, results] = ["status", "progress", "buttons", "results"].map((name) => at(`device-${name}`));
  const slider = at("share");
  const engine = new URL(engineFolder, document.baseURI).href;
  const address = ({ url }) => new URL(url, document.baseURI).href;
  const written = (percent) => `${window.isxWritten(percent)}${window.isxLanguage.percent}`;
  const nearest = (percent) => models.reduce((best, model) => (Math.abs(model.percent - percent) < Math.abs(best.percent - percent) ? model : best));
  const dense = nearest(0);
  const chosen = () => nearest(steps[slider.value].percent);
  const needed = () => [...new Set([dense, chosen()])];
  const button = (text, act, id) => Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick: act, id, className: "isx-button" });
  let work = null;

  function tell(text, kind = "") {
    status.textContent = text;
    status.className = `isx-status ${kind && `isx-${kind}`}`;
  }

  // The models' files, downloaded unless the browser has them.
  async function blobs(wanted, signal) {
    const all = wanted.reduce((sum, { bytes }) => sum + bytes, 0);
    const found = [];
    let before = 0;
    bar.hidden = false;
    bar.value = 0;
    try {
      for (const model of wanted) {
        const progress = (loaded) => {
          bar.value = (before + loaded) / all;
          tell(say("Downloading {done} of {size} MB", { done: device.megabytes(before + loaded), size: device.megabytes(all) }));
        };
        found.push((await device.stored(address(model))) ?? (await device.download(address(model), progress, signal)).blob);
        before += model.bytes;
      }
    } finally {
      bar.hidden = true;
    }
    return found;
  }

  async function open(wanted, signal) {
    const problem = unavailable();
    if (problem) throw new device.Problem(problem);
    const files = await blobs(wanted, signal);
    tell(say("Starting the models"));
    const opened = [];
    for (const [index, model] of wanted.entries()) opened.push(await device.open(engine, address(model), files[index], wanted.map(address)));
    return opened;
  }

  function unavailable() {
    if (location.protocol === "file:") return say("Browsers run no models in a page that was opened from the disk. Serve its folder, for example with “python -m http.server”, and open it from there.");
    return device.unsupported();
  }

  async function offer() {
    at("device-about").textContent = say("Runs in this browser with {about}, on {threads}. Nothing that you type leaves your device.", {
      about,
      threads: device.threads() === 1 ? say("one thread") : say("{count} threads", { count: device.threads() }),
    });
    const problem = unavailable();
    buttons.replaceChildren();
    if (problem) return tell(problem, "error");
    const stored = await Promise.all(needed().map((model) => device.stored(address(model))));
    const size = needed().reduce((sum, { bytes }, index) => sum + (stored[index] ? 0 : bytes), 0);
    const names = needed().map(({ percent }) => (percent ? written(percent) : say("Dense"))).join(" + ");
    if (size) tell(say("{names}: {size} MB to download.", { names, size: device.megabytes(size) }));
    else tell(say("{names}: on your device.", { names }), "ready");
    buttons.append(button(size ? say("Download and generate") : say("Generate"), ask, "device-generate"));
    const kept = await device.kept();
    if (kept) buttons.append(button(say("Delete the models from this device ({size} MB)", { size: device.megabytes(kept) }), forget, "device-free"));
  }

  async function forget() {
    await device.free();
    offer();
  }

  async function ask() {
    const prompt = at("own").value;
    if (!prompt.trim()) return tell(say("The prompt is empty. Enter some text."), "error");
    work?.abort();
    const mine = (work = new AbortController());
    buttons.replaceChildren(button(say("Stop"), () => mine.abort(), "device-stop"));
    const wanted = needed();
    const titles = wanted.map(({ percent }) => (percent ? say("IntraSlice, {percent} removed", { percent: written(percent) }) : say("Dense")));
    const shown = { titles, sizes: wanted.map(({ bytes }) => `${device.megabytes(bytes)} MB`), measured: {} };
    try {
      const opened = await open(wanted, mine.signal);
      for (const [index, name] of ["dense", "sliced"].slice(0, wanted.length).entries()) {
        tell(say("Answering"));
        const answer = await device.complete(opened[index], { prompt, maxTokens: 64, chat: true, signal: mine.signal }, (tokens) => {
          shown[name] = { tokens, growing: true };
          window.isxAnswers.show(results, shown);
        });
        shown[name] = { ...answer, stopped: mine.signal.aborted };
        if (answer.timings) shown.measured[name] = { prefill: answer.timings.prompt_per_second, decode: answer.timings.predicted_per_second };
        window.isxAnswers.show(results, shown);
        if (mine.signal.aborted) break;
      }
      if (opened.length > 1 && !mine.signal.aborted) {
        tell(say("Scoring the dense answer with the sliced model"));
        await device.score(opened[1], { prompt, chat: true, signal: mine.signal }, shown.dense.tokens, (scored) => {
          shown.scored = scored;
          window.isxAnswers.show(results, shown);
        });
      }
    } catch (problem) {
      await device.close();
      await offer();
      return tell(mine.signal.aborted ? say("Cancelled.") : problem.message, mine.signal.aborted ? "" : "error");
    }
    return offer();
  }

  let turn = Promise.resolve(); // one answer at a time
  window.intraslice = {
    generate({ sparsity = 0, prompt, maxTokens = 64, chat = false }) {
      const answer = turn.then(async () => {
        const model = nearest(100 * sparsity);
        if (Math.abs(model.percent - 100 * sparsity) > 1e-6) throw new RangeError(`sparsity must be one of ${models.map(({ percent }) => percent / 100).join(", ")}, got ${sparsity}`);
        const [opened] = await open([model]);
        const { text, timings } = await device.complete(opened, { prompt, maxTokens, chat });
        return { text, tokensPerSecond: timings?.predicted_per_second ?? null };
      });
      turn = answer.catch(() => {}).then(offer);
      return answer;
    },
  };

  slider.addEventListener("change", offer);
  offer();
};
