"""State that all tabs share, and the only door to the library's models."""
