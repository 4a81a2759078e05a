// The script of a published page (components/export/pages.py): the slider chooses a step, and every part shows what
// was measured there. Charts are drawn by assets/chart.js, which here stands as `drawChart`.
const at = (id) => document.getElementById(id);
const slider = at("share");
const PLACES = ["ratios", "spectra", "shift", "sweep"];

// As pack.py packed it: {"$": n} stands for part n, which refers to earlier ones alone.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { parts, whole } = await new Response(stream).json();
  const known = [];
  function full(node) {
    if (Array.isArray(node)) return node.map(full);
    if (!node || typeof node !== "object") return node;
    if ("$" in node) return known[node.$];
    return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, full(item)]));
  }
  for (const part of parts) known.push(full(part));
  return full(whole);
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
  let layer = Math.floor(charts.spectra[0].length / 2);
  const draw = Object.fromEntries(PLACES.map((place) => [place, component(place, choose)]));
  const nearest = (percent) => {
    const distances = steps.map((step) => Math.abs(step.percent - percent));
    return distances.indexOf(Math.min(...distances));
  };

  function choose({ layer: chosen, pick }) {
    if (pick !== undefined) return move(nearest(parseFloat(pick)));
    layer = chosen;
    at("layer").value = layer;
    draw.spectra(charts.spectra[slider.value][layer], layer);
  }

  function answer() {
    at("answers").innerHTML = steps[slider.value].answers[at("prompt").value];
  }

  function move(index) {
    const step = steps[index];
    slider.value = index;
    slider.style.setProperty("--range_progress", `${(100 * index) / (steps.length - 1)}%`);
    slider.setAttribute("aria-valuetext", step.said);
    at("percent").textContent = `${window.isxWritten(step.percent)}${window.isxLanguage.percent}`;
    at("removed").innerHTML = step.removed;
    at("headline").innerHTML = step.headline;
    at("numbers").innerHTML = step.table;
    if (at("tokens")) at("tokens").innerHTML = step.tokens;
    answer();
    for (const place of PLACES) draw[place](place === "spectra" ? charts.spectra[index][layer] : charts[place][index], layer);
    window.dispatchEvent(new Event("isx-step"));
  }

  slider.addEventListener("input", () => move(Number(slider.value)));
  at("prompt").addEventListener("change", answer);
  at("layer").addEventListener("change", () => {
    choose({ layer: Number(at("layer").value) });
    window.dispatchEvent(new CustomEvent("isx-layer", { detail: layer }));
  });
  const asked = () => parseFloat(location.hash.slice(1));
  window.addEventListener("hashchange", () => asked() >= 0 && move(nearest(asked())));
  at("layer").value = layer;
  move(asked() >= 0 ? nearest(asked()) : first);
  window.isxSite?.(content);
}

const lights = matchMedia("(prefers-color-scheme: dark)");
const shine = (dark) => document.body.classList.toggle("dark", dark);
lights.addEventListener("change", () => shine(lights.matches));
// Paper is white, and as wide as it is: chart.js draws anew for it after this.
window.addEventListener("beforeprint", () => {
  shine(false);
  document.body.classList.add("isx-paper");
});
window.addEventListener("afterprint", () => {
  shine(lights.matches);
  document.body.classList.remove("isx-paper");
});

unpacked(at("content").textContent).then(live, (problem) => {
  at("problem").hidden = false;
  at("problem").textContent = window.isxSay("This browser cannot decode the data in this file ({problem}). Use a newer browser.", { problem: problem.message });
});
