"""Several processes that do one job: how they meet, and how they share its work."""
