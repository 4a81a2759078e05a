"""The frame around the tabs: sidebar, slider, address bar, theme, and what happens when somebody does something."""
