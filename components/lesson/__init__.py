"""The lesson: ten questions on the live page. Its panel is in `assets/lesson/`."""
