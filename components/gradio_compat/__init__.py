"""Every use of gradio's internals, so that nothing else of the page depends on them.

Each file names the behaviour of gradio that it works around, the versions it was tried with, and its tests: in
`tests/page/gradio_compat/` (for the browser `tests/browser/test_browser_gradio.py`) a test whose name begins with
`test_plain_gradio_` shows the problem in plain gradio. Once that test fails, the workaround can be removed.
They run where gradio is not the version with which they passed last. `requirements.txt` bounds gradio by the next
minor version; CONTRIBUTING.md says how a new one is tried.

Which parts of gradio's page our scripts and styles rely on is listed in `browser/__init__.py`.
"""
