"""The pinned setting A: its text, its overlays of charts, and the differences of the current setting from it."""
