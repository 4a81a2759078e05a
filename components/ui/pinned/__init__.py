"""The pinned setting A: its text, its ghosts on charts, and the differences of the current setting from it."""
