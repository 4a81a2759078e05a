"""Saves, loads and exports sliced models. Saved folders import `auto_class`, so its path must not change."""
