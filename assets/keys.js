// The page's shortcuts, and the list of them behind "?", which is in the page's title (components/ui/explainers.py). Single
// keys can be turned off there, for those who speak to their machine.
const OFF = "isx-single-keys-off";
const press = (id) => document.querySelector(`#${id}:not(:disabled)`)?.click();
const single = { p: () => isx.present(), a: () => press("pin"), "?": list };
let isOff = isx.stored(OFF) === "yes";

// Whether an element takes keys for itself: text fields take all of them, sliders and choices the arrows.
isx.types = (target, arrows = false) => {
  const type = target.matches?.("input") ? target.type : null;
  if (["range", "radio", "checkbox", "button"].includes(type)) return arrows && type !== "button" && type !== "checkbox";
  return type !== null || Boolean(target.closest?.("textarea, select, [contenteditable=true], [role=listbox]"));
};

function list() {
  const dialog = document.querySelector(".isx-keys");
  dialog.querySelector("input").checked = !isOff;
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

addEventListener("keydown", (event) => {
  if (event.altKey || event.defaultPrevented || isx.types(event.target)) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z") return;
    press(event.shiftKey ? "redo" : "undo");
  } else if (single[key] && !event.repeat && (key === "?" || !event.shiftKey) && !isOff) single[key]();
  else return;
  event.preventDefault();
});
// Gradio says that a slider is let go by the pointer alone.
addEventListener("keyup", ({ key, target }) => {
  if (target.matches?.("input[type=range]") && /^(Arrow|Page|Home|End)/.test(key)) target.dispatchEvent(new Event("pointerup", { bubbles: true }));
});
addEventListener("change", ({ target }) => target.matches?.(".isx-keys input") && isx.store(OFF, (isOff = !target.checked) ? "yes" : "no"));
document.addEventListener("click", ({ target }) => {
  if (target.closest?.("#keys")) list();
  if (target.closest?.("#present")) isx.present();
});
