// A scored passage: pointing at a token, or moving to it with the arrow keys, tells its numbers below. The passage is
// one stop of the tab key. Runs once, with gradio's `element` in scope; tokens come and go inside it.
const { say, make } = isx;
const tell = (token) => {
  const detail = element.querySelector(".isx-detail");
  if (!token || !detail) return;
  const line = (name, text) => make("p", {}, make("span", { className: "isx-quiet", textContent: name }), ` ${text}`);
  detail.replaceChildren(line(say("Dense → IntraSlice"), token.dataset.said), line(say("Most likely tokens here"), token.dataset.others));
  element.querySelector(".isx-told")?.classList.remove("isx-told");
  token.classList.add("isx-told");
};
const of = (event) => event.target.closest?.(".isx-token");
const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

element.addEventListener("mouseover", (event) => tell(of(event)));
element.addEventListener("focusin", (event) => tell(of(event)));
element.addEventListener("keydown", (event) => {
  const token = of(event);
  if (!token || !(event.key in step)) return;
  event.preventDefault();
  const tokens = [...element.querySelectorAll(".isx-token")];
  const next = tokens[tokens.indexOf(token) + step[event.key]];
  if (!next) return;
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
