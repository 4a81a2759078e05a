"""The page: panels, charts and the one file that calls the library (`session.py`)."""
