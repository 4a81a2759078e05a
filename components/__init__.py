"""The page: a folder for every tab, and what they share in `session`, `ui` and `page`."""
