"""Every use of gradio's internals, a file for each workaround. Knows no tab."""
