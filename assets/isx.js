// The page's language in the browser: window.isxSay("{n} of {all}", { n, all }) is an English text in it, with values in
// their places. What is said is in assets/texts/LANGUAGE/scripts.json, which the server sends with the page.
(() => {
  const { decimal, thousands, percent, words } = window.isxLanguage;
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (place, name) => (name in values ? values[name] : place));

  window.isxSay = (text, values = {}) => fill(words[text] ?? text, values);

  // "-12,345.6" as JavaScript or Python write it, in the language's own way, with a minus sign.
  window.isxWritten = (number) => String(number).replace(/^-/, "−").replace(/[.,%]/g, (mark) => ({ ".": decimal, ",": thousands, "%": percent })[mark]);

  // The switch beside the title: the same page, with whatever it is set to.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.(".isx-languages a");
    if (!link) return;
    event.preventDefault();
    const query = new URLSearchParams(location.search);
    query.set("lang", link.lang);
    location.search = query.toString();
  });
})();
