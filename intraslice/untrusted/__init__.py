"""Reads untrusted files within bounds, in part in a separate process."""
