"""Workarounds for gradio's half in the browser.

Scripts and styles in `assets/` rely on these names in gradio's page; `tests/browser` fails where one is gone:

- `.gradio-container`, the page (`keys.js`, `lesson/lesson.js`, `tour.js`, `presenter.js`, style sheets);
- `#tabs button[role="tab"]` and `#tabs .overflow-dropdown button`, a tab's two buttons (`page.js`: no event tells the
  browser which tab was opened);
- `#controls.open .toggle-button`, the sidebar's button (`page.js`: gradio opens a sidebar on narrow screens too, and
  its button answers only some moments later);
- `window.gradio_config.root`, the page's address behind a proxy (`awake.js`);
- `element`, `props`, `watch` and `trigger` in the scope of `gr.HTML(js_on_load=...)`, which are documented.
"""
