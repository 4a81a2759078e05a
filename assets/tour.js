// The guided tour on the live page: it lights up the real elements and moves the real slider and tabs. Its texts are
// assets/texts/LANGUAGE/tour.json; the button that starts it is #tour.
(() => {
  const steps = window.isxTour;
  const say = window.isxSay;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let at = -1;
  let spot, card, frame, moving;

  function build() {
    spot = Object.assign(document.createElement("div"), { className: "isx-spot" });
    card = Object.assign(document.createElement("div"), { className: "isx-tour" });
    card.setAttribute("role", "dialog");
    card.setAttribute("aria-labelledby", "isx-tour-title");
    card.setAttribute("aria-describedby", "isx-tour-text");
    card.innerHTML =
      '<h3 id="isx-tour-title" tabindex="-1"></h3><p id="isx-tour-text"></p><div class="isx-tour-buttons"><span></span>' +
      `<button type="button" data-go="close">${say("Close")}</button><button type="button" data-go="back">${say("Previous")}</button>` +
      '<button type="button" data-go="on"></button></div>';
    card.addEventListener("click", ({ target }) => {
      const go = target.dataset.go;
      if (go === "close" || (go === "on" && at === steps.length - 1)) close();
      else if (go) show(at + (go === "on" ? 1 : -1));
    });
    document.querySelector(".gradio-container").append(spot, card);
    addEventListener("keydown", keys);
    follow();
  }

  function close() {
    cancelAnimationFrame(frame);
    if (moving) letGo();
    removeEventListener("keydown", keys);
    spot.remove();
    card.remove();
    at = -1;
    document.querySelector("#tour")?.focus();
  }

  function keys(event) {
    if (event.key === "Escape") close();
  }

  function show(step) {
    if (at < 0) build();
    at = step;
    const { title, text, tab, sparsity } = steps[at];
    card.querySelector("h3").textContent = title;
    card.querySelector("p").textContent = text;
    card.querySelector("span").textContent = say("{step} of {steps}", { step: at + 1, steps: steps.length });
    card.querySelector('[data-go="back"]').hidden = at === 0;
    card.querySelector('[data-go="close"]').hidden = at === steps.length - 1;
    card.querySelector('[data-go="on"]').textContent = at === steps.length - 1 ? say("Done") : say("Next");
    open(tab);
    if (sparsity !== undefined) slide(sparsity);
    shown = null;
    card.querySelector("h3").focus({ preventScroll: true });
  }

  // A tab that finds no room on a small screen is in the menu of those; its button can be clicked all the same.
  function open(name) {
    const tabs = [...document.querySelectorAll('#tabs button[role="tab"], #tabs .overflow-menu button')];
    const tab = tabs.find((button) => button.textContent.trim() === window.isxTabs[name]);
    if (tab && tab.getAttribute("aria-selected") !== "true") tab.click();
  }

  function slide(percent) {
    const range = document.querySelector("#sparsity input[type=range]");
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
    clearInterval(moving);
    moving = setInterval(() => {
      const left = percent - range.value;
      set.call(range, calm.matches ? percent : Number(range.value) + Math.sign(left));
      range.dispatchEvent(new Event("input", { bubbles: true }));
      if (Number(range.value) === percent) letGo();
    }, 60);
  }

  // Slice and measure where the slider is.
  function letGo() {
    clearInterval(moving);
    moving = null;
    document.querySelector("#sparsity input[type=range]")?.dispatchEvent(new Event("pointerup", { bubbles: true }));
  }

  // Layout moves under the tour (tabs open, charts are drawn), so the light follows its element at every frame.
  let shown = null;
  function follow() {
    frame = requestAnimationFrame(follow);
    const target = steps[at] && [...document.querySelectorAll(steps[at].target)].find((one) => one.offsetHeight > 20);
    spot.hidden = !target;
    if (!target) return;
    if (shown !== target) {
      shown = target;
      const bar = document.querySelector("#slider-bar").offsetHeight;
      if (target.id !== "slider-bar") {
        const top = target.getBoundingClientRect().top + scrollY - bar - 24;
        scrollTo({ top, behavior: calm.matches ? "auto" : "smooth" });
      } else scrollTo({ top: 0, behavior: calm.matches ? "auto" : "smooth" });
    }
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
})();
