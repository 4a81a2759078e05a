// The table of ratios by hand. Runs once, with gradio's `element`, `props`, `watch` and `trigger` in scope. Ratios come
// from the bars above whenever they are redrawn, so dragging the slider asks the server nothing more; the value is the
// locks as text ("7 attention 25, 3 mlp 0"), and an edit goes back as the event `select`, whose data is `locked`. Once it
// is answered, the window's event `isx-locks` comes: the table shows the value again, without an edit that was refused.
const body = element.querySelector("tbody");
const fold = element.querySelector("details");
const count = element.querySelector(".isx-count");
const modules = ["attention", "mlp"];
const { say, make } = isx;
const names = { attention: say("attention"), mlp: say("MLP") };
const locks = new Map(); // "7 attention" -> per cent
let cells = [];
let edited = null; // the field of the edit that is not answered yet

function read(field) {
  locks.clear();
  for (const part of (props.value || "").split(",").filter((text) => text.trim())) {
    const [layer, module, percent] = part.trim().split(/\s+/);
    locks.set(`${layer} ${module}`, Number(percent));
  }
  paint(field);
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
      ratio.addEventListener("change", () => set(key, ratio.value !== "", ratio));
      lock.addEventListener("change", () => set(key, lock.checked, ratio));
      row.append(make("td", {}, ratio), make("td", {}, lock));
      cells.push({ key, layer, module, ratio, lock });
    }
  }
}

function set(key, isLocked, ratio) {
  if (isLocked) locks.set(key, Number(ratio.value));
  else locks.delete(key);
  send(ratio);
}

// A field in which somebody types keeps its text, except for `field`, whose edit is answered.
function paint(field) {
  count.textContent = locks.size ? say(" ({count} locked)", { count: locks.size }) : "";
  if (!fold.open) return; // dragging the slider does not pay for it
  const bars = document.querySelector("#ratio-chart .isx-chart")?.isxChart?.data.filter((trace) => trace.type === "bar");
  if (!bars?.length) return;
  const ratios = Object.fromEntries(bars.map((trace) => [trace.meta.module, trace.y]));
  const layers = bars[0].y.length;
  if (cells.length !== modules.length * layers) build(layers);
  cells.forEach(({ key, layer, module, ratio, lock }) => {
    const locked = locks.get(key);
    if (document.activeElement !== ratio || ratio === field) ratio.value = (locked ?? 100 * ratios[module][layer]).toFixed(1);
    lock.checked = locked !== undefined;
    ratio.classList.toggle("isx-locked", lock.checked);
  });
}

function send(field) {
  edited = field;
  const order = (key) => 2 * parseInt(key) + key.endsWith("mlp");
  const parts = [...locks].sort(([a], [b]) => order(a) - order(b)).map(([key, percent]) => `${key} ${percent}`);
  paint();
  trigger("select", { locked: parts.join(", ") });
}

element.querySelector(".isx-unlock").addEventListener("click", () => (locks.clear(), send(null)));
window.addEventListener("isx-chart", () => paint());
window.addEventListener("isx-locks", () => read(edited));
fold.addEventListener("toggle", () => paint());
watch("value", () => read());
read();
