// Presenter mode: one chart a screen, large, with the slider below it. The charts are the page's own: the one in turn is
// laid over the page (presenter.css), and the arrows go on through the charts of a tab, then to the next tab.
const STOPS = ".isx-card:not(.isx-card .isx-card), .isx-stop"; // what stands alone on a screen
const LOOKS = 60; // 50 ms apart, at a tab that is built and whose charts may still be drawn
const on = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 };
const tabs = Object.keys(isx.tabs);
let stage = null;
let line = null;
let coming = null; // another look at a tab that is being built

const { presents } = isx;
const opened = () => tabs.findIndex((id) => isx.tab(id)?.getAttribute("aria-selected") === "true");
const panel = () => [...document.querySelectorAll('#tabs [role="tabpanel"]')].find((one) => one.checkVisibility?.() ?? one.offsetParent);
const cards = () => [...(panel()?.querySelectorAll(STOPS) ?? [])];
// A chart without an answer yet has no title.
const isFilled = (one) => one.matches(".isx-stop") || one.querySelector(".isx-title")?.textContent;
const stops = () => cards().filter(isFilled);

function show(stop) {
  clearTimeout(coming);
  stage?.classList.remove("isx-stage");
  stage = stop ?? null;
  if (!stage) return;
  stage.classList.add("isx-stage");
  stage.scrollTop = 0;
  const all = stops();
  const where = isx.tabs[tabs[Math.max(opened(), 0)]];
  line.textContent = all.length > 1 ? `${where}, ${isx.say("{step} of {steps}", { step: all.indexOf(stage) + 1, steps: all.length })}` : where;
}

// On to the next stop, of this tab or of those after it. Charts that may still come are waited for. Tabs without anything
// to show, such as Export's downloads, are passed over; at either end it stays where it is.
function go(step, index = Math.max(opened(), 0), from = index, tries = LOOKS) {
  clearTimeout(coming);
  if (!presents()) return;
  if (!tabs[index]) return isx.openTab(tabs[from]);
  if (opened() !== index) isx.openTab(tabs[index]);
  const built = opened() === index && panel()?.querySelector(".block, button");
  const all = built ? stops() : [];
  const place = all.indexOf(stage);
  const next = place < 0 ? all.at(step > 0 ? 0 : -1) : all[place + step];
  const mayCome = place < 0 || (step > 0 && !isFilled(cards().at(-1)));
  if (next) show(next);
  else if (tries && mayCome) coming = setTimeout(go, 50, step, index, from, tries - Boolean(built));
  else go(step, index + step, from);
}

isx.present = () => {
  if (presents()) return leave();
  line ??= isx.make("p", { id: "isx-where", role: "status" });
  document.querySelector(".gradio-container").append(line);
  const top = document.querySelector("#slider-bar").getBoundingClientRect().bottom;
  const all = stops();
  const inView = all.find((one) => one.getBoundingClientRect().bottom > top + 100);
  document.body.classList.add("isx-present");
  scrollTo(0, 0);
  if (all.length) show(inView ?? all[0]);
  else go(1, 0);
};

function leave() {
  document.body.classList.remove("isx-present");
  const left = stage;
  show(null);
  line.remove();
  left?.scrollIntoView({ block: "center" });
}

// The arrows of a slider or a field are its own, as long as it has the focus: one that was dragged gives it back.
addEventListener("pointerup", ({ target, isTrusted }) => isTrusted && presents() && target.matches?.("#sparsity input[type=range]") && target.blur());
addEventListener("keydown", (event) => {
  if (!presents() || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open], .isx-tour")) return;
  if (event.key === "Escape") leave();
  else if (on[event.key] && !isx.types(event.target, true)) go(on[event.key]);
  else return;
  event.preventDefault();
  event.stopPropagation();
}, true);
