// Words with a button that copies them: the component's value, or the link to this view. The link is what the address
// bar says, since that holds the page's state; page.js tells of its changes.
const field = element.querySelector("input, pre");
const button = element.querySelector("button");
const isLink = field.matches("input");

function text() {
  const address = new URL(location.href);
  address.searchParams.delete("__theme"); // the reader's own lights, not the view's
  return isLink ? address.href : props.value || "";
}

const show = () => (field[isLink ? "value" : "textContent"] = text());

button.addEventListener("click", async () => {
  show();
  if (isLink) field.select();
  else getSelection().selectAllChildren(field);
  // Outside https and localhost there is no clipboard to ask for, but the old way still works.
  if (navigator.clipboard) await navigator.clipboard.writeText(text());
  else document.execCommand("copy");
  button.textContent = isx.say("Copied");
  setTimeout(() => (button.textContent = isx.say("Copy")), 1600);
});
if (isLink) field.addEventListener("focus", () => field.select());
addEventListener("isx-address", show);
watch("value", show);
show();
