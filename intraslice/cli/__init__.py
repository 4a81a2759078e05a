"""The command line: what may be said, one run of it, and what each command answers."""
