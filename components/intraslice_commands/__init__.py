"""Commands that `python -m intraslice` has where the page is there."""
