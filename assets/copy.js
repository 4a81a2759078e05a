// Words with a button that copies them: the component's value, or the link to this view. The link is what the address
// bar says, since that holds the page's state; page.js tells of its changes.
const link = element.querySelector("input");
const words = element.querySelector("pre");
const button = element.querySelector("button");

function address() {
  const wanted = new URL(location.href);
  wanted.searchParams.delete("__theme"); // the reader's own lights, not the view's
  return wanted.href;
}

const text = () => (link ? address() : props.value || "");
const show = () => (link ? (link.value = text()) : (words.textContent = text()));

button.addEventListener("click", async () => {
  show();
  if (link) link.select();
  else getSelection().selectAllChildren(words);
  // Outside https and localhost there is no clipboard to ask for, but the old way still works.
  if (navigator.clipboard) await navigator.clipboard.writeText(text());
  else document.execCommand("copy");
  button.textContent = isx.say("Copied");
  setTimeout(() => (button.textContent = isx.say("Copy")), 1600);
});
link?.addEventListener("focus", () => link.select());
window.addEventListener("isx-address", show);
watch("value", show);
show();
