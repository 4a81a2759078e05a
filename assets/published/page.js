// The script of a document without a server (components/export/pages.py): the slider chooses a step, and every part shows what
// was measured there. A report has one step, and no slider. Charts are drawn by assets/chart.js, which here stands as `drawChart`.
const at = (id) => document.getElementById(id);
const slider = at("share");
const nearest = (list, percent) => list.reduce((best, one) => (Math.abs(one.percent - percent) < Math.abs(best.percent - percent) ? one : best));

// As `pack` of pages.py packed it: a line for each part, in which {"$": n} stands for part n; the last one is the whole.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const parts = [];
  for (const line of (await new Response(stream).text()).split("\n")) parts.push(JSON.parse(line, (_, node) => (node?.$ === undefined ? node : parts[node.$])));
  return parts.at(-1);
}

// What a chart gets of gradio on the live page.
function component(place, choose) {
  const props = { value: "" };
  let changed = () => {};
  drawChart(at(place), props, (_, follow) => (changed = follow), (_, chosen) => choose(chosen));
  return (chart, layer) => {
    props.value = JSON.stringify({ ...chart, selected: layer });
    changed();
  };
}

function live(content) {
  const { first, steps, charts } = content;
  let { layer } = content;
  let shown = first;
  const draw = Object.fromEntries(Object.keys(charts).map((place) => [place, component(place, choose)]));
  const redraw = (place, chart = charts[place][shown]) => draw[place](Array.isArray(chart) ? chart[layer] : chart, layer);
  const answer = () => (at("answers").innerHTML = steps[shown].answers[at("prompt").value]);

  function choose({ layer: chosen, pick }) {
    if (pick !== undefined) return move(nearest(steps, parseFloat(pick)));
    at("layer").value = layer = chosen;
    redraw("spectra");
  }

  function move(step) {
    shown = steps.indexOf(step);
    for (const [id, html] of Object.entries(step.parts)) at(id).innerHTML = html;
    Object.keys(charts).forEach((place) => redraw(place));
    if (!slider) return;
    slider.value = shown;
    slider.style.setProperty("--range_progress", `${(100 * shown) / (steps.length - 1)}%`);
    slider.setAttribute("aria-valuetext", step.said);
    at("percent").textContent = isx.percent(step.percent);
    answer();
    window.dispatchEvent(new Event("isx-step"));
  }

  const asked = () => parseFloat(location.hash.slice(1));
  if (slider) {
    at("layer").value = layer;
    slider.addEventListener("input", () => move(steps[slider.value]));
    at("prompt").addEventListener("change", answer);
    at("layer").addEventListener("change", () => {
      choose({ layer: Number(at("layer").value) });
      window.dispatchEvent(new CustomEvent("isx-layer", { detail: layer }));
    });
    window.addEventListener("hashchange", () => asked() >= 0 && move(nearest(steps, asked())));
  }
  move(asked() >= 0 ? nearest(steps, asked()) : steps[first]);
  isx.site?.(content);
}

const lights = matchMedia("(prefers-color-scheme: dark)");
// Paper is white, and as wide as it is: chart.js draws anew for it after this.
const shine = (onPaper) => {
  document.body.classList.toggle("dark", lights.matches && !onPaper);
  document.body.classList.toggle("isx-paper", onPaper);
};
lights.addEventListener("change", () => shine(false));
window.addEventListener("beforeprint", () => shine(true));
window.addEventListener("afterprint", () => shine(false));

unpacked(at("content").textContent).then(live, (problem) => {
  at("problem").hidden = false;
  at("problem").textContent = isx.say("This browser cannot decode the data in this file ({problem}). Use a newer browser.", { problem: problem.message });
});
