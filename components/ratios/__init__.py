"""The Ratios tab: pruning ratio per layer, the importances behind it, and how well they predict the damage."""
