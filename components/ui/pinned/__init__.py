"""The pinned setting A: its text, its ghosts on charts, and what another one changes of it."""
