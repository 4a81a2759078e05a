"""The frame around the tabs: sidebar, slider, address bar, theme, pinned setting, and their event handlers."""
