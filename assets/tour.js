// The guided tour on the live page: it lights up the real elements and moves the real slider and tabs. Its texts are
// assets/texts/LANGUAGE/tour.json; the button that starts it is #tour.
const { say, make, tour: steps } = isx;
const range = () => document.querySelector("#sparsity input[type=range]");
let at = -1;
let spot, card, parts, frame, moving, shown;

function build() {
  card = make("div", { className: "isx-tour", role: "dialog", "aria-labelledby": "isx-tour-title", "aria-describedby": "isx-tour-text" });
  parts = isx.parts(card, `
    <h3 id="isx-tour-title" tabindex="-1" data-part="title"></h3><p id="isx-tour-text" data-part="text"></p>
    <div class="isx-tour-buttons"><span data-part="count"></span><button type="button" data-go="close" data-part="close">${say("Close")}</button>
      <button type="button" data-go="back" data-part="back">${say("Previous")}</button><button type="button" data-go="on" data-part="on"></button></div>`, { close, back, on });
  spot = make("div", { className: "isx-spot" });
  document.querySelector(".gradio-container").append(spot, card);
  addEventListener("keydown", keys);
  follow();
}

const back = () => show(at - 1);
const on = () => (at === steps.length - 1 ? close() : show(at + 1));

function close() {
  cancelAnimationFrame(frame);
  if (moving) release();
  removeEventListener("keydown", keys);
  spot.remove();
  card.remove();
  at = -1;
  document.querySelector("#tour")?.focus();
}

const keys = ({ key }) => key === "Escape" && close();

function show(step) {
  if (at < 0) build();
  at = step;
  const { title, text, tab, sparsity } = steps[at];
  const isLast = at === steps.length - 1;
  parts.title.textContent = title;
  parts.text.textContent = text;
  parts.count.textContent = say("{step} of {steps}", { step: at + 1, steps: steps.length });
  parts.back.hidden = at === 0;
  parts.close.hidden = isLast;
  parts.on.textContent = isLast ? say("Done") : say("Next");
  isx.openTab(tab);
  if (sparsity !== undefined) slide(sparsity);
  shown = null;
  parts.title.focus({ preventScroll: true });
}

function slide(percent) {
  clearInterval(moving);
  moving = setInterval(() => {
    const value = Number(range().value);
    range().value = isx.calm.matches ? percent : value + Math.sign(percent - value);
    range().dispatchEvent(new Event("input", { bubbles: true }));
    if (Number(range().value) === percent) release();
  }, 60);
}

// Slice and measure where the slider is.
function release() {
  clearInterval(moving);
  moving = null;
  range()?.dispatchEvent(new Event("pointerup", { bubbles: true }));
}

// Layout moves under the tour (tabs open, charts are drawn), so the light follows its element at every frame.
function follow() {
  frame = requestAnimationFrame(follow);
  const target = steps[at] && [...document.querySelectorAll(steps[at].target)].find((one) => one.offsetHeight > 20);
  spot.hidden = !target;
  if (!target) return;
  if (shown !== target) isx.scrollTo((shown = target));
  const box = target.getBoundingClientRect();
  const edge = 8;
  Object.assign(spot.style, { left: `${box.left - edge}px`, top: `${box.top - edge}px`, width: `${box.width + 2 * edge}px`, height: `${box.height + 2 * edge}px` });
  if (innerWidth < 700) return void (card.style.top = card.style.left = "");
  const below = box.bottom + 2 * edge;
  const fits = below + card.offsetHeight < innerHeight;
  card.style.top = `${fits ? below : Math.max(edge, Math.min(box.top, innerHeight) - card.offsetHeight - 2 * edge)}px`;
  card.style.left = `${Math.min(Math.max(box.left, edge), innerWidth - card.offsetWidth - edge)}px`;
}

document.addEventListener("click", ({ target }) => target.closest?.("#tour") && show(0));
