"""The page in a real browser. A package, so that its app and its browser end with its last test."""
