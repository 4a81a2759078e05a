// A class's predictions for one question, as an SVG text and as the rows of a table. Also without a class: a student's
// own prediction beside what was measured. `control` is the question's control, `shape` the distribution that the server
// made (components/rooms/questions.py) or null, `truth` what was measured, `mine` the reader's own prediction.
const { say, lesson } = isx;
const [WIDTH, LEFT, RIGHT] = [360, 8, 352];
const escape = (text) => String(text).replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
const has = (value) => (value ?? null) !== null;
const digits = (step = 1) => Math.max(0, -Math.floor(Math.log10(step)));
const unitOf = ({ unit = "" }) => unit;
const written = (value, places = 0) => isx.fixed(Number(value), places);
const names = ({ kind, choices }) => (kind === "answers" ? [say("Dense model"), say("IntraSlice"), say("Cross-module")] : choices);

// A value as people read it: "1.4 times", "Third quarter", "10 %, 20 %".
function told(control, value) {
  if (!has(value)) return say("none");
  if (control.kind === "bars") return value.map((one) => written(one) + unitOf(control)).join(", ");
  if (names(control)) return names(control)[value];
  return written(value, Number.isInteger(value) && digits(control.step) === 0 ? 0 : Math.max(1, digits(control.step))) + unitOf(control);
}

const text = (x, y, words, className = "", anchor = "middle") => `<text x="${x.toFixed(1)}" y="${y}" text-anchor="${anchor}" class="${className}">${escape(words)}</text>`;
const box = (x, y, width, height, className) => `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${Math.max(width, 0).toFixed(1)}" height="${Math.max(height, 0).toFixed(1)}" class="${className}"/>`;
const inside = (x) => Math.min(Math.max(x, LEFT + 32), RIGHT - 32); // a label that stays within the picture

// Numbers: bins, with a line where the measured value lies and a mark below one's own prediction.
function numbers(control, shape, truth, mine) {
  const { min, max, step } = control;
  const height = shape ? 110 : 34;
  const [top, base] = [30, 30 + height];
  const x = (value) => LEFT + ((RIGHT - LEFT) * (Math.min(Math.max(value, min), max) - min)) / (max - min);
  const most = Math.max(1, ...(shape?.counts ?? []));
  let parts = "";
  (shape?.counts ?? []).forEach((count, index) => {
    if (!count) return;
    const [left, right] = [x(shape.edges[index]), x(shape.edges[index + 1])];
    const tall = (height * count) / most;
    parts += box(left + 1, base - tall, right - left - 2, tall, "isx-h-bar") + text((left + right) / 2, base - tall - 4, count, "isx-h-count");
  });
  parts += `<path d="M${LEFT} ${base}H${RIGHT}" class="isx-h-axis"/>`;
  for (let tick = 0; tick <= 4; tick++) {
    const value = min + (tick * (max - min)) / 4;
    parts += text(x(value), base + 15, written(value, Number.isInteger(value) ? 0 : 1), "isx-h-label", tick === 0 ? "start" : tick === 4 ? "end" : "middle");
  }
  if (has(truth)) parts += `<path d="M${x(truth).toFixed(1)} ${top - 10}V${base}" class="isx-h-truth"/>` + text(inside(x(truth)), 14, say("measured"), "isx-h-truth-label");
  if (has(mine)) {
    const at = x(mine);
    parts += `<path d="M${at.toFixed(1)} ${base + 19}l-6 9h12z" class="isx-h-mine"/>` + text(inside(at), base + 42, say("you"), "isx-h-mine-label");
  }
  return [parts, base + (has(mine) ? 48 : 22)];
}

// Choices: a row each, with its count, a tick at the right one and a dot at one's own.
function choices(control, shape, truth, mine) {
  const most = Math.max(1, ...(shape?.counts ?? []));
  let parts = "";
  names(control).forEach((name, index) => {
    const y = 16 + index * 40;
    const marks = [index === truth ? `✓ ${say("measured")}` : "", index === mine ? `● ${say("you")}` : ""].filter(Boolean).join("  ");
    parts += text(LEFT, y, name, index === truth ? "isx-h-name isx-h-right" : "isx-h-name", "start");
    const count = shape?.counts[index] ?? 0;
    const wide = shape ? (200 * count) / most : 0;
    if (shape) parts += box(LEFT, y + 6, wide, 14, index === truth ? "isx-h-bar isx-h-right" : "isx-h-bar") + text(LEFT + wide + 6, y + 17, count, "isx-h-count", "start");
    if (marks) parts += text(RIGHT, y + 17, marks, index === truth ? "isx-h-truth-label" : "isx-h-mine-label", "end");
  });
  return [parts, names(control).length * 40 + 4];
}

