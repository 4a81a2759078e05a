// Runs GGUF files in this browser with wllama, which is llama.cpp compiled to WebAssembly: isx.device.
const CONTEXT = 2048; // tokens of prompt and answer together
const EXACT = { cache_type_k: "f32", cache_type_v: "f32", flash_attn: false }; // by default keys and values are rounded
const SPEED_PROMPT = "The Moon is the only natural satellite of the Earth, and it always shows the same side to us. ".repeat(6);
const SCORED = 100; // likeliest tokens among which one is looked for
const TURNS = 5; // of each model, whose speed is their median
const { say } = isx;
const running = new Map(); // by the file's address: a promise of a wllama with the model

// Its message is a sentence for the user.
class Problem extends Error {}

const reason = (problem) => problem?.message || String(problem);

// Why no model can run here, or nothing.
function unsupported() {
  if (typeof WebAssembly !== "object") return say("This browser does not support WebAssembly, which the models need. Use a newer browser.");
  try {
    new WebAssembly.Memory({ address: "i64", initial: 1n });
  } catch {
    return say("This browser does not support 64-bit WebAssembly memory, which the models need. Use a newer browser.");
  }
  return "";
}

// Models

// Several threads need a page that shares no process with others (cross-origin isolation).
const threads = () => (window.crossOriginIsolated ? Math.max(1, Math.floor((navigator.hardwareConcurrency || 2) / 2)) : 1);

async function start(engine, blob) {
  const problem = unsupported();
  if (problem) throw new Problem(problem);
  const { Wllama } = await import(new URL("index.js", engine)).catch((error) => {
    throw new Problem(say("The WebAssembly files could not be loaded ({problem}). Reload the page.", { problem: reason(error) }));
  });
  // wllama 3.13 does not tell when WebAssembly ends before it has begun, such as for lack of memory; its log does.
  const { promise: failure, reject: fail } = Promise.withResolvers();
  failure.catch(() => {});
  const listen = (...words) => words.join(" ").includes("Aborted(") && fail(new Error(words.join(" ")));
  const logger = { debug: listen, log: listen, warn: listen, error: listen };
  const model = new Wllama({ default: new URL("wllama.wasm", engine).href }, { logger });
  model.setCompat(null); // which would ask another host
  try {
    await Promise.race([failure, model.loadModel([blob], { n_gpu_layers: 0, n_ctx: CONTEXT, n_parallel: 1, n_threads: threads(), ...EXACT })]);
    return model;
  } catch (error) {
    end(model);
    const values = { problem: reason(error) };
    if (/memory|out of|oom/i.test(values.problem)) throw new Problem(say("This device has too little memory for the model ({problem}). Close other tabs and try again.", values));
    throw new Problem(say("The model could not be started on this device ({problem}). Reload the page and try again.", values));
  }
}

// A worker that has failed never answers, also when it is to end.
const end = (wllama) => Promise.race([wllama.exit().catch(() => {}), new Promise((done) => setTimeout(done, 2000))]);

// wllama 3.13 cannot write the log-probabilities of a token that is part of a character, and fails; it is started anew.
const isPartOfCharacter = (problem) => /typed array/i.test(reason(problem));
async function restart(model) {
  end(model.wllama);
  model.wllama = await start(model.engine, model.blob);
}

// A model that is ready to answer: {wllama, engine, blob}; those that are neither it nor in `beside` are closed first.
async function open(engine, url, blob, beside = []) {
  await close([...running.keys()].filter((other) => other !== url && !beside.includes(other)));
  if (!running.has(url)) running.set(url, start(engine, blob).then((wllama) => ({ wllama, engine, blob })));
  return running.get(url).catch((problem) => {
    running.delete(url);
    throw problem;
  });
}

async function close(urls = [...running.keys()]) {
  for (const url of urls) {
    const model = running.get(url);
    running.delete(url);
    await model?.then(({ wllama }) => end(wllama), () => {});
  }
}

// Asks for what follows the prompt, or an answer's beginning `before`; with the log-probabilities of the `top` likeliest tokens.
function ask({ wllama }, options, { prompt, chat, before = "", top = 0 }) {
  if (!chat) return wllama.createCompletion({ ...options, ...(top && { logprobs: top, n_probs: top }), prompt: prompt + before });
  const messages = [{ role: "user", content: prompt }, ...(before ? [{ role: "assistant", content: before }] : [])];
  return wllama.createChatCompletion({ ...options, ...(top && { logprobs: true, top_logprobs: top }), messages });
}

