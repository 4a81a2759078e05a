// The models' files in the browser's own storage: window.isxFiles. A file is kept with what its server said of its
// version, and asked for again when that has changed.
window.isxFiles = (() => {
  const STORE = "intraslice-models";
  const say = (...words) => window.isxSay(...words);
  const megabytes = (bytes) => window.isxWritten((bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0));
  const memory = new Map(); // by address, where the browser keeps nothing; it lives as long as the page
  const checked = new Set(); // addresses whose version has been compared since the page was opened

  // Null in private windows and on pages without https.
  const storage = async () => {
    try {
      return await caches.open(STORE);
    } catch {
      return null;
    }
  };

  const version = (headers) => headers.get("etag") ?? `${headers.get("last-modified")} ${headers.get("content-length")}`;

  async function isCurrent(url, kept) {
    if (checked.has(url)) return true;
    try {
      const answer = await fetch(url, { method: "HEAD", cache: "no-store" });
      // A server that is away or has deleted its copy says nothing against ours.
      if (answer.ok && version(answer.headers) !== kept.headers.get("x-version")) return false;
    } catch {
      return true;
    }
    checked.add(url);
    return true;
  }

  // The file as a Blob, or null.
  async function stored(url) {
    if (memory.has(url)) return memory.get(url);
    try {
      const kept = await (await storage())?.match(url);
      return kept && (await isCurrent(url, kept)) ? await kept.blob() : null;
    } catch {
      return null;
    }
  }

  // Whether the browser keeps it: other files than the `needed` give way where there is no room.
  async function keep(url, blob, headers, needed) {
    const open = await storage();
    const response = () => new Response(blob, { headers: { "x-version": version(headers), "content-length": String(blob.size) } });
    checked.add(url);
    try {
      await open.put(url, response());
      return true;
    } catch {
      try {
        for (const other of await open.keys()) if (!needed.includes(other.url)) await open.delete(other);
        await open.put(url, response());
        return true;
      } catch {
        memory.set(url, blob);
        while (memory.size > 3) memory.delete(memory.keys().next().value);
        return false;
      }
    }
  }

  // The bytes of all kept files.
  async function total() {
    let bytes = [...memory.values()].reduce((sum, blob) => sum + blob.size, 0);
    try {
      const open = await storage();
      for (const request of await open.keys()) bytes += Number((await open.match(request)).headers.get("content-length"));
    } catch {
      // the browser keeps none
    }
    return bytes;
  }

  async function free() {
    memory.clear();
    checked.clear();
    try {
      await caches.delete(STORE);
    } catch {
      // the browser keeps none
    }
  }

  // A file of the `needed` ones, {url, bytes}, as a Blob, and whether the browser keeps it. `progress` hears how many
  // bytes have come so far.
  async function download({ url, bytes }, needed, progress, signal) {
    const parts = [];
    let loaded = 0;
    let headers;
    try {
      const answer = await fetch(url, { cache: "no-store", signal });
      if (!answer.ok) throw new Error((await answer.text()).slice(0, 200) || `HTTP ${answer.status}`);
      headers = answer.headers;
      const reader = answer.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        parts.push(value);
        progress((loaded += value.length));
      }
      const whole = headers.has("content-encoding") ? bytes : Number(headers.get("content-length")) || bytes;
      if (loaded !== whole) throw new Error(say("the connection closed"));
    } catch (problem) {
      if (signal.aborted) throw problem;
      const values = { done: megabytes(loaded), total: megabytes(bytes), problem: problem?.message || String(problem) };
      throw new window.isxDevice.Problem(say("The download stopped after {done} of {total} MB ({problem}). Try again.", values));
    }
    const blob = new Blob(parts, { type: "application/octet-stream" });
    return { blob, isKept: await keep(url, blob, headers, needed.map((file) => file.url)) };
  }

  return { stored, download, total, free, megabytes };
})();
