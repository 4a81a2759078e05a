// What all scripts share. The server sets `isx.language` before them, and on the live page the data of page.js, history.js,
// tour.js, keys.js and the lesson (components/frame/theme.py). Every file is the body of a function, see
// components/ui/scripts.py: what others use of it is a property of `isx`.
const { decimal, thousands, percent, words } = isx.language;

// An English text in the page's language, with values in their places. Translations are in texts/LANGUAGE/scripts.json.
isx.say = (text, values = {}) => (words[text] ?? text).replace(/\{(\w+)\}/g, (place, name) => (name in values ? values[name] : place));

// "-12,345.6" as JavaScript or Python write it, in the language's own way, with a minus sign.
isx.written = (number) => String(number).replace(/^-/, "−").replace(/[.,%]/g, (mark) => ({ ".": decimal, ",": thousands, "%": percent })[mark]);
isx.fixed = (number, digits = 0) => isx.written(number.toFixed(digits));
isx.signed = (number, digits) => (number < 0 ? "" : "+") + isx.fixed(number, digits);
isx.percent = (number) => isx.written(number) + percent;
isx.percentage = (share, digits = 1) => isx.percent((100 * share).toFixed(digits));
isx.count = (number) => isx.written(number.toLocaleString("en"));
isx.visible = (token) => token.replaceAll("\n", "⏎").replace(/^ +$/, "␣");

// An element with properties, or attributes where the name has a dash, and children.
isx.make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || ["role", "style"].includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
};

// Fill an element with HTML; gives its elements with the attribute data-part, by that name. A press on one with data-go
// does the act of that name.
isx.parts = (element, html, acts = {}) => {
  element.innerHTML = html;
  element.onclick = ({ target }) => acts[target.closest("[data-go]")?.dataset.go]?.();
  return Object.fromEntries([...element.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
};

// Keys that do something in an element: `act` gets what `keys` has for the one that is pressed, and gives false for one that it leaves.
isx.onKeys = (element, keys, act) =>
  element.addEventListener("keydown", (event) => event.key in keys && act(keys[event.key], event) !== false && event.preventDefault());

// A link that changes this page, unless it is opened in a tab of its own.
isx.link = (properties, act) => {
  const onclick = (event) => event.ctrlKey || event.metaKey || event.shiftKey || (event.preventDefault(), act());
  return isx.make("a", { ...properties, onclick });
};

// The page's colours by name, as they are where an element is; and how much larger things are in presenter mode.
isx.colours = (element) => {
  const styles = getComputedStyle(element);
  return (name) => styles.getPropertyValue(`--isx-${name}`).trim();
};
isx.presents = () => document.body.classList.contains("isx-present");
isx.enlargement = () => (isx.presents() ? Math.min(Math.max(innerWidth / 1000, 1.2), 2) : 1);

// Let the user save a Blob as a file.
isx.save = (blob, name) => {
  const address = URL.createObjectURL(blob);
  isx.make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
};

// What this browser keeps under a name: a text, or an object as JSON, empty where there is none. It may keep nothing.
const tried = (act) => {
  try {
    return act();
  } catch {
    return null;
  }
};
isx.stored = (name) => tried(() => localStorage.getItem(name));
isx.kept = (name) => tried(() => JSON.parse(isx.stored(name))) ?? {};
isx.store = (name, text) => tried(() => localStorage.setItem(name, text));
