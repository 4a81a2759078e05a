const { say, make, device, files } = isx;
const whole = (path) => new URL(path, document.baseURI).href;

// A setting (see below) of one whose addresses are relative, and whose files have a percentage, 0 for the dense model.
device.setting = ({ engine, files, ...rest }) => {
  const described = ({ percent, url, bytes }) => {
    const title = percent ? say("IntraSlice, {percent} removed", { percent: isx.percent(percent) }) : say("Dense");
    return { name: percent ? "sliced" : "dense", title, url: whole(url), bytes };
  };
  return { ...rest, engine: whole(engine), files: files.map(described) };
};

// What a page shows of models on this device, and does with them one thing at a time: download, answer, measure. Returns
// `set` (the setting's files, or null), `generate`, `stop`, `leave`, and `exclusive`. Used by compare.js and site.js.
//
// A setting is {engine, about, problem, files: [{name: "dense" | "sliced", title, url, bytes}]}, with whole addresses.
// `options`: `prepare(setting, signal)` resolves when the files can be downloaded, to the setting with their true sizes;
// `question()` is the prompt and how to answer it; `toServer`, where there is a server, runs the models there.
isx.devicePanel = (root, { prepare, question, toServer }) => {
  const { status, bar, row, results, about } = isx.parts(root, `
    <p class="isx-status" role="status" data-part="status"></p><progress max="1" hidden aria-label="${say("Download")}" data-part="bar"></progress>
    <p class="isx-device-buttons" data-part="row"></p><div aria-live="polite" data-part="results"></div><p class="isx-quiet" data-part="about"></p>`);
  // They stay where they are, so that the keyboard's focus does, too.
  const button = (id, textContent, onclick) => row.appendChild(make("button", { type: "button", id: `device-${id}`, textContent, onclick, hidden: true, className: "isx-button" }));
  const buttons = {
    stop: button("stop", say("Stop"), () => stop()),
    download: button("download", "", () => run(fetchAll)),
    generate: button("generate", say("Generate"), () => run(answer)),
    speed: button("speed", say("Measure speed"), () => run(measure)),
    server: button("server", say("Run on the server"), () => toServer()),
    free: button("free", "", () => run(forget)),
  };
  const MAX_BYTES = 2 ** 31; // of a file in a browser

  let setting = null;
  let held = null; // the setting's files with their blobs, once the browser has all of them
  let busy = null; // the AbortController of what is being done
  let done = Promise.resolve(); // when that has ended
  let told = 0; // when the progress of a download was last told
  let keepsFiles = true;

  function tell(text, kind = "") {
    if (status.textContent !== text) status.textContent = text;
    status.className = `isx-status ${kind && `isx-${kind}`}`;
  }

  function offer(...names) {
    for (const [name, one] of Object.entries(buttons)) one.hidden = !names.includes(name);
  }

  const sum = (list) => list.reduce((total, { bytes }) => total + bytes, 0);
  const size = (bytes) => (bytes ? files.megabytes(bytes) : "?");

  function unusable({ problem, files: needed }) {
    const tooLarge = needed.some(({ bytes }) => bytes >= MAX_BYTES) ? say("A model file is larger than 2 GB, the most that a browser can load. Choose a smaller model.") : "";
    return device.unsupported() || problem || tooLarge;
  }

  // Shows what can be done with the setting. What the browser has of another one is never used for it.
  async function settle() {
    const mine = setting;
    if (!mine) return;
    const problem = unusable(mine);
    const found = problem ? [] : await Promise.all(mine.files.map(({ url }) => files.stored(url)));
    const kept = await files.total();
    if (mine !== setting) return;
    held = found.length && found.every(Boolean) ? mine.files.map((file, index) => ({ ...file, blob: found[index], bytes: found[index].size })) : null;
    if (busy) return;
    const threads = device.threads();
    const runs = say("Runs in this browser with {about}, on {threads}.", { about: mine.about, threads: threads === 1 ? say("one thread") : say("{count} threads", { count: threads }) });
    about.textContent = keepsFiles ? runs : `${runs} ${say("This browser does not keep files for this page: they will be downloaded again the next time you open it.")}`;
    buttons.free.textContent = say("Delete the models from this device ({size} MB)", { size: size(kept) });
    const more = kept ? ["free"] : [];
    if (problem) {
      tell(problem, "error");
      return offer(...(toServer ? ["server"] : []), ...more);
    }
    if (held) {
      tell(say("The models are on your device."), "ready");
      return offer("generate", ...(held.length > 1 ? ["speed"] : []), ...more);
    }
    const missing = size(sum(mine.files.filter((_, index) => !found[index])));
    tell(say("The models of this setting are not on your device yet: about {size} MB.", { size: missing }));
    buttons.download.textContent = say("Download {size} MB", { size: missing });
    return offer("download", ...more);
  }

  // Does one thing, after the one that is being done; if it fails, says why and what can be done next, and fails too.
  async function exclusive(act) {
    while (busy) await done;
    const mine = (busy = new AbortController());
    let finish, problem;
    done = new Promise((end) => (finish = end));
    offer("stop");
    try {
      return await act(mine.signal);
    } catch (error) {
      problem = error;
      await device.close(); // what has failed once is started anew
      throw error;
    } finally {
      busy = null;
      bar.hidden = true;
      await settle();
      finish();
      if (problem) tell(mine.signal.aborted ? say("Stopped.") : problem.message, mine.signal.aborted ? "" : "error");
      if (problem && !mine.signal.aborted && toServer) buttons.server.hidden = false;
    }
  }

  // The same for a click: nothing where something is being done already.
  const run = (act) => !busy && setting && exclusive(act).catch(() => {});

  // The setting's files with their blobs, downloaded where the browser does not have them.
  async function fetchAll(signal, wanted = setting) {
    if (wanted === setting && held) return held;
    bar.hidden = false;
    bar.removeAttribute("value");
    const written = await prepare(wanted, signal, tell);
    if (wanted === setting) setting = written; // before the model is loaded, its addresses are others
    const { files: needed } = written;
    const all = sum(needed);
    const got = [];
    let before = 0;
    for (const file of needed) {
      let blob = await files.stored(file.url);
      if (!blob) {
        const progress = (loaded) => {
          bar.value = (before + loaded) / all;
          if (performance.now() < told + 500) return; // a screen reader hears each
          told = performance.now();
          tell(say("Downloading {done} of {size} MB", { done: files.megabytes(before + loaded), size: files.megabytes(all) }));
        };
        const answer = await files.download(file, needed, progress, signal);
        keepsFiles &&= answer.isKept;
        blob = answer.blob;
      }
      before += file.bytes;
      got.push({ ...file, blob, bytes: blob.size });
    }
    bar.hidden = true;
    return got;
  }

  async function start(models, name) {
    tell(say("Starting the models"));
    const { engine } = setting;
    const { url, blob } = models.find((model) => model.name === name);
    return device.open(engine, url, blob, models.map((model) => model.url));
  }

  const described = (models) => ({ titles: models.map(({ title }) => title), sizes: models.map(({ bytes }) => `${files.megabytes(bytes)} MB`), measured: {} });

  async function answer(signal) {
    const asked = { ...question(), signal };
    if (!asked.prompt.trim()) throw new device.Problem(say("The prompt is empty. Enter some text."));
    const models = await fetchAll(signal);
    const shown = described(models);
    const draw = () => isx.answers.show(results, shown);
    for (const { name } of models) {
      const model = await start(models, name);
      tell(say("Answering"));
      const whole = await device.complete(model, asked, (tokens, text) => {
        shown[name] = { tokens, text: text ?? device.text(tokens), growing: true };
        draw();
      });
      shown[name] = { ...whole, stopped: signal.aborted };
      if (whole.timings) shown.measured[name] = { prefill: whole.timings.prompt_per_second, decode: whole.timings.predicted_per_second };
      draw();
      if (signal.aborted) return;
    }
    if (models.length < 2) return;
    const model = await start(models, "sliced");
    tell(say("Scoring the dense answer with the sliced model"));
    await device.score(model, asked, shown.dense.tokens, (scored) => {
      shown.scored = scored;
      draw();
    });
  }

  async function measure(signal) {
    const models = await fetchAll(signal);
    const started = { dense: await start(models, "dense"), sliced: await start(models, "sliced") };
    tell(say("Measuring speed, alternating between models"));
    const measured = await device.speeds(started, signal);
    if (measured) isx.answers.show(results, { ...described(models), measured });
  }

  async function forget() {
    await device.close();
    await files.free();
    held = null;
  }

  const stop = () => busy?.abort();

  function set(next) {
    setting = next;
    held = null;
    if (!busy) offer(); // nothing that was meant for another setting
    return settle();
  }

  // The models' memory is given back.
  async function leave() {
    stop();
    await done;
    await device.close();
  }

  return { set, generate: () => run(answer), stop, leave, exclusive, fetchAll, start };
};
