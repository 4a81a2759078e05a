"""The Ratios tab: how much every layer gives, why, and whether that was right."""
