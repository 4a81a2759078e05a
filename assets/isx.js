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

// Fill an element with HTML; gives its elements with the attribute data-part, by that name.
isx.parts = (element, html) => {
  element.innerHTML = html;
  return Object.fromEntries([...element.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
};

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
