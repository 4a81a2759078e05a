// A published site (components/export/site.py): its models answer in the reader's browser. It stands before page.js. Scripts call
// window.intraslice.generate({sparsity, prompt, maxTokens, chat}), which resolves to {text, tokensPerSecond}.
isx.site = ({ steps, models, engine, about }) => {
  const { say } = isx;
  const fromDisk = location.protocol === "file:" ? say("Browsers cannot run models in a page that was opened from disk. Serve its folder, for example with “python -m http.server”, and open it from there.") : "";

  const panel = isx.devicePanel(at("device-panel"), {
    prepare: async (setting) => setting,
    question: () => ({ prompt: at("own").value, maxTokens: 64, chat: true }),
  });

  const setting = (...files) => isx.device.setting({ engine, about, problem: fromDisk, files });
  const follow = () => panel.set(setting(...new Set([nearest(models, 0), nearest(models, steps[slider.value].percent)])));

  window.intraslice = {
    generate({ sparsity = 0, prompt, maxTokens = 64, chat = false }) {
      const model = nearest(models, 100 * sparsity);
      if (Math.abs(model.percent - 100 * sparsity) > 1e-6) return Promise.reject(new RangeError(`sparsity must be one of ${models.map(({ percent }) => percent / 100).join(", ")}, got ${sparsity}`));
      return panel.exclusive(async (signal) => {
        const [found] = await panel.fetchAll(signal, setting(model));
        const opened = await panel.start([found], found.name);
        const { text, timings } = await isx.device.complete(opened, { prompt, maxTokens, chat, signal });
        return { text, tokensPerSecond: timings?.predicted_per_second ?? null };
      });
    },
  };

  window.addEventListener("isx-step", follow);
  follow();
};
