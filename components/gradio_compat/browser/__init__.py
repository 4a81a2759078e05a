"""Workarounds for gradio's frontend.

Scripts and styles in `assets/` rely on these names in gradio's page; `tests/browser` fails where one is gone:

- `.gradio-container`, the page, which panels of ours are added to (`presenter.js`, `tour.js`, `lesson/`);
- `button[role="tab"]` and `.overflow-menu button` in `#tabs`, the tabs' buttons, and those in the menu of a narrow
  screen (`page.js`: no event tells the browser which tab was opened, and none opens one); `[role="tabpanel"]`, a tab's
  content (`presenter.js`);
- `#controls.open .toggle-button`, the sidebar's button (`page.js`: gradio opens a sidebar on narrow screens too, and
  its button answers only some moments later);
- `.block`, the frame of a component (`presenter.js`, `page.css`), and the `input` elements in a slider and a radio;
- `.form`, `.styler`, `.tab-like-container`, `.upload-container` and `footer`, whose looks `page.css` and `outside.css`
  change;
- `document.visibilityState`, by which its client decides when it handles a message (`in_order.js`);
- `window.gradio_config.root`, the page's address behind a proxy (`awake.js`);
- `element`, `props`, `watch` and `trigger` in the scope of `gr.HTML(js_on_load=...)`, which are documented.
"""
