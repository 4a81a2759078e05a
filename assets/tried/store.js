// The settings that this browser has measured, with their numbers: `isx.tried`. They are in its own storage, or where that is
// blocked in this page alone, and never on the server, which writes each into the readout as data-measured
// (components/ui/screen.py). Files can be imported: whatever does not fit `FIELDS` is refused.
const NAME = "isx-tried";
const MOST = 500; // entries; the oldest go
const REST = 500; // ms without another setting, after which one counts
const SOURCES = ["imported", "before", "here"]; // a later one replaces the numbers of an earlier one
// In the order of the CSV file: the greatest length of a text, or the range of a number. `title` is the user's own name.
const FIELDS = { title: [100], name: [500], setting: [8000], removed: [0, 1], parameters: [1, 1e13], dense: [1, 1e30], perplexity: [1, 1e30] };
Object.assign(FIELDS, { kl: [0, 1e6], source: [10], day: [10], key: [64], model: [1000], text: [1000], tokens: [1, 1e12], window: [1, 1e9], dtype: [20] });
const OPTIONAL = ["title", "kl", "day"];
const columns = Object.keys(FIELDS);
let entries = new Map(); // by `id`, the newest last
let current = {}; // the setting that the page shows
let rest = null;
let noted = ""; // the last record

const id = ({ key, setting }) => `${key} ${setting}`;
const isNumber = (name) => FIELDS[name]?.length === 2;
const all = () => [...entries.values()];
const mapped = (list) => new Map(list.slice(-MOST).map((entry) => [id(entry), entry]));
const announce = () => dispatchEvent(new Event("isx-tried"));
const known = (entry) => Object.fromEntries(Object.entries(entry).filter(([, value]) => value !== null));

// An entry with these fields alone, or null where one does not fit.
function checked(found) {
  const fits = (name, value, [low, high] = FIELDS[name]) => {
    if (value === null) return OPTIONAL.includes(name);
    return isNumber(name) ? typeof value === "number" && value >= low && value <= high : typeof value === "string" && value.length <= low;
  };
  const entry = Object.fromEntries(columns.map((name) => [name, found?.[name] ?? null]));
  return columns.every((name) => fits(name, entry[name])) && SOURCES.includes(entry.source) ? entry : null;
}

function merged(before, now) {
  if (!before) return now;
  if (SOURCES.indexOf(now.source) < SOURCES.indexOf(before.source)) return { ...now, ...known(before) };
  return { ...before, ...known(now), ...(now.source === before.source && { day: before.day }) };
}

// Another page of this browser may have changed what is stored.
function load() {
  const stored = isx.kept(NAME);
  if (Array.isArray(stored)) entries = mapped(stored.map(checked).filter(Boolean));
}

function change(act) {
  load();
  act();
  entries = mapped(all());
  isx.store(NAME, JSON.stringify(all()));
  announce();
}

function note(record) {
  current = record;
  const entry = checked({ ...record, day: record.source === "here" ? new Date().toISOString().slice(0, 10) : null });
  change(() => {
    if (!entry) return; // not measured yet
    const whole = merged(entries.get(id(entry)), entry);
    entries.delete(id(entry));
    entries.set(id(entry), whole);
  });
}

// Those that no other has both fewer parameters and a lower value; the smallest first.
function front(list, name) {
  let lowest = Infinity;
  const sorted = list.filter((entry) => entry[name] !== null).sort((a, b) => a.parameters - b.parameters || a[name] - b[name]);
  return sorted.filter((entry) => entry[name] < lowest && ((lowest = entry[name]), true));
}

// A spreadsheet would run a text that begins with one of these signs.
const cell = (value) => `"${String(value ?? "").replace(/^(?=[=+\-@\t\r])/, "'").replaceAll('"', '""')}"`;
const csv = () => [columns, ...all().map((entry) => columns.map((name) => entry[name]))].map((row) => `${row.map(cell).join(",")}\r\n`).join("");

function parsed(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n]*))(,|\r?\n|$)/gy)) {
    rows.at(-1).push((quoted?.replaceAll('""', '"') ?? plain).replace(/^'(?=[=+\-@\t\r])/, ""));
    if (end !== ",") rows.push([]);
  }
  const value = (name, text) => (text === "" ? null : isNumber(name) ? Number(text) : text);
  if (!rows[0].includes("setting")) throw new Error("no list of settings");
  const lines = rows.slice(1).filter((row) => row.length > 1 || row[0]);
  return lines.map((row) => Object.fromEntries(rows[0].map((name, at) => [name, value(name, row[at] ?? "")])));
}

// How many entries of a file that was saved here or elsewhere are taken, and how many refused. Throws for other files.
function bring(text) {
  const file = text.trimStart(); // also of a byte order mark
  const found = file.startsWith("[") ? JSON.parse(file) : parsed(file);
  const fitting = found.map((entry) => checked({ ...entry, source: "imported" })).filter(Boolean).slice(-MOST);
  change(() => {
    const own = all();
    entries = mapped(fitting);
    for (const entry of own) entries.set(id(entry), merged(entries.get(id(entry)), entry));
  });
  return { imported: fitting.length, refused: found.length - fitting.length };
}

isx.tried = {
  id,
  front,
  csv,
  json: () => JSON.stringify(all(), null, 1),
  bring,
  all: () => all().reverse(),
  current: () => current,
  rename: (entry, title) => change(() => entries.has(id(entry)) && (entries.get(id(entry)).title = title.trim() || null)),
  remove: (...gone) => change(() => gone.forEach((entry) => entries.delete(id(entry)))),
};

isx.ready.then(() => {
  const readout = document.querySelector("#readout");
  const look = () => {
    const text = readout.querySelector("[data-measured]")?.dataset.measured;
    clearTimeout(rest);
    if (text && text !== noted) rest = setTimeout(() => note(JSON.parse((noted = text))), REST);
  };
  load();
  new MutationObserver(look).observe(readout, { childList: true, subtree: true, attributes: true });
  look();
});
addEventListener("storage", ({ key }) => key === NAME && (load(), announce()));
