// A scored passage: pointing at a token, or moving to it with the arrow keys, tells its numbers below. The passage is
// one stop of the tab key. A table has the tokens at which the models diverge most, ten at a time. Runs once, with
// gradio's `element` in scope; tokens come and go inside it.
const { say, make, visible } = isx;
const ROWS = 10; // of the table at a time
const CONTEXT = 3; // tokens before that of a row
let first = 0; // row of those that the table shows
let pointer = ""; // where it was
let listed = null; // the table's section, which comes with new tokens
const tokens = () => [...element.querySelectorAll(".isx-token")];
const tell = (token) => {
  const detail = element.querySelector(".isx-detail");
  if (!token || !detail) return;
  const line = (name, text) => make("p", {}, make("span", { className: "isx-quiet", textContent: name }), ` ${text}`);
  detail.replaceChildren(line(say("Dense → IntraSlice"), token.dataset.said), line(say("Most likely tokens here"), token.dataset.others));
  element.querySelector(".isx-told")?.classList.remove("isx-told");
  token.classList.add("isx-told");
};
const of = (event) => event.target.closest?.(".isx-token");

function enter(token, block = "nearest") {
  for (const other of tokens()) other.tabIndex = other === token ? 0 : -1;
  token.focus({ preventScroll: true });
  token.scrollIntoView({ block });
}

function row(token) {
  const before = [];
  for (let other = token.previousElementSibling; other && before.length < CONTEXT; other = other.previousElementSibling) before.unshift(other.textContent);
  const onclick = () => enter(token, "center");
  const place = make("button", { type: "button", className: "isx-pick", onclick }, visible(before.join("").trimStart()), make("b", { textContent: visible(token.textContent) }));
  const { kl, said, dense, sliced } = token.dataset;
  const [, ...heads] = [...listed.querySelectorAll("thead th")].map((head) => head.textContent);
  const cells = [isx.fixed(Number(kl), 3), said, dense, sliced].map((textContent, column) => make("td", { textContent, "data-head": heads[column] }));
  return make("tr", {}, make("th", { scope: "row" }, place), ...cells);
}

function list() {
  const wanted = tokens().filter((token) => !listed.querySelector("input").checked || "lost" in token.dataset);
  const count = wanted.length;
  wanted.sort((one, other) => other.dataset.kl - one.dataset.kl);
  listed.querySelector("tbody").replaceChildren(...wanted.slice(first, first + ROWS).map(row));
  for (const button of listed.querySelectorAll("[data-step]")) button.disabled = !wanted[first + ROWS * button.dataset.step];
  listed.querySelector("[role=status]").textContent = say("{first} to {last} of {count}", { first: first + 1, last: Math.min(first + ROWS, count), count });
}

function receive() {
  const section = element.querySelector(".isx-diverging");
  if (section === listed) return;
  [listed, first] = [section, 0];
  if (listed) list();
}

// A token that scrolls below a pointer at rest is not pointed at.
const place = ({ screenX, screenY }) => `${screenX} ${screenY}`;
document.addEventListener("mousemove", (event) => (pointer = place(event)));
element.addEventListener("mouseover", (event) => place(event) !== pointer && tell(of(event)));
element.addEventListener("focusin", (event) => tell(of(event)));
isx.onKeys(element, { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }, (step, event) => {
  const [token, all] = [of(event), tokens()];
  const next = token && all[all.indexOf(token) + step];
  if (next) enter(next);
  return Boolean(token);
});
element.addEventListener("click", ({ target }) => {
  if (!target.dataset.step) return;
  first += ROWS * target.dataset.step;
  list();
});
element.addEventListener("change", ({ target }) => target.closest(".isx-diverging") && ((first = 0), list()));
new MutationObserver(receive).observe(element, { childList: true, subtree: true });
receive();
