// Undo and redo of settings, and the mark of a page with a pinned setting. Values come from page.js whenever a control has
// changed, in the order of a link; a drag, which changes one many times, is one step, and what the next press changes
// another.
const REST = 500; // ms without another change, after which a setting counts
const all = Object.keys(isx.usual);
let steps = []; // values by name, as JSON
let at = -1;
let seen = null;
let rest = null;
let isOpen = false; // the estimator is being chosen: a setting after `steps[at]` that is no step
let begun;
isx.ready = new Promise((resolve) => (begun = resolve)); // once the link has set the controls

const named = (values) => JSON.stringify(isx.undone.map((name) => values[all.indexOf(name)] ?? null));

function show() {
  const able = { undo: at > 0 || isOpen || seen !== steps[at], redo: at < steps.length - 1 };
  for (const id of Object.keys(able)) document.querySelector(`#${id}`)?.toggleAttribute("disabled", !able[id]);
}

function keep() {
  clearTimeout(rest);
  if (seen !== null && seen !== steps[at]) {
    steps = [...steps.slice(0, at + 1), seen].slice(-100);
    at = steps.length - 1;
  }
  show();
}

addEventListener("pointerdown", keep, true);

isx.begin = (values) => {
  seen = named(values);
  [steps, at] = [[seen], 0];
  document.body.classList.add("isx-begun"); // from here on the link no longer sets the controls
  begun();
  isx.remember(values);
  return [String(Date.now()), isx.openMore(values)];
};

isx.note = (values) => {
  document.body.classList.toggle("isx-pinned", Boolean(values[all.indexOf("pinned")]));
  isOpen = values[all.indexOf("estimator")] === "auto";
  if (isOpen) return show(); // what it chooses is the step: undone to this, it would choose again
  seen = named(values);
  clearTimeout(rest);
  if (at >= 0 && seen !== steps[at]) rest = setTimeout(keep, REST);
  show();
};

// What the controls are set to: the values, and another one for the field that lets them be acted on.
isx.step = (step) => {
  keep();
  at = Math.min(Math.max(at + (isOpen && step < 0 ? 0 : step), 0), steps.length - 1);
  isOpen = false;
  seen = steps[at];
  show();
  return [...JSON.parse(seen), String(Date.now())];
};
