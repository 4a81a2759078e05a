"""The Compare tab: the dense, sliced and cross-module models, and that of the pinned setting, answer one prompt."""
