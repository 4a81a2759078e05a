"""Jobs of all sessions: the scheduler, what each session has running, and the limits."""
