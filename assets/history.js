// Undo and redo of settings, and what of the pinned setting is the page's own look. Values come from page.js whenever a
// control has changed, in the order of a link; a drag, which changes one many times, is one step.
(() => {
  const REST = 500; // ms without another change, after which a setting counts
  const undone = window.isxUndone; // names of what is set again
  let steps = []; // values by name, as JSON
  let at = -1;
  let seen = null;
  let rest = null;

  const named = (values) => {
    const all = Object.keys(window.isxUsual);
    return JSON.stringify(undone.map((name) => values[all.indexOf(name)] ?? null));
  };

  const show = () => {
    for (const [id, able] of [["undo", at > 0 || seen !== steps[at]], ["redo", at < steps.length - 1]]) {
      const button = document.querySelector(`#${id}`);
      if (button) button.disabled = !able;
    }
  };

  const keep = () => {
    clearTimeout(rest);
    if (seen !== null && seen !== steps[at]) {
      steps = [...steps.slice(0, at + 1), seen].slice(-100);
      at = steps.length - 1;
    }
    show();
  };

  window.isxBegin = (values) => {
    seen = named(values);
    [steps, at] = [[seen], 0];
    document.body.classList.add("isx-begun"); // from here on the link no longer sets the controls
    window.isxRemember(values);
    return [String(Date.now()), window.isxOpenMore(values)];
  };

  window.isxNote = (values) => {
    document.body.classList.toggle("isx-pinned", Boolean(values[Object.keys(window.isxUsual).indexOf("pinned")]));
    seen = named(values);
    clearTimeout(rest);
    if (at >= 0 && seen !== steps[at]) rest = setTimeout(keep, REST);
    show();
  };

  // What the controls are set to: the values, and another one for the field that lets them be acted on.
  window.isxStep = (step) => {
    keep();
    at = Math.min(Math.max(at + step, 0), steps.length - 1);
    seen = steps[at];
    show();
    return [...JSON.parse(seen), String(Date.now())];
  };
})();
