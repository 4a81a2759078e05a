// The link to this view: what the address bar says, since that holds the page's state (page.js tells of changes).
const field = element.querySelector("input");
const button = element.querySelector("button");
const show = () => (field.value = location.href);

button.addEventListener("click", async () => {
  show();
  field.select();
  // Outside https and localhost there is no clipboard to ask for, but the old way still works.
  if (navigator.clipboard) await navigator.clipboard.writeText(field.value);
  else document.execCommand("copy");
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1600);
});
field.addEventListener("focus", () => field.select());
window.addEventListener("isx-address", show);
show();
