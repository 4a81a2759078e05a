"""Every use of gradio's internals: one file per workaround, so that nothing else of the page depends on them.

Each file says which behaviour of gradio it works around and with which versions it was tried. Beside the test of our
own behaviour in `tests/page/gradio_compat/` (for the browser `tests/browser/test_browser_gradio.py`) stands one that
shows it in plain gradio: its name begins with `test_plain_gradio_`. Once that one fails, gradio no longer needs the
file. `requirements.txt` bounds gradio by the next minor version; CONTRIBUTING.md says how a new one is tried.

Which parts of gradio's page our scripts and styles rely on is listed in `browser/__init__.py`.
"""