// Bars: the class's median of each group of layers with its quartiles, the measured value, and one's own.
function bars(control, shape, truth, mine) {
  const count = shape?.bars.length || truth?.length || mine?.length || control.groups;
  const [height, base] = [120, 144];
  const y = (value) => base - (height * Math.min(value, control.max)) / control.max;
  const width = (RIGHT - LEFT) / count;
  const groups = lesson.groups(count);
  let parts = `<path d="M${LEFT} ${base}H${RIGHT}" class="isx-h-axis"/>`;
  for (let index = 0; index < count; index++) {
    const left = LEFT + index * width;
    const middle = left + width / 2;
    const [low, median, high] = shape?.bars[index] ?? [];
    if (has(median)) {
      parts += box(left + 5, y(median), width - 10, base - y(median), "isx-h-bar") + `<path d="M${middle} ${y(low)}V${y(high)}" class="isx-h-spread"/>`;
      parts += text(middle, y(high) - 4, written(median), "isx-h-count");
    }
    if (has(truth?.[index])) parts += `<path d="M${left + 2} ${y(truth[index])}H${left + width - 2}" class="isx-h-truth"/>`;
    if (has(mine?.[index])) parts += `<path d="M${left + 6} ${y(mine[index])}l-6 -5v10z" class="isx-h-mine"/>`;
    const { first, last } = groups[index] ?? { first: index, last: index };
    parts += text(middle, base + 15, first === last ? first : `${first}–${last}`, "isx-h-label");
  }
  const key = [has(truth) && `— ${say("measured")}`, has(mine) && `▸ ${say("you")}`, shape && say("bar: median of the class")].filter(Boolean);
  return [parts + text(LEFT, 12, key.join(" · "), "isx-h-label", "start"), base + 22];
}

// In one sentence, for who does not see the picture.
function summary(control, shape, truth, mine) {
  const parts = [];
  if (shape) parts.push(say("Predictions of the class: {count}.", { count: shape.count }));
  if (shape?.quartiles?.length) parts.push(say("Median {median}, half of them from {low} to {high}.", { low: told(control, shape.quartiles[0]), median: told(control, shape.quartiles[1]), high: told(control, shape.quartiles[2]) }));
  if (has(truth)) parts.push(say("Measured: {truth}.", { truth: told(control, truth) }));
  if (has(mine)) parts.push(say("Your prediction: {mine}.", { mine: told(control, mine) }));
  return parts.join(" ");
}

function draw(control, shape, truth, mine) {
  const kind = { range: numbers, number: numbers, choice: choices, answers: choices, bars }[control.kind];
  const [parts, height] = kind(control, shape, truth, mine);
  return `<svg viewBox="0 0 ${WIDTH} ${Math.ceil(height)}" class="isx-h" role="img" aria-label="${escape(summary(control, shape, truth, mine))}">${parts}</svg>`;
}

// The rows of the data table, with their head.
function rows(control, shape) {
  const places = digits(control.step);
  if (control.kind === "bars") {
    const groups = lesson.groups(shape.bars.length);
    const head = [say("layers"), say("first quartile"), say("median"), say("third quartile")];
    return [head, ...shape.bars.map((three, index) => [`${groups[index]?.first ?? index}–${groups[index]?.last ?? index}`, ...three.map((one) => written(one, 1))])];
  }
  const labels = names(control) ?? shape.edges.slice(1).map((edge, index) => `${written(shape.edges[index], places)}–${written(edge, places)}${unitOf(control)}`);
  return [[say("prediction"), say("students")], ...labels.map((label, index) => [label, shape.counts[index]])];
}

function table(control, shape) {
  const [head, ...body] = rows(control, shape);
  const row = (cells, tag) => `<tr>${cells.map((cell) => `<${tag}>${escape(cell)}</${tag}>`).join("")}</tr>`;
  return `<table><thead>${row(head, "th")}</thead><tbody>${body.map((cells) => row(cells, "td")).join("")}</tbody></table>`;
}

isx.roomChart = { draw, escape, table, told };
