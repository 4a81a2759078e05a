"""State shared by all tabs, and the only access to the library's models."""
