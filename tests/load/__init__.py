"""The page under load: many clients against an app of its own. Not a test: `python -m tests.load`."""
