"""The Ratios tab: pruning ratio per layer, and the importances behind it."""
