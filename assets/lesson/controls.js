// What a prediction is made with, one kind each. A kind takes the step's description, the prediction made before (or
// undefined) and `say`, which takes a new one; it gives the element and `reveal(truth)`, which shows the truth beside it,
// and where it always shows some value, `current()`.
const { make, lesson } = isx;
const { words } = lesson;
const group = (label, className, ...children) => make("div", { className, role: "group", "aria-label": label }, ...children);

function range({ label, min, max, step, value, unit }, said, say) {
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const input = make("input", { type: "range", min, max, step, value: said ?? value });
  const output = make("output");
  const truth = make("i", { className: "isx-truth", hidden: true });
  const tell = () => {
    output.textContent = isx.fixed(Number(input.value), digits) + unit;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => (tell(), say(Number(input.value))));
  tell();
  const element = make("label", { className: "isx-range" }, make("span", { textContent: label }), output, make("span", { className: "isx-track" }, input, truth));
  const reveal = (found) => {
    const share = Math.min(Math.max((found - min) / (max - min), 0), 1);
    truth.hidden = false;
    truth.style.left = `calc(11px + (100% - 22px) * ${share})`; // half a thumb at either end
  };
  return { element, reveal, current: () => Number(input.value) };
}

function number({ label, min, max, step }, said, say) {
  const input = make("input", { type: "number", min, max, step, value: said ?? "" });
  const read = () => (input.value === "" || !input.validity.valid ? undefined : Number(input.value));
  input.addEventListener("input", () => say(read()));
  return { element: make("label", { className: "isx-asked" }, make("span", { textContent: label }), input), reveal() {} };
}

// Buttons: one is pressed, until the truth is revealed.
function buttons(label, texts, said, say, className) {
  const press = (index) => {
    if (element.classList.contains("isx-revealed")) return;
    choose(index);
    say(index);
  };
  const all = texts.map((textContent, index) => make("button", { type: "button", textContent, onclick: () => press(index) }));
  const choose = (chosen) => all.forEach((button, index) => button.setAttribute("aria-pressed", index === chosen));
  choose(said);
  const element = group(label, `isx-choices ${className}`, ...all);
  const reveal = (truth) => {
    element.classList.add("isx-revealed");
    all.forEach((button, index) => button.classList.toggle("isx-true", index === truth));
  };
  return { element, reveal };
}

const choice = ({ label, choices }, said, say) => buttons(label, choices, said, say, "");

// The models' answers, shuffled: their texts come when the models have written them, and again when they write anew.
function answers({ label }, said, say) {
  const hint = make("p", { className: "isx-quiet", textContent: words.answers });
  const element = make("div", {}, hint);
  let shown = "[]";
  let inner = null;
  const update = (texts) => {
    if (JSON.stringify(texts) === shown) return;
    shown = JSON.stringify(texts);
    if (!texts.length) return element.replaceChildren(hint);
    inner = buttons(label, texts.map((text, index) => `${"ABC"[index]}. ${text}`), said, (one) => ((said = one), say(one)), "isx-said");
    element.replaceChildren(inner.element);
  };
  return { element, update, reveal: (truth) => inner?.reveal(truth) };
}

// One bar a group of layers. A stroke of the pointer draws them all; each is a slider to the keyboard.
function bars({ label, groups, max, value, unit }, said, say) {
  const names = lesson.groups(groups).map(({ first, last }) => (first === last ? `${first}` : `${first}–${last}`));
  const values = names.map((_, index) => said?.[index] ?? value);
  const columns = names.map((name, index) => {
    const aria = { "aria-label": `${label}, ${words.layers.replace(/\{first\}.*\{last\}/, name)}`, "aria-orientation": "vertical" };
    const oninput = ({ target }) => set(index, Number(target.value));
    const input = make("input", { type: "range", min: 0, max, step: 1, value: values[index], oninput, ...aria });
    const truth = make("i", { className: "isx-true", hidden: true });
    return make("div", { className: "isx-column" }, truth, make("b"), input, make("span", { textContent: name }));
  });
  const show = (index) => {
    const [bar, input] = [columns[index].querySelector("b"), columns[index].querySelector("input")];
    bar.style.setProperty("--isx-share", values[index] / max);
    input.value = values[index];
    input.setAttribute("aria-valuetext", `${values[index]}${unit}`);
  };
  const set = (index, wanted) => {
    if (plot.classList.contains("isx-revealed")) return show(index);
    values[index] = wanted;
    show(index);
    say([...values]);
  };
  const plot = group(label, "isx-bars-drawn", ...columns);
  const draw = ({ clientX, clientY }) => {
    const index = columns.findIndex((column) => clientX >= column.getBoundingClientRect().left && clientX < column.getBoundingClientRect().right);
    if (index < 0) return;
    const box = columns[index].querySelector("input").getBoundingClientRect();
    set(index, Math.round(max * Math.min(Math.max((box.bottom - clientY) / box.height, 0), 1)));
  };
  plot.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    plot.setPointerCapture(event.pointerId);
    draw(event);
  });
  plot.addEventListener("pointermove", (event) => plot.hasPointerCapture(event.pointerId) && draw(event));
  names.forEach((_, index) => show(index));
  const key = make("p", { className: "isx-key", hidden: true }, make("b"), ` ${words.yours} `, make("i"), ` ${words.measured}`);
  const reveal = (truth) => {
    plot.classList.add("isx-revealed");
    key.hidden = false;
    columns.forEach((column, index) => {
      const bar = column.querySelector("i");
      bar.hidden = false;
      bar.style.setProperty("--isx-share", Math.min((100 * truth[index]) / max, 1));
    });
  };
  return { element: make("div", {}, make("p", { className: "isx-quiet", textContent: isx.say("{label}, 0 to {max}{unit}", { label, max, unit }) }), plot, key), reveal, current: () => [...values] };
}

lesson.controls = { range, number, choice, answers, bars };
