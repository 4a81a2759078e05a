"""Files in `assets/` with measurements of the default model, which the page shows when it opens."""
