// The Compare tab on the user's own device. Runs once, with gradio's `element`, `props` and `watch` in scope; its value is
// JSON of compare/device_panel.py, which tells the files of a setting or, when asked, that they are written.
const { say } = isx;
const option = (value) => document.querySelector(`#run-on input[value="${value}"]`);
const isOn = () => Boolean(option("device")?.checked);
const field = (id, kind) => document.querySelector(`#${id} ${kind}`);
let waiting = null; // for files that the server writes: {setting, promise, resolve, reject}

// The server writes the files, unless somebody has asked for the same before.
function prepare(setting, signal, tell) {
  tell(say("The server is writing the models for your device."));
  const { promise, reject } = (waiting = { setting, ...Promise.withResolvers() });
  signal.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
  document.querySelector("#device-prepare").click();
  return promise;
}

const panel = isx.devicePanel(element.querySelector("div"), {
  prepare,
  question: () => ({
    prompt: field("prompt", "textarea").value,
    maxTokens: Number(field("new-tokens", "input").value),
    temperature: Number(field("temperature", "input").value),
    seed: Number(field("sample-seed", "input").value) || 0,
    chat: !field("raw", "input").checked,
  }),
  toServer: () => option("server").click(),
});

// What the server says of a setting while `prepare` waits: its answer, or that another setting has been chosen.
function told(setting) {
  const { setting: asked, resolve, reject } = waiting;
  const isOther = setting.digest && setting.digest !== asked.digest;
  if (setting.isAnswer === Boolean(isOther)) return; // the same setting again, or an answer to an earlier question
  waiting = null;
  if (isOther) reject(new isx.device.Problem(say("The settings changed while the models were being prepared. Try again.")));
  else if (setting.problem) reject(new isx.device.Problem(setting.problem));
  else resolve(setting);
}

// "Generate", "Stop" and the key that sends a prompt belong to the device while it is chosen.
function claim(event) {
  const isIn = (selector) => event.target.closest?.(selector);
  const isSent = event.type === "click" ? isIn("#generate") : event.key === "Enter" && event.shiftKey && isIn("#prompt");
  const isStopped = event.type === "click" && isIn("#stop");
  if (!isOn() || !(isSent || isStopped)) return;
  event.stopImmediatePropagation();
  event.preventDefault();
  panel[isSent ? "generate" : "stop"]();
}
for (const type of ["click", "keydown"]) document.addEventListener(type, claim, true);
document.addEventListener("change", (event) => {
  if (event.target.closest?.("#run-on") && !isOn()) panel.leave();
});

watch("value", () => {
  if (!props.value) return;
  const { sparsity, dense, sliced, ...rest } = JSON.parse(props.value);
  const setting = isx.device.setting({ ...rest, files: [dense, ...(sliced ? [{ ...sliced, percent: sparsity }] : [])] });
  if (waiting) told(setting);
  if (!setting.isAnswer && isOn()) panel.set(setting);
});
