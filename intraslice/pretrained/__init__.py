"""Where weights come from, and whether they fit."""
