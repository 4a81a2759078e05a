"""The leaderboard on the Sweep tab: methods at equal parameters, measured before, on several models and texts."""
