// What somebody takes home: one HTML file that needs nothing else, with what was predicted, what was measured, and charts.
// A student's has the own predictions, beside the class's where there was one; the presenter's has the class's.
const { lesson, lesson: { steps }, say } = isx;
const { draw, escape, table, told } = isx.roomChart;
const STYLE = `
  :root { color-scheme: light dark; --page: #fff; --ink: #1f2937; --quiet: #6b7280; --rule: #d1d5db; --bar: #0072b2; --truth: #b34700; --right: #00785a; }
  @media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #e5e7eb; --quiet: #a3abb7; --rule: #3a424d; --bar: #56b4e9; --truth: #ff9b52; --right: #3fd1a4; } }
  body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem 3rem; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0.3rem; padding-top: 1rem; border-top: 1px solid var(--rule); } p { margin: 0.4rem 0; }
  .quiet { color: var(--quiet); font-size: 0.9rem; } dl { display: grid; grid-template-columns: auto 1fr; gap: 0.2rem 1rem; } dt { color: var(--quiet); } dd { margin: 0; }
  svg { display: block; width: 100%; max-width: 30rem; margin: 0.8rem 0; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
  .isx-h-bar { fill: var(--bar); opacity: 0.75; } .isx-h-bar.isx-h-right { fill: var(--right); } .isx-h-axis { stroke: var(--quiet); fill: none; } .isx-h-spread { stroke: var(--ink); stroke-width: 1.5; }
  .isx-h-truth { stroke: var(--truth); stroke-width: 2.5; } svg .isx-h-truth-label { fill: var(--truth); font-weight: 600; } .isx-h-mine { fill: var(--ink); } svg .isx-h-right { font-weight: 600; }
  table { border-collapse: collapse; font-size: 0.9rem; } th, td { text-align: left; padding: 0.15rem 1.2rem 0.15rem 0; border-top: 1px solid var(--rule); } summary { cursor: pointer; color: var(--quiet); font-size: 0.9rem; }`;

const term = (name, value) => `<dt>${escape(name)}</dt><dd>${escape(value)}</dd>`;

function section(index, { shape = null, truth = null, mine = null, isClass }) {
  const { title, question, control, id } = steps[index];
  const terms = isClass ? term(say("Predictions"), shape?.count ?? 0) : term(say("I predicted"), told(control, mine));
  const sentence = lesson.kept().found[id]?.sentence ?? "";
  // A class has no bars and no letters of its own, which these sentences speak of.
  const isPersonal = isClass && ["bars", "answers"].includes(control.kind);
  const measured = (!isPersonal && sentence) || (truth === null ? say("not measured yet") : told(control, truth));
  const data = shape ? `<details><summary>${escape(say("Data table"))}</summary>${table(control, shape)}</details>` : "";
  const names = control.choices ? "" : `<p class="quiet">${escape(control.label)}</p>`;
  return `<h2>${index + 1}. ${escape(title)}</h2>${question.map((one) => `<p>${escape(one)}</p>`).join("")}${names}<dl>${terms}${term(say("Measured"), measured)}</dl>${draw(control, shape, truth, mine)}${data}`;
}

function file(title, sections) {
  const date = new Date().toLocaleDateString(isx.language.code, { dateStyle: "long" });
  const model = document.querySelector("#model input")?.value ?? "";
  const words = [date, model && say("Model: {model}", { model }), isx.room.now && `${say("Class")} ${isx.room.now.code}`].filter(Boolean).join(" · ");
  const text = `<!doctype html><html lang="${isx.language.code}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${escape(title)}</title><style>${STYLE}</style></head><body><main><h1>${escape(title)}</h1><p class="quiet">${escape(words)}</p>${sections.join("")}</main></body></html>`;
  return new Blob([text], { type: "text/html" });
}

// Of each step that was shown: what this browser predicted, and the class where there was one.
function own() {
  const { said, shown, found } = lesson.kept();
  const { state } = isx.room.now ?? {};
  const sections = steps.flatMap(({ id, control }, index) => {
    if (!shown[id]) return [];
    const revealed = state?.revealed[index + 1];
    const value = state?.mine?.[index + 1] ?? (said[id] === undefined ? null : lesson.pooled(control, said[id]));
    const shape = revealed?.class?.count ? revealed.class : null;
    return [section(index, { shape, truth: revealed?.truth ?? found[id]?.truth ?? null, mine: value })];
  });
  return file(say("My predictions: IntraSlice Explorer"), sections);
}

function ofClass() {
  const { state } = isx.room.now;
  const numbers = steps.map((_, index) => index).filter((index) => state.answers[index + 1] || state.revealed[index + 1]);
  const sections = numbers.map((index) => section(index, { isClass: true, shape: state.answers[index + 1] ?? null, truth: state.revealed[index + 1]?.truth ?? null }));
  return file(say("A class's predictions: IntraSlice Explorer"), sections);
}

isx.record = { own, ofClass };
