// The models' files in the browser's own storage: isx.files. A file is kept with what its server said of its
// version, and asked for again when that has changed.
const STORE = "intraslice-models";
const { say } = isx;
const megabytes = (bytes) => isx.fixed(bytes / 1e6, bytes < 1e7 ? 1 : 0);
const memory = new Map(); // by address, where the browser keeps nothing; it lives as long as the page
const checked = new Set(); // addresses whose version has been compared since the page was opened

// Null in private windows and on pages without https.
const storage = () => Promise.resolve().then(() => caches.open(STORE)).catch(() => null);
const version = (headers) => headers.get("etag") ?? `${headers.get("last-modified")} ${headers.get("content-length")}`;

// A server that is away or has deleted its copy says nothing against ours.
async function isCurrent(url, kept) {
  const answer = checked.has(url) ? null : await fetch(url, { method: "HEAD", cache: "no-store" }).catch(() => null);
  if (answer?.ok && version(answer.headers) !== kept.headers.get("x-version")) return false;
  if (answer) checked.add(url);
  return true;
}

// The file as a Blob, or null.
async function stored(url) {
  if (memory.has(url)) return memory.get(url);
  const kept = await (await storage())?.match(url).catch(() => null);
  return kept && (await isCurrent(url, kept)) ? kept.blob().catch(() => null) : null;
}

// Whether the browser keeps it: other files than the `needed` give way where there is no room.
async function keep(url, blob, headers, needed) {
  const open = await storage();
  const put = () => open.put(url, new Response(blob, { headers: { "x-version": version(headers), "content-length": String(blob.size) } }));
  const makeRoom = async () => {
    for (const other of await open.keys()) if (!needed.includes(other.url)) await open.delete(other);
  };
  checked.add(url);
  try {
    await put().catch(() => makeRoom().then(put));
    return true;
  } catch {
    memory.set(url, blob);
    while (memory.size > 3) memory.delete(memory.keys().next().value);
    return false;
  }
}

// The bytes of all kept files.
async function total() {
  const open = await storage();
  const sizes = ((await open?.matchAll()) ?? []).map(({ headers }) => Number(headers.get("content-length")));
  return [...memory.values()].reduce((sum, blob) => sum + blob.size, 0) + sizes.reduce((sum, size) => sum + size, 0);
}

async function free() {
  memory.clear();
  checked.clear();
  if (await storage()) await caches.delete(STORE);
}

// A file of the `needed` ones, {url, bytes}, as a Blob, and whether the browser keeps it. `progress` hears how many
// bytes have come so far.
async function download({ url, bytes }, needed, progress, signal) {
  let loaded = 0;
  let headers, blob;
  try {
    const answer = await fetch(url, { cache: "no-store", signal });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 200) || `HTTP ${answer.status}`);
    headers = answer.headers;
    const counted = new TransformStream({ transform: (part, next) => (next.enqueue(part), progress((loaded += part.length))) });
    blob = await new Response(answer.body.pipeThrough(counted)).blob();
    const whole = headers.has("content-encoding") ? bytes : Number(headers.get("content-length")) || bytes;
    if (loaded !== whole) throw new Error(say("the connection closed"));
  } catch (problem) {
    if (signal.aborted) throw problem;
    const values = { done: megabytes(loaded), total: megabytes(bytes), problem: problem?.message || String(problem) };
    throw new isx.device.Problem(say("The download stopped after {done} of {total} MB ({problem}). Try again.", values));
  }
  return { blob, isKept: await keep(url, blob, headers, needed.map((file) => file.url)) };
}

isx.files = { stored, download, total, free, megabytes };
