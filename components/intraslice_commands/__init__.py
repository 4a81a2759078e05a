"""Commands of `python -m intraslice` that need the page."""
