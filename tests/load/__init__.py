"""The page under load: many clients of all kinds against an app of its own. Not a test: `python -m tests.load`."""
