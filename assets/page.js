// What belongs to the page as a whole: the address bar holds its state, ?embed=1 hides the controls.
(() => {
  const names = Object.keys(window.isxUsual); // what a link carries, in the order in which the values come
  const tabs = Object.entries(window.isxTabs); // id, label
  let refused = null; // the query that the browser has not taken yet: some allow only so many changes in a while
  const query = () => new URLSearchParams(refused ?? location.search);
  const write = (change) => {
    const wanted = query();
    change(wanted);
    const search = wanted.toString();
    if (search !== query().toString()) put(search);
  };
  const put = (search) => {
    const isWaiting = refused !== null;
    try {
      history.replaceState(history.state, "", `${location.pathname}${search ? "?" + search : ""}`);
      refused = null;
    } catch {
      refused = search;
      if (!isWaiting) setTimeout(again, 1000);
    }
    window.dispatchEvent(new Event("isx-address"));
  };
  const again = () => {
    const search = refused;
    refused = null;
    if (search !== null) put(search);
  };

  window.isxAddress = write;

  // Values that are what the page opens with anyway stay out of the link. Until the link has set the controls they are
  // not the link's, and would replace it.
  window.isxRemember = (values) => {
    if (!document.body.classList.contains("isx-begun")) return [];
    write((wanted) =>
      names.forEach((name, index) => {
        const value = values[index];
        if (name === "upload") return;
        if ((value ?? null) === null || String(value) === String(window.isxUsual[name])) wanted.delete(name);
        else wanted.set(name, value);
      })
    );
    window.isxNote(values);
    return [];
  };

  // Tabs that find no room on a small screen are in a menu of their own.
  document.addEventListener("click", (event) => {
    const tab = event.target.closest?.('#tabs button[role="tab"], #tabs .overflow-dropdown button');
    const label = tab?.textContent.trim();
    const opened = tabs.findIndex((one) => one[1] === label);
    if (opened >= 0) write((wanted) => (opened === 0 ? wanted.delete("tab") : wanted.set("tab", tabs[opened][0])));
  });

  // *More settings* is open for whoever left it open, and where the link sets one of them.
  const MORE = "isx-more-settings";
  const kept = (change) => {
    try {
      return change(localStorage);
    } catch {
      return null; // some browsers keep nothing
    }
  };
  const differs = (name, value) => name in window.isxMore && String(value ?? "") !== String(window.isxMore[name] ?? "");
  window.isxOpenMore = (values) => {
    const opens = kept((store) => store.getItem(MORE)) || names.some((name, index) => differs(name, values[index]));
    return { __type__: "update", ...(opens && { open: true }) };
  };
  document.addEventListener(
    "click",
    ({ target }) => {
      const label = target.closest?.("#more .label-wrap");
      if (!label) return;
      const isOpening = !label.classList.contains("open"); // gradio has not heard of the click yet
      kept((store) => (isOpening ? store.setItem(MORE, "yes") : store.removeItem(MORE)));
    },
    true
  );

  // HTML texts have no events of gradio: a button with data-press presses the hidden one with that id.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-press]");
    if (button) document.querySelector(`#${button.dataset.press}`).click();
  });

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
    if (toggle) seen = true;
    const done = seen && !toggle;
    if (tries === 0 || done) document.body.classList.add("isx-ready-controls");
    else {
      toggle?.click();
      setTimeout(fold, 100, tries - 1);
    }
  };
  const start = () => {
    document.body.classList.toggle("isx-embed", query().get("embed") === "1");
    if (innerWidth < 768) fold(100);
  };
  // gradio adds its head to a page that has long been parsed
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
})();
