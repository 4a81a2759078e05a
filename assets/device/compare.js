// The Compare tab on the user's own device: which files the setting needs, their download, answers and speeds. Runs
// once, with gradio's `element`, `props` and `watch` in scope; its value is JSON of compare/device_panel.py.
const device = window.isxDevice;
const say = window.isxSay;
const root = element.querySelector("div");
const part = (tag, properties = {}) => root.appendChild(Object.assign(document.createElement(tag), properties));
const status = part("p", { className: "isx-status" });
status.setAttribute("role", "status");
const bar = part("progress", { hidden: true, max: 1 });
const buttons = part("p", { className: "isx-device-buttons" });
const results = part("div");
const about = part("p", { className: "isx-quiet" });

let wanted = null; // the description of the current setting's files
let blobs = null; // of those files, once the browser has them
let work = null; // the AbortController of what is being done
let asked = ""; // the addresses of the files that the server writes for a download
let isBusy = false; // with a download, an answer or a measurement

const NAMES = ["dense", "sliced"]; // in the order of the files
const option = (value) => document.querySelector(`#run-on input[value="${value}"]`);
const isOn = () => Boolean(option("device")?.checked);
const files = () => [wanted.dense, wanted.sliced].filter(Boolean);
const address = (file) => new URL(file.url, document.baseURI).href;
const addresses = () => files().map(({ url }) => url).join();
const total = () => device.megabytes(files().reduce((sum, { bytes }) => sum + bytes, 0));
const titles = () => [say("Dense"), ...(wanted.sliced ? [say("IntraSlice, {percent} removed", { percent: `${window.isxWritten(wanted.sparsity)}${window.isxLanguage.percent}` })] : [])];

const button = (text, act, id) => Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick: act, id, className: "isx-button" });

function tell(text, kind = "") {
  status.textContent = text;
  status.className = `isx-status ${kind && `isx-${kind}`}`;
}

function offer(...choices) {
  buttons.replaceChildren(...choices);
}

// What can be done now: nothing, download, or generate.
async function settle() {
  document.body.classList.toggle("isx-on-device", isOn());
  if (!isOn() || !wanted) return;
  about.textContent = say("Runs in this browser with {about}, on {threads}. Nothing that you type leaves your device.", {
    about: wanted.about,
    threads: device.threads() === 1 ? say("one thread") : say("{count} threads", { count: device.threads() }),
  });
  const problem = device.unsupported() || wanted.problem;
  if (problem) return refuse(problem);
  const found = await Promise.all(files().map((file) => device.stored(address(file))));
  blobs = found.every(Boolean) ? found : null;
  if (isBusy) return;
  if (blobs) return ready();
  if (asked === addresses()) {
    if (wanted.written) download(files());
    return;
  }
  asked = "";
  bar.hidden = true;
  tell(say("The models of this setting are not on your device yet: about {size} MB.", { size: total() }));
  offer(button(say("Download {size} MB", { size: total() }), ask, "device-download"));
}

async function ready() {
  asked = "";
  bar.hidden = true;
  tell(say("The models are on your device. Press “Generate”."), "ready");
  const measure = wanted.sliced ? [button(say("Measure speed"), measureSpeed, "device-speed")] : [];
  offer(...measure, button(say("Delete the models from this device ({size} MB)", { size: device.megabytes(await device.kept()) }), forget, "device-free"));
}

function refuse(problem) {
  asked = "";
  bar.hidden = true;
  tell(problem, "error");
  offer(button(say("Run on the server"), () => option("server").click(), "device-server"));
}

// The server writes the files first, unless somebody has asked for the same before.
function ask() {
  asked = addresses();
  tell(say("The server is writing the models for your device."));
  bar.hidden = false;
  bar.removeAttribute("value");
  offer();
  document.querySelector("#device-prepare").click();
}

// From now on nothing else is done, until `isBusy` ends; the button stops it.
function begin(label) {
  isBusy = true;
  const mine = (work = new AbortController());
  offer(button(label, () => mine.abort(), "device-stop"));
  return mine;
}