// Answers a prompt: {tokens, text, count, ended, timings}. A token has `id`, `bytes`, `text`, `logprob` and `top`, the
// likeliest tokens at its place; where the text has parts of characters, `tokens` ends before the first of them. `told`
// is called with the tokens, and then with the text, after each. Sampling is from the whole distribution.
async function complete(model, { prompt, maxTokens, temperature = 0, seed = 0, chat = false, top = 10, signal }, told = () => {}) {
  const request = { max_tokens: maxTokens, temperature, seed, top_k: 0, top_p: 1, min_p: 0, cache_prompt: false, abortSignal: signal, stream: true };
  const tokens = [];
  let whole = null; // the text, where it is not that of the tokens
  let ended = false;
  let timings = null;

  async function run(withProbabilities) {
    const stream = await ask(model, request, { prompt, chat, top: withProbabilities ? top : 0 });
    for await (const { choices, timings: measured } of stream) {
      timings = measured ?? timings;
      for (const choice of choices ?? []) {
        if (withProbabilities) for (const token of choice.logprobs?.content ?? []) tokens.push(described(token));
        else whole += choice.text ?? choice.delta?.content ?? "";
        if (choice.finish_reason === "stop") ended = true;
      }
      told(tokens, whole);
    }
  }

  try {
    await run(true).catch(async (problem) => {
      if (signal?.aborted || !isPartOfCharacter(problem)) throw problem;
      await restart(model);
      whole = "";
      await run(false);
    });
  } catch (problem) {
    if (!signal?.aborted) throw stopped(problem);
  }
  return { tokens, text: whole ?? text(tokens), count: timings?.predicted_n ?? tokens.length, ended, timings };
}

// The log-probabilities that a model gives to the tokens of another model's answer to the same prompt: of each after
// those before it; undefined where it is not among the likeliest, or where the text before it is read as other tokens. `told` is called with all of them after each.
async function score(model, { prompt, chat = false, signal }, tokens, told = () => {}) {
  const request = { max_tokens: 1, temperature: 0, cache_prompt: true, abortSignal: signal };
  const scored = [];
  let length; // of the prompt in tokens
  try {
    for (let at = 0; at < tokens.length && !signal?.aborted; at++) {
      const before = text(tokens.slice(0, at));
      const { choices, usage } = await ask(model, request, { prompt, chat, before, top: SCORED });
      length ??= usage.prompt_tokens;
      // The text may be read as other tokens than those of the answer.
      const likeliest = usage.prompt_tokens === length + at ? choices[0].logprobs?.content?.[0]?.top_logprobs ?? [] : [];
      scored.push(likeliest.find(({ id }) => id === tokens[at].id)?.logprob);
      told(scored);
    }
  } catch (problem) {
    if (signal?.aborted) return scored;
    if (!isPartOfCharacter(problem)) throw stopped(problem);
    await restart(model); // the rest has no numbers
  }
  return scored;
}

// Prefill and decode in tokens per second, by model, the models alternating.
async function speeds(models, signal) {
  const times = Object.keys(models).map((name) => [name, []]);
  for (let turn = 0; turn < TURNS; turn++) {
    for (const [name, found] of times) {
      const { timings } = await complete(models[name], { prompt: SPEED_PROMPT, maxTokens: 24, top: 1, signal });
      if (!timings) return null;
      found.push(timings);
    }
  }
  const median = (found, kind) => found.map((timings) => timings[kind]).sort((one, other) => one - other)[TURNS >> 1];
  return Object.fromEntries(times.map(([name, found]) => [name, { prefill: median(found, "prompt_per_second"), decode: median(found, "predicted_per_second") }]));
}

const stopped = (problem) => new Problem(say("The model stopped ({problem}). Try a shorter prompt.", { problem: reason(problem) }));
const described = ({ id, bytes, logprob, top_logprobs }) => ({ id, bytes, logprob, text: text([{ bytes }]), top: (top_logprobs ?? []).map((one) => ({ ...one, text: text([one]) })) });

// Tokens may end inside a character, hence the bytes.
const text = (tokens) => new TextDecoder().decode(Uint8Array.from(tokens.flatMap(({ bytes }) => bytes)));

isx.device = { Problem, unsupported, open, close, complete, score, speeds, text, threads };
