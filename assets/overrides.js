// The table of ratios by hand, and the list of locked units. Runs once, with gradio's `element`, `props`, `watch` and `trigger` in
// scope. Ratios come from the bars above, so dragging the slider asks the server nothing more. The value is the locks as text
// ("7 attention 25, 3 attention head 5 keep"); an edit goes back as `locked` of the event `select`. Once it is answered, the window's
// event `isx-locks` comes: the table shows the value again, or sends what was edited meanwhile, since two answers may come in any
// order. The event `isx-lock-unit`, whose `detail` is a lock, sets or unlocks that.
const [body, fold, count, units, typed] = ["tbody", "details", ".isx-count", ".isx-units", ".isx-unit"].map((selector) => element.querySelector(selector));
const modules = ["attention", "mlp"];
const { say, make } = isx;
const names = { attention: say("attention"), mlp: say("MLP") };
const locks = new Map(); // "7 attention" -> "25", "3 attention head 5" -> "keep", "7 mlp" -> "neurons 400"
isx.locks = () => locks;
let cells = [];
let edited = null, asked = null; // of the edit that is not answered yet: its field, and the locks as text

function read(field) {
  locks.clear();
  for (const part of (props.value || "").split(",").filter((text) => text.trim())) locks.set(...parsed(part));
  paint(field);
}

function parsed(text) {
  const words = text.trim().split(/\s+/);
  const length = words[2] === "head" ? 4 : 2;
  return [words.slice(0, length).join(" "), words.slice(length).join(" ")];
}

// Lock by a value, or unlock with null; `field` is that of the edit.
function set(key, value, field) {
  if (value === null) locks.delete(key);
  else locks.set(key, value);
  send(field);
}

function toggle(text) {
  const [key, value] = parsed(text);
  set(key, locks.get(key) === value ? null : value, null);
}

// A locked unit in words; a locked ratio, which the table shows, has none.
function described(key, value) {
  const [layer, , , head] = key.split(" ");
  const [what, count] = value.split(" ");
  if (what === "keep") return say("Layer {layer}: query head {head} is kept, and so is its key/value head", { layer, head });
  if (what === "remove") return say("Layer {layer}: query head {head} is removed", { layer, head });
  return what === "neurons" ? say("Layer {layer}: {count} neurons are kept", { layer, count }) : "";
}

function build(layers) {
  cells = [];
  body.replaceChildren();
  for (let layer = 0; layer < layers; layer++) {
    const row = body.appendChild(make("tr", {}, make("th", { scope: "row", textContent: layer })));
    for (const module of modules) {
      const name = say("Layer {layer}, {module}", { layer, module: names[module] });
      const key = `${layer} ${module}`;
      const ratio = make("input", { type: "number", min: 0, max: 100, step: 0.5, "aria-label": say("{name}: per cent removed", { name }) });
      const lock = make("input", { type: "checkbox", "aria-label": say("{name}: locked", { name }) });
      const change = (isLocked) => set(key, isLocked ? String(Number(ratio.value)) : null, ratio);
      ratio.addEventListener("change", () => change(ratio.value !== ""));
      lock.addEventListener("change", () => change(lock.checked));
      row.append(make("td", {}, ratio), make("td", {}, lock));
      cells.push({ key, layer, module, ratio, lock });
    }
  }
}

// A field in which somebody types keeps its text, except for `field`, whose edit is answered.
function paint(field) {
  count.textContent = locks.size ? say(" ({count} locked)", { count: locks.size }) : "";
  if (!fold.open) return; // dragging the slider does not pay for it
  const items = [...locks].map(([key, value]) => {
    const text = described(key, value);
    const onclick = () => toggle(`${key} ${value}`);
    return text && make("li", {}, text, " ", make("button", { type: "button", textContent: "×", "aria-label": say("Unlock: {text}", { text }), onclick }));
  });
  units.replaceChildren(...items.filter(Boolean));
  const bars = document.querySelector("#ratio-chart .isx-chart")?.isxChart?.data.filter((trace) => trace.type === "bar");
  if (!bars?.length) return;
  const ratios = Object.fromEntries(bars.map((trace) => [trace.meta.module, trace.y]));
  const layers = bars[0].y.length;
  if (cells.length !== modules.length * layers) build(layers);
  cells.forEach(({ key, layer, module, ratio, lock }) => {
    const locked = locks.get(key);
    const percent = Number(locked ?? NaN); // NaN also for a number of neurons
    if (document.activeElement !== ratio || ratio === field) ratio.value = (percent >= 0 ? percent : 100 * ratios[module][layer]).toFixed(1);
    lock.checked = locked !== undefined;
  });
}

const order = (key) => 2 * parseInt(key) + key.endsWith("mlp");
const written = () => [...locks].sort(([a], [b]) => order(a) - order(b)).map((lock) => lock.join(" ")).join(", ");

function send(field) {
  edited = field;
  paint();
  if (asked === null) trigger("select", { locked: (asked = written()) });
}

element.querySelector(".isx-unlock").addEventListener("click", () => (locks.clear(), send(null)));
typed.addEventListener("change", () => typed.value.trim() && (toggle(typed.value), (typed.value = "")));
window.addEventListener("isx-lock-unit", (event) => toggle(event.detail));
window.addEventListener("isx-chart", () => paint());
window.addEventListener("isx-locks", () => {
  const act = written() === asked ? read : send;
  asked = null;
  act(edited);
});
fold.addEventListener("toggle", () => paint());
watch("value", () => asked === null && read());
read();
