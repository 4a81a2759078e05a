"""Jobs of all sessions: the scheduler with its threads and turns, what each session has running, and the limits."""
