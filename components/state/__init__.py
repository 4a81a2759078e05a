"""State shared by all tabs: sessions, requests, caches, calibrations and precomputed results."""
