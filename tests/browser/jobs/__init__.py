"""What jobs leave on the page in a real browser."""
