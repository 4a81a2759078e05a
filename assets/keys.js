// The page's shortcuts, and the list of them behind "?". Single keys can be turned off there, for those who speak to
// their machine. The list is assets/texts/LANGUAGE/keys.json.
(() => {
  const say = window.isxSay;
  const OFF = "isx-single-keys-off";
  const press = (id) => document.querySelector(`#${id}:not(:disabled)`)?.click();
  const single = { p: () => window.isxPresent(), a: () => press("pin"), "?": () => list() };
  let dialog = null;
  let isOff = false; // where the browser keeps nothing

  function off(value) {
    try {
      if (value !== undefined) value ? localStorage.setItem(OFF, "yes") : localStorage.removeItem(OFF);
      return Boolean(localStorage.getItem(OFF));
    } catch {
      return (isOff = value ?? isOff);
    }
  }

  // Whether an element takes keys for itself: text fields take all of them, sliders and choices the arrows.
  window.isxTypes = (target, arrows = false) => {
    const type = target.matches?.("input") ? target.type : null;
    if (["range", "radio", "checkbox", "button"].includes(type)) return arrows && type !== "button" && type !== "checkbox";
    return type !== null || Boolean(target.closest?.("textarea, select, [contenteditable=true], [role=listbox]"));
  };

  function build() {
    dialog = document.createElement("dialog");
    dialog.className = "isx-keys";
    dialog.setAttribute("aria-labelledby", "isx-keys-title");
    const rows = window.isxKeys.map(({ keys, does }) => `<div><dt>${keys.map((key) => `<kbd>${key}</kbd>`).join(" ")}</dt><dd>${does}</dd></div>`);
    dialog.innerHTML =
      `<h3 id="isx-keys-title">${say("Keyboard shortcuts")}</h3><dl>${rows.join("")}</dl>` +
      `<label><input type="checkbox"> ${say("Enable single-key shortcuts")}</label><button type="button">${say("Close")}</button>`;
    const box = dialog.querySelector("input");
    box.checked = !off();
    box.addEventListener("change", () => off(!box.checked));
    dialog.querySelector("button").addEventListener("click", () => dialog.close());
    document.querySelector(".gradio-container").append(dialog);
  }

  function list() {
    if (!dialog?.isConnected) build();
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  addEventListener("keydown", (event) => {
    if (event.altKey || event.defaultPrevented || window.isxTypes(event.target)) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key !== "z") return;
      press(event.shiftKey ? "redo" : "undo");
    } else if (single[key] && !event.repeat && (key === "?" || !event.shiftKey) && !off()) single[key]();
    else return;
    event.preventDefault();
  });
  // Gradio says that a slider is let go by the pointer alone.
  addEventListener("keyup", ({ key, target }) => {
    if (target.matches?.("input[type=range]") && /^(Arrow|Page|Home|End)/.test(key)) target.dispatchEvent(new Event("pointerup", { bubbles: true }));
  });
  document.addEventListener("click", ({ target }) => {
    if (target.closest?.("#keys")) list();
    if (target.closest?.("#present")) window.isxPresent();
  });
})();