async function download(needed) {
  const mine = begin(say("Cancel"));
  const sizes = needed.map(({ bytes }) => bytes);
  const all = sizes.reduce((sum, size) => sum + size, 0);
  bar.hidden = false;
  let before = 0;
  let isKept = true;
  try {
    for (const [index, file] of needed.entries()) {
      if (await device.stored(address(file))) before += sizes[index];
      else {
        const got = await device.download(address(file), (loaded) => {
          bar.value = (before + loaded) / all;
          tell(say("Downloading {done} of {size} MB", { done: device.megabytes(before + loaded), size: device.megabytes(all) }));
        }, mine.signal);
        isKept &&= got.kept;
        before += got.blob.size;
      }
    }
  } catch (problem) {
    isBusy = false;
    asked = "";
    bar.hidden = true;
    tell(mine.signal.aborted ? say("Cancelled.") : problem.message, mine.signal.aborted ? "" : "error");
    offer(button(say("Download {size} MB", { size: total() }), ask, "device-download"));
    return;
  }
  isBusy = false;
  await settle();
  if (!isKept) tell(say("The models are ready. This browser keeps no files for this page, so they are downloaded again next time."), "ready");
}

async function forget() {
  await device.free();
  blobs = null;
  await settle();
}

// A function that starts a model of these files, by its name, unless it runs already.
function starter(needed, found) {
  const urls = needed.map(address);
  const engine = new URL(wanted.engine, document.baseURI).href;
  return (name) => {
    const index = NAMES.indexOf(name);
    tell(say("Starting the models"));
    return device.open(engine, urls[index], found[index], urls);
  };
}

const field = (id, kind) => document.querySelector(`#${id} ${kind}`);
const sizes = () => files().map(({ bytes }) => `${device.megabytes(bytes)} MB`);

async function generate() {
  const prompt = field("prompt", "textarea").value;
  if (!prompt.trim()) return tell(say("The prompt is empty. Enter some text."), "error");
  if (!blobs || isBusy) return;
  const mine = begin(say("Stop"));
  const shown = { titles: titles(), sizes: sizes(), measured: {} };
  const question = {
    prompt,
    maxTokens: Number(field("new-tokens", "input").value),
    temperature: Number(field("temperature", "input").value),
    seed: Number(field("sample-seed", "input").value) || 0,
    chat: !field("raw", "input").checked,
    signal: mine.signal,
  };
  const draw = () => window.isxAnswers.show(results, shown);
  const [names, start] = [NAMES.slice(0, files().length), starter(files(), blobs)];
  await attempt(async () => {
    for (const name of names) {
      const model = await start(name);
      tell(say("Answering"));
      const answer = await device.complete(model, question, (tokens) => {
        shown[name] = { tokens, growing: true };
        draw();
      });
      shown[name] = { ...answer, stopped: mine.signal.aborted };
      if (answer.timings) shown.measured[name] = { prefill: answer.timings.prompt_per_second, decode: answer.timings.predicted_per_second };
      draw();
      if (mine.signal.aborted) return;
    }
    if (names.length === 1) return;
    const model = await start("sliced");
    tell(say("Scoring the dense answer with the sliced model"));
    await device.score(model, question, shown.dense.tokens, (scored) => {
      shown.scored = scored;
      draw();
    });
  });
}

async function measureSpeed() {
  const mine = begin(say("Stop"));
  const [start, shown] = [starter(files(), blobs), { titles: titles(), sizes: sizes() }];
  await attempt(async () => {
    const started = { dense: await start("dense"), sliced: await start("sliced") };
    tell(say("Measuring speed, models alternating"));
    const measured = await device.speeds(started, 5, mine.signal);
    if (measured) window.isxAnswers.show(results, { ...shown, measured });
  });
}

// What has failed once is started anew the next time.
async function attempt(act) {
  try {
    await act();
  } catch (problem) {
    isBusy = false;
    await device.close();
    return refuse(problem.message);
  }
  isBusy = false;
  return settle();
}

// "Generate", "Stop" and the key that sends a prompt belong to the device while it is chosen.
const claim = (event) => {
  event.stopImmediatePropagation();
  event.preventDefault();
};
document.addEventListener("click", (event) => {
  if (!isOn()) return;
  if (event.target.closest?.("#generate")) claim(event), generate();
  else if (event.target.closest?.("#stop")) claim(event), work?.abort();
}, true);
document.addEventListener("keydown", (event) => {
  if (isOn() && event.key === "Enter" && event.shiftKey && event.target.closest?.("#prompt")) claim(event), generate();
}, true);
document.addEventListener("change", (event) => event.target.closest?.("#run-on") && (work?.abort(), settle()));

watch("value", () => {
  if (!props.value) return;
  wanted = JSON.parse(props.value);
  settle();
});
