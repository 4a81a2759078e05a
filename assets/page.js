// What belongs to the page as a whole: the address bar holds its state, links to sections, ?embed=1 hides the controls.
const names = Object.keys(isx.usual); // what a link carries, in the order in which the values come
const TABS = '#tabs button[role="tab"], #tabs .overflow-menu button'; // some find no room on a small screen: a menu has them
const [firstTab] = Object.keys(isx.tabs);
isx.calm = matchMedia("(prefers-reduced-motion: reduce)");
let refused = null; // the query that the browser has not taken yet: some allow only so many changes in a while
const query = () => new URLSearchParams(refused ?? location.search);

isx.address = (change) => {
  const wanted = query();
  change(wanted);
  const search = wanted.toString();
  if (search !== query().toString()) put(search);
};

function put(search) {
  try {
    history.replaceState(history.state, "", `${location.pathname}${search ? "?" + search : ""}`);
    refused = null;
  } catch {
    refused = search;
    setTimeout(() => refused === search && put(search), 1000);
  }
  dispatchEvent(new Event("isx-address"));
}

// Values that are what the page opens with anyway stay out of the link. Until the link has set the controls they are
// not the link's, and would replace it. A link has no estimator that a measurement has still to choose.
isx.remember = (values) => {
  if (!document.body.classList.contains("isx-begun")) return [];
  isx.address((wanted) =>
    names.forEach((name, index) => {
      const value = values[index];
      if (name === "upload") return;
      const isOpen = name === "estimator" && value === "auto";
      if (isOpen || (value ?? null) === null || String(value) === String(isx.usual[name])) wanted.delete(name);
      else wanted.set(name, value);
    })
  );
  isx.note(values);
  return [];
};

// *More settings* is open for whoever left it open, and where the link sets one of them.
const MORE = "isx-more-settings";
const differs = (name, value) => name in isx.more && String(value ?? "") !== String(isx.more[name] ?? "");
const opensMore = (values) => isx.stored(MORE) || names.some((name, index) => differs(name, values[index]));
isx.openMore = (values) => ({ __type__: "update", ...(opensMore(values) && { open: true }) });
const noteMore = (label) => label && isx.store(MORE, label.classList.contains("open") ? "" : "yes"); // before gradio hears of it
addEventListener("click", ({ target }) => noteMore(target.closest?.("#more .label-wrap")), true);

// Answers to several calls may come in any order: an element shows the text with the greatest number.
const newest = {};
isx.newest = (element, value) => {
  const [mark, number] = /^<!--(\d+)-->/.exec(value) ?? ["", 0];
  if (Number(number) >= (newest[element]?.number ?? 0)) newest[element] = { number: Number(number), text: value.slice(mark.length) };
  return newest[element].text;
};

// The button of a tab, and its tab opened and in the address.
isx.tab = (id) => [...document.querySelectorAll(TABS)].find((button) => button.textContent.trim() === isx.tabs[id]);
const noteTab = (id) => isx.address((wanted) => (id === firstTab ? wanted.delete("tab") : wanted.set("tab", id)));
isx.openTab = (id) => {
  if (isx.tab(id)?.getAttribute("aria-selected") !== "true") isx.tab(id)?.click();
  noteTab(id);
};

document.addEventListener("click", (event) => {
  const label = event.target.closest?.(TABS)?.textContent.trim();
  const opened = Object.keys(isx.tabs).find((id) => isx.tabs[id] === label);
  if (opened) noteTab(opened);
  // HTML texts have no events of gradio: a button with data-press presses the hidden one with that id.
  const pressed = event.target.closest?.("[data-press]");
  if (pressed) document.getElementById(pressed.dataset.press).click();
  // The languages beside the title: the same page, with whatever it is set to.
  const link = event.target.closest?.(".isx-languages a");
  if (!link) return;
  event.preventDefault();
  const wanted = query();
  wanted.set("lang", link.lang);
  location.search = wanted.toString();
});

// Bring an element into view, below the slider's bar, which stays at the top.
isx.scrollTo = (target) => {
  const bar = document.querySelector("#slider-bar");
  const top = target === bar ? 0 : target.getBoundingClientRect().top + scrollY - bar.offsetHeight - 20;
  scrollTo({ top, behavior: isx.calm.matches ? "auto" : "smooth" });
};

// A link to a section, such as ?tab=spectra#rank-chart. Those of the Estimator tab were on Ratios before; two had other names.
function arrive(hash) {
  const id = hash.slice(1).replace(/^verdict-/, "estimator-check-").replace(/^settling-/, "convergence-");
  if (/^(estimator-check|search|convergence)-/.test(id)) isx.openTab("estimator");
  const find = (tries) => {
    const section = document.getElementById(id);
    if (section?.offsetHeight > 20) isx.scrollTo(section);
    else if (tries) setTimeout(find, 100, tries - 1);
  };
  if (/^[\w-]+$/.test(id)) find(100);
}
const linked = location.hash; // which the address soon loses
addEventListener("hashchange", () => arrive(location.hash));

// Gradio sends what is typed beside a slider at once, and clamps it later. A number that the slider does not have
// waits here until it is entered; then it is the nearest that the slider has, or for an empty field the one before.
// Layers have no fractions.
const clamp = (event) => {
  const field = event.target;
  const range = field.type === "number" && field.closest(".block")?.querySelector("input[type=range]");
  if (!range) return;
  const { rangeUnderflow, rangeOverflow, stepMismatch } = field.validity;
  const isFraction = stepMismatch && field.closest("#layer");
  if (field.value !== "" && !rangeUnderflow && !rangeOverflow && !isFraction) return;
  event.stopImmediatePropagation();
  if (event.type !== "change") return;
  field.value = rangeUnderflow ? field.min : rangeOverflow ? field.max : isFraction ? Math.round(field.value) : range.value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
for (const type of ["input", "change"]) addEventListener(type, clamp, true);

// On a small screen the controls start folded: the slider's bar stays, and the charts get the width.
// gradio opens the sidebar by itself and listens to clicks only some moments later, hence the tries.
let seen = false;
const fold = (tries) => {
  const toggle = document.querySelector("#controls.open .toggle-button");
  seen ||= Boolean(toggle);
  if (!tries || (seen && !toggle)) return document.body.classList.add("isx-ready-controls");
  toggle?.click();
  return setTimeout(fold, 100, tries - 1);
};
addEventListener("DOMContentLoaded", () => {
  document.body.classList.toggle("isx-embed", query().get("embed") === "1");
  if (innerWidth < 768) fold(100);
  isx.ready.then(() => arrive(linked));
});
